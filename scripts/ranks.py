"""Train the same run on 1, 2 and 4 processes, and go on with another number of them than it was begun on (gloo, CPU).

    python scripts/ranks.py --folder DIR

Prints the largest difference of a parameter from the run on one process, in double precision; exits with status 1 if
one is more than 10⁻⁶.
The runs that go on start in the middle of the second epoch, from a checkpoint of the run on two processes.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SETTINGS = [
    *("learner=imaml", "shots=3", "tasks.query=3", "tasks.count=16", "tasks.per_step=2", "tasks.validation=2"),
    *("data=synthetic", "data.size=32", "data.augment=standard", "model.features=2", "model.norm=running"),
    *("start=model", "protocol.inner.steps=2", "learner.adapt.steps=2", "protocol.adapt.folds=0", "evaluation.draws=2"),
    *("evaluation.limit=4", "evaluation.curve=[0,1]", "evaluation.curve_limit=4", "evaluation.scratch.compare=false"),
    # Four outer steps an epoch; the last checkpoint but one is that of the sixth.
    *("logger=csv", "trainer.max_epochs=2", "trainer.save_every=3", "trainer.progress=false"),
    # In float32, Adam turns the rounding of near-zero gradients into steps of its full length.
    "trainer.precision=64-true",
]
RANKS = (1, 2, 4)
LARGEST = 1e-6
"""Rounding, as a run that goes on starts from weights that Lightning has rounded to float32."""


def main() -> None:
    """Print a line for each run but the first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the runs go; must not exist")
    folder: Path = parser.parse_args().folder.absolute()
    folder.mkdir(parents=True)
    for ranks in RANKS:
        _train(folder / f"{ranks}", ranks)
    begun = folder / "2" / "checkpoints" / "previous.ckpt"
    for ranks in (1, 4):
        run = folder / f"2-then-{ranks}"
        (run / "checkpoints").mkdir(parents=True)
        shutil.copy(begun, run / "checkpoints" / "last.ckpt")
        for name in ("config.yaml", "metrics.csv"):
            shutil.copy(folder / "2" / name, run)
        _train(run, ranks, "ckpt_path=last")
    found = {run.name: _difference(folder / "1", run) for run in sorted(folder.iterdir()) if run.is_dir()}
    for name, difference in found.items():
        print(f"processes {name:<9} largest difference {difference:.1e}")
    sys.exit(max(found.values()) > LARGEST)


def _train(run: Path, ranks: int, *more: str) -> None:
    how = ["trainer=cpu"] if ranks == 1 else ["trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={ranks}"]
    command = [sys.executable, str(ROOT / "train.py"), *how, *SETTINGS, *more, f"hydra.run.dir={run}"]
    # One thread each: the rounding of another number of threads would show.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with run.with_suffix(".log").open("w") as log:
        subprocess.run(command, cwd=run.parent, env=environment, stdout=log, stderr=log, check=True)


def _difference(one: Path, other: Path) -> float:
    import torch

    first, second = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in (one, other)
    )
    return max(float((first[name] - second[name]).abs().max()) for name in first)


if __name__ == "__main__":
    main()

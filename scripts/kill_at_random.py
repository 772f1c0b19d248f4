"""Kill a run without warning at random moments of each phase, continue it, and compare it with one that was not killed.

    python scripts/kill_at_random.py --times 20 --folder /tmp/kills

Each time a small run on synthetic images is killed, by a signal it cannot see, at a random moment of a random call of
the phase, then the same command is repeated, with ckpt_path=last if it left a checkpoint. The run has to end with
bitwise the same weights, losses and scores. Processes are forked from one that has imported everything.
"""

import argparse
import csv
import json
import multiprocessing
import os
import random
import runpy
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

PHASES = {
    "preparing": "metaseg.data.module:EpisodicData.setup",
    "training": "metaseg.training.outer:MetaTraining.training_step",
    "validating": "metaseg.training.outer:MetaTraining.validation_step",
    "checkpointing": "metaseg.training.last_checkpoint:LastCheckpoint._save",
    "testing": "metaseg.training.run:score",
    "writing results": "metaseg.training.run:summarise",
}
"""Phase → the function whose calls it consists of."""

SETTINGS = [
    *("learner=fomaml", "shots=3", "tasks.query=3", "tasks.count=12", "tasks.validation=2", "data=synthetic"),
    *("data.size=32", "data.augment=standard", "model.features=2", "start=model", "protocol.free_steps=1"),
    *("learner.adapt.steps=2", "protocol.adapt.folds=0", "evaluation.draws=2", "evaluation.limit=8"),
    *("evaluation.curve=[0,1]", "evaluation.curve_limit=4", "evaluation.scratch.compare=false", "trainer=cpu"),
    *("trainer.max_epochs=2", "trainer.save_every=2", "trainer.progress=false", "logger=csv"),
]


def main() -> None:
    """Print a line for each phase; exit with status 1 if a run did not come back."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20, help="kills in each phase")
    parser.add_argument("--folder", type=Path, required=True, help="where the runs go; must not exist")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["metaseg.training.run", "metaseg.cli.commands"])
    moments = random.Random(options.seed)
    whole = options.folder / "whole"
    _ran(server, whole, [], _Nothing())
    expected, failed = _traces(whole), 0
    for phase, where in PHASES.items():
        ended: Counter[str] = Counter()
        calls = _measured(server, options.folder / f"{phase}-measured", where)
        for number in range(options.times):
            index = moments.randrange(len(calls))
            folder = options.folder / f"{phase}-{number}"
            status = _ran(server, folder, [], _Bomb(where, index, calls[index] * moments.random()))
            killed = status == -signal.SIGALRM
            resumed = (folder / "checkpoints" / "last.ckpt").is_file()
            finished = (folder / "result.json").is_file()
            status = 0 if finished else _ran(server, folder, ["ckpt_path=last"] if resumed else [], _Nothing())
            same = status == 0 and _traces(folder) == expected
            ended["the same" if same else "DIFFERENT"] += 1
            ended["killed"] += killed
            failed += not same
        print(f"{phase}: {ended['the same']} of {options.times} the same, {ended['killed']} killed", flush=True)
    sys.exit(1 if failed else 0)


class _Nothing:
    def __call__(self) -> None:
        """Leave the run alone."""


class _Around:
    """Calls `begin` at the start of each call of a function, and `end` after it."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __call__(self) -> None:
        """Wrap the function."""
        module, _, path = self.where.partition(":")
        place: Any = import_module(module)
        *outer, name = path.split(".")
        for one in outer:
            place = getattr(place, one)
        usual: Callable[..., Any] = getattr(place, name)

        def around(*arguments: Any, **named: Any) -> Any:
            self.begin()
            found = usual(*arguments, **named)
            self.end()
            return found

        setattr(place, name, around)

    def begin(self) -> None:
        """At the start of a call."""

    def end(self) -> None:
        """After it."""


class _Clock(_Around):
    """Writes the seconds of each call to a file."""

    def __init__(self, where: str, file: Path) -> None:
        super().__init__(where)
        self.file = file

    def begin(self) -> None:
        self.began = time.perf_counter()

    def end(self) -> None:
        with self.file.open("a") as file:
            file.write(f"{time.perf_counter() - self.began}\n")


class _Bomb(_Around):
    """Kills the process some seconds after the start of a call."""

    def __init__(self, where: str, index: int, delay: float) -> None:
        super().__init__(where)
        self.index, self.delay, self.calls = index, delay, 0

    def begin(self) -> None:
        if self.calls == self.index:
            # Without a handler this ends the process as SIGKILL would, in the middle of whatever it does.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, max(self.delay, 1e-6))
        self.calls += 1


def _measured(server: Any, folder: Path, where: str) -> list[float]:
    file = folder.with_suffix(".seconds")
    _ran(server, folder, [], _Clock(where, file))
    return [float(line) for line in file.read_text().split()]


def _ran(server: Any, folder: Path, more: list[str], before: Callable[[], None]) -> int:
    """The exit status of the run in a process of its own."""
    process = server.Process(target=_run, args=(folder, more, before))
    process.start()
    process.join()
    return int(process.exitcode)


def _run(folder: Path, more: list[str], before: Callable[[], None]) -> None:
    import torch

    torch.set_num_threads(1)
    with folder.with_suffix(".log").open("a") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    os.chdir(folder.parent)
    before()
    sys.argv = ["train.py", *SETTINGS, f"hydra.run.dir='{folder}'", *more]
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


def _traces(folder: Path) -> Any:
    """All that a run leaves, without what is measured in seconds."""
    import torch

    result = json.loads((folder / "result.json").read_text())["targets"]
    for scores in result.values():
        scores.pop("seconds")
    with (folder / "metrics.csv").open() as file:
        metrics = list(csv.DictReader(file))
    state = {
        name: value.tolist()
        for name, value in torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"].items()
    }
    return result, metrics, (folder / "per_image.csv").read_text(), state


if __name__ == "__main__":
    main()

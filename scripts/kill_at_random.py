"""Kill a run without warning at random moments of each phase, continue it, and compare it with one that was not killed.

    python scripts/kill_at_random.py --times 20 --folder /tmp/kills

Each time a small run on painted images is killed, by a signal it cannot see, at a random moment of a random call of
the phase, then the same command is repeated, with ckpt_path=last if it left a checkpoint. The run has to end with
bitwise the same weights, losses and scores. Processes are forked from one that has imported everything.

The last phase is a sweep of three cells on two slots, started as its users start it. At a random moment its launcher
is killed, every other time with all cells. The same command is repeated until none of its cells is left to run.
"""

import argparse
import csv
import itertools
import json
import multiprocessing
import os
import random
import runpy
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

PHASES = {
    "preparing": "metaseg.data.module:EpisodicData.prepare_data",
    "training": "metaseg.training.outer:MetaTraining.training_step",
    "validating": "metaseg.training.outer:MetaTraining.validation_step",
    "checkpointing": "metaseg.training.last_checkpoint:LastCheckpoint._save",
    "testing": "metaseg.training.run:score",
    "writing results": "metaseg.training.run:summarise",
}
"""Phase → the function whose calls it consists of."""
SWEEP = "sweep"
SWEPT = 3
"""Cells of a sweep."""

SETTINGS = [
    *("learner=fomaml", "shots=3", "tasks.query=3", "tasks.count=4", "tasks.validation=1", "data=real", "data.size=32"),
    *("data.augment=standard", "model.features=2", "start=model", "protocol.inner.steps=1", "protocol.free_steps=1"),
    *("learner.adapt.steps=2", "protocol.adapt.folds=0", "evaluation.draws=2", "evaluation.limit=4", "trainer=cpu"),
    *("evaluation.curve=[0,1]", "evaluation.curve_limit=4", "evaluation.scratch.compare=false", "logger=csv"),
    *("trainer.max_epochs=2", "trainer.save_every=1", "trainer.progress=false"),
]
DATASETS = ("ph2", "kvasir", "isic")
"""Of the default pair and target."""


def main() -> None:
    """Print a line for each phase; exit with status 1 if a run did not come back."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20, help="kills in each phase")
    parser.add_argument("--folder", type=Path, required=True, help="where the runs go; must not exist")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    phases = [*PHASES, SWEEP]
    parser.add_argument("--only", nargs="+", choices=phases, default=phases, metavar="PHASE", help=", ".join(phases))
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    folder = options.folder.absolute()
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["metaseg.training.run", "metaseg.cli.commands", "albumentations"])
    for name in DATASETS:
        painted = ["paint", name, "--count", "32", "--size", "64", "--out", str(folder / "data" / name)]
        subprocess.run([sys.executable, "-m", "metaseg", "data", *painted], cwd=ROOT, check=True, capture_output=True)
    moments, failed = random.Random(options.seed), 0
    for phase in options.only:
        kills = _sweeps(folder, moments) if phase == SWEEP else _runs(server, folder, phase, moments)
        ended = Counter[str]()
        for _, (killed, same) in zip(range(options.times), kills, strict=False):
            ended["the same" if same else "DIFFERENT"] += 1
            ended["killed"] += killed
        failed += ended["DIFFERENT"]
        print(f"{phase}: {ended['the same']} of {options.times} the same, {ended['killed']} killed", flush=True)
    sys.exit(1 if failed else 0)


def _runs(server: Any, root: Path, phase: str, moments: random.Random) -> Iterator[tuple[bool, bool]]:
    """Kill run after run in a phase; yields whether each was killed in time, and whether it came back the same."""
    whole = root / "whole"
    if not whole.exists():
        _ran(server, whole, [], _Nothing())
    expected = _traces(whole)
    calls = _measured(server, root / f"{phase}-measured", PHASES[phase])
    for number in itertools.count():
        index = moments.randrange(len(calls))
        folder = root / f"{phase}-{number}"
        status = _ran(server, folder, [], _Bomb(PHASES[phase], index, calls[index] * moments.random()))
        resumed = (folder / "checkpoints" / "last.ckpt").is_file()
        finished = (folder / "result.json").is_file()
        again = 0 if finished else _ran(server, folder, ["ckpt_path=last"] if resumed else [], _Nothing())
        yield status == -signal.SIGALRM, again == 0 and _traces(folder) == expected


def _sweeps(root: Path, moments: random.Random) -> Iterator[tuple[bool, bool]]:
    """Kill sweep after sweep, like `_runs`."""
    began = time.monotonic()
    _sweep(root / "whole-sweep").wait()
    seconds = time.monotonic() - began
    cells = [path.name for path in sorted((root / "whole-sweep").glob("seed=*"))]
    expected = [_traces(root / "whole-sweep" / cell) for cell in cells]
    if len(cells) != SWEPT:
        raise SystemExit(f"error: the sweep left {len(cells)} cells, expected {SWEPT}; see {root / 'whole-sweep.log'}")
    for number in itertools.count():
        folder = root / f"sweep-{number}"
        process = _sweep(folder)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds * moments.random())
        killed = process.poll() is None
        if killed:
            cells_too = _children(process.pid) if number % 2 else []
            for one in [process.pid, *cells_too]:
                with suppress(ProcessLookupError):
                    os.kill(one, signal.SIGKILL)
        process.wait()
        # Cells that outlive their launcher cannot be continued until they end.
        for _ in range(20):
            if _sweep(folder).wait() == 0:
                break
        finished = all((folder / cell / "result.json").is_file() for cell in cells)
        yield killed, finished and [_traces(folder / cell) for cell in cells] == expected


def _children(process: int) -> list[int]:
    """Process numbers, on Linux."""
    return [int(one) for file in Path(f"/proc/{process}/task").glob("*/children") for one in file.read_text().split()]


def _sweep(folder: Path) -> subprocess.Popen[bytes]:
    """A sweep of three cells on two slots."""
    where = [f"data.root='{folder.parent / 'data'}'", f"hydra.sweep.dir='{folder}'"]
    launcher = ["hydra.launcher.slots=2", "hydra.launcher.threads=1"]
    with folder.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), "-m", f"seed=range({SWEPT})", *SETTINGS, *where, *launcher],
            cwd=folder.parent,
            env=os.environ | {"METASEG_CACHE": str(folder.with_suffix(".cache"))},
            stdout=log,
            stderr=log,
        )


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
    import yaml

    from metaseg.plots import figures

    torch.set_num_threads(1)
    yaml.SafeLoader, figures.DOTS = yaml.CSafeLoader, 20  # half of such a run's time
    with folder.with_suffix(".log").open("a") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    os.chdir(folder.parent)
    before()
    os.environ["METASEG_CACHE"] = str(folder.with_suffix(".cache"))
    sys.argv = ["train.py", *SETTINGS, f"data.root='{folder.parent / 'data'}'", f"hydra.run.dir='{folder}'", *more]
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

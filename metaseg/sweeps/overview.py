"""The progress of a sweep, read from its directory while it runs or later."""

from __future__ import annotations

import enum
import json
import os
import re
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from metaseg.documents import read_json
from metaseg.errors import MetasegError
from metaseg.runs.directory import RunDirectory, holding, locked
from metaseg.sweeps.jobs import LOG, claimed, last_line
from metaseg.sweeps.slurm import FOLDER as SLURM
from metaseg.system import replacing

_FAILURE = re.compile(r"error: (?!Interrupted;)|[\w.]*(Error|Exception)\b")
"""Last line of a cell that ended with a sentence or a traceback, and was not ended by Ctrl+C."""
CELLS = "cells.json"
"""File in a sweep's directory: the names of all cells that were ever asked for there."""


class Phase(enum.Enum):
    """Where a cell is."""

    FINISHED = "finished"
    RUNNING = "running"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    WAITING = "waiting"


@dataclass(frozen=True)
class CellState:
    """A cell as its directory shows it.

    Attributes:
        name: of the cell.
        phase: where it is.
        detail: its Dice, the last line of its log, or what it waits for.
        seconds: that it took, if finished.
    """

    name: str
    phase: Phase
    detail: str
    seconds: float = 0.0


def remember(root: Path, names: Sequence[str]) -> None:
    """Add the names of a sweep's cells to `CELLS`, so that those that wait are seen too."""
    root.mkdir(parents=True, exist_ok=True)
    with replacing(root / CELLS) as path:
        path.write_text(json.dumps(list(dict.fromkeys([*_remembered(root), *names])), indent=0), encoding="utf-8")


def read_cells(root: Path) -> list[CellState]:
    """The cells of a sweep, in its order.

    Args:
        root: the sweep's directory, or any folder of runs.

    Raises:
        MetasegError: if the folder does not exist or holds no runs.
    """
    if not root.is_dir():
        raise MetasegError(f"Expected the folder of a sweep, found none at {root}.")
    files = ("config.yaml", LOG, "result.json")  # of stored cells only the last is kept
    found = [path.relative_to(root).as_posix() for file in files for path in holding(root, file)]
    names = list(dict.fromkeys([*_remembered(root), *found]))
    if not names:
        raise MetasegError(f"Expected the folder of a sweep, found no runs in {root}.")
    waits_for = "for its Slurm job" if (root / SLURM).is_dir() else "for a slot"
    return [_state(name, RunDirectory(root / name), waits_for) for name in names]


def seconds_left(cells: Sequence[CellState]) -> float | None:
    """Seconds until all cells have finished if each takes as long as those that have; None if nothing runs or has."""
    took = [one.seconds for one in cells if one.phase is Phase.FINISHED and one.seconds]
    running = sum(one.phase is Phase.RUNNING for one in cells)
    waiting = sum(one.phase is Phase.WAITING for one in cells)
    if not took or not running:
        return None
    # Those that run are halfway on average.
    return sum(took) / len(took) * (waiting + running / 2) / running


def _state(name: str, directory: RunDirectory, waits_for: str) -> CellState:
    with suppress(MetasegError):
        result = directory.read_result()
        scores = [(target, one.dsc.mean) for target, one in result.targets.items() if one.dsc.mean is not None]
        said = ", ".join(f"{target} {100 * mean:.1f} %" for target, mean in scores)
        return CellState(name, Phase.FINISHED, said, result.wall_seconds or 0.0)
    if directory.is_finished_start:
        return CellState(name, Phase.FINISHED, "a start that learners share", 0.0)
    line = last_line(directory.path / LOG)
    holder, in_a_sweep = directory.holder(), claimed(directory.path)
    if in_a_sweep or locked(directory.start_lock) or (holder is not None and _lives(*holder, in_a_sweep)):
        return CellState(name, Phase.RUNNING, f"{_age(directory)} {line}".strip())
    if _FAILURE.match(line):
        return CellState(name, Phase.FAILED, line.removeprefix("error: "))
    if holder is not None or directory.checkpoints.is_dir() or line:
        alone = in_a_sweep is None and not directory.start_lock.is_file()
        again = "ckpt_path=last continues it" if alone else "repeat the command to continue"
        return CellState(name, Phase.INTERRUPTED, f"{again}; {_age(directory)} {line}".strip())
    return CellState(name, Phase.WAITING, waits_for)


def _lives(host: str, process: int, in_a_sweep: bool | None) -> bool:
    """Whether a process runs.

    A process on another machine counts as running, unless a sweep started it and no sweep holds its cell any more. On
    Windows this goes for every process, because asking the system would end it.
    """
    if host != socket.gethostname() or os.name == "nt":
        return in_a_sweep is None
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _age(directory: RunDirectory) -> str:
    """When the run wrote last."""
    times = [path.stat().st_mtime for path in (directory.metrics, directory.path / LOG) if path.is_file()]
    return f"wrote {time.time() - max(times):.0f} s ago;" if times else ""


def _remembered(root: Path) -> list[str]:
    try:
        names = read_json(root / CELLS)
    except (OSError, ValueError):
        return []
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []

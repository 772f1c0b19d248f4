"""The status of a cell, read from its directory: finished, begun, new, or run with different settings."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaseg.errors import MetasegError
from metaseg.runs.directory import RunDirectory
from metaseg.runs.settings import WITHOUT_EFFECT, changed

_NOT_COMPARED = (*WITHOUT_EFFECT, "scale", "protocol", "pair.target", "ckpt_path")
"""Settings without effect, those that only feed into others, which are compared, and the one that resumes a run."""


class State(enum.Enum):
    """The state of a cell's directory."""

    FINISHED = "finished"
    BEGUN = "begun"
    NEW = "new"
    OTHER = "other settings"


@dataclass(frozen=True)
class Status:
    """The status of a cell; `steps`: outer steps already taken; `differences`: settings that differ, as text."""

    state: State
    steps: int = 0
    differences: tuple[str, ...] = ()


def status_of(directory: RunDirectory, settings: Mapping[str, Any]) -> Status:
    """The status of the cell in `directory`, given its resolved `settings`.

    A setting that only one of the two has was added or removed between versions and is ignored here; the report names
    those that can change a score.

    Raises:
        MetasegError: if the settings of a run that was begun cannot be read.
    """
    try:
        result = directory.read_result()
    except MetasegError:  # missing, or damaged and to be recreated
        result = None
    if result is not None:
        apart = changed(result.settings, settings, _NOT_COMPARED)
        return Status(State.OTHER, differences=apart) if apart else Status(State.FINISHED)
    last = directory.last
    if last.is_file() and directory.config.is_file():
        apart = changed(directory.read_config(), settings, _NOT_COMPARED)
        return Status(State.OTHER, differences=apart) if apart else Status(State.BEGUN, steps=_steps(last))
    return Status(State.NEW)


def _steps(checkpoint: Path) -> int:
    from metaseg.learners.checkpoints import read_checkpoint

    try:
        return int(read_checkpoint(checkpoint, mmap=True)["global_step"])
    except (MetasegError, LookupError, TypeError, ValueError):  # damaged: resuming the run reports the problem
        return 0

"""How a cell stands: finished, begun, not begun, or in the way of what is asked for. Read from its directory alone."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from metaseg.errors import MetasegError
from metaseg.runs.directory import RunDirectory
from metaseg.runs.settings import WITHOUT_EFFECT, leaves, within

_MADE_INTO_OTHERS = ("scale", "protocol", "pair.target", "ckpt_path")
"""Settings that others are made of, which are compared themselves; and that by which a run is continued."""


class Kind(enum.Enum):
    """What there is in a cell's directory."""

    FINISHED = "finished"
    BEGUN = "begun"
    NEW = "new"
    OTHER = "other settings"


@dataclass(frozen=True)
class Standing:
    """How a cell stands; `steps`: outer steps already taken; `differences`: sentences on settings that differ."""

    kind: Kind
    steps: int = 0
    differences: tuple[str, ...] = ()


def standing(directory: RunDirectory, settings: Mapping[str, Any]) -> Standing:
    """How the cell in `directory` stands towards resolved `settings`.

    A setting that only one of the two has was added to or dropped from the program since, and decides nothing.
    """
    try:
        result = directory.read_result()
    except MetasegError:  # missing, or damaged: then it is made anew
        result = None
    if result is not None:
        apart = differences(result.settings, settings)
        return Standing(Kind.OTHER, differences=apart) if apart else Standing(Kind.FINISHED)
    last = directory.checkpoints / "last.ckpt"
    if last.is_file() and directory.config.is_file():
        apart = differences(OmegaConf.to_container(OmegaConf.load(directory.config)), settings)  # type: ignore[arg-type]
        return Standing(Kind.OTHER, differences=apart) if apart else Standing(Kind.BEGUN, steps=_steps(last))
    return Standing(Kind.NEW)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, ...]:
    """`key=new (was old)` for each setting that both have with different values and that matters."""
    before, after = leaves(old), leaves(new)
    return tuple(
        f"{key}={after[key]} (was {before[key]})"
        for key in before
        if key in after and before[key] != after[key] and not within(key, (*WITHOUT_EFFECT, *_MADE_INTO_OTHERS))
    )


def _steps(checkpoint: Path) -> int:
    import torch

    try:
        return int(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["global_step"])
    except Exception:  # damaged: what is wrong with it is told when it is continued from
        return 0

"""Resolved settings as paths, `trainer.max_epochs` → value, and which of them cannot change what a run finds."""

from collections.abc import Iterable, Mapping
from typing import Any

from metaseg.errors import MetasegError

WITHOUT_EFFECT = (
    "data.root",
    "data.workers",
    "logger",
    "evaluation.compress",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.strategy",
    "trainer.progress",
    "trainer.save_every",
)
"""Settings, and groups of them, that say where and how a run is carried out."""


def leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level: `trainer.max_epochs` → value; lists stay values."""
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    return {
        key: value
        for name, branch in tree.items()
        for key, value in leaves(branch, f"{prefix}.{name}".strip(".")).items()
    }


def within(path: str, groups: Iterable[str]) -> bool:
    """Whether a path is one of `groups`, or lies in one of them."""
    return any(path == group or path.startswith(f"{group}.") for group in groups)


_HEAD_ALONE = r"^(decoder1|conv)\."
"""What `learner.adapts` was for ANIL, before parts had step sizes of their own."""


def upgraded(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a run of an earlier version as this one reads them.

    Raises:
        MetasegError: where they say what this version cannot do.
    """
    found = dict(settings)
    learner = found["learner"] = dict(found["learner"])
    learner.pop("warmup", None)  # share of the outer steps that were joint training, before start=joint
    adapts = learner.pop("adapts", None)
    if adapts is None:
        return found
    if adapts != _HEAD_ALONE:
        raise MetasegError(
            f"Expected a run whose parts adapt by learner.adapt.rates, found one of an earlier version with "
            f"learner.adapts={adapts!r}, which no choice of encoder, decoder and head equals: train it again."
        )
    for loop in ("inner", "adapt"):
        learner[loop] = {**learner[loop], "rates": {"encoder": 0, "decoder": 0, "head": 1}}
    return found

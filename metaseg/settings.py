"""Resolved settings as paths, `trainer.max_epochs` → value, and which of them cannot change what a run finds."""

from collections.abc import Iterable, Mapping
from typing import Any

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

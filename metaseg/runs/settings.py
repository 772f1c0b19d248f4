"""Resolved settings as paths, `trainer.max_epochs` → value, and the settings that cannot affect a result."""

from collections.abc import Iterable, Mapping
from typing import Any

from metaseg.errors import MetasegError, quoted

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
"""Settings and groups that only determine where and how a run is executed."""

CHANGEABLE = (
    *WITHOUT_EFFECT,
    *("trainer.max_epochs", "trainer.max_passes", "trainer.stop_by", "trainer.patience", "trainer.min_delta"),
    *("trainer.max_skips", "trainer.skip_norm"),
    *("train", "ckpt_path", "target", "pair.target", "evaluation", "learner.adapt"),
    *("adapt", "protocol", "scale", "starts", "model.recipe"),
)
"""Settings and groups that may change when a run is resumed: those of its end and its test, and those that only feed
into others."""

RETIRED: dict[str, Any] = {
    "learner.inner.precision": "float32",
    "learner.inner.compile": False,
    "learner.adapt.by": "recipe",
}
"""Removed settings → the value that matches what this version does; runs with another value are refused."""


def without_retired(stored: Mapping[str, Any], where: object = "a run's settings", prefix: str = "") -> dict[str, Any]:
    """The stored settings of a run, without those that are `RETIRED`.

    Args:
        stored: resolved settings, possibly of an earlier version.
        where: where they are stored, for the message.
        prefix: of their paths.

    Raises:
        MetasegError: if one of them had another value.
    """
    kept = {}
    for name, value in stored.items():
        path = f"{prefix}{name}"
        if path in RETIRED:
            if value != RETIRED[path]:
                raise MetasegError(
                    f"{path} is not a setting of this version, found {quoted(value)} in {where}: use the metaseg "
                    "version that made the run."
                )
        elif isinstance(value, Mapping) and any(within(one, (path,)) for one in RETIRED):
            kept[name] = without_retired(value, where, f"{path}.")
        else:
            kept[name] = value
    return kept


def leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings: `trainer.max_epochs` → value; lists are values."""
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    return {
        key: value
        for name, branch in tree.items()
        for key, value in leaves(branch, f"{prefix}.{name}".strip(".")).items()
    }


def within(path: str, groups: Iterable[str]) -> bool:
    """Whether a path is one of `groups` or inside one of them."""
    return any(path == group or path.startswith(f"{group}.") for group in groups)


def changed(old: Mapping[str, Any], new: Mapping[str, Any], besides: Iterable[str]) -> tuple[str, ...]:
    """`key=new (was old)` for each setting outside the groups `besides` that has different values in two trees.

    A setting that only one of them has was added or removed between versions, and is left out. One that is a group in
    one and a value in the other has changed.
    """
    before, after = leaves(old), leaves(new)

    def differs(key: str) -> bool:
        if key in before and key in after:
            return bool(before[key] != after[key])
        return any(within(other, (key,)) for other in (after if key in before else before))

    return tuple(
        f"{key}={after.get(key, 'a group')} (was {before.get(key, 'a group')})"
        for key in (before | after)
        if not within(key, besides) and differs(key)
    )

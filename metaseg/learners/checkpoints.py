"""Checkpoints: the network they belong to, and loading them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from metaseg.errors import MetasegError, quoted, shown
from metaseg.learners.base import Learner
from metaseg.networks.build import fingerprint
from metaseg.networks.weight_files import unpickled
from metaseg.networks.weights_record import WeightsRecord


def origin(network: nn.Module) -> dict[str, Any]:
    """A checkpoint's record of its network: the architecture, and the pre-trained weights it started from."""
    record: WeightsRecord | None = getattr(network, "weights", None)
    return {"architecture": fingerprint(network), "weights": None if record is None else record.to_dict()}


def take_over_origin(network: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another architecture; restore the record of the network's pre-trained weights.

    Raises:
        MetasegError: if the checkpoint belongs to another network, or its record of weights is invalid.
    """
    expected, found = fingerprint(network), checkpoint.get("architecture", "an unknown network")
    if expected != found:
        found = shown(found) if isinstance(found, str) else quoted(found)
        raise MetasegError(
            f"Expected a checkpoint of the configured network ({expected}), found {found}; "
            "set model and model.features as in the run that wrote it."
        )
    record = checkpoint["weights"]
    network.weights = None if record is None else WeightsRecord.from_dict(record)  # type: ignore[assignment]


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a checkpoint's parameters into a learner or a pre-training module; nothing in the file is executed.

    Raises:
        MetasegError: if the file is not a checkpoint, or has another architecture or other learned strengths.
    """
    restore(module, read_checkpoint(path))


def read_checkpoint(path: Path, mmap: bool = False) -> dict[str, Any]:
    """The content of a checkpoint; nothing in the file is executed.

    Raises:
        MetasegError: if the file is not a checkpoint.
    """
    try:
        state: dict[str, Any] = unpickled(path, mmap)
    except Exception as error:  # the unpickler may raise anything on a foreign file
        # The first sentence alone, as torch's message goes on to suggest loading such files unsafely.
        reason = re.split(r"\.?\n|\.(?: |$)", str(error).strip())[0]
        if not reason or isinstance(error, LookupError):  # a lone number or name
            reason = f"{type(error).__name__} {reason}".strip()
        raise MetasegError(
            f"Expected a metaseg checkpoint, but {path} is something else or damaged: {reason[:200]}; name a run "
            "directory of train.py, or its best.ckpt."
        ) from error
    if not isinstance(state, dict):
        raise MetasegError(f"Expected a metaseg checkpoint in {path}, found a {type(state).__name__} in it.")
    return state


def restore(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Load parameters from the content of a checkpoint into a module with a submodule `network`.

    Raises:
        MetasegError: if it has another architecture or other learned strengths.
    """
    take_over_origin(module.get_submodule("network"), state)
    module.load_state_dict(state["state_dict"])
    if isinstance(module, Learner):
        module.take_over(state)

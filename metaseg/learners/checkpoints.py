"""Checkpoints: of which network they are, and loading them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from metaseg.errors import MetasegError
from metaseg.learners.base import Learner
from metaseg.networks.build import fingerprint
from metaseg.networks.weights_record import WeightsRecord


class HasNetwork(Protocol):
    """A module whose parameters are those of its network."""

    @property
    def network(self) -> nn.Module:
        """The network."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any:
        """As `nn.Module.load_state_dict`."""


def origin(network: nn.Module) -> dict[str, Any]:
    """What a checkpoint says of its network: the architecture, and the pre-trained weights that it began from."""
    record: WeightsRecord | None = getattr(network, "weights", None)
    return {"architecture": fingerprint(network), "weights": None if record is None else record.to_dict()}


def take_over_origin(network: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another architecture; take over which weights its network began from.

    Raises:
        MetasegError: if the checkpoint's network is not this one, or its record of weights is none.
    """
    expected, found = fingerprint(network), checkpoint.get("architecture", "an unknown network")
    if expected != found:
        raise MetasegError(
            f"The checkpoint must hold the configured network ({expected}), but holds {found}; "
            "set model and model.features as in the run that wrote it."
        )
    if "weights" in checkpoint:  # checkpoints of earlier versions do not say
        record = checkpoint["weights"]
        network.weights = None if record is None else WeightsRecord.from_dict(record)  # type: ignore[assignment]


def load_weights(module: HasNetwork, path: Path) -> None:
    """Load a checkpoint's parameters into a learner, or what pre-trains; nothing in the file is executed.

    Raises:
        MetasegError: if the file is no checkpoint, or one of another architecture or of other learned strengths.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise MetasegError(f"{path} should be a checkpoint of metaseg, but cannot be read: {error}.") from error
    take_over_origin(module.network, state)
    module.load_state_dict(state["state_dict"])
    if isinstance(module, Learner):
        module.take_over(state)

"""A Lightning module whose checkpoints know of which network they are."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn

from metaseg.errors import MetasegError
from metaseg.networks.build import fingerprint
from metaseg.networks.weights_record import WeightsRecord


class NetworkModule(L.LightningModule):
    """Writes architecture and settings into its checkpoints; refuses those of another architecture in words."""

    network: nn.Module
    settings: Mapping[str, Any] | None = None
    """The resolved configuration; it goes into checkpoints, so that a file alone can be used."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write down the architecture, the pre-trained weights that the network began from, and the settings."""
        checkpoint["architecture"] = fingerprint(self.network)
        record = self.weights
        checkpoint["weights"] = None if record is None else record.to_dict()
        if self.settings is not None:
            checkpoint["settings"] = dict(self.settings)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another architecture; take over which weights its network began from.

        Raises:
            MetasegError: if the checkpoint's network is not this one, or its record of weights is none.
        """
        expected, found = fingerprint(self.network), checkpoint.get("architecture", "an unknown network")
        if expected != found:
            raise MetasegError(
                f"The checkpoint must hold the configured network ({expected}), but holds {found}; "
                "set model and model.features as in the run that wrote it."
            )
        if "weights" in checkpoint:  # checkpoints of earlier versions do not say
            found = checkpoint["weights"]
            self.network.weights = None if found is None else WeightsRecord.from_dict(found)  # type: ignore[assignment]

    @property
    def weights(self) -> WeightsRecord | None:
        """The pre-trained weights that the network began from; None: random ones."""
        return getattr(self.network, "weights", None)


def load_weights(module: NetworkModule, path: Path) -> None:
    """Load a checkpoint's parameters into a learner, or what pre-trains; nothing in the file is executed.

    Raises:
        MetasegError: if the file is no checkpoint, or one of another architecture.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise MetasegError(f"{path} should be a checkpoint of metaseg, but cannot be read: {error}.") from error
    module.on_load_checkpoint(state)
    module.load_state_dict(state["state_dict"])

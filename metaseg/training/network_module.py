"""A Lightning module whose checkpoints record their network."""

from collections.abc import Mapping
from typing import Any

import lightning as L
from torch import nn

from metaseg.learners.checkpoints import origin, take_over_origin


class NetworkModule(L.LightningModule):
    """Writes architecture and settings into its checkpoints; refuses checkpoints of another architecture."""

    network: nn.Module
    settings: Mapping[str, Any] | None = None
    """The resolved configuration, saved in checkpoints so that they are self-contained."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the architecture, the record of pre-trained weights, and the settings."""
        checkpoint.update(origin(self.network))
        if self.settings is not None:
            checkpoint["settings"] = dict(self.settings)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another architecture; restore the record of the network's pre-trained weights.

        Raises:
            MetasegError: if the checkpoint belongs to another network, or its record of weights is invalid.
        """
        take_over_origin(self.network, checkpoint)

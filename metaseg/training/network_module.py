"""A Lightning module whose checkpoints know of which network they are."""

from collections.abc import Mapping
from typing import Any

import lightning as L
from torch import nn

from metaseg.learners.checkpoints import origin, take_over_origin


class NetworkModule(L.LightningModule):
    """Writes architecture and settings into its checkpoints; refuses those of another architecture in words."""

    network: nn.Module
    settings: Mapping[str, Any] | None = None
    """The resolved configuration; it goes into checkpoints, so that a file alone can be used."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write down the architecture, the pre-trained weights that the network began from, and the settings."""
        checkpoint.update(origin(self.network))
        if self.settings is not None:
            checkpoint["settings"] = dict(self.settings)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another architecture; take over which weights its network began from.

        Raises:
            MetasegError: if the checkpoint's network is not this one, or its record of weights is none.
        """
        take_over_origin(self.network, checkpoint)

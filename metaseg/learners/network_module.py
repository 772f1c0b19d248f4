"""A Lightning module whose checkpoints know of which network they are."""

from collections.abc import Mapping
from typing import Any

import lightning as L
from torch import nn

from metaseg.errors import MetasegError
from metaseg.networks.build import fingerprint


class NetworkModule(L.LightningModule):
    """Writes architecture and settings into its checkpoints; refuses those of another architecture in words."""

    network: nn.Module
    settings: Mapping[str, Any] | None = None
    """The resolved configuration; it goes into checkpoints, so that a file alone can be used."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write down the architecture and the settings."""
        checkpoint["architecture"] = fingerprint(self.network)
        if self.settings is not None:
            checkpoint["settings"] = dict(self.settings)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another architecture.

        Raises:
            MetasegError: if the checkpoint's network is not this one.
        """
        expected, found = fingerprint(self.network), checkpoint.get("architecture", "an unknown network")
        if expected != found:
            raise MetasegError(
                f"The checkpoint must hold the configured network ({expected}), but holds {found}; "
                "set model and model.features as in the run that wrote it."
            )

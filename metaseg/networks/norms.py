"""The choice of each batch norm's statistics for prediction (`model.norm`), for the encoder and for the rest."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from metaseg.networks.functional import Statistics, norm_layers
from metaseg.networks.stages import part_of


@dataclass(frozen=True)
class Norms:
    """The kind of statistics of each norm layer of a network.

    In the support pass of a task, every layer that is not frozen is normalised by the support images themselves. The
    kinds differ in the statistics of predictions and of the query pass.

    Attributes:
        kinds: name of a norm layer → "support", "batch" or "running", without frozen layers.
    """

    kinds: Mapping[str, str]

    @classmethod
    def of(cls, network: nn.Module, norm: str | Mapping[str, str]) -> "Norms":
        """Read `model.norm`, and freeze or unfreeze the network's norm layers accordingly.

        Args:
            network: its norm layers are frozen or unfrozen in place.
            norm: a kind for all layers, or one each for "encoder" and "decoder", which includes the head: "frozen"
                (the statistics of the pre-trained weights, never updated), "support", "batch" or "running".
        """
        chosen = {"encoder": norm, "decoder": norm} if isinstance(norm, str) else norm
        kinds = {}
        for name, layer in norm_layers(network).items():
            kind = chosen["encoder" if part_of(network, name) == "encoder" else "decoder"]
            layer.frozen = kind == "frozen"
            if not layer.frozen:
                kinds[name] = kind
        return cls(kinds)

    def given(self, of_support: Statistics, running: Statistics) -> Statistics:
        """The statistics to predict with; layers of kind "batch" have none.

        Args:
            of_support: statistics of the support pass; layers without them are omitted.
            running: running statistics, used only for layers of that kind.
        """
        sources = {"support": of_support, "running": running, "batch": {}}
        return {name: sources[kind][name] for name, kind in self.kinds.items() if name in sources[kind]}

    def any(self, kind: str) -> bool:
        """Whether any layer is of this kind."""
        return kind in self.kinds.values()

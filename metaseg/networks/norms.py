"""Which statistics each batch norm predicts with: `model.norm`, set for the encoder and for the rest."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from metaseg.networks.functional import Statistics, norm_layers
from metaseg.networks.stages import part_of


@dataclass(frozen=True)
class Norms:
    """The kind of statistics of each norm layer of a network.

    In the support pass of a task every layer but the frozen ones is normalised by the support images themselves, as
    they are all there is; the kinds differ in what a prediction, or the query pass, is normalised with.

    Attributes:
        kinds: name of a norm layer → "support", "batch" or "running"; frozen layers are left out.
    """

    kinds: Mapping[str, str]

    @classmethod
    def of(cls, network: nn.Module, norm: str | Mapping[str, str]) -> "Norms":
        """Read `model.norm`, and freeze the layers of the network that are to be frozen.

        Args:
            network: its norm layers become frozen or not, in place.
            norm: a kind for all layers, or one for each of "encoder" and "decoder", with which the head goes: "frozen"
                (of the layer's own weights, never changed), "support", "batch" or "running".
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
        """What a prediction's layers are given: those of kind "batch" nothing.

        Args:
            of_support: statistics of the support pass; layers that had no part in it are left out.
            running: running statistics; only read for layers of that kind.
        """
        sources = {"support": of_support, "running": running, "batch": {}}
        return {name: sources[kind][name] for name, kind in self.kinds.items() if name in sources[kind]}

    def any(self, kind: str) -> bool:
        """Whether a layer is of this kind."""
        return kind in self.kinds.values()

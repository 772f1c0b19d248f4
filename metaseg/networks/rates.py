"""Step-size multipliers by part of a network."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from metaseg.errors import MetasegError
from metaseg.networks.stages import PARTS, StagedNetwork, part_of


class HeldStages(NamedTuple):
    """The leading frozen stages.

    Attributes:
        last: the last frozen stage.
        next: the stage after it.
        names: names of the frozen stages' parameters.
    """

    last: str
    next: str
    names: frozenset[str]


@dataclass(frozen=True)
class Rates:
    """A multiplier ≥ 0 for each parameter of a network, set by part; 0 freezes.

    Attributes:
        by_part: part → multiplier.
        by_name: parameter name → multiplier, in the order of ``named_parameters()``.
    """

    by_part: Mapping[str, float]
    by_name: Mapping[str, float]

    @classmethod
    def of(cls, network: nn.Module, setting: str, chosen: Mapping[str, float] | None) -> "Rates":
        """Read a setting such as ``learner.inner.rates``.

        Args:
            network: the network.
            setting: name of the setting, for errors.
            chosen: part → multiplier, 1 for missing parts. None: 1 for all.

        Raises:
            MetasegError: if all are 0.
        """
        chosen = chosen or {}
        by_part = {part: float(chosen.get(part, 1.0)) for part in PARTS}
        by_name = {name: by_part[part_of(network, name)] for name, _ in network.named_parameters()}
        if by_name and not any(by_name.values()):
            raise MetasegError(
                f"Expected {setting} to be above 0 for at least one part of the network, found 0 for all: set one "
                "above 0, or take no steps."
            )
        return cls(by_part, by_name)

    def vector(self, like: Mapping[str, Tensor]) -> Tensor | None:
        """The multipliers of these parameters as a vector (N,); None if all are 1."""
        if all(self.by_name[name] == 1 for name in like):
            return None
        return torch.cat([value.new_full((value.numel(),), self.by_name[name]) for name, value in like.items()])

    def held(self, network: nn.Module) -> HeldStages | None:
        """The leading frozen stages; None if there are none or the network cannot run its stages separately."""
        if not (isinstance(network, StagedNetwork) and network.staged):
            return None
        count = next(i for i, part in enumerate(PARTS) if self.by_part[part])
        if not count:
            return None
        names = frozenset(name for name in self.by_name if part_of(network, name) in PARTS[:count])
        return HeldStages(PARTS[count - 1], PARTS[count], names)

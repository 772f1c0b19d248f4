"""Learned proximal strengths: how fast each part, or each layer, of a network is held to θ in the inner problem."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from metaseg.errors import MetasegError
from metaseg.meta.vectors import Parameters
from metaseg.networks.rates import Rates
from metaseg.networks.stages import part_of

RANGE = (1e-3, 1e4)
"""What a learned λ stays in: below, float32 cannot tell the proximal term from rounding; above, nothing moves [D]."""


class Strengths:
    """One λ for each group of parameters, kept as log λ.

    Args:
        network: the network.
        by: "part" (encoder, decoder, head) or "layer" (the module that a parameter belongs to).
        rates: of the inner loop. What it freezes is in no group: the inner problem says nothing of its λ.
        lam: what every λ begins with, and what parameters in no group have, > 0.
        lr: of the outer Adam on log λ, > 0.

    Attributes:
        names: of the groups, in the order of the network's parameters.
        logarithms: log λ of each, shape (groups,); on the CPU, wherever the network lies.
    """

    def __init__(self, network: nn.Module, by: str, rates: Rates, lam: float, lr: float) -> None:
        self.lam, self.lr = lam, lr
        moving = [name for name, rate in rates.by_name.items() if rate]
        self._group = {name: part_of(network, name) if by == "part" else name.rpartition(".")[0] for name in moving}
        self.names = tuple(dict.fromkeys(self._group.values()))
        self.logarithms = nn.Parameter(torch.full((len(self.names),), math.log(lam)))

    def table(self) -> dict[str, float]:
        """Group → λ."""
        return dict(zip(self.names, self.logarithms.detach().exp().tolist(), strict=True))

    def vector(self, like: Parameters) -> Tensor:
        """The λ of each of these parameters, shape (N,), cut from any graph."""
        values = [*self.logarithms.detach().exp().tolist(), self.lam]
        places = self._places(like)
        return torch.cat(
            [
                value.new_full((value.numel(),), values[place])
                for place, value in zip(places, like.values(), strict=True)
            ]
        )

    def by_logarithm(self, like: Parameters, by_strengths: Tensor) -> Tensor:
        """From the derivative by the λ of each of these parameters, shape (N,), that by log λ, shape (groups,)."""
        of_each = torch.stack([piece.sum() for piece in by_strengths.split([value.numel() for value in like.values()])])
        sums = of_each.new_zeros(len(self.names) + 1)
        sums = sums.index_add(0, torch.tensor(self._places(like), device=sums.device), of_each)
        return sums[:-1] * self.logarithms.detach().exp().to(sums)

    @torch.no_grad()
    def clamp(self) -> None:
        """Put every λ back into `RANGE`."""
        self.logarithms.clamp_(*(math.log(bound) for bound in RANGE))

    def state(self) -> dict[str, float]:
        """Group → log λ, for a checkpoint."""
        return dict(zip(self.names, self.logarithms.detach().tolist(), strict=True))

    @torch.no_grad()
    def take_over(self, state: Mapping[str, float]) -> None:
        """Go on from a `state`.

        Raises:
            MetasegError: if it is of other groups.
        """
        if tuple(state) != self.names:
            raise MetasegError(
                f"The checkpoint should hold a lambda for each of {', '.join(self.names)}, but holds those of "
                f"{', '.join(state)}; set learner.strengths.by and learner.inner.rates as in the run that wrote it."
            )
        self.logarithms.copy_(torch.tensor(list(state.values())))

    def _places(self, like: Mapping[str, Tensor]) -> list[int]:
        """The group of each parameter by its place among the names; one past the last for those in none."""
        return [self.names.index(self._group[name]) if name in self._group else len(self.names) for name in like]

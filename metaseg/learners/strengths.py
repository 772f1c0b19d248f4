"""Learned proximal strengths: how fast each part, or each layer, of a network is held to θ in the inner problem."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from metaseg.meta.vectors import Parameters
from metaseg.networks.rates import Rates
from metaseg.networks.stages import part_of

GROUPINGS = ("none", "part", "layer")

RANGE = (1e-3, 1e4)
"""What a learned λ stays in: below, float32 cannot tell the proximal term from rounding; above, nothing moves [D]."""


class Strengths(nn.Module):
    """One λ for each group of parameters, kept as log λ.

    Args:
        network: the network.
        by: "part" (encoder, decoder, head) or "layer" (the module that a parameter belongs to).
        rates: of the inner loop. What it freezes is in no group: the inner problem says nothing of its λ.
        lam: what every λ begins with, and what parameters in no group have, > 0.
        lr: of the outer Adam on log λ, > 0.

    Attributes:
        names: of the groups, in the order of the network's parameters.
    """

    def __init__(self, network: nn.Module, by: str, rates: Rates, lam: float, lr: float) -> None:
        super().__init__()
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
        values = self.logarithms.detach().exp()
        groups = self._indices(like)
        sizes = torch.tensor([value.numel() for value in like.values()], device=values.device)
        each = torch.cat([values, values.new_tensor([self.lam])])[groups]
        return each.repeat_interleave(sizes).to(next(iter(like.values())))

    def by_logarithm(self, like: Parameters, by_strengths: Tensor) -> Tensor:
        """From the derivative by the λ of each of these parameters, shape (N,), that by log λ, shape (groups,)."""
        of_each = torch.stack([piece.sum() for piece in by_strengths.split([value.numel() for value in like.values()])])
        sums = of_each.new_zeros(len(self.names) + 1).index_add(0, self._indices(like), of_each)
        return sums[:-1] * self.logarithms.detach().exp().to(sums)

    @torch.no_grad()
    def clamp(self) -> None:
        """Put every λ back into `RANGE`."""
        self.logarithms.clamp_(*(math.log(bound) for bound in RANGE))

    def _indices(self, like: Mapping[str, Tensor]) -> Tensor:
        places = {name: place for place, name in enumerate(self.names)}
        last = len(self.names)
        found = [places[self._group[name]] if name in self._group else last for name in like]
        return torch.tensor(found, device=self.logarithms.device)

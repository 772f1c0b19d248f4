"""Learned proximal strengths: how strongly the inner problem holds each part or layer to θ."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from metaseg.errors import MetasegError
from metaseg.meta.vectors import Parameters
from metaseg.networks.rates import Rates
from metaseg.networks.stages import part_of

RANGE = (1e-3, 1e4)
"""Range of a learned λ: below, float32 rounding hides the proximal term; above, nothing moves [D]."""


class Strengths:
    """One λ per group of parameters, stored as log λ.

    Args:
        network: the network.
        by: "part" (encoder, decoder, head) or "layer" (a parameter's module).
        rates: of the inner loop. Frozen parameters are in no group, as the inner problem does not depend on their λ.
        lam: initial value of every λ, and the λ of parameters in no group, > 0.
        lr: of the outer Adam on log λ, > 0.

    Attributes:
        names: of the groups, in the order of the network's parameters.
        logarithms: log λ of each, shape (groups,); on the CPU, whatever the network's device.
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

    def vector(self, like: Parameters, of_others: float | None = None) -> Tensor:
        """The λ of each of these parameters, shape (N,), detached.

        Args:
            like: the parameters.
            of_others: λ of parameters in no group; None: ``lam``, as the linear system needs one above 0.
        """
        values = [*self.logarithms.detach().exp().tolist(), self.lam if of_others is None else of_others]
        places = self._places(like)
        return torch.cat(
            [
                value.new_full((value.numel(),), values[place])
                for place, value in zip(places, like.values(), strict=True)
            ]
        )

    def by_logarithm(self, like: Parameters, by_strengths: Tensor) -> Tensor:
        """The derivative by log λ, shape (groups,), from the derivative by each parameter's λ, shape (N,)."""
        of_each = torch.stack([piece.sum() for piece in by_strengths.split([value.numel() for value in like.values()])])
        sums = of_each.new_zeros(len(self.names) + 1)
        sums = sums.index_add(0, torch.tensor(self._places(like), device=sums.device), of_each)
        return sums[:-1] * self.logarithms.detach().exp().to(sums)

    @torch.no_grad()
    def clamp(self) -> None:
        """Clamp every λ to `RANGE`."""
        self.logarithms.clamp_(*(math.log(bound) for bound in RANGE))

    def state(self) -> dict[str, float]:
        """Group → log λ, for a checkpoint."""
        return dict(zip(self.names, self.logarithms.detach().tolist(), strict=True))

    @torch.no_grad()
    def take_over(self, state: Mapping[str, float]) -> None:
        """Restore a `state`.

        Raises:
            MetasegError: if it has other groups.
        """
        if tuple(state) != self.names:
            raise MetasegError(
                f"Expected a checkpoint with a lambda for each of {', '.join(self.names)}, found {', '.join(state)}; "
                "set learner.strengths.by and learner.inner.rates as in the run that wrote it."
            )
        self.logarithms.copy_(torch.tensor(list(state.values())))

    def _places(self, like: Mapping[str, Tensor]) -> list[int]:
        """The index of each parameter's group; one past the last for parameters in no group."""
        return [self.names.index(self._group[name]) if name in self._group else len(self.names) for name in like]

"""The inner loop: gradient descent on the support loss, with a proximal term that ties it to the meta-parameters."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metaseg.meta.vectors import Parameters, detach, flatten

Objective = Callable[[Parameters], tuple[Tensor, Any]]
"""Parameters → (scalar loss, whatever else the forward pass found, e.g. normalisation statistics)."""

OPTIMIZERS = ("sgd", "momentum", "adam")


@dataclass(frozen=True)
class InnerLoop:
    """Settings of the descent on L(φ) + λ/2 ‖φ - θ‖² that starts at θ [paper eq. 1].

    Attributes:
        optimizer: "sgd", "momentum" (heavy ball, 0.9) or "adam" (0.9, 0.999).
        lr: learning rate, > 0.
        steps: number of steps, ≥ 0.
        lam: strength λ of the proximal term, ≥ 0; 0 leaves it out.

    Raises:
        ValueError: on a value outside these ranges.
    """

    optimizer: str = "sgd"
    lr: float = 0.01
    steps: int = 5
    lam: float = 0.0

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"expected an inner optimizer out of {', '.join(OPTIMIZERS)}, found {self.optimizer!r}")
        if self.lr <= 0 or self.steps < 0 or self.lam < 0:
            raise ValueError(f"expected lr > 0, steps >= 0 and lam >= 0, found {self}")


@dataclass(frozen=True)
class Step:
    """One step of the inner loop.

    Attributes:
        parameters: φ after the step.
        loss: support loss L at φ before the step, without the proximal term.
        found: what the objective returned beside the loss, at φ before the step.
        gradient_norm: ‖∇L(φ) + λ(φ - θ)‖ at φ before the step.
    """

    parameters: Parameters
    loss: Tensor
    found: Any
    gradient_norm: Tensor


def descend(
    objective: Objective, theta: Parameters, loop: InnerLoop, *, differentiable: bool = False
) -> Iterator[Step]:
    """Yield every step of the inner loop.

    Args:
        objective: support loss; called once per step.
        theta: meta-parameters θ. They must require gradients if ``differentiable``.
        loop: the settings.
        differentiable: keep the graph from θ to every φ (MAML); otherwise each φ is cut from it.
    """
    phi = theta if differentiable else detach(theta)
    first = [torch.zeros_like(value) for value in theta.values()]
    second = [torch.zeros_like(value) for value in theta.values()]
    for count in range(1, loop.steps + 1):
        if not differentiable:
            phi = detach(phi, requires_grad=True)
        loss, found = objective(phi)
        gradients = torch.autograd.grad(loss, list(phi.values()), create_graph=differentiable, materialize_grads=True)
        with torch.set_grad_enabled(differentiable):
            if loop.lam:
                gradients = tuple(
                    g + loop.lam * (p - t) for g, p, t in zip(gradients, phi.values(), theta.values(), strict=True)
                )
            norm = flatten(g.detach() for g in gradients).norm()
            if loop.optimizer == "sgd":
                updates = list(gradients)
            elif loop.optimizer == "momentum":
                first = [0.9 * m + g for m, g in zip(first, gradients, strict=True)]
                updates = first
            else:
                first = [0.9 * m + 0.1 * g for m, g in zip(first, gradients, strict=True)]
                second = [0.999 * v + 0.001 * g * g for v, g in zip(second, gradients, strict=True)]
                updates = [_adam(m, v, count) for m, v in zip(first, second, strict=True)]
            phi = {name: p - loop.lr * u for (name, p), u in zip(phi.items(), updates, strict=True)}
        yield Step(phi, loss.detach(), found, norm)


def _adam(first: Tensor, second: Tensor, count: int) -> Tensor:
    # ε stands inside the root, unlike in torch.optim.Adam: the root's derivative at a zero gradient is then finite,
    # which MAML's second derivatives need.
    return first / (1 - 0.9**count) / (second / (1 - 0.999**count) + 1e-16).sqrt()

"""The inner loop: gradient descent on the support loss, with a proximal term that pulls towards the meta-parameters."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

from metaseg.meta.vectors import Parameters, flatten, unflatten

OPTIMIZERS = {"sgd": 0, "momentum": 1, "adam": 2}
"""The inner optimisers, and the number of moment vectors each keeps."""

SCHEDULES = ("constant", "cosine")

WARMUP = 10
"""Warm-up steps of the cosine schedule, while Adam's moments average only a few gradients."""

PIECE = 1 << 17
"""Parameters a CPU updates at a time: 131072, so that their vectors stay in cache between operations."""


@dataclass(frozen=True)
class InnerLoop:
    """Settings of the descent on L(φ) + ½ (φ - θ)ᵀ Λ (φ - θ) that starts at θ; with Λ = λ I, the paper's eq. 1.

    Attributes:
        optimizer: "sgd", "momentum" (heavy ball, 0.9) or "adam" (0.9, 0.999).
        lr: learning rate, > 0.
        steps: maximum number of steps, ≥ 0.
        lam: strength λ of the proximal term, ≥ 0; 0 leaves it out.
        tolerance: `descend` stops once the norm of the objective's gradient is at most this fraction of its norm at θ,
            in [0, 1); 0 takes all steps.
        schedule: "constant", or "cosine": lr rises over the first `WARMUP` steps and falls to 0 over all of them.
        rates: shape (N,), ≥ 0: step-size multiplier of each parameter; 0 freezes it at θ. None: 1 for all.
        strengths: shape (N,), ≥ 0: the diagonal of Λ. None: λ for all.

    Raises:
        ValueError: on a value outside these ranges; vectors are not checked, which would wait for a GPU.
    """

    optimizer: str = "sgd"
    lr: float = 0.01
    steps: int = 5
    lam: float = 0.0
    schedule: str = "constant"
    tolerance: float = 0.0
    rates: Tensor | None = field(default=None, compare=False, repr=False)
    strengths: Tensor | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"expected an inner optimizer out of {', '.join(OPTIMIZERS)}, found {self.optimizer!r}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"expected a schedule out of {', '.join(SCHEDULES)}, found {self.schedule!r}")
        if not (0 < self.lr < math.inf and 0 <= self.lam < math.inf):
            raise ValueError(f"expected lr > 0 and lam >= 0, both finite, found {self}")
        if not isinstance(self.steps, Integral) or self.steps < 0:
            raise ValueError(f"expected a whole number of steps >= 0, found {self.steps}")
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"expected a tolerance from 0 to below 1, found {self.tolerance}")

    @cached_property
    def mask(self) -> Tensor | None:
        """1 for parameters that adapt and 0 for those that stay at θ, shape (N,); None: all adapt."""
        if self.rates is None or bool((self.rates > 0).all()):
            return None
        return (self.rates > 0).to(self.rates)

    def lr_at(self, count: int) -> float:
        """The learning rate of step number ``count`` (from 1)."""
        if self.schedule == "constant":
            return self.lr
        return self.lr * min(1.0, count / WARMUP) * 0.5 * (1 + math.cos(math.pi * (count - 1) / self.steps))

    @cached_property
    def _runs(self) -> list[tuple[int, int, float]]:
        assert self.rates is not None
        changes = (torch.nonzero(self.rates[1:] != self.rates[:-1]).flatten() + 1).tolist()
        ends = [0, *changes, len(self.rates)]
        return [(first, last, float(self.rates[first])) for first, last in pairwise(ends)]

    def runs(self, count: int) -> list[tuple[int, int, float]]:
        """(start, stop, rate) of each maximal run of equal rates in a vector of ``count`` parameters."""
        # Read from the device once and not in each step, which would wait for a GPU.
        return [(0, count, 1.0)] if self.rates is None else self._runs


Moments = tuple[Tensor, ...]
"""The optimiser's moments, each of shape (N,)."""


def initial_moments(loop: InnerLoop, theta: Tensor) -> Moments:
    """The optimiser's moments before the first step."""
    return tuple(torch.zeros_like(theta) for _ in range(OPTIMIZERS[loop.optimizer]))


def slope(loop: InnerLoop, theta: Tensor, phi: Tensor, gradient: Tensor) -> Tensor:
    """∇L(φ) + Λ (φ - θ), zero for frozen parameters, shape (N,).

    Args:
        loop: the settings.
        theta: θ, shape (N,).
        phi: φ, shape (N,).
        gradient: ∇L(φ) of the support loss alone, shape (N,).
    """
    if loop.strengths is not None:
        gradient = torch.addcmul(gradient, loop.strengths, phi - theta)
    elif loop.lam:
        gradient = gradient + loop.lam * (phi - theta)
    return gradient if loop.mask is None else gradient * loop.mask


def update(
    loop: InnerLoop, count: int, theta: Tensor, phi: Tensor, gradient: Tensor, moments: Moments
) -> tuple[Tensor, Moments]:
    """Step number ``count`` (from 1): φ and moments after it; a differentiable function of all its vectors.

    Args:
        loop: the settings.
        count: the step's number.
        theta: θ, shape (N,).
        phi: φ before the step, shape (N,).
        gradient: ∇L(φ) of the support loss alone, shape (N,).
        moments: the moments before the step.
    """
    return _move(loop, count, phi, slope(loop, theta, phi, gradient), moments, loop.rates)


def _move(
    loop: InnerLoop, count: int, phi: Tensor, gradient: Tensor, moments: Moments, rates: Tensor | None
) -> tuple[Tensor, Moments]:
    """`update` with the `slope` given, restricted to the parameters of ``rates``."""
    lr = loop.lr_at(count) if rates is None else loop.lr_at(count) * rates
    if loop.optimizer == "sgd":
        return phi - lr * gradient, moments
    if loop.optimizer == "momentum":
        heavy = 0.9 * moments[0] + gradient
        return phi - lr * heavy, (heavy,)
    first = 0.9 * moments[0] + 0.1 * gradient
    second = 0.999 * moments[1] + 0.001 * gradient * gradient
    # Unlike in torch.optim.Adam, ε is inside the root: MAML's second derivatives need a finite derivative of the root
    # at a zero gradient.
    direction = first / (1 - 0.9**count) / (second / (1 - 0.999**count) + 1e-16).sqrt()
    return phi - lr * direction, (first, second)


def update_in_place(loop: InnerLoop, count: int, phi: Tensor, downhill: Tensor, moments: Moments) -> Tensor:
    """φ after step ``count``, equal to `update` but without a graph; overwrites the moments.

    On a CPU the vectors are processed in chunks: a step of Adam is fourteen operations, and with millions of parameters
    each of them would fetch every vector from memory again.

    Args:
        loop: the settings.
        count: the step's number, from 1.
        phi: φ before the step, shape (N,); not modified.
        downhill: `slope` there, shape (N,).
        moments: the moments before the step; updated in place.
    """
    if loop.optimizer == "adam":
        return _adam_in_place(loop, count, phi, downhill, moments)
    size = PIECE if phi.device.type == "cpu" else max(1, phi.numel())
    after = torch.empty_like(phi)
    vectors = [vector.split(size) for vector in (after, phi, downhill, *moments)]
    rates = [None] * len(vectors[0]) if loop.rates is None else loop.rates.split(size)
    for rate, target, here, gradient, *pieces in zip(rates, *vectors, strict=True):
        moved, new = _move(loop, count, here, gradient, tuple(pieces), rate)
        for old, value in zip((target, *pieces), (moved, *new), strict=True):
            old.copy_(value)
    return after


def _adam_in_place(loop: InnerLoop, count: int, phi: Tensor, gradient: Tensor, moments: Moments) -> Tensor:
    """Adam by PyTorch's fused kernel: one pass over the vectors instead of fourteen.

    Its ε is outside the root; the difference is below float32's resolution except for gradients near 1e-8.
    """
    after = phi.clone()
    for first, last, rate in loop.runs(len(phi)):
        adam(
            [after[first:last]],
            [gradient[first:last]],
            [moments[0][first:last]],
            [moments[1][first:last]],
            max_exp_avg_sqs=[],
            state_steps=[torch.tensor(count - 1.0, device=phi.device)],
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=rate * loop.lr_at(count),
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )
    return after


@dataclass(frozen=True)
class Evaluation:
    """The support loss at one point.

    Attributes:
        loss: L(φ), detached.
        gradient: ∇L(φ), shape (N,), detached.
        found: other results of the forward pass (e.g. normalisation statistics), detached.
    """

    loss: Tensor
    gradient: Tensor
    found: Any


Evaluate = Callable[[Parameters], Evaluation]
"""Evaluates the support loss at parameters that require gradients."""


def by_autograd(objective: Callable[[Parameters], tuple[Tensor, Any]]) -> Evaluate:
    """Evaluate by autograd a function of parameters that returns (scalar loss, other results)."""

    def evaluate(phi: Parameters) -> Evaluation:
        with torch.enable_grad():
            loss, found = objective(phi)
            rows = torch.autograd.grad(loss, list(phi.values()), materialize_grads=True)
        return Evaluation(loss.detach(), flatten(rows), detached(found))

    return evaluate


@dataclass(frozen=True)
class Step:
    """One step of the inner loop.

    Attributes:
        parameters: φ after the step.
        before: the support loss at φ before the step, without the proximal term.
        gradient_norm: ‖∇L(φ) + Λ(φ - θ)‖ at φ before the step, over the parameters that adapt.
    """

    parameters: Parameters
    before: Evaluation
    gradient_norm: Tensor


def descend(evaluate: Evaluate, theta: Parameters, loop: InnerLoop) -> Iterator[Step]:
    """Yield every step of the inner loop; ``evaluate`` is called once per step.

    With a tolerance, the evaluation that meets it is the last: no step follows.
    """
    bound = None
    with torch.no_grad():
        start = flatten(theta.values())
        phi, moments = start, initial_moments(loop, start)
    for count in range(1, loop.steps + 1):
        before = evaluate(as_leaves(phi, theta))
        with torch.no_grad():
            downhill = slope(loop, start, phi, before.gradient)
            norm = downhill.norm()
            if loop.tolerance and bound is not None and norm <= bound:
                return
            bound = loop.tolerance * norm if bound is None else bound
            phi = update_in_place(loop, count, phi, downhill, moments)
        yield Step(unflatten(phi, theta), before, norm)


def as_leaves(vector: Tensor, like: Parameters) -> Parameters:
    """The vector as parameters that require gradients, sharing its memory."""
    return {name: piece.detach().requires_grad_() for name, piece in unflatten(vector, like).items()}


def detached(found: Any) -> Any:
    """The same containers with every tensor detached."""
    if isinstance(found, Tensor):
        return found.detach()
    if isinstance(found, dict):
        return {key: detached(value) for key, value in found.items()}
    if isinstance(found, tuple):
        return tuple(detached(value) for value in found)
    return found

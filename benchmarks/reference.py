"""The exact result that each method should compute, in double precision, using only our network and loss.

The Gauss-Newton matrix is Jᵀ B J with the curvature B documented in metaseg.meta.losses: the Hessian of the
cross-entropy in logit space and, for log cosh Dice, the curvature of the outer function, ∇d log cosh''(d) ∇dᵀ for each
image's Dice loss d. Here both come from automatic differentiation, so errors in the closed forms would show.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.methods.base import Quantity
from benchmarks.methods.plain import descend, unrolled
from benchmarks.setting import Problem, Setting, make_problem
from metaseg.meta.losses import bce, dice_per_image
from metaseg.meta.vectors import detach, flatten, unflatten

Operator = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Error:
    """The error of a meta-gradient x.

    Attributes:
        relative: ‖x - exact‖ / ‖exact‖.
        cosine: cosine between x and the exact one.
        residual: ‖g - A x‖ / ‖g‖ with the exact operator A in double precision; None if no system is solved.
    """

    relative: float
    cosine: float
    residual: float | None


class Reference:
    """Exact meta-gradients of a setting's task, computed on first use.

    Implicit and first-order gradients are evaluated at the φ reached by the inner loop in the setting's dtype, because
    a pixel at which a ReLU or pooling switches changes φ between dtypes or summation orders. The unrolled gradient does
    not depend on such a φ and is computed in double precision from θ.

    Args:
        setting: setting of the methods to compare.
        phi: the φ reached by a method's inner loop, shape (N,); None: by one in plain torch.
        steps: maximum number of products in a solve. If λ is so small that I + H/λ is indefinite, it may need hundreds.
        tolerance: relative residual at which a solve stops.
    """

    def __init__(self, setting: Setting, phi: Tensor | None = None, steps: int = 200, tolerance: float = 1e-10) -> None:
        self.problem = make_problem(replace(setting, dtype="float64"))
        self.steps, self.tolerance = steps, tolerance
        judged = make_problem(setting)
        if phi is None:
            phi = flatten(descend(judged, judged.theta, create_graph=False).values())
        self.phi = detach(unflatten(phi.to(setting.device, torch.float64), judged.theta), requires_grad=True)
        self.g = flatten(torch.autograd.grad(self.problem.query_loss(self.phi), list(self.phi.values())))
        self._exact: dict[Quantity, Tensor] = {}
        self.unsolved: dict[Quantity, float] = {}
        """Quantity → residual of solves that did not reach the tolerance."""

    def exact(self, quantity: Quantity) -> Tensor:
        """The exact meta-gradient, shape (N,)."""
        if quantity not in self._exact:
            self._exact[quantity] = self._compute(quantity)
        return self._exact[quantity]

    def error(self, quantity: Quantity, gradient: Tensor) -> Error:
        """The error of `gradient`."""
        x, exact = gradient.to(self.g), self.exact(quantity)
        residual = None
        if quantity in ("hessian", "gauss_newton"):
            residual = ((self.g - self._operator(quantity)(x)).norm() / self.g.norm()).item()
        cosine = torch.nn.functional.cosine_similarity(x, exact, dim=0).item()
        return Error(((x - exact).norm() / exact.norm()).item(), cosine, residual)

    def product(self, quantity: Quantity) -> Operator:
        """v → C v, C the Hessian or Gauss-Newton matrix of the support loss at φ."""
        return hessian(self.problem, self.phi) if quantity == "hessian" else gauss_newton(self.problem, self.phi)

    def _operator(self, quantity: Quantity) -> Operator:
        product = self.product(quantity)
        return lambda vector: vector + product(vector) / self.problem.setting.lam

    def _compute(self, quantity: Quantity) -> Tensor:
        if quantity == "first_order":
            return self.g
        if quantity == "unrolled":
            gradient = unrolled(self.problem)().gradient
            assert gradient is not None
            return gradient
        x, residual = solve(self._operator(quantity), self.g, self.steps, self.tolerance)
        if residual > self.tolerance:
            self.unsolved[quantity] = residual
        return x


def hessian(problem: Problem, phi: dict[str, Tensor]) -> Operator:
    """v → ∇²L(φ; S) v by differentiating the gradient."""
    leaves = list(phi.values())
    gradient = flatten(torch.autograd.grad(problem.support_loss(phi), leaves, create_graph=True))
    return lambda vector: flatten(torch.autograd.grad(gradient, leaves, vector, retain_graph=True))


def gauss_newton(problem: Problem, phi: dict[str, Tensor]) -> Operator:
    """v → Jᵀ B J v: forward mode, B, and reverse mode."""
    frozen, leaves = detach(phi), list(phi.values())
    logits = problem.support_logits(phi)
    curvature = logit_curvature(logits.detach(), problem.episode.support_masks)

    def product(vector: Tensor) -> Tensor:
        with torch.no_grad():
            pushed = torch.func.jvp(problem.support_logits, (frozen,), (unflatten(vector, frozen),))[1]
        return flatten(torch.autograd.grad(logits, leaves, curvature(pushed), retain_graph=True))

    return product


def logit_curvature(logits: Tensor, masks: Tensor) -> Operator:
    """u → B u of binary cross-entropy + log cosh Dice; see above."""
    at = logits.detach().requires_grad_()
    slope_of_bce = torch.autograd.grad(bce(at, masks), at, create_graph=True)[0]
    dice = dice_per_image(at, masks)
    slopes = torch.autograd.grad(dice.sum(), at)[0]
    outer = (1 - torch.tanh(dice.detach()) ** 2) / len(dice)

    def product(vector: Tensor) -> Tensor:
        of_bce = torch.autograd.grad(slope_of_bce, at, vector, retain_graph=True)[0]
        along = (slopes * vector).flatten(1).sum(1)
        return of_bce + (outer * along)[:, None, None, None] * slopes

    return product


def solve(operator: Operator, b: Tensor, steps: int, tolerance: float) -> tuple[Tensor, float]:
    """Conjugate gradient from zero, without a safeguard: indefinite systems are also solved, only less stably.

    Returns:
        The iterate with the smallest recursive residual, and its true relative residual.
    """
    x = torch.zeros_like(b)
    residual, direction = b.clone(), b.clone()
    squared = first = best_squared = b.dot(b)
    best = x
    for _ in range(steps):
        product = operator(direction)
        step = squared / direction.dot(product)
        x = x + step * direction
        residual = residual - step * product
        squared, previous = residual.dot(residual), squared
        if squared < best_squared:
            best, best_squared = x, squared
        if squared <= (0.1 * tolerance) ** 2 * first or not torch.isfinite(squared):
            break
        direction = residual + squared / previous * direction
    return best, ((b - operator(best)).norm() / b.norm()).item()

"""Conjugate gradient for operators I + C, with a curvature guard and a report of how it went.

Differences from the textbook:

- It starts from zero, not from b. The first iterate is then the best multiple of b, for the price of the one product
  that a start from b spends on its first residual; after n products the iterate is optimal over the whole Krylov space
  of dimension n, of which a start from b searches a subspace. (The reference code of iMAML starts from b.)
- It stops at the first direction p with p·Ap ≤ 0, before stepping along it.
- It returns the candidate with the smallest residual, not merely the last iterate: residuals of CG are not monotone.
- A residual that is not finite ends the solve with the best finite iterate.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from torch import Tensor


class Outcome(Enum):
    """How a solve ended; the value is a sentence for people."""

    CONVERGED = "The relative residual fell below the tolerance."
    STEPS_SPENT = (
        "All steps were spent before the residual reached the tolerance; allow more steps or a looser tolerance."
    )
    NEGATIVE_CURVATURE = (
        "A direction of non-positive curvature was met: the operator is not positive definite, so the iterate "
        "before that direction is returned; raise lambda or use the Gauss-Newton curvature."
    )
    NOT_FINITE = (
        "A product was not finite; the last finite iterate is returned. Lower the learning rate of the inner loop."
    )
    ZERO_RIGHT_HAND_SIDE = "The right-hand side is zero, and so is the solution."


@dataclass(frozen=True)
class Solution:
    """What a solve of A x = b returned.

    Attributes:
        value: x, shape (N,).
        residual: ‖b - A x‖ / ‖b‖ of that x, by CG's recurrence; inf if not even the first product was finite.
        iterations: number of products A p computed.
        smallest_curvature: smallest p·Ap / p·p over the directions tried; inf if none was.
        outcome: how the solve ended.
    """

    value: Tensor
    residual: float
    iterations: int
    smallest_curvature: float
    outcome: Outcome


def conjugate_gradient(operator: Callable[[Tensor], Tensor], b: Tensor, *, steps: int, tolerance: float) -> Solution:
    """Solve A x = b for a symmetric operator A = I + C [Hestenes and Stiefel 1952; iMAML, section 3].

    Args:
        operator: v → A v on vectors of shape (N,).
        b: right-hand side, shape (N,).
        steps: most products to compute, ≥ 1.
        tolerance: relative residual at which to stop; 0 forces all steps.

    Returns:
        The candidate with the smallest residual: the iterates, and b itself, which is the solution for C = 0 (for an
        implicit gradient: the first-order gradient) and whose residual the first product tells.

    Raises:
        ValueError: if ``steps`` < 1 or ``tolerance`` < 0.
    """
    if steps < 1 or tolerance < 0:
        raise ValueError(f"expected steps >= 1 and tolerance >= 0, found steps={steps} and tolerance={tolerance}")
    norm = b.norm().item()
    if norm == 0:
        return Solution(b.clone(), 0.0, 0, float("inf"), Outcome.ZERO_RIGHT_HAND_SIDE)

    x = b.new_zeros(b.shape)
    r, p = b.clone(), b.clone()
    rr = r.dot(r)
    best, best_residual = b.clone(), float("inf")
    smallest = float("inf")
    outcome = Outcome.STEPS_SPENT
    done = 0
    while done < steps:
        product = operator(p)
        done += 1
        curvature = p.dot(product)
        relative = (curvature / p.dot(p)).item()
        if not math.isfinite(relative):
            outcome = Outcome.NOT_FINITE
            break
        smallest = min(smallest, relative)
        if done == 1:
            best_residual = (b - product).norm().item() / norm
        if relative <= 0:
            outcome = Outcome.NEGATIVE_CURVATURE
            break
        step = rr / curvature
        x = x + step * p
        r = r - step * product
        rr, previous = r.dot(r), rr
        residual = rr.sqrt().item() / norm
        if not math.isfinite(residual):
            outcome = Outcome.NOT_FINITE
            break
        if residual < best_residual:
            best, best_residual = x, residual
        if residual <= tolerance:
            outcome = Outcome.CONVERGED
            break
        p = r + (rr / previous) * p
    return Solution(best, best_residual, done, smallest, outcome)

"""Conjugate gradient for operators I + C, with a curvature guard and diagnostics.

Differences from the textbook:

- It starts from zero, not from b. The first product then yields the best multiple of b, whereas a start from b spends
  it on the initial residual. After n products the iterate is optimal over the whole Krylov space of dimension n; a
  start from b searches only a subspace of it. (The iMAML reference code starts from b.)
- It stops at the first direction p with p·Ap ≤ 0, before stepping along it.
- It returns the candidate with the smallest residual, not the last iterate: CG's residuals are not monotone.
- It also tracks the combination of iterates with the smallest residual [minimal residual smoothing: Zhou and Walker
  1994, SIAM J. Sci. Comput. 15:297], at the cost of a few vector operations, and stops as soon as that residual reaches
  the tolerance: no Krylov method could stop earlier. The smoothed iterate is returned only in that case; otherwise CG's
  own iterate has the smaller error [Fong and Saunders 2012, SQU J. Sci. 17:44].
- A non-finite residual ends the solve with the best finite iterate.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor


class Outcome(Enum):
    """How a solve ended; the value is a sentence for the user."""

    CONVERGED = "The relative residual fell below the tolerance."
    STEPS_SPENT = "The solver ran out of steps before reaching the tolerance; allow more steps or a looser tolerance."
    NEGATIVE_CURVATURE = (
        "The solver met a direction of non-positive curvature, so the operator is not positive definite; it returned "
        "the candidate with the smallest residual so far. Raise lambda or use the Gauss-Newton curvature."
    )
    NOT_FINITE = (
        "A product was not finite; the solver returned the best finite iterate. Lower the inner loop's learning rate."
    )
    ZERO_RIGHT_HAND_SIDE = "The right-hand side is zero, and so is the solution."


@dataclass(frozen=True)
class Solution:
    """The result of solving A x = b.

    Attributes:
        value: x, shape (N,).
        residual: ‖b - A x‖ / ‖b‖ by CG's recurrence; inf if the first product was already not finite.
        iterations: products A p computed.
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
        steps: maximum number of products, ≥ 1.
        tolerance: relative residual at which to stop; 0 forces all steps.

    Returns:
        The candidate with the smallest residual. Candidates are the iterates and b itself, which solves the system for
        C = 0 (the first-order gradient) and whose residual comes with the first product; if only the smoothed iterate
        reached the tolerance, it is returned.

    Raises:
        ValueError: unless ``steps`` ≥ 1 and ``tolerance`` ≥ 0.
    """
    if steps < 1 or not tolerance >= 0:
        raise ValueError(f"expected steps >= 1 and tolerance >= 0, found steps={steps} and tolerance={tolerance}")
    norm = b.norm().item()
    if norm == 0:
        return Solution(b.clone(), 0.0, 0, float("inf"), Outcome.ZERO_RIGHT_HAND_SIDE)

    # No vector is modified in place, so these can share memory: for small images, vectors take as much as images do.
    x, r, p = b.new_zeros(()), b, b
    rr = r.dot(r)
    smooth, s = x, b
    best, best_residual = b, float("inf")
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
        x = torch.addcmul(x, p, step)
        r = torch.addcmul(r, product, step, value=-1)
        del product
        rr, previous = r.dot(r), rr
        residual = rr.sqrt().item() / norm
        if not math.isfinite(residual):
            outcome = Outcome.NOT_FINITE
            break
        if residual < best_residual:
            best, best_residual = x, residual
        if best_residual <= tolerance:
            outcome = Outcome.CONVERGED
            break
        if tolerance:
            towards = r - s
            share = -s.dot(towards) / towards.dot(towards)
            smooth, s = torch.lerp(smooth.expand_as(x), x, share), torch.addcmul(s, towards, share)
            smoothed = s.norm().item() / norm
            if smoothed <= tolerance:
                best, best_residual, outcome = smooth, smoothed, Outcome.CONVERGED
                break
        p = torch.addcmul(r, p, rr / previous)
    return Solution(best, best_residual, done, smallest, outcome)

"""The largest step size that is stable for the curvature of the inner problem.

On a quadratic with largest eigenvalue σ, descent is stable for step sizes below 2/σ, and heavy ball with β = 0.9 below
2 (1 + β)/σ [Polyak 1964]. Above that it oscillates or diverges.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from metaseg.meta.gradients import PRODUCTS, Task
from metaseg.meta.inner_loop import InnerLoop
from metaseg.meta.vectors import Parameters, detach


def largest_eigenvalue(operator: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> float:
    """A lower bound on the largest eigenvalue of a symmetric operator, by the Lanczos method.

    It is the largest Rayleigh quotient over the Krylov space of ``start``: at least as large as the estimate of power
    iteration with as many products, and not misled by large negative eigenvalues.

    Args:
        operator: v → A v on vectors of shape (N,).
        start: initial vector, shape (N,); a gradient is large along directions of large curvature. A zero vector gives
            0, non-finite products give nan.
        steps: products to compute, ≥ 1.

    Raises:
        ValueError: if ``steps`` < 1.
    """
    if steps < 1:
        raise ValueError(f"expected steps >= 1, found {steps}")
    norm = start.norm()
    if norm == 0:
        return 0.0
    before, here, beside = torch.zeros_like(start), start / norm, start.new_zeros(())
    diagonal, off_diagonal = [], []
    for _ in range(steps):
        product = operator(here)
        diagonal.append(here.dot(product))
        rest = product - diagonal[-1] * here - beside * before
        beside = rest.norm()
        if beside <= torch.finfo(start.dtype).eps * diagonal[-1].abs():  # the Krylov space is exhausted
            break
        off_diagonal.append(beside)
        before, here = here, rest / beside
    sides = torch.stack(off_diagonal[: len(diagonal) - 1]) if len(diagonal) > 1 else start.new_zeros(0)
    if not torch.isfinite(torch.stack(diagonal)).all():
        return float("nan")
    matrix = torch.diag(torch.stack(diagonal)) + torch.diag(sides, 1) + torch.diag(sides, -1)
    return float(torch.linalg.eigvalsh(matrix)[-1])


def largest_curvature(
    task: Task, theta: Parameters, inner: InnerLoop, *, products: str = "autograd", steps: int = 8
) -> float:
    """The largest eigenvalue of R^½ (H + Λ) R^½ at θ.

    H is the Hessian of the support loss, Λ that of the proximal term and R the diagonal of ``inner.rates``: gradient
    descent on the inner problem with step size η is stable while η times this is below 2.

    Args:
        task: the task.
        theta: meta-parameters θ.
        inner: the inner loop.
        products: a key of ``metaseg.meta.gradients.PRODUCTS``.
        steps: curvature products to compute.

    Raises:
        Unsupported: if ``products`` is "replay" and the network uses an operation that it does not know.
    """
    support = PRODUCTS[products](
        task.support, task.support_loss, detach(theta, requires_grad=True), None, True, task.support_inputs
    )
    root = None if inner.rates is None else inner.rates.sqrt()
    strengths = inner.lam if inner.strengths is None else inner.strengths

    def scaled(vector: Tensor) -> Tensor:
        return vector if root is None else root * vector

    def operator(vector: Tensor) -> Tensor:
        inside = scaled(vector)
        return scaled(support.hessian(inside) + strengths * inside)

    return largest_eigenvalue(operator, scaled(support.gradient), steps)

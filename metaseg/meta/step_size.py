"""The step size that the curvature of the inner problem allows.

On a quadratic with largest eigenvalue σ, descent is stable for step sizes below 2/σ, and heavy ball with β = 0.9 below
2 (1 + β)/σ [Polyak 1964]. Above that it circles the minimiser, or leaves it.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from metaseg.meta.gradients import PRODUCTS, Task
from metaseg.meta.inner_loop import InnerLoop
from metaseg.meta.vectors import Parameters, detach


def largest_eigenvalue(operator: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> float:
    """An estimate from below of the largest eigenvalue of a symmetric operator, by Lanczos' method.

    It is the largest Rayleigh quotient over the space that power iteration from ``start`` passes through, so no smaller
    than what power iteration finds with as many products, and it is not misled by eigenvalues that are negative and
    large.

    Args:
        operator: v → A v on vectors of shape (N,).
        start: where to begin, shape (N,); a gradient has its large parts along large curvature. Zero gives 0, and what
            leads to products that are not finite gives nan.
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
        if beside <= torch.finfo(start.dtype).eps * diagonal[-1].abs():  # the space is complete
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
    """The largest eigenvalue of R^½ (H + Λ) R^½ at θ: what a step of size 1 multiplies the error by, less 1.

    H is the Hessian of the support loss, Λ that of the proximal term and R the diagonal of ``inner.rates``: gradient
    descent with step size η is stable on the inner problem for η times this < 2.

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

"""Meta-gradients of one task: implicit, unrolled and first-order, three functions with one signature.

    θ → φ: the inner loop on the support loss;  then  d L_query(φ(θ)) / dθ  by

    implicit     (I + C/λ)⁻¹ ∇L_query(φ), C the curvature of the support loss at φ, by conjugate gradient [iMAML eq. 6]
    unrolled     back-propagation through the inner steps                                                  [MAML]
    first_order  ∇L_query(φ), as if dφ/dθ were the identity                                                [MAML 5.2]

The implicit gradient is that of the exact minimiser of L + λ/2 ‖φ - θ‖²; how far φ is from it is reported as
``stationarity`` (the other two report it at the last gradient they took, one step before φ), how well the linear system
was solved as ``cg_residual``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metaseg.meta.conjugate_gradient import Outcome, Solution, conjugate_gradient
from metaseg.meta.curvature import Product, gauss_newton_product, hessian_product
from metaseg.meta.inner_loop import InnerLoop, Objective, Step, descend
from metaseg.meta.vectors import Parameters, detach, flatten

CURVATURES = ("hessian", "gauss_newton")


@dataclass(frozen=True)
class Task:
    """One task, as callables of a parameter dictionary.

    Attributes:
        support: parameters → (support loss, found), where ``found`` goes to ``query`` (e.g. normalisation statistics).
        query: (parameters, found) → (query loss, whatever else is worth keeping, e.g. detached logits).
        support_logits: parameters → logits of the support set; only the Gauss-Newton product needs it.
        logit_curvature: (logits, u) → B u of the support loss in logit space; only the Gauss-Newton product needs it.
    """

    support: Objective
    query: Callable[[Parameters, Any], tuple[Tensor, Any]]
    support_logits: Callable[[Parameters], Tensor] | None = None
    logit_curvature: Callable[[Tensor, Tensor], Tensor] | None = None


@dataclass(frozen=True)
class MetaGradient:
    """A meta-gradient and how it came about.

    Attributes:
        gradient: d L_query / dθ as a vector of shape (N,).
        adapted: φ, detached.
        diagnostics: name → number: support_loss_before, support_loss_after, query_loss_before, query_loss_after,
            gradient_norm (of the meta-gradient), stationarity (‖∇L + λ(φ - θ)‖ at φ over the same at θ); with the
            implicit gradient also cg_residual, cg_iterations, smallest_curvature (of I + C/λ) and
            cg_negative_curvature (1 if that ended the solve).
        found: what the support pass at φ found.
        query_before: what the query pass at θ found.
        query_after: what the query pass at φ found.
        solution: the solve's full report (implicit only).
    """

    gradient: Tensor
    adapted: Parameters
    diagnostics: dict[str, float]
    found: Any
    query_before: Any
    query_after: Any
    solution: Solution | None = None


def implicit_gradient(
    task: Task,
    theta: Parameters,
    inner: InnerLoop,
    *,
    lam: float,
    cg_steps: int,
    cg_tolerance: float,
    curvature: str = "hessian",
) -> MetaGradient:
    """iMAML: d L_query / dθ = (I + C/λ)⁻¹ ∇L_query(φ) [paper eq. 2; iMAML eq. 6].

    Memory does not grow with the number of inner steps: only the graph at φ is kept.

    Args:
        task: the task.
        theta: meta-parameters θ.
        inner: the inner loop; its own ``lam`` should equal ``lam``, or φ is no stationary point of the problem whose
            gradient this is (the stationarity then tells).
        lam: λ > 0 of the proximal term.
        cg_steps: most curvature products.
        cg_tolerance: relative residual at which the solve stops.
        curvature: "hessian", or "gauss_newton" where λ is so small that I + H/λ would be indefinite.

    Raises:
        ValueError: if λ ≤ 0, the curvature is unknown, or the Gauss-Newton callables are missing.
    """
    if lam <= 0:
        raise ValueError(f"expected lam > 0 for the implicit gradient, found {lam}")
    if curvature not in CURVATURES:
        raise ValueError(f"expected a curvature out of {', '.join(CURVATURES)}, found {curvature!r}")
    start, phi, _ = _run(task, theta, inner)
    phi = detach(phi, requires_grad=True)
    support_loss, found = task.support(phi)
    query_loss, query_after = task.query(phi, found)
    leaves = list(phi.values())
    right_hand_side = flatten(torch.autograd.grad(query_loss, leaves, retain_graph=True, materialize_grads=True))
    exact = curvature == "hessian"
    gradient = flatten(torch.autograd.grad(support_loss, leaves, create_graph=exact, materialize_grads=True))
    product = hessian_product(gradient, phi) if exact else _gauss_newton(task, phi)
    solution = conjugate_gradient(
        lambda vector: vector + product(vector) / lam, right_hand_side, steps=cg_steps, tolerance=cg_tolerance
    )
    moved = flatten((phi[name] - theta[name]).detach() for name in phi)
    end_norm = (gradient.detach() + inner.lam * moved).norm()
    diagnostics = _diagnostics(start, support_loss, query_loss, solution.value, end_norm) | {
        "cg_residual": solution.residual,
        "cg_iterations": float(solution.iterations),
        "smallest_curvature": solution.smallest_curvature,
        "cg_negative_curvature": float(solution.outcome is Outcome.NEGATIVE_CURVATURE),
    }
    return MetaGradient(solution.value, detach(phi), diagnostics, _cut(found), start.query_found, query_after, solution)


def first_order_gradient(task: Task, theta: Parameters, inner: InnerLoop) -> MetaGradient:
    """First-order MAML: d L_query / dθ ≈ ∇L_query(φ), the limit of the implicit gradient for λ → ∞."""
    start, phi, last = _run(task, theta, inner)
    phi = detach(phi, requires_grad=True)
    support_loss, found = task.support(phi)
    query_loss, query_after = task.query(phi, found)
    gradient = flatten(torch.autograd.grad(query_loss, list(phi.values()), materialize_grads=True))
    end_norm = last.gradient_norm if last else start.gradient_norm
    diagnostics = _diagnostics(start, support_loss, query_loss, gradient, end_norm)
    return MetaGradient(gradient, detach(phi), diagnostics, _cut(found), start.query_found, query_after)


def unrolled_gradient(task: Task, theta: Parameters, inner: InnerLoop) -> MetaGradient:
    """MAML: exact d L_query(φ_K(θ)) / dθ through all K inner steps. Memory grows with K."""
    theta = detach(theta, requires_grad=True)
    start, phi, last = _run(task, theta, inner, differentiable=True)
    support_loss, found = task.support(phi)
    query_loss, query_after = task.query(phi, found)
    gradient = flatten(torch.autograd.grad(query_loss, list(theta.values()), materialize_grads=True))
    end_norm = last.gradient_norm if last else start.gradient_norm
    diagnostics = _diagnostics(start, support_loss, query_loss, gradient, end_norm)
    return MetaGradient(gradient, detach(phi), diagnostics, _cut(found), start.query_found, query_after)


def trial(task: Task, theta: Parameters, inner: InnerLoop) -> tuple[tuple[Tensor, Any], tuple[Tensor, Any]]:
    """What ``task.query`` returns at θ and at φ: (before, after), without a meta-gradient; used for validation."""
    start, phi, _ = _run(task, theta, inner)
    with torch.no_grad():
        _, found = task.support(phi)
        after = task.query(phi, found)
    return (start.query_loss, start.query_found), after


@dataclass(frozen=True)
class _Start:
    """What was found at θ before the first step."""

    support_loss: Tensor
    gradient_norm: Tensor
    query_loss: Tensor
    query_found: Any


def _run(
    task: Task, theta: Parameters, inner: InnerLoop, differentiable: bool = False
) -> tuple[_Start, Parameters, Step | None]:
    """The inner loop, with the losses at θ on the way; returns φ and the last step (None if there was none)."""
    phi, start, last = theta, None, None
    for last in descend(task.support, theta, inner, differentiable=differentiable):
        if start is None:
            with torch.no_grad():
                query_loss, query_found = task.query(detach(theta), _cut(last.found))
            start = _Start(last.loss, last.gradient_norm, query_loss, query_found)
        phi = last.parameters
    if start is None:
        with torch.no_grad():
            support_loss, found = task.support(detach(theta))
            query_loss, query_found = task.query(detach(theta), found)
        start = _Start(support_loss, support_loss.new_tensor(float("nan")), query_loss, query_found)
    return start, phi, last


def _diagnostics(
    start: _Start, support_loss: Tensor, query_loss: Tensor, gradient: Tensor, end_norm: Tensor
) -> dict[str, float]:
    return {
        "support_loss_before": start.support_loss.item(),
        "support_loss_after": support_loss.item(),
        "query_loss_before": start.query_loss.item(),
        "query_loss_after": query_loss.item(),
        "gradient_norm": gradient.norm().item(),
        "stationarity": (end_norm / start.gradient_norm).item(),
    }


def _gauss_newton(task: Task, phi: Parameters) -> Product:
    if task.support_logits is None or task.logit_curvature is None:
        raise ValueError("the Gauss-Newton product needs support_logits and logit_curvature in the task, found none")
    return gauss_newton_product(task.support_logits, task.logit_curvature, phi)


def _cut(found: Any) -> Any:
    """The same containers with every tensor cut from its graph."""
    if isinstance(found, Tensor):
        return found.detach()
    if isinstance(found, dict):
        return {key: _cut(value) for key, value in found.items()}
    if isinstance(found, tuple):
        return tuple(_cut(value) for value in found)
    return found

"""Meta-gradients of one task: implicit, unrolled, first-order and Reptile, as functions with one signature.

    θ → φ: the inner loop on the support loss;  then  d L_query(φ(θ)) / dθ  by

    implicit     Λ (C + Λ)⁻¹ ∇L_query(φ), C the curvature of the support loss at φ, by conjugate gradient [iMAML eq. 6]
    unrolled     back-propagation through the inner steps                                                  [MAML]
    first_order  ∇L_query(φ), as if dφ/dθ were the identity                                                [MAML 5.2]
    reptile      (θ - φ) / (lr · T), the displacement of the T inner steps                                  [Reptile]

The implicit gradient assumes that φ is the exact minimiser of L + ½ (φ - θ)ᵀ Λ (φ - θ), with Λ diagonal: λ I in the
paper, or one strength per parameter. There ∇L(φ) + Λ(φ - θ) = 0; differentiating gives (C + Λ) dφ = Λ dθ - (φ - θ)∘dλ,
so one solve yields both gradients:

    x = (C + Λ)⁻¹ ∇L_query(φ),    d L_query/dθ = Λ x,    d L_query/dλ_i = -(φ - θ)_i x_i

``stationarity`` reports how far φ is from the minimiser (the other estimators report it at their last gradient, one
step before φ), ``cg_residual`` how well the linear system was solved.

Leading stages that the inner loop freezes run once; their outputs are inputs c of the task, and θ holds the remaining
parameters. The gradient by c, including the path through φ, is returned as well, so that the chain rule can continue
through the frozen stages:

    d L_query(φ(θ, c), c) / dc  =  ∂L_query/∂c - (∂²L/∂c∂φ) x      (implicit)
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metaseg.meta.conjugate_gradient import Outcome, Solution, conjugate_gradient
from metaseg.meta.curvature import DoubleBackward, Forward, Linearisation, LogitCurvature
from metaseg.meta.inner_loop import (
    Evaluation,
    InnerLoop,
    Moments,
    as_leaves,
    by_autograd,
    descend,
    detached,
    initial_moments,
    slope,
    update,
)
from metaseg.meta.replay import Replay
from metaseg.meta.vectors import Parameters, detach, flatten, unflatten

CURVATURES = ("hessian", "gauss_newton")

PRODUCTS: dict[str, Callable[..., Linearisation]] = {"replay": Replay, "autograd": DoubleBackward}
"""How curvature products are computed: fast, for networks of supported operations, or by autograd, for any network."""


@dataclass(frozen=True)
class Task:
    """One task as functions of a parameter dictionary.

    Attributes:
        support: parameters → (logits of the support set, found), where ``found`` is passed on to ``query`` (e.g.
            normalisation statistics).
        support_loss: support logits → scalar loss.
        query: (parameters, found) → (query loss, other results, e.g. detached logits).
        logit_curvature: (logits, u) → B u of the support loss in logit space; needed by the Gauss-Newton product only.
        query_reads_support: whether the query loss depends on ``found``.
        support_inputs: further leaves that ``support`` reads and whose gradient is needed.
        query_inputs: likewise for ``query``.
    """

    support: Forward
    support_loss: Callable[[Tensor], Tensor]
    query: Callable[[Parameters, Any], tuple[Tensor, Any]]
    logit_curvature: LogitCurvature | None = None
    query_reads_support: bool = True
    support_inputs: tuple[Tensor, ...] = ()
    query_inputs: tuple[Tensor, ...] = ()

    def objective(self, parameters: Parameters) -> tuple[Tensor, Any]:
        """The support loss and ``found``."""
        logits, found = self.support(parameters)
        return self.support_loss(logits), found


@dataclass(frozen=True)
class MetaGradient:
    """A meta-gradient with its diagnostics.

    Attributes:
        gradient: d L_query / dθ as a vector of shape (N,).
        adapted: φ, detached.
        diagnostics: name → number: support_loss_before, support_loss_after, query_loss_after, gradient_norm (of the
            meta-gradient), stationarity (‖∇L + Λ(φ - θ)‖ over the same at θ; at φ for the implicit gradient, else at
            the last gradient, one step before), inner_steps (taken), moved (‖φ - θ‖ / ‖θ‖ over the parameters that
            adapt). The implicit gradient adds unsolved (1 if the stationarity exceeds the inner loop's tolerance;
            omitted where that is 0), cg_residual, cg_iterations, smallest_curvature (of I + Λ^-½ C Λ^-½) and
            cg_negative_curvature (1 if negative curvature ended the solve).
        found: ``found`` of the support pass at φ.
        query_after: the other results of the query pass at φ.
        solution: the solve's full report (implicit only).
        by_inputs: d L_query / dc for each of ``Task.support_inputs``, then ``query_inputs``, with their shapes.
        by_strengths: d L_query / dλ_i per parameter, shape (N,); for a shared λ, sum over the parameters that share it
            (implicit only).
    """

    gradient: Tensor
    adapted: Parameters
    diagnostics: dict[str, float]
    found: Any
    query_after: Any
    solution: Solution | None = None
    by_inputs: tuple[Tensor, ...] = ()
    by_strengths: Tensor | None = None


def implicit_gradient(
    task: Task,
    theta: Parameters,
    inner: InnerLoop,
    *,
    lam: float | Tensor,
    cg_steps: int,
    cg_tolerance: float,
    curvature: str = "hessian",
    products: str = "autograd",
) -> MetaGradient:
    """iMAML: d L_query / dθ = Λ x and d L_query / dλ_i = -(φ - θ)_i x_i, with (C + Λ) x = ∇L_query(φ) = g.

    With Λ = λ I the first is (I + C/λ)⁻¹ g [paper eq. 2; iMAML eq. 6]. The system is solved as
    (I + Λ^-½ C Λ^-½) y = Λ^-½ g, x = Λ^-½ y, whose eigenvalues stay near 1 even if strengths differ by orders of
    magnitude. Memory does not grow with the number of inner steps: only the derivative at φ is kept.

    If only some parameters adapt (mask M), φ minimises over those with the others fixed at θ. The system is solved in
    that subspace, (M C M + Λ) x = M g, and the gradient of the others is (I - M)(g - C x): their direct effect on the
    query loss and their effect through the minimiser. Their strengths have no effect.

    Args:
        task: the task.
        theta: meta-parameters θ.
        inner: the inner loop; it should have the same proximal term, otherwise φ is not a stationary point of the
            problem differentiated here (``stationarity`` shows it).
        lam: λ > 0 of the proximal term, or the diagonal of Λ, shape (N,), > 0.
        cg_steps: maximum number of curvature products.
        cg_tolerance: relative residual at which the solve stops.
        curvature: "hessian", or "gauss_newton" where λ is too small for I + H/λ to be positive definite.
        products: a key of ``PRODUCTS``.

    Raises:
        ValueError: if a λ ≤ 0, a name is unknown, or the Gauss-Newton product lacks its callable.
        Unsupported: if ``products`` is "replay" and the network uses an operation that it does not know.
    """
    _require_solvable(task, lam, curvature)
    linearise = _linearise(products)
    descent = _run(task, theta, inner)
    phi = descent.phi

    leaves = detach(phi, requires_grad=True)

    def ask_query(_: Tensor, found: Any) -> tuple[Tensor, Any, Tensor, tuple[Tensor, ...], Any]:
        loss, after = task.query(leaves, found)
        gradient, by_inputs = _slopes(task, loss, leaves, retain_graph=True)
        return loss.detach(), after, gradient, by_inputs, detached(found)

    exact, in_logits = curvature == "hessian", task.logit_curvature
    support = linearise(task.support, task.support_loss, leaves, ask_query, exact, task.support_inputs)
    query_loss, query_after, right_hand_side, by_inputs, found = support.before
    if exact or in_logits is None:
        curvature_product, curvature_product_and_inputs = support.hessian, support.hessian_and_inputs
    else:
        curvature_product = partial(support.gauss_newton, in_logits)
        curvature_product_and_inputs = partial(support.gauss_newton_and_inputs, in_logits)

    def only_adapting(vector: Tensor) -> Tensor:
        return vector if inner.mask is None else vector * inner.mask

    root = lam**0.5
    solution = conjugate_gradient(
        lambda vector: vector + only_adapting(curvature_product(vector / root)) / root,
        only_adapting(right_hand_side) / root,
        steps=cg_steps,
        tolerance=cg_tolerance,
    )
    x = solution.value / root
    gradient = root * solution.value
    if task.support_inputs:
        product, mixed = curvature_product_and_inputs(x)
        by_inputs = _plus(by_inputs, mixed, -1.0)
    elif inner.mask is not None:
        product = curvature_product(x)
    if inner.mask is not None:
        gradient = gradient + (1 - inner.mask) * (right_hand_side - product)
    start, end = flatten(theta.values()), flatten(phi.values())
    end_norm = slope(inner, start, end, support.gradient).norm()
    descent = replace(descent, first=descent.first or (support.loss, end_norm), last_norm=end_norm)
    diagnostics = _diagnostics(theta, inner, descent, support.loss, query_loss, gradient)
    if inner.tolerance:
        diagnostics["unsolved"] = float(not diagnostics["stationarity"] <= inner.tolerance)
    diagnostics |= {
        "cg_residual": solution.residual,
        "cg_iterations": float(solution.iterations),
        "smallest_curvature": solution.smallest_curvature,
        "cg_negative_curvature": float(solution.outcome is Outcome.NEGATIVE_CURVATURE),
    }
    by_strengths = (start - end) * x
    return MetaGradient(gradient, detach(phi), diagnostics, found, query_after, solution, by_inputs, by_strengths)


def _require_solvable(task: Task, lam: float | Tensor, curvature: str) -> None:
    smallest = lam if isinstance(lam, float | int) else float(lam.min())
    if not smallest > 0:
        raise ValueError(f"expected lam > 0 for the implicit gradient, found {smallest}")
    if curvature not in CURVATURES:
        raise ValueError(f"expected a curvature out of {', '.join(CURVATURES)}, found {curvature!r}")
    if curvature == "gauss_newton" and task.logit_curvature is None:
        raise ValueError("the Gauss-Newton product needs logit_curvature in the task, found none")


def first_order_gradient(task: Task, theta: Parameters, inner: InnerLoop) -> MetaGradient:
    """First-order MAML: d L_query / dθ ≈ ∇L_query(φ), the limit of the implicit gradient as λ → ∞."""
    return _with_query(task, theta, inner, _run(task, theta, inner))


def unrolled_gradient(
    task: Task,
    theta: Parameters,
    inner: InnerLoop,
    *,
    products: str = "autograd",
    checkpoint: bool = False,
) -> MetaGradient:
    """MAML: exact d L_query(φ_T(θ)) / dθ through all T inner steps.

    Back-propagates step by step: a cotangent v passes through ∇L(φ_k) as ∇²L(φ_k) v, and through the optimiser's
    arithmetic by autograd.

    Args:
        task: the task.
        theta: meta-parameters θ.
        inner: the inner loop.
        products: a key of ``PRODUCTS``.
        checkpoint: keep only φ and the optimiser's moments of each step and evaluate it again on the way back: the
            memory of one step plus a few N per step.

    Raises:
        ValueError: if ``products`` is unknown.
        Unsupported: if ``products`` is "replay" and the network uses an operation that it does not know.
    """
    linearise = _linearise(products)
    evaluate = by_autograd(task.objective)

    def linearised(phi: Tensor) -> Linearisation:
        return linearise(task.support, task.support_loss, as_leaves(phi, theta), None, True, task.support_inputs)

    start = flatten(theta.values()).detach()
    phi, moments = start, initial_moments(inner, start)
    history: list[tuple[Tensor, Tensor, Moments, Linearisation | None]] = []
    first, last_norm, taken = None, None, 0
    for count in range(1, inner.steps + 1):
        support = None if checkpoint else linearised(phi)
        here = evaluate(as_leaves(phi, theta)) if support is None else Evaluation(support.loss, support.gradient, None)
        last_norm = slope(inner, start, phi, here.gradient).norm()
        if inner.tolerance and first is not None and last_norm <= inner.tolerance * first[1]:
            break
        first, taken = first or (here.loss, last_norm), count
        history.append((phi, here.gradient, moments, support))
        phi, moments = update(inner, count, start, phi, here.gradient, moments)
    result = _with_query(task, theta, inner, _Descent(unflatten(phi, theta), first, last_norm, taken))

    by_phi, by_moments, by_theta = result.gradient, initial_moments(inner, start), torch.zeros_like(start)
    by_inputs = result.by_inputs
    for count in range(taken, 0, -1):
        phi, gradient, moments, support = history.pop()
        inputs = [vector.detach().requires_grad_() for vector in (start, phi, gradient, *moments)]
        with torch.enable_grad():
            after, moments_after = update(inner, count, inputs[0], inputs[1], inputs[2], tuple(inputs[3:]))
        more, by_phi, by_gradient, *by_moments_before = torch.autograd.grad(
            [after, *moments_after], inputs, [by_phi, *by_moments], materialize_grads=True
        )
        support = support or linearised(phi)
        if task.support_inputs:
            product, mixed = support.hessian_and_inputs(by_gradient)
            by_inputs = _plus(by_inputs, mixed, 1.0)
        else:
            product = support.hessian(by_gradient)
        by_phi = by_phi + product
        by_theta, by_moments = by_theta + more, tuple(by_moments_before)
        del support
    total = by_theta + by_phi
    diagnostics = result.diagnostics | {"gradient_norm": total.norm().item()}
    return MetaGradient(total, result.adapted, diagnostics, result.found, result.query_after, by_inputs=by_inputs)


def reptile_gradient(task: Task, theta: Parameters, inner: InnerLoop) -> MetaGradient:
    """Reptile: (θ - φ) / (lr · T), for SGD the mean of the T gradients taken [Nichol et al. 2018, section 3].

    K is the number of steps taken. The query set does not enter; the query loss is computed for the curves only.

    Raises:
        ValueError: if there are no inner steps.
    """
    if not inner.steps:
        raise ValueError("expected at least one inner step for Reptile, found 0")
    descent = _run(task, theta, inner)
    phi = descent.phi
    way = flatten(theta[name] - phi[name] for name in theta) / (inner.lr * descent.steps)
    with torch.no_grad():
        support_loss, found = task.objective(phi)
        query_loss, query_after = task.query(phi, found)
    diagnostics = _diagnostics(theta, inner, descent, support_loss, query_loss, way)
    # Frozen parameters have not moved.
    by_inputs = tuple(torch.zeros_like(c) for c in (*task.support_inputs, *task.query_inputs))
    return MetaGradient(way, detach(phi), diagnostics, detached(found), query_after, by_inputs=by_inputs)


def trial(task: Task, theta: Parameters, inner: InnerLoop) -> tuple[tuple[Tensor, Any], tuple[Tensor, Any]]:
    """``task.query`` at θ and at φ: (before, after), without a meta-gradient; used for validation."""
    phi = _run(task, theta, inner).phi
    with torch.no_grad():
        before, after = (task.query(detach(p), task.support(detach(p))[1]) for p in (theta, phi))
    return before, after


@dataclass(frozen=True)
class _Descent:
    """The inner loop: φ; support loss and gradient norm at θ (None without a step); the last gradient's norm; steps."""

    phi: Parameters
    first: tuple[Tensor, Tensor] | None
    last_norm: Tensor | None
    steps: int


def _run(task: Task, theta: Parameters, inner: InnerLoop) -> _Descent:
    phi, first, norm, count = detach(theta), None, None, 0
    for count, step in enumerate(descend(by_autograd(task.objective), theta, inner), 1):  # noqa: B007
        phi, norm = step.parameters, step.gradient_norm
        first = first or (step.before.loss, norm)
    return _Descent(phi, first, norm, count)


def _with_query(task: Task, theta: Parameters, inner: InnerLoop, descent: _Descent) -> MetaGradient:
    """∇L_query(φ), and the diagnostics of a descent that ended at φ."""
    leaves = detach(descent.phi, requires_grad=True)
    with torch.set_grad_enabled(task.query_reads_support):
        support_loss, found = task.objective(leaves)
    with torch.enable_grad():
        query_loss, query_after = task.query(leaves, found)
        gradient, by_inputs = _slopes(task, query_loss, leaves)
    diagnostics = _diagnostics(theta, inner, descent, support_loss.detach(), query_loss.detach(), gradient)
    return MetaGradient(gradient, detach(descent.phi), diagnostics, detached(found), query_after, by_inputs=by_inputs)


def _slopes(
    task: Task, loss: Tensor, leaves: Parameters, retain_graph: bool = False
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The gradient of the query loss in the parameters, as a vector, and in each of the task's inputs."""
    inputs = (*task.support_inputs, *task.query_inputs)
    rows = torch.autograd.grad(loss, [*leaves.values(), *inputs], retain_graph=retain_graph, materialize_grads=True)
    return flatten(rows[: len(leaves)]), rows[len(leaves) :]


def _plus(by_inputs: tuple[Tensor, ...], mixed: tuple[Tensor, ...], factor: float) -> tuple[Tensor, ...]:
    """Add factor · mixed products, which exist for the support inputs only."""
    count = len(mixed)
    return (*(c + factor * m for c, m in zip(by_inputs, mixed, strict=False)), *by_inputs[count:])


def _linearise(products: str) -> Callable[..., Linearisation]:
    if products not in PRODUCTS:
        raise ValueError(f"expected products out of {', '.join(PRODUCTS)}, found {products!r}")
    return PRODUCTS[products]


def _diagnostics(
    theta: Parameters, inner: InnerLoop, descent: _Descent, support_loss: Tensor, query_loss: Tensor, gradient: Tensor
) -> dict[str, float]:
    nothing = support_loss.new_tensor(float("nan"))
    before, norm_before = descent.first or (support_loss, nothing)
    norm = nothing if descent.last_norm is None else descent.last_norm
    start = flatten(theta.values())
    way = flatten(descent.phi.values()) - start
    adapting = start if inner.mask is None else start * inner.mask
    return {
        "support_loss_before": before.item(),
        "support_loss_after": support_loss.item(),
        "query_loss_after": query_loss.item(),
        "gradient_norm": gradient.norm().item(),
        "stationarity": (norm / norm_before).item(),
        "inner_steps": float(descent.steps),
        "moved": (way.norm() / adapting.norm()).item(),
    }

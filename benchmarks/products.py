"""One curvature product v → C v at φ, in units of one forward and backward pass over the support set.

One-time set-up at a point, shared by all products there, is reported separately.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from benchmarks.methods import ours
from benchmarks.methods.base import MissingError, Quantity
from benchmarks.methods.plain import STEP, descend
from benchmarks.reference import Operator, Reference, gauss_newton, hessian, logit_curvature
from benchmarks.report import Report
from benchmarks.setting import Problem, Setting, make_problem
from benchmarks.timing import round_robin, timed
from metaseg.meta.vectors import Parameters, detach, flatten, unflatten

COLUMNS = ("product", "units each", "middle half", "units once", "relative error")
SET_UPS = 3
"""Maximum number of timings of the set-up; the median is reported."""


def hessian_recomputed(problem: Problem, phi: Parameters) -> Operator:
    """Forward and two backward passes for every product."""
    leaves = list(phi.values())

    def product(vector: Tensor) -> Tensor:
        gradient = flatten(torch.autograd.grad(problem.support_loss(phi), leaves, create_graph=True))
        return flatten(torch.autograd.grad(gradient, leaves, vector))

    return product


def forward_over_reverse(problem: Problem, phi: Parameters) -> Operator:
    """Forward mode through the gradient, both computed for every product [Pearlmutter 1994]."""
    frozen = detach(phi)
    gradient = torch.func.grad(problem.support_loss)

    def product(vector: Tensor) -> Tensor:
        return flatten(torch.func.jvp(gradient, (frozen,), (unflatten(vector, frozen),))[1].values())

    return product


def gauss_newton_linearised(problem: Problem, phi: Parameters) -> Operator:
    """As `reference.gauss_newton`, with forward mode traced once (torch.func.linearize)."""
    frozen, leaves = detach(phi), list(phi.values())
    logits = problem.support_logits(phi)
    curvature = logit_curvature(logits.detach(), problem.episode.support_masks)
    pushforward = torch.func.linearize(problem.support_logits, frozen)[1]

    def product(vector: Tensor) -> Tensor:
        with torch.no_grad():
            pushed = pushforward(unflatten(vector, frozen))
        return flatten(torch.autograd.grad(logits, leaves, curvature(pushed), retain_graph=True))

    return product


@dataclass(frozen=True)
class Kind:
    """An implementation of a curvature product: title, the matrix, and (problem, φ) → product."""

    title: str
    quantity: Quantity
    prepare: Callable[[Problem, Parameters], Operator]


KINDS = {
    "hessian_recomputed": Kind("Hessian, recomputed from the loss", "hessian", hessian_recomputed),
    "hessian_kept": Kind("Hessian, autograd, graph of the gradient kept", "hessian", hessian),
    "forward_over_reverse": Kind("Hessian, torch.func, forward over reverse", "hessian", forward_over_reverse),
    "gn_jvp": Kind("Gauss-Newton, torch.func.jvp, backward graph kept", "gauss_newton", gauss_newton),
    "gn_linearised": Kind(
        "Gauss-Newton, torch.func.linearize, backward graph kept", "gauss_newton", gauss_newton_linearised
    ),
    "hessian_metaseg": Kind("Hessian, metaseg", "hessian", ours.hessian_product),
    "gn_metaseg": Kind("Gauss-Newton, metaseg", "gauss_newton", ours.gauss_newton_product),
}


def products(setting: Setting, rounds: int) -> Report:
    """Run the benchmark."""
    setting.apply()
    problem = make_problem(setting)
    phi = detach(descend(problem, problem.theta, create_graph=False), requires_grad=True)
    vector = flatten(torch.autograd.grad(problem.query_loss(phi), list(phi.values())))
    unit = STEP.prepare(problem)
    unit()

    made: dict[str, Operator] = {}
    once: dict[str, float] = {}
    reasons: dict[str, str] = {}
    with Console(stderr=True).status("set-up") as status:
        for name, kind in KINDS.items():
            status.update(f"set-up: {kind.title}")
            try:
                made[name] = kind.prepare(problem, phi)
                made[name](vector)
                once[name] = _set_up(kind, problem, phi, unit, min(SET_UPS, rounds))
            except MissingError as reason:
                reasons[name] = str(reason)
            except Exception as error:  # one failing kind must not lose the table
                reasons[name] = f"failed: {type(error).__name__}: {str(error).strip().splitlines()[0]}"
    runs = {name: (lambda product=product: product(vector)) for name, product in made.items() if name in once}
    of_unit, timings = round_robin(runs, unit, rounds, setting.device)

    reference = Reference(setting)
    quantities = {kind.quantity for kind in KINDS.values()}
    exact_products = {quantity: reference.product(quantity)(vector.double()) for quantity in quantities}
    report = Report("products", "Curvature products", setting, COLUMNS)
    report.numbers["unit"] = {"seconds": of_unit.seconds}
    for name, kind in KINDS.items():
        if name in reasons:
            report.rows.append([kind.title, "", "", "", reasons[name]])
            report.numbers[name] = {"title": kind.title, "missing": reasons[name]}
            continue
        exact = exact_products[kind.quantity]
        difference = ((made[name](vector).double() - exact).norm() / exact.norm()).item()
        timing = timings[name]
        low, high = timing.spread
        row = [f"{timing.ratio:.2f}", f"{low:.2f} - {high:.2f}", f"{once[name]:.2f}", f"{difference:.1e}"]
        report.rows.append([kind.title, *row])
        numbers: dict[str, Any] = {"title": kind.title, "ratios": timing.ratios, "ratio": timing.ratio}
        report.numbers[name] = numbers | {"once": once[name], "error": difference}
    report.notes = [
        f"Unit: one forward and backward pass over the support set, with torch's own layers; median "
        f"{1000 * median(of_unit.seconds):.1f} ms. Each: median over {rounds} rounds of the ratio to the unit of the "
        "same round; middle half: 25 % to 75 % of these ratios.",
        "Once: set-up at a point before its first product, such as the gradient with its graph, or the trace of "
        f"torch.func.linearize; median of {min(SET_UPS, rounds)}.",
        "Error: ‖Cv - exact‖ / ‖exact‖ of the product with the query gradient, against double precision at the same φ.",
    ]
    return report


def _set_up(kind: Kind, problem: Problem, phi: Parameters, unit: Callable[[], object], rounds: int) -> float:
    device = problem.setting.device
    return median(timed(lambda: kind.prepare(problem, phi), device) / timed(unit, device) for _ in range(rounds))

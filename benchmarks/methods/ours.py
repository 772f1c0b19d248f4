"""metaseg's learners; the only file here that depends on their settings."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.methods.base import TOLERANCE, Answer, Method, Run, to_tolerance_and_forced
from benchmarks.setting import LOSS, Problem, Setting
from metaseg.learners.base import Learner
from metaseg.learners.fomaml import FirstOrderMAML
from metaseg.learners.imaml import ImplicitMAML, Solver
from metaseg.learners.maml import MAML
from metaseg.meta import gradients
from metaseg.meta.inner_loop import by_autograd, detached
from metaseg.meta.losses import LOSSES
from metaseg.meta.vectors import Parameters, detach, flatten
from metaseg.networks.build import build
from metaseg.runs import schema


def make_learner(kind: type[Learner], setting: Setting, **changes: Any) -> Learner:
    """A learner on the benchmark's network with the proximal term in its inner loop."""
    learner = kind(
        network=build(name="attention_unet", features=setting.features, seed=setting.seed),
        loss=LOSSES[LOSS],
        norm=setting.norm,
        adapt=schema.Adapt(optimizer="adam", lr=1e-3, steps=1, lam=0.0),
        optimizer=schema.Optimizer(lr=1e-3, weight_decay=0.0, clip_norm=None),
        inner=schema.Inner(optimizer="sgd", lr=setting.lr, steps=setting.inner_steps, proximal=True),
        lam=setting.lam,
        **changes,
    )
    return learner.to(setting.device, getattr(torch, setting.dtype))


def imaml_learner(setting: Setting, matrix: str, tolerance: float) -> Learner:
    """The iMAML learner."""
    cg = Solver(steps=setting.cg_steps, tolerance=tolerance)
    return make_learner(ImplicitMAML, setting, cg=cg, curvature=matrix)


def _run(learner: Learner, problem: Problem) -> Run:
    theta = learner.theta()

    def run() -> Answer:
        result = learner.meta_gradient(theta, problem.episode)
        phi = flatten(result.adapted.values())
        if result.solution is None:
            return Answer(result.gradient, phi=phi)
        return Answer(result.gradient, result.solution.iterations, result.solution.residual, phi)

    return run


def imaml(problem: Problem, matrix: str, tolerance: float) -> Run:
    """iMAML; a tolerance of 0 forces all steps."""
    return _run(imaml_learner(problem.setting, matrix, tolerance), problem)


def maml(problem: Problem, checkpoint: bool = False) -> Run:
    """MAML, second order, optionally with checkpointed inner steps."""
    return _run(make_learner(MAML, problem.setting, checkpoint=checkpoint), problem)


def first_order(problem: Problem) -> Run:
    """MAML, first order."""
    return _run(make_learner(FirstOrderMAML, problem.setting), problem)


def passes(problem: Problem) -> Run:
    """The floor's passes through metaseg's network, to isolate the effect of its layers."""
    learner = make_learner(FirstOrderMAML, problem.setting)
    theta = learner.theta()
    task = learner.episode_task(theta, problem.episode).task
    support = by_autograd(task.objective)
    statistics = detached(task.support(theta)[1])
    query = by_autograd(lambda parameters: task.query(parameters, statistics))

    def run() -> Answer:
        for evaluate in (*[support] * (problem.setting.inner_steps + 1), query):
            evaluate(detach(theta, requires_grad=True))
        return Answer()

    return run


def hessian_product(problem: Problem, phi: Parameters) -> Callable[[Tensor], Tensor]:
    """v → ∇²L(φ) v by the learners' fast products, including their one-time set-up at φ."""
    task = _task(problem)
    return gradients.PRODUCTS["replay"](task.support, task.support_loss, phi, None, True).hessian


def gauss_newton_product(problem: Problem, phi: Parameters) -> Callable[[Tensor], Tensor]:
    """v → Jᵀ B J v by the learners' fast products, including their one-time set-up at φ."""
    task = _task(problem)
    in_logits = task.logit_curvature
    assert in_logits is not None
    return partial(
        gradients.PRODUCTS["replay"](task.support, task.support_loss, phi, None, False).gauss_newton, in_logits
    )


def _task(problem: Problem) -> gradients.Task:
    learner = imaml_learner(problem.setting, "hessian", TOLERANCE)
    return learner.episode_task(learner.theta(), problem.episode).task


METHODS = (
    Method("passes", "K+2 passes through metaseg's layers", None, passes),
    *to_tolerance_and_forced("imaml_hessian", "iMAML, metaseg, Hessian", "hessian", partial(imaml, matrix="hessian")),
    *to_tolerance_and_forced(
        "imaml_gn", "iMAML, metaseg, Gauss-Newton", "gauss_newton", partial(imaml, matrix="gauss_newton")
    ),
    Method("maml", "MAML, metaseg, second order", "unrolled", maml),
    Method("first_order", "MAML, metaseg, first order", "first_order", first_order),
)
CHECKPOINTED = Method("maml_checkpointed", "MAML, metaseg, checkpointed", "unrolled", partial(maml, checkpoint=True))

"""TorchOpt 0.7.3 [Ren et al. 2023, JMLR]: implicit differentiation of the inner problem with ``custom_root``."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.methods.base import Answer, Run, optional, to_tolerance_and_forced
from benchmarks.methods.plain import descend
from benchmarks.setting import Problem
from metaseg.meta.vectors import detach, flatten

Tensors = tuple[Tensor, ...]


def implicit(problem: Problem, tolerance: float, normal: bool) -> Run:
    """The gradient of the query loss at φ, the root of ∇(L(φ; S) + λ/2 ‖φ - θ‖²) in φ.

    Args:
        problem: the task.
        tolerance: relative residual at which the solve stops, of the normal equations if those are solved.
        normal: solve with TorchOpt's default, conjugate gradient on the normal equations, instead of plain conjugate
            gradient. Both take at most ``cg_steps``; their default limit is ten times the number of parameters.
    """
    torchopt = optional("torchopt")
    names, setting = list(problem.theta), problem.setting
    products = 0

    def objective(phi: Tensors, theta: Tensors) -> Tensor:
        distance = sum(((p - t) ** 2).sum() for p, t in zip(phi, theta, strict=True))
        return problem.support_loss(dict(zip(names, phi, strict=True))) + setting.lam / 2 * distance

    library = torchopt.linear_solve
    solver = (library.solve_normal_cg if normal else library.solve_cg)(maxiter=setting.cg_steps, rtol=tolerance)

    def solve(matvec: Callable[[Any], Any], b: Any) -> Any:
        def counted(vector: Any) -> Any:
            nonlocal products
            # With the normal equations, each product is followed by one with the transpose.
            products += 2 if normal else 1
            return matvec(vector)

        return solver(counted, b)

    @torchopt.diff.implicit.custom_root(torch.func.grad(objective), argnums=1, solve=solve)
    def solution(initial: Tensors, theta: Tensors) -> Tensors:
        # Gradients are disabled inside an autograd function.
        with torch.enable_grad():
            phi = descend(problem, dict(zip(names, theta, strict=True)), create_graph=False)
        return tuple(value.detach() for value in phi.values())

    def run() -> Answer:
        nonlocal products
        products = 0
        theta = detach(problem.theta, requires_grad=True)
        leaves = tuple(theta.values())
        phi = solution(tuple(problem.theta.values()), leaves)
        loss = problem.query_loss(dict(zip(names, phi, strict=True)))
        return Answer(flatten(torch.autograd.grad(loss, leaves)), products)

    return run


METHODS = (
    *to_tolerance_and_forced(
        "torchopt_normal",
        "iMAML, TorchOpt, its default normal-equation CG",
        "hessian",
        partial(implicit, normal=True),
    ),
    *to_tolerance_and_forced("torchopt_cg", "iMAML, TorchOpt, CG", "hessian", partial(implicit, normal=False)),
)

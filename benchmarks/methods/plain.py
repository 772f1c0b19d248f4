"""Plain torch: the floor, and reimplementations of others' recipes at the same cost."""

import copy

import torch
from torch import Tensor

from benchmarks.methods.base import Answer, Method, Run, to_tolerance_and_forced
from benchmarks.setting import Problem
from metaseg.meta.vectors import Parameters, detach, flatten


def passes(problem: Problem, support: int, query: int) -> Run:
    """Only the given numbers of forward and backward passes over the support and the query set."""
    network, episode = problem.network, problem.episode
    leaves = list(network.parameters())

    def run() -> Answer:
        for _ in range(support):
            torch.autograd.grad(problem.loss(network(episode.support_images), episode.support_masks), leaves)
        for _ in range(query):
            torch.autograd.grad(problem.loss(network(episode.query_images), episode.query_masks), leaves)
        return Answer()

    return run


def descend(problem: Problem, theta: Parameters, create_graph: bool) -> Parameters:
    """φ after T steps of SGD on L(φ; S) + λ/2 ‖φ - θ‖²; differentiable in θ with ``create_graph``."""
    setting = problem.setting
    phi = theta
    for _ in range(setting.inner_steps):
        if not create_graph:
            phi = detach(phi, requires_grad=True)
        gradients = torch.autograd.grad(problem.support_loss(phi), list(phi.values()), create_graph=create_graph)
        with torch.set_grad_enabled(create_graph):
            phi = {
                name: value - setting.lr * (gradient + setting.lam * (value - theta[name]))
                for (name, value), gradient in zip(phi.items(), gradients, strict=True)
            }
    return phi


def unrolled(problem: Problem) -> Run:
    """MAML [Finn et al. 2017], straightforwardly: every inner step with ``create_graph=True``."""

    def run() -> Answer:
        theta = detach(problem.theta, requires_grad=True)
        phi = descend(problem, theta, create_graph=True)
        return Answer(flatten(torch.autograd.grad(problem.query_loss(phi), list(theta.values()))))

    return run


def imaml_reference(problem: Problem, tolerance: float) -> Run:
    """iMAML at the cost of its reference code (github aravindr93/imaml_dev, learner_model.py and utils.py).

    There, a second network is trained in place by ``torch.optim.SGD``; every product takes a forward and two backward
    passes through it; conjugate gradient starts from zero but still computes the product with zero. Reimplemented with
    the operator v + Hv/λ; with its example's damping argument, that code applies 2v + Hv/(λ + 10). Its stop at
    ‖r‖² < 1e-10 is replaced by one at the relative residual ``tolerance``.
    """
    setting, episode = problem.setting, problem.episode

    def run() -> Answer:
        network = copy.deepcopy(problem.network)
        leaves = list(network.parameters())
        start = [leaf.detach().clone() for leaf in leaves]
        optimizer = torch.optim.SGD(leaves, lr=setting.lr)
        products = 0

        def support_loss() -> Tensor:
            return problem.loss(network(episode.support_images), episode.support_masks)

        for _ in range(setting.inner_steps):
            optimizer.zero_grad()
            distance = sum(((leaf - at) ** 2).sum() for leaf, at in zip(leaves, start, strict=True))
            (support_loss() + setting.lam / 2 * distance).backward()
            optimizer.step()

        def operator(vector: Tensor) -> Tensor:
            nonlocal products
            products += 1
            gradient = flatten(torch.autograd.grad(support_loss(), leaves, create_graph=True))
            return vector + flatten(torch.autograd.grad((gradient * vector).sum(), leaves)) / setting.lam

        b = flatten(torch.autograd.grad(problem.query_loss(dict(network.named_parameters())), leaves))
        x = torch.zeros_like(b)
        residual = b - operator(x)
        direction, squared = residual, residual.dot(residual)
        for _ in range(setting.cg_steps):
            if squared.sqrt() <= tolerance * b.norm():
                break
            product = operator(direction)
            step = squared / direction.dot(product)
            x = x + step * direction
            residual = residual - step * product
            squared, previous = residual.dot(residual), squared
            direction = residual + squared / previous * direction
        return Answer(x, products)

    return run


FLOOR = Method("floor", "K+2 plain passes", None, lambda problem: passes(problem, problem.setting.inner_steps + 1, 1))
STEP = Method("step", "one plain training step", None, lambda problem: passes(problem, 1, 0))
METHODS = (
    *to_tolerance_and_forced(
        "imaml_reference", "iMAML, reference recipe (product recomputed)", "hessian", imaml_reference
    ),
    Method("maml_plain", "MAML, unrolled in plain torch", "unrolled", unrolled),
)

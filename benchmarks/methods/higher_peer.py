"""`higher` 0.2.1 [Grefenstette et al. 2019]: MAML, and the iMAML of the paper's first author, which builds on it."""

from collections.abc import Iterable

import torch
from torch import Tensor

from benchmarks.methods.base import Answer, Method, Run, optional, to_tolerance_and_forced
from benchmarks.setting import Problem
from metaseg.meta.vectors import flatten


def _proximal(problem: Problem, phi: Iterable[Tensor], theta: Iterable[Tensor]) -> Tensor:
    distance = torch.stack([((p - t) ** 2).sum() for p, t in zip(phi, theta, strict=True)]).sum()
    return problem.setting.lam / 2 * distance


def maml(problem: Problem) -> Run:
    """MAML as in the library's example: a patched network and a differentiable SGD."""
    higher = optional("higher")
    setting, episode, network = problem.setting, problem.episode, problem.network
    theta = list(network.parameters())
    optimizer = torch.optim.SGD(theta, lr=setting.lr)

    def run() -> Answer:
        with higher.innerloop_ctx(network, optimizer, copy_initial_weights=False) as (patched, descent):
            for _ in range(setting.inner_steps):
                loss = problem.loss(patched(episode.support_images), episode.support_masks)
                descent.step(loss + _proximal(problem, patched.parameters(), theta))
            loss = problem.query_loss(dict(patched.named_parameters()))
            return Answer(flatten(torch.autograd.grad(loss, theta)))

    return run


def author(problem: Problem, tolerance: float) -> Run:
    """iMAML at the cost of the author's code (github IamRabin/Meta-Learning-Seg, gbml/imaml.py).

    There, the inner loop runs in a patched network without a graph, the graph of the support gradient at φ is kept, and
    conjugate gradient starts from x = g, which costs a product for the initial residual. Reimplemented with two
    changes: the proximal term in the inner loop, which that code lacks, and ``cg_steps`` iterations instead of one,
    or fewer if they reach the relative residual ``tolerance``.
    """
    higher = optional("higher")
    setting, episode, network = problem.setting, problem.episode, problem.network
    optimizer = torch.optim.SGD(network.parameters(), lr=setting.lr)

    def run() -> Answer:
        theta = [value.detach() for value in network.parameters()]
        products = 0
        with higher.innerloop_ctx(network, optimizer, track_higher_grads=False) as (patched, descent):
            for _ in range(setting.inner_steps):
                loss = problem.loss(patched(episode.support_images), episode.support_masks)
                descent.step(loss + _proximal(problem, patched.parameters(), theta))
            support_loss = problem.loss(patched(episode.support_images), episode.support_masks)
            query_loss = problem.query_loss(dict(patched.named_parameters()))
            phi = list(patched.parameters())
            gradient = flatten(torch.autograd.grad(support_loss, phi, create_graph=True))
            b = flatten(torch.autograd.grad(query_loss, phi))

            def operator(vector: Tensor) -> Tensor:
                nonlocal products
                products += 1
                rows = torch.autograd.grad(gradient, phi, grad_outputs=vector, retain_graph=True)
                return vector + flatten(rows) / setting.lam

            x = b.clone()
            residual = b - operator(x)
            direction = residual
            for _ in range(setting.cg_steps):
                if residual.norm() <= tolerance * b.norm():
                    break
                product = operator(direction)
                step = residual.dot(residual) / direction.dot(product)
                x = x + step * direction
                smaller = residual - step * product
                direction = smaller + smaller.dot(smaller) / residual.dot(residual) * direction
                residual = smaller
            return Answer(x, products)

    return run


METHODS = (
    *to_tolerance_and_forced("author", "iMAML, the paper author's recipe (higher, graph kept)", "hessian", author),
    Method("maml_higher", "MAML, higher", "unrolled", maml),
)

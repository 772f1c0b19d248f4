"""The largest curvature of the inner problem, and the step size that it allows."""

import math
from itertools import pairwise

import pytest
import torch
from test_gradients import SPECTRUM, network_task, quadratic

from metaseg.meta.gradients import first_order_gradient
from metaseg.meta.inner_loop import InnerLoop
from metaseg.meta.step_size import largest_curvature, largest_eigenvalue
from metaseg.meta.vectors import flatten, unflatten


@pytest.mark.parametrize("eigenvalues", [[-90.0, -3, 0, 1, 5, 9], [0.1, 0.2, 0.3, 0.4, 0.5, 80]])
def test_the_largest_eigenvalue_is_found_though_others_are_negative_and_larger(eigenvalues):
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))
    matrix = basis @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.T
    start = torch.randn(6, generator=generator, dtype=torch.float64)
    found = [largest_eigenvalue(lambda v: matrix @ v, start, steps) for steps in range(1, 9)]
    assert found[5] == pytest.approx(eigenvalues[-1], rel=1e-9)
    # It grows from below, and goes no further once the space is complete.
    assert all(later >= earlier - 1e-9 for earlier, later in pairwise(found))
    assert found[7] == pytest.approx(eigenvalues[-1], rel=1e-9)


def test_no_more_products_are_computed_than_the_space_has_dimensions():
    asked = []
    assert largest_eigenvalue(lambda v: asked.append(1) or 3 * v, torch.ones(4), 4) == pytest.approx(3)
    assert len(asked) == 1


def test_zero_start_and_invalid_steps():
    assert largest_eigenvalue(lambda v: v, torch.zeros(3), 4) == 0
    assert math.isnan(largest_eigenvalue(lambda v: v * float("nan"), torch.ones(3), 4))
    with pytest.raises(ValueError, match="steps >= 1"):
        largest_eigenvalue(lambda v: v, torch.ones(3), 0)


def test_it_is_that_of_the_inner_problem_with_its_rates_and_strengths():
    task, theta = network_task()
    rates = torch.linspace(0, 2, 20, dtype=torch.float64)
    strengths = torch.linspace(0.5, 4, 20, dtype=torch.float64)
    hessian = torch.func.hessian(lambda v: task.objective(unflatten(v, theta))[0])(flatten(theta.values()))
    root = torch.diag(rates.sqrt())
    exact = torch.linalg.eigvalsh(root @ (hessian + torch.diag(strengths)) @ root)[-1].item()
    inner = InnerLoop("sgd", 0.1, 1, rates=rates, strengths=strengths)
    assert largest_curvature(task, theta, inner, steps=20) == pytest.approx(exact, rel=1e-9)
    # Seven products are 7e-5 below it.
    assert largest_curvature(task, theta, inner) == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize(("optimizer", "limit"), [("sgd", 2.0), ("momentum", 3.8)])
def test_steps_below_the_limit_converge_and_steps_above_it_do_not(optimizer, limit):
    task, theta, *_ = quadratic(SPECTRUM)
    curvature = largest_curvature(task, theta, InnerLoop(lam=0.3), steps=6)
    assert curvature == pytest.approx(5.3, rel=1e-6)
    ends = [
        first_order_gradient(task, theta, InnerLoop(optimizer, share * limit / curvature, 400, 0.3)).diagnostics
        for share in (0.95, 1.05)
    ]
    assert ends[0]["stationarity"] < 1e-3
    assert not ends[1]["stationarity"] < 1

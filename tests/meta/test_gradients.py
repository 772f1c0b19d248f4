"""Meta-gradients against closed forms and finite differences, in float64."""

import dataclasses
import math
from functools import partial
from itertools import pairwise

import pytest
import torch

from metaseg.meta.conjugate_gradient import Outcome
from metaseg.meta.gradients import (
    Task,
    first_order_gradient,
    implicit_gradient,
    reptile_gradient,
    unrolled_gradient,
)
from metaseg.meta.inner_loop import InnerLoop
from metaseg.meta.vectors import flatten, unflatten

SIZE = 6


def quadratic(eigenvalues, seed=0):
    """Support ½(φ-a)ᵀH(φ-a), query ½‖φ-b‖² over two tensors of three elements each."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64))
    hessian = basis @ torch.diag(torch.as_tensor(eigenvalues, dtype=torch.float64)) @ basis.T
    a, b, theta = torch.randn(3, SIZE, generator=generator, dtype=torch.float64)

    def support(parameters):
        return flatten(parameters.values()) - a, None

    def support_loss(offset):
        return 0.5 * offset @ hessian @ offset

    def query(parameters, found):
        offset = flatten(parameters.values()) - b
        return 0.5 * offset @ offset, None

    like = {"one": torch.empty(3), "two": torch.empty(1, 3)}
    return Task(support, support_loss, query), unflatten(theta, like), hessian, a, b


SPECTRUM = [0.1, 0.5, 1.0, 2.0, 3.0, 5.0]


@pytest.mark.parametrize("lam", [0.3, 2.0, 100.0])
def test_implicit_gradient_of_a_quadratic_equals_its_closed_form(lam):
    task, theta, hessian, a, b = quadratic(SPECTRUM)
    inner = InnerLoop("sgd", lr=1 / (5 + lam), steps=400, lam=lam)
    result = implicit_gradient(task, theta, inner, lam=lam, cg_steps=SIZE, cg_tolerance=0.0)
    identity = torch.eye(SIZE, dtype=torch.float64)
    start = flatten(theta.values())
    phi = torch.linalg.solve(hessian + lam * identity, hessian @ a + lam * start)
    expected = torch.linalg.solve(identity + hessian / lam, phi - b)
    torch.testing.assert_close(flatten(result.adapted.values()), phi)
    torch.testing.assert_close(result.gradient, expected)
    assert result.diagnostics["cg_residual"] < 1e-10
    assert result.diagnostics["stationarity"] < 1e-10


def central_differences(objective, at, width=1e-5):
    columns = torch.eye(len(at), dtype=at.dtype) * width
    return torch.stack([(objective(at + c) - objective(at - c)) / (2 * width) for c in columns])


def drawing(seed):
    """A function from a shape to normal values, others with each call."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def predict(parameters, inputs):
    return torch.tanh(inputs @ parameters["w1"].T + parameters["b1"]) @ parameters["w2"].T


def network_task(seed=0):
    """A small smooth regression network, whose support Hessian is indefinite."""
    draw = drawing(seed)
    x, y, u, v = draw(7, 3), draw(7, 1), draw(5, 3), draw(5, 1)
    theta = {"w1": draw(4, 3), "b1": draw(4), "w2": draw(1, 4)}

    def support(parameters):
        return predict(parameters, x), None

    def support_loss(logits):
        return ((logits - y) ** 2).mean()

    def query(parameters, found):
        return ((predict(parameters, u) - v) ** 2).mean(), None

    task = Task(support, support_loss, query, lambda logits, vector: 2 * vector / 7)
    return task, theta


@pytest.mark.long
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("lam", [0.0, 0.7])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_unrolled_gradient_equals_finite_differences_of_the_unrolled_objective(optimizer, lam, checkpoint):
    task, theta = network_task()
    inner = InnerLoop(optimizer, lr=0.05, steps=4, lam=lam)
    gradient = unrolled_gradient(task, theta, inner, checkpoint=checkpoint).gradient

    def objective(vector):
        result = unrolled_gradient(task, unflatten(vector, theta), inner)
        return task.query(result.adapted, None)[0]

    torch.testing.assert_close(gradient, central_differences(objective, flatten(theta.values())), rtol=1e-6, atol=1e-8)


@pytest.mark.long
def test_implicit_gradient_equals_the_unrolled_one_at_convergence():
    task, theta = network_task()
    inner = InnerLoop("sgd", lr=0.1, steps=600, lam=3.0)
    unrolled = unrolled_gradient(task, theta, inner).gradient
    implicit = implicit_gradient(task, theta, inner, lam=3.0, cg_steps=50, cg_tolerance=1e-12)
    assert implicit.diagnostics["stationarity"] < 1e-8
    torch.testing.assert_close(implicit.gradient, unrolled, rtol=1e-6, atol=1e-8)


def test_implicit_gradient_tends_to_the_query_gradient_for_large_lambda():
    task, theta = network_task()
    leaves = {name: value.clone().requires_grad_() for name, value in theta.items()}
    query_gradient = flatten(torch.autograd.grad(task.query(leaves, None)[0], list(leaves.values())))
    distances = []
    for lam in (1e1, 1e3, 1e5, 1e7):
        inner = InnerLoop("sgd", lr=1 / lam, steps=3, lam=lam)
        result = implicit_gradient(task, theta, inner, lam=lam, cg_steps=20, cg_tolerance=1e-12)
        distances.append(((result.gradient - query_gradient).norm() / query_gradient.norm()).item())
    assert distances[-1] < 1e-6
    assert all(later < earlier / 10 for earlier, later in pairwise(distances))


def test_first_order_gradient_is_the_query_gradient_at_the_adapted_parameters():
    task, theta = network_task()
    result = first_order_gradient(task, theta, InnerLoop("sgd", 0.05, 4))
    leaves = {name: value.clone().requires_grad_() for name, value in result.adapted.items()}
    expected = flatten(torch.autograd.grad(task.query(leaves, None)[0], list(leaves.values())))
    torch.testing.assert_close(result.gradient, expected)


@pytest.mark.parametrize("lam", [0.01, 0.1, 0.5])
def test_an_indefinite_hessian_is_reported_and_never_gives_nan(lam):
    task, theta, *_ = quadratic([-4.0, -1.0, 0.5, 1.0, 2.0, 3.0])
    result = implicit_gradient(task, theta, InnerLoop("sgd", 0.01, 3, lam), lam=lam, cg_steps=20, cg_tolerance=0.0)
    assert result.solution.outcome is Outcome.NEGATIVE_CURVATURE
    assert result.diagnostics["cg_negative_curvature"] == 1.0
    assert result.diagnostics["smallest_curvature"] <= 0
    assert "Gauss-Newton" in result.solution.outcome.value
    assert torch.isfinite(result.gradient).all()


@pytest.mark.parametrize("lam", [0.01, 0.5, 10.0])
def test_gauss_newton_gradient_equals_the_dense_solve(lam):
    task, theta = network_task()
    result = implicit_gradient(
        task, theta, InnerLoop("sgd", 0.01, 3, lam), lam=lam, cg_steps=60, cg_tolerance=1e-12, curvature="gauss_newton"
    )
    jacobian = torch.func.jacrev(lambda vector: task.support(unflatten(vector, theta))[0].flatten())(
        flatten(result.adapted.values())
    )
    leaves = {name: value.clone().requires_grad_() for name, value in result.adapted.items()}
    b = flatten(torch.autograd.grad(task.query(leaves, None)[0], list(leaves.values())))
    matrix = torch.eye(len(b), dtype=torch.float64) + jacobian.T @ (2 / 7 * jacobian) / lam
    torch.testing.assert_close(result.gradient, torch.linalg.solve(matrix, b), rtol=1e-6, atol=1e-8)
    assert result.diagnostics["smallest_curvature"] >= 1 - 1e-9


def test_no_inner_step_gives_the_query_gradient_at_theta():
    task, theta = network_task()
    result = unrolled_gradient(task, theta, InnerLoop("sgd", 0.1, 0))
    leaves = {name: value.clone().requires_grad_() for name, value in theta.items()}
    expected = flatten(torch.autograd.grad(task.query(leaves, None)[0], list(leaves.values())))
    torch.testing.assert_close(result.gradient, expected)
    assert result.diagnostics["support_loss_before"] == result.diagnostics["support_loss_after"]
    assert (result.diagnostics["inner_steps"], result.diagnostics["moved"]) == (0, 0)


def test_inner_loop_lowers_the_support_loss_in_its_diagnostics():
    task, theta = network_task()
    for method in (first_order_gradient, unrolled_gradient):
        diagnostics = method(task, theta, InnerLoop("sgd", 0.05, 10)).diagnostics
        assert diagnostics["support_loss_after"] < diagnostics["support_loss_before"]
        assert diagnostics["support_loss_before"] == pytest.approx(task.objective(theta)[0].item())
        assert diagnostics["inner_steps"] == 10


def test_wrong_settings_are_refused():
    task, theta = network_task()
    inner = InnerLoop()
    with pytest.raises(ValueError, match="lam > 0"):
        implicit_gradient(task, theta, inner, lam=0, cg_steps=1, cg_tolerance=0)
    with pytest.raises(ValueError, match="hessian, gauss_newton"):
        implicit_gradient(task, theta, inner, lam=1, cg_steps=1, cg_tolerance=0, curvature="fisher")
    bare = dataclasses.replace(task, logit_curvature=None)
    with pytest.raises(ValueError, match="logit_curvature"):
        implicit_gradient(bare, theta, inner, lam=1, cg_steps=1, cg_tolerance=0, curvature="gauss_newton")
    with pytest.raises(ValueError, match="replay, autograd"):
        unrolled_gradient(task, theta, inner, products="finite_differences")


@pytest.mark.long
def test_where_only_some_parameters_adapt_the_implicit_gradient_is_that_of_the_problem_in_these():
    # The quadratic problem of this file in closed form: a adapts, b stays at θ.
    generator = torch.Generator().manual_seed(3)
    root = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    hessian, pull, wish = root @ root.T + torch.eye(5), root[0].clone(), root[1].clone()
    mask, lam = torch.tensor([1.0, 1, 0, 0, 1], dtype=torch.float64), 0.7
    theta = {"x": torch.randn(5, generator=generator, dtype=torch.float64)}

    def minimiser(start):
        kept = mask.bool()
        system = hessian[kept][:, kept] + lam * torch.eye(3)
        right = lam * start[kept] - pull[kept] - hessian[kept][:, ~kept] @ start[~kept]
        return start.clone().index_put((kept,), torch.linalg.solve(system, right))

    def of_query(start):
        return 0.5 * (minimiser(start) - wish).square().sum()

    start = theta["x"].clone().requires_grad_()
    (exact,) = torch.autograd.grad(of_query(start), start)
    task = Task(
        support=lambda p: (p["x"], None),
        support_loss=lambda x: 0.5 * x @ hessian @ x + pull @ x,
        query=lambda p, _: (0.5 * (p["x"] - wish).square().sum(), None),
        query_reads_support=False,
    )
    inner = InnerLoop("sgd", 0.02, 800, lam, rates=mask)
    found = implicit_gradient(task, theta, inner, lam=lam, cg_steps=20, cg_tolerance=1e-12)
    torch.testing.assert_close(found.gradient, exact, rtol=1e-6, atol=1e-9)
    assert found.diagnostics["stationarity"] < 1e-8
    assert torch.equal(found.adapted["x"][2:4], theta["x"][2:4])
    unrolled = unrolled_gradient(task, theta, inner)
    torch.testing.assert_close(unrolled.gradient, exact, rtol=1e-6, atol=1e-9)


def test_reptile_follows_the_mean_of_the_inner_gradients():
    target = torch.tensor([1.0, -2.0], dtype=torch.float64)
    task = Task(
        support=lambda p: (p["x"], None),
        support_loss=lambda x: 0.5 * (x - target).square().sum(),
        query=lambda p, _: (p["x"].sum(), None),
    )
    theta = {"x": torch.zeros(2, dtype=torch.float64)}
    found = reptile_gradient(task, theta, InnerLoop("sgd", 0.1, 3))
    torch.testing.assert_close(found.gradient, -target * (1 - 0.9**3) / 0.3)
    with pytest.raises(ValueError, match="at least one inner step"):
        reptile_gradient(task, theta, InnerLoop("sgd", 0.1, 0))


def solved(task, theta, strengths, adapting, near):
    """φ of the inner problem with a strength for each parameter, to rounding: Newton's method from a point nearby."""
    start, phi = flatten(theta.values()), flatten(near.values())
    phi = torch.where(adapting, phi, start)

    def objective(vector):
        return task.objective(unflatten(vector, theta))[0] + 0.5 * (strengths * (vector - start) ** 2).sum()

    for _ in range(4):
        hessian = torch.func.hessian(objective)(phi)[adapting][:, adapting]
        step = torch.linalg.solve(hessian, torch.func.grad(objective)(phi)[adapting])
        phi = phi.index_put((adapting,), phi[adapting] - step)
    return unflatten(phi, theta)


def linear_task(seed=4):
    """A network that is linear in its parameters under a convex loss: Gauss-Newton is its Hessian."""
    draw = drawing(seed)
    x, u, y, v = draw(9, 4), draw(6, 4), (draw(9) > 0).double(), (draw(6) > 0).double()
    theta = {"w1": draw(4), "b1": draw(1), "w2": draw(4)}

    def predict(parameters, inputs):
        return inputs @ parameters["w1"] + inputs.square() @ parameters["w2"] + parameters["b1"]

    loss = torch.nn.functional.binary_cross_entropy_with_logits

    def curvature(logits, vector):
        p = logits.sigmoid()
        return p * (1 - p) * vector / logits.numel()

    return Task(
        lambda parameters: (predict(parameters, x), None),
        lambda logits: loss(logits, y),
        lambda parameters, _: (loss(predict(parameters, u), v), None),
        curvature,
    ), theta


@pytest.mark.long
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("make", "curvature"), [(network_task, "hessian"), (linear_task, "gauss_newton")])
def test_one_solve_gives_the_derivative_by_theta_and_by_every_strength(make, curvature, frozen):
    """Against central differences of the solved inner problem, a strength for each of three tensors."""
    task, theta = make()
    sizes = torch.tensor([value.numel() for value in theta.values()])
    strengths = torch.tensor([4.0, 0.5, 2.0], dtype=torch.float64)
    rates = torch.ones(int(sizes.sum()), dtype=torch.float64)
    if frozen:
        rates[:3], rates[-2:] = 0, 0.5
    each = strengths.repeat_interleave(sizes)
    inner = InnerLoop("momentum", 0.2, 4000, tolerance=1e-12, rates=rates, strengths=each)
    found = implicit_gradient(task, theta, inner, lam=each, cg_steps=60, cg_tolerance=1e-13, curvature=curvature)
    assert found.diagnostics["stationarity"] < 1e-11

    def of_theta(vector):
        return task.query(solved(task, unflatten(vector, theta), each, rates > 0, found.adapted), None)[0]

    def of_strengths(values):
        each = values.repeat_interleave(sizes)
        return task.query(solved(task, theta, each, rates > 0, found.adapted), None)[0]

    by_theta = central_differences(of_theta, flatten(theta.values()))
    torch.testing.assert_close(found.gradient, by_theta, rtol=1e-6, atol=1e-9)
    by_group = torch.stack([piece.sum() for piece in found.by_strengths.split(sizes.tolist())])
    expected = central_differences(of_strengths, strengths)
    torch.testing.assert_close(by_group, expected, rtol=1e-6, atol=1e-9)
    assert expected.abs().min() > 1e-6


def test_one_strength_for_all_is_the_scalar_lambda():
    task, theta = network_task()
    settings = {"cg_steps": 40, "cg_tolerance": 1e-12}
    scalar = implicit_gradient(task, theta, InnerLoop("sgd", 0.05, 30, 3.0), lam=3.0, **settings)
    each = torch.full((20,), 3.0, dtype=torch.float64)
    vector = implicit_gradient(task, theta, InnerLoop("sgd", 0.05, 30, strengths=each), lam=each, **settings)
    torch.testing.assert_close(vector.gradient, scalar.gradient)
    torch.testing.assert_close(vector.by_strengths, scalar.by_strengths)


def test_strengths_that_are_not_positive_are_refused():
    task, theta = network_task()
    each = torch.ones(20, dtype=torch.float64).index_fill(0, torch.tensor([3]), 0)
    with pytest.raises(ValueError, match="lam > 0"):
        implicit_gradient(task, theta, InnerLoop(), lam=each, cg_steps=1, cg_tolerance=0)


@pytest.mark.parametrize("method", [first_order_gradient, unrolled_gradient, reptile_gradient])
def test_the_inner_loop_ends_where_its_tolerance_is_reached(method):
    task, theta = network_task()
    free = InnerLoop("sgd", 0.05, 500, 3.0)
    loop = dataclasses.replace(free, tolerance=0.05)
    found = method(task, theta, loop)
    taken = int(found.diagnostics["inner_steps"])
    assert 1 < taken < 500
    same = method(task, theta, dataclasses.replace(free, steps=taken))
    assert all(torch.equal(found.adapted[name], same.adapted[name]) for name in theta)
    assert torch.equal(found.gradient, same.gradient)
    # One step fewer is not enough.
    fewer = implicit_gradient(
        task, theta, dataclasses.replace(loop, steps=taken - 1), lam=3.0, cg_steps=1, cg_tolerance=0
    )
    assert fewer.diagnostics["unsolved"] == 1
    assert fewer.diagnostics["stationarity"] > 0.05
    enough = implicit_gradient(task, theta, loop, lam=3.0, cg_steps=1, cg_tolerance=0)
    assert enough.diagnostics["unsolved"] == 0
    assert enough.diagnostics["stationarity"] <= 0.05


def test_without_inner_steps_the_problem_is_as_it_was():
    found = implicit_gradient(*network_task(), InnerLoop("sgd", 0.1, 0, 3.0), lam=3.0, cg_steps=1, cg_tolerance=0.0)
    assert found.diagnostics["stationarity"] == 1


def test_an_inner_loop_that_diverges_is_unsolved():
    loop = InnerLoop("sgd", 1e200, 5, 3.0, tolerance=0.1)
    found = implicit_gradient(*network_task(), loop, lam=3.0, cg_steps=2, cg_tolerance=0.0)
    assert math.isnan(found.diagnostics["stationarity"])
    assert found.diagnostics["unsolved"] == 1


def task_of(hidden, asked):
    """The network of `network_task` on results of earlier stages, by which gradients are wanted."""
    generator = torch.Generator().manual_seed(6)
    y, v = (torch.randn(rows, 1, generator=generator, dtype=torch.float64) for rows in (7, 5))
    theta = network_task()[1]
    leaves = [value.clone().requires_grad_() for value in (hidden, asked)]

    return Task(
        lambda parameters: (predict(parameters, leaves[0]), None),
        lambda logits: (logits - y).square().mean(),
        lambda parameters, _: ((predict(parameters, leaves[1]) - v).square().mean(), None),
        support_inputs=(leaves[0],),
        query_inputs=(leaves[1],),
    ), theta


@pytest.mark.parametrize(
    ("method", "inner"),
    [
        (unrolled_gradient, InnerLoop("momentum", 0.05, 4, 0.7)),
        (partial(unrolled_gradient, checkpoint=True), InnerLoop("adam", 0.05, 4)),
        (partial(implicit_gradient, lam=3.0, cg_steps=50, cg_tolerance=1e-13), InnerLoop("sgd", 0.1, 300, 3.0)),
    ],
    ids=["unrolled", "checkpointed", "implicit"],
)
def test_gradients_by_inputs_include_the_way_through_the_inner_loop(method, inner):
    generator = torch.Generator().manual_seed(7)
    places = [torch.randn(rows, 3, generator=generator, dtype=torch.float64) for rows in (7, 5)]
    found = method(*task_of(*places), inner)
    assert [value.shape for value in found.by_inputs] == [value.shape for value in places]
    for index, by_input in enumerate(found.by_inputs):
        direction = torch.randn(places[index].shape, generator=generator, dtype=torch.float64)
        ends = []
        for width in (1e-5, -1e-5):
            moved = [*places]
            moved[index] = places[index] + width * direction
            ends.append(first_order_gradient(*task_of(*moved), inner).diagnostics["query_loss_after"])
        assert (by_input * direction).sum().item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5)


def test_without_a_derivative_of_the_inner_loop_inputs_of_the_support_set_have_no_effect():
    inputs = torch.ones(7, 3, dtype=torch.float64), torch.ones(5, 3, dtype=torch.float64)
    first = first_order_gradient(*task_of(*inputs), InnerLoop("sgd", 0.05, 2))
    assert [bool(value.any()) for value in first.by_inputs] == [False, True]
    reptile = reptile_gradient(*task_of(*inputs), InnerLoop("sgd", 0.05, 2))
    assert [bool(value.any()) for value in reptile.by_inputs] == [False, False]


@pytest.mark.parametrize(
    "method",
    [
        first_order_gradient,
        unrolled_gradient,
        reptile_gradient,
        partial(implicit_gradient, lam=3.0, cg_steps=2, cg_tolerance=0.0),
    ],
)
def test_diagnostics_say_how_far_the_inner_loop_moved_and_how_long_the_gradient_is(method):
    task, theta = network_task()
    rates = torch.cat([torch.zeros(12, dtype=torch.float64), torch.ones(8, dtype=torch.float64)])
    found = method(task, theta, InnerLoop("sgd", 0.05, 3, 3.0, rates=rates))
    start, end = flatten(theta.values()), flatten(found.adapted.values())
    assert found.diagnostics["moved"] == pytest.approx(((end - start).norm() / start[12:].norm()).item())
    assert found.diagnostics["gradient_norm"] == pytest.approx(found.gradient.norm().item())
    assert found.diagnostics["inner_steps"] == 3
    assert found.diagnostics.get("cg_iterations", 2) == 2


def test_a_vector_of_another_length_is_refused():
    with pytest.raises(ValueError, match="3 elements, found 4"):
        unflatten(torch.ones(4), {"a": torch.ones(3)})

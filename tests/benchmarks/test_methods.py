"""Every method of the benchmark runs, and computes what it should, on a tiny network in double precision."""

from dataclasses import replace

import pytest
import torch

from benchmarks.methods.base import MissingError, optional
from benchmarks.methods.plain import FLOOR, STEP
from benchmarks.methods.registry import METHODS, choose
from benchmarks.reference import Reference, logit_curvature, solve
from benchmarks.setting import Setting, make_problem
from metaseg.errors import MetasegError
from metaseg.meta.losses import LOSSES
from metaseg.meta.vectors import flatten

# At this λ and with so many images I + H/λ is well conditioned, and lr · (λ + largest curvature) < 2.
TINY = Setting(features=2, size=16, shots=8, inner_steps=2, cg_steps=15, lam=1000.0, lr=5e-4, dtype="float64")
GRADIENTS = [name for name, method in METHODS.items() if method.quantity]
PACKAGES = {"torchopt": "torchopt", "author": "higher", "maml_higher": "higher"}


@pytest.fixture(scope="module")
def reference():
    return Reference(TINY)


def prepare(name, setting):
    for start, package in PACKAGES.items():
        if name.startswith(start):
            pytest.importorskip(package)
    return METHODS[name].prepare(make_problem(setting))


@pytest.mark.long
@pytest.mark.parametrize("name", GRADIENTS)
def test_every_method_computes_what_it_should(name, reference):
    answer = prepare(name, TINY)()
    error = reference.error(METHODS[name].quantity, answer.gradient)
    stops_early = f"{name}_forced" in METHODS
    assert error.relative < (5e-2 if stops_early else 1e-6)
    assert error.cosine > 0.99
    if error.residual is not None:
        # TorchOpt's default stops at the residual of the normal equations, not at that of the system.
        assert error.residual < (3e-2 if name == "torchopt_normal" else 2e-2 if stops_early else 1e-6)


@pytest.mark.parametrize("name", ["imaml_hessian_forced", "maml_plain"])
def test_the_query_can_be_normalised_by_itself(name, reference):
    by_itself = replace(TINY, norm="batch")
    gradient = prepare(name, by_itself)().gradient
    assert Reference(by_itself).error(METHODS[name].quantity, gradient).relative < 1e-6
    assert reference.error(METHODS[name].quantity, gradient).relative > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", GRADIENTS)
def test_every_method_gives_the_same_twice_in_single_precision(name):
    setting = replace(TINY, dtype="float32", cg_steps=3)
    run = prepare(name, setting)
    first, second = run(), run()
    assert first.gradient.dtype == torch.float32
    torch.testing.assert_close(first.gradient, second.gradient)
    assert first.products == second.products


@pytest.mark.parametrize(
    ("name", "products"),
    [
        ("imaml_hessian_forced", 3),
        ("imaml_gn_forced", 3),
        ("imaml_reference_forced", 4),
        ("author_forced", 4),
        ("torchopt_cg_forced", 4),
        ("torchopt_normal_forced", 10),
    ],
)
def test_products_are_counted(name, products):
    assert prepare(name, replace(TINY, cg_steps=3))().products == products


@pytest.mark.parametrize("method", [FLOOR, STEP, METHODS["passes"]])
def test_passes_give_no_gradient(method):
    assert method.prepare(make_problem(TINY))().gradient is None


def test_wrong_gradients_are_detected(reference):
    exact = reference.exact("hessian")
    assert reference.error("hessian", exact).relative == 0
    twice = reference.error("hessian", 2 * exact)
    assert twice.relative == pytest.approx(1)
    assert twice.cosine == pytest.approx(1)
    assert twice.residual == pytest.approx(1, rel=1e-6)
    assert reference.error("first_order", exact).residual is None


def test_the_reference_reports_unsolved_problems():
    reference = Reference(replace(TINY, lam=10.0), steps=2)
    reference.exact("hessian")
    assert reference.unsolved["hessian"] > 1e-10


def test_solve_solves_an_indefinite_system():
    matrix = torch.diag(torch.tensor([-2.0, 0.5, 1.0, 3.0], dtype=torch.float64))
    b = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    x, residual = solve(lambda vector: matrix @ vector, b, 10, 1e-12)
    torch.testing.assert_close(matrix @ x, b)
    assert residual < 1e-12


def test_the_references_logit_curvature_is_the_documented_one():
    problem = make_problem(TINY)
    logits, masks = problem.support_logits(problem.theta), problem.episode.support_masks
    vector = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = LOSSES["bce_log_cosh_dice"].curvature(logits, masks, vector)
    torch.testing.assert_close(logit_curvature(logits, masks)(vector), expected)


def test_the_plain_network_has_the_learners_parameters():
    problem = make_problem(replace(TINY, dtype="float32"))
    layers = {type(module) for module in problem.network.modules()}
    assert torch.nn.BatchNorm2d in layers
    assert not any(layer.__module__.startswith("metaseg.networks.normalisation") for layer in layers)
    learner = METHODS["first_order"].prepare(problem)
    gradient = learner().gradient
    assert gradient.shape == flatten(problem.theta.values()).shape


def test_names_are_checked():
    assert [method.name for method in choose(["maml", "author"])] == ["maml", "author"]
    with pytest.raises(MetasegError, match="found 'mmal'"):
        choose(["mmal"])


def test_missing_packages_are_reported():
    with pytest.raises(MissingError, match=r"\[benchmarks\]"):
        optional("a_package_that_nobody_has")

"""Curvature products from a recorded gradient against PyTorch's double backward, in float64."""

import gc
import weakref

import pytest
import torch
from tensors import drawn
from torch import nn

from metaseg.meta.curvature import DoubleBackward
from metaseg.meta.gradients import PRODUCTS, Task, implicit_gradient, unrolled_gradient
from metaseg.meta.inner_loop import InnerLoop
from metaseg.meta.losses import LOSSES
from metaseg.meta.replay import Replay, Unsupported
from metaseg.networks.build import build
from metaseg.networks.functional import forward

LIBRARY = {
    "unet-resnet18": {"arch": "Unet", "encoder": "resnet18"},
    "unet-vgg16_bn": {"arch": "Unet", "encoder": "vgg16_bn"},
    "deeplab-resnet18": {"arch": "DeepLabV3Plus", "encoder": "resnet18"},
}


def problem(network=None, loss="bce_log_cosh_dice", memory_format=torch.contiguous_format, side=32):
    """Forward, loss and parameters away from their initial values, where batch norm's weights are not all one."""
    network = (network or build(name="attention_unet", features=2, seed=1)).double()
    images = drawn(3, 3, side, side).contiguous(memory_format=memory_format)
    masks = (drawn(3, 1, side, side, seed=1) > 0.5).double()
    phi = {
        name: (value.detach() + 0.1 * drawn(*value.shape, seed=i)).requires_grad_()
        for i, (name, value) in enumerate(network.named_parameters())
    }
    loss = LOSSES[loss]
    return lambda p: forward(network, p, images), lambda logits: loss(logits, masks), phi, loss, masks


def directions(phi, count=2):
    size = sum(value.numel() for value in phi.values())
    return [drawn(size, seed=50 + i) for i in range(count)]


def assert_replayed(network, side=32, rtol=1e-9, atol=1e-10):
    logits_of, loss_of, phi, *_ = problem(network, side=side)
    replay, exact = (kind(logits_of, loss_of, phi) for kind in (Replay, DoubleBackward))
    (vector,) = directions(phi, 1)
    torch.testing.assert_close(replay.hessian(vector), exact.hessian(vector), rtol=rtol, atol=atol)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_gradient_and_hessian_product_equal_double_backward(loss, memory_format):
    logits_of, loss_of, phi, *_ = problem(loss=loss, memory_format=memory_format)
    replay, exact = (kind(logits_of, loss_of, phi) for kind in (Replay, DoubleBackward))
    torch.testing.assert_close(replay.gradient, exact.gradient)
    torch.testing.assert_close(replay.loss, exact.loss)
    for vector in directions(phi):
        torch.testing.assert_close(replay.hessian(vector), exact.hessian(vector), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("loss", ["bce_log_cosh_dice", "log_cosh_dice"])
def test_gauss_newton_product_equals_autograd(loss, exact):
    logits_of, loss_of, phi, named, masks = problem(loss=loss)
    replay = Replay(logits_of, loss_of, phi, exact=exact)
    slow = DoubleBackward(logits_of, loss_of, phi, exact=False)

    def curvature(logits, vector):
        return named.curvature(logits, masks, vector)

    for vector in directions(phi):
        found = replay.gauss_newton(curvature, vector)
        torch.testing.assert_close(found, slow.gauss_newton(curvature, vector), rtol=1e-9, atol=1e-12)
        assert found @ vector >= 0


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    ["unet-resnet18", *(pytest.param(one, marks=pytest.mark.slow) for one in ("deeplab-resnet18", "unet-vgg16_bn"))],
)
def test_networks_of_the_library_are_replayed(name):
    assert_replayed(build(name="smp", seed=1, encoder_weights=None, **LIBRARY[name]), side=64, rtol=1e-7, atol=1e-9)


def test_products_are_linear_symmetric_and_can_be_repeated():
    logits_of, loss_of, phi, *_ = problem()
    replay = Replay(logits_of, loss_of, phi)
    u, v = directions(phi)
    first = replay.hessian(u)
    torch.testing.assert_close(replay.hessian(v) @ u, first @ v)
    torch.testing.assert_close(replay.hessian(2 * u + v), 2 * first + replay.hessian(v))
    assert torch.equal(replay.hessian(u), first)


def task(loss="bce_log_cosh_dice"):
    logits_of, loss_of, phi, named, masks = problem(loss=loss)
    theta = {name: value.detach() for name, value in phi.items()}
    query = drawn(3, 3, 32, 32, seed=9)
    network = build(name="attention_unet", features=2, seed=1).double()

    def ask(parameters, found):
        logits, _ = forward(network, parameters, query, found)
        return loss_of(logits), logits.detach()

    return Task(logits_of, loss_of, ask, lambda logits, vector: named.curvature(logits, masks, vector)), theta


@pytest.mark.long
@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_implicit_gradients_by_replay_equal_those_by_autograd(curvature):
    one, theta = task()
    lam = 2.0
    inner = InnerLoop("sgd", 0.01, 2, lam)
    by_replay, by_autograd = (
        implicit_gradient(
            one, theta, inner, lam=lam, cg_steps=6, cg_tolerance=0.0, curvature=curvature, products=products
        )
        for products in PRODUCTS
    )
    assert by_replay.solution.outcome is by_autograd.solution.outcome
    torch.testing.assert_close(by_replay.gradient, by_autograd.gradient, rtol=1e-6, atol=1e-9)
    assert by_replay.diagnostics == pytest.approx(by_autograd.diagnostics, rel=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_unrolled_gradients_by_replay_equal_those_by_autograd(optimizer, checkpoint):
    one, theta = task()
    inner = InnerLoop(optimizer, 0.01, 3, 0.5)
    by_replay = unrolled_gradient(one, theta, inner, products="replay", checkpoint=checkpoint)
    by_autograd = unrolled_gradient(one, theta, inner, products="autograd")
    torch.testing.assert_close(by_replay.gradient, by_autograd.gradient, rtol=1e-6, atol=1e-9)
    assert by_replay.diagnostics == pytest.approx(by_autograd.diagnostics, rel=1e-6)


class Small(nn.Module):
    """A network of one operation after a convolution."""

    def __init__(self, operation):
        super().__init__()
        self.convolution = nn.Conv2d(3, 1, 3, padding=1)
        self.operation = operation

    def forward(self, images):
        return self.operation(self.convolution(images))


@pytest.mark.parametrize("kind", [Replay, DoubleBackward])
def test_a_parameter_that_the_network_does_not_read_has_no_curvature(kind):
    inputs = drawn(5, 3)
    phi = {"read": drawn(3, seed=1).requires_grad_(), "unread": drawn(2, seed=2).requires_grad_()}
    found = kind(lambda p: ((inputs * p["read"]).sum(1), None), lambda logits: logits.square().sum(), phi)
    (vector,) = directions(phi, 1)
    expected = torch.cat([2 * inputs.T @ inputs @ vector[:3], torch.zeros(2, dtype=torch.float64)])
    torch.testing.assert_close(found.hessian(vector), expected)
    torch.testing.assert_close(found.gauss_newton(lambda _, along: 2 * along, vector), expected)
    assert torch.equal(found.gradient[3:], torch.zeros(2, dtype=torch.float64))


def test_an_unknown_operation_is_named():
    with pytest.raises(Unsupported, match=r"aten\.(erf|exp)"):
        Replay(*problem(Small(lambda hidden: torch.erf(hidden)))[:3])


@pytest.mark.parametrize("operation", [torch.sigmoid, nn.functional.silu, torch.relu, nn.functional.hardtanh])
def test_networks_that_end_in_an_activation_are_replayed(operation):
    assert_replayed(Small(operation))


def test_a_constant_in_the_memory_of_a_value_that_is_gone_is_a_constant():
    def operation(hidden):
        with torch.no_grad():
            memory = torch.empty(hidden.shape, dtype=hidden.dtype).copy_(hidden)
        constant = torch.ones(hidden.shape, out=memory)
        return hidden * (constant + 1) + constant

    assert_replayed(Small(operation))


def test_a_value_that_the_derivative_alone_reads_is_not_overwritten_unnoticed():
    # Autograd reads what hardtanh is given, a replay what it gives.
    with pytest.raises(Unsupported, match="overwrites"):
        Replay(*problem(Small(lambda hidden: nn.functional.hardtanh(hidden).add_(hidden)))[:3])


def overwriting_a_slice(hidden):
    doubled = hidden * 2
    doubled[:, :, :4].mul_(hidden[:, :, 4:8])
    return doubled


def overwriting_through_a_view(hidden):
    doubled = hidden * 2
    torch.relu_(doubled.view(-1, 32))
    return doubled


@pytest.mark.parametrize("operation", [overwriting_a_slice, overwriting_through_a_view])
def test_a_value_that_is_overwritten_through_another_view_is_refused(operation):
    logits_of, loss_of, phi, *_ = problem(Small(operation))
    with pytest.raises(Unsupported):
        Replay(logits_of, loss_of, phi).hessian(*directions(phi, 1))


def test_the_record_keeps_no_graph_alive_and_dies_with_its_owner():
    logits_of, loss_of, phi, *_ = problem()
    kept = {}

    class Probe:
        """Lives as long as the graph that a hook ties it to."""

    def before(logits, found):
        probe = Probe()
        kept["graph"] = weakref.ref(probe)
        logits.grad_fn.register_hook(lambda *_, probe=probe: None)

    gc.collect()
    gc.disable()
    try:
        replay = Replay(logits_of, loss_of, phi, before)
        assert kept["graph"]() is None
        record = weakref.ref(replay._backward)
        del replay
        assert record() is None
    finally:
        gc.enable()


def test_an_argument_by_name_is_not_ignored():
    logits_of, loss_of, phi, *_ = problem(Small(lambda hidden: torch.add(hidden, hidden * hidden, alpha=2)))
    with pytest.raises(Unsupported, match="add"):
        Replay(logits_of, loss_of, phi).hessian(*directions(phi, 1))

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metaseg.errors import MetasegError
from metaseg.networks.normalisation import EpisodicBatchNorm2d, normalising, plain_batch_norm, replace_batch_norm
from metaseg.networks.norms import Norms
from metaseg.networks.stages import PARTS


def layer_and_images(batch=3, channels=2, height=3, width=2, eps=1e-5):
    generator = torch.Generator().manual_seed(0)
    layer = EpisodicBatchNorm2d(channels, eps).double()
    with torch.no_grad():
        layer.weight.copy_(torch.rand(channels, generator=generator, dtype=torch.double) + 0.5)
        layer.bias.copy_(torch.randn(channels, generator=generator, dtype=torch.double))
    images = torch.randn(batch, channels, height, width, generator=generator, dtype=torch.double)
    return layer, images


def recorded(layer, images):
    with normalising({layer: "norm"}) as statistics:
        normalised = layer(images)
    return normalised, *statistics["norm"]


def test_two_values_normalise_to_plus_and_minus_one():
    layer = EpisodicBatchNorm2d(1, eps=0.0)
    normalised, mean, variance = recorded(layer, torch.tensor([1.0, 5.0]).reshape(2, 1, 1, 1))
    assert normalised.flatten().tolist() == [-1.0, 1.0]
    assert mean.tolist() == [3.0]
    assert variance.tolist() == [4.0]  # the biased one; the unbiased is 8


@pytest.mark.parametrize("training", [True, False])
def test_own_batch_equals_torch_in_training_mode_whatever_the_mode(training):
    layer, images = layer_and_images()
    reference = nn.BatchNorm2d(2).double()
    reference.load_state_dict(layer.state_dict())
    normalised = layer.train(training)(images)
    torch.testing.assert_close(normalised, reference(images))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_given_statistics_equal_those_of_a_plain_batch_norm(affine, frozen):
    layer, images = layer_and_images(eps=0.5)
    mean, variance = torch.tensor([[0.3, -2.0], [0.5, 7.0]], dtype=torch.double)
    given = {"0": (mean, variance)}
    if not affine:
        layer.weight = layer.bias = None
    if frozen:
        layer.frozen, given = True, {}
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(variance)
    expected = F.batch_norm(images, mean, variance, layer.weight, layer.bias, eps=0.5)
    with normalising({layer: "0"}, given):
        torch.testing.assert_close(layer(images), expected)
    plain = plain_batch_norm(nn.Sequential(layer), given).double()
    assert type(plain[0]) is nn.BatchNorm2d
    torch.testing.assert_close(plain(images), expected)


def test_buffers_are_never_written():
    layer, images = layer_and_images()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    recorded(layer, images)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_first_and_second_derivatives_with_recording():
    layer, images = layer_and_images()
    weight, bias = (parameter.detach().requires_grad_() for parameter in layer.parameters())

    def apply(x, weight, bias):
        with normalising({layer: "norm"}) as statistics:
            normalised = torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))
        return normalised, *statistics["norm"]

    inputs = images.requires_grad_(), weight, bias
    assert torch.autograd.gradcheck(apply, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(apply, inputs, check_fwd_over_rev=True)


def test_first_and_second_derivatives_in_given_statistics():
    layer, images = layer_and_images()
    mean = torch.tensor([0.2, -0.4], dtype=torch.double, requires_grad=True)
    variance = torch.tensor([0.7, 1.9], dtype=torch.double, requires_grad=True)

    def apply(x, m, v):
        with normalising({layer: "norm"}, {"norm": (m, v)}):
            return layer(x)

    inputs = images.requires_grad_(), mean, variance
    assert torch.autograd.gradcheck(apply, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(apply, inputs, check_fwd_over_rev=True)


def test_recorded_statistics_equal_var_mean_to_the_third_derivative():
    layer, images = layer_and_images()

    def derivatives(statistics):
        x = images.clone().requires_grad_()
        mean, variance = statistics(x)
        value = (mean**3).sum() + (variance**3).sum() + (mean * variance).sum()
        found = [value]
        for _ in range(3):
            (value,) = torch.autograd.grad(value.sum() + value.square().sum(), x, create_graph=True)
            found.append(value)
        return found

    ours = derivatives(lambda x: recorded(layer, x)[1:])
    reference = derivatives(lambda x: torch.var_mean(x, (0, 2, 3), correction=0)[::-1])
    torch.testing.assert_close(ours, reference)


def test_each_layers_variance_is_recorded_without_its_own_epsilon():
    one, images = layer_and_images(eps=0.5)
    other, _ = layer_and_images(eps=0.01)
    with normalising({one: "one", other: "other"}) as found:
        one(images)
        other(images.square())
    torch.testing.assert_close(found["one"][1], images.var((0, 2, 3), correction=0))
    torch.testing.assert_close(found["other"][1], images.square().var((0, 2, 3), correction=0))


def test_constant_channel_has_variance_zero_and_stays_finite():
    layer = EpisodicBatchNorm2d(2, eps=3e-4)  # which in float32 is more than the square of its root
    images = torch.full((4, 2, 5, 5), 1234.5).requires_grad_()
    normalised, mean, variance = recorded(layer, images)
    (gradient,) = torch.autograd.grad(normalised.sum() + variance.sum(), images)
    assert variance.tolist() == [0, 0]
    assert mean.tolist() == [1234.5, 1234.5]
    assert torch.isfinite(gradient).all()


def test_scope_ends_when_the_pass_raises():
    layer, images = layer_and_images()
    given = {"norm": (torch.zeros(2, dtype=torch.double), torch.ones(2, dtype=torch.double))}
    with pytest.raises(RuntimeError), normalising({layer: "norm"}, given):
        layer(images[:, :1])
    own = (images - images.mean((0, 2, 3), keepdim=True)) / (images.var((0, 2, 3), False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(layer(images), own * layer.weight[:, None, None] + layer.bias[:, None, None])


def test_one_value_per_channel_is_refused():
    with pytest.raises(MetasegError, match=r"more than one value per channel, found a batch of shape \(1, 2, 1, 1\)"):
        EpisodicBatchNorm2d(2)(torch.randn(1, 2, 1, 1))


def test_a_layer_that_is_given_no_statistics_uses_those_of_its_batch():
    layer, images = layer_and_images()
    with normalising({layer: "norm"}, {"other": (torch.zeros(1), torch.ones(1))}) as used:
        found = layer(images)
    with normalising({layer: "norm"}) as own:
        assert torch.equal(found, layer(images))
    assert torch.equal(used["norm"][0], own["norm"][0])


def test_a_frozen_layer_uses_its_buffers_whatever_it_is_given():
    layer, images = layer_and_images()
    layer.running_mean.copy_(torch.linspace(-1, 1, layer.num_features))
    layer.running_var.copy_(torch.linspace(0.5, 2, layer.num_features))
    expected = F.batch_norm(
        images, layer.running_mean, layer.running_var, layer.weight, layer.bias, training=False, eps=layer.eps
    )
    layer.frozen = True
    with normalising({layer: "norm"}, {"norm": (torch.zeros(layer.num_features), torch.ones(layer.num_features))}):
        torch.testing.assert_close(layer(images), expected)
    with normalising({layer: "norm"}) as used:
        torch.testing.assert_close(layer(images), expected)
    assert not used


def test_each_layer_has_the_kind_of_its_part_and_is_given_its_statistics():
    network = nn.ModuleDict({part: EpisodicBatchNorm2d(1) for part in PARTS})
    assert Norms.of(network, {"encoder": "frozen", "decoder": "batch"}).kinds == {"decoder": "batch", "head": "batch"}
    assert [layer.frozen for layer in network.values()] == [True, False, False]
    norms = Norms.of(network, {"encoder": "running", "decoder": "support"})
    assert not any(layer.frozen for layer in network.values())
    support, running = ({part: (torch.full((1,), mean), torch.ones(1)) for part in PARTS} for mean in (2.0, 3.0))
    given = norms.given(support, running)
    assert {part: mean.item() for part, (mean, _) in given.items()} == {"encoder": 3, "decoder": 2, "head": 2}
    assert not Norms.of(network, "batch").given(support, running)


def test_a_layer_that_runs_twice_is_refused():
    layer, images = layer_and_images()
    with pytest.raises(MetasegError, match="norm running twice"), normalising({layer: "norm"}):
        layer(layer(images))


def test_replacing_keeps_parameters_buffers_and_names():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=1e-3), nn.Sequential(nn.BatchNorm2d(4)))
    network(torch.randn(2, 3, 8, 8))  # moves the running buffers
    before = {name: value.clone() for name, value in network.state_dict().items()}
    parameters = dict(network.named_parameters())
    replaced = replace_batch_norm(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in replaced.modules())
    assert replaced[1].eps == 1e-3
    assert list(replaced.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in replaced.state_dict().items())
    assert all(value is parameters[name] for name, value in replaced.named_parameters())


def test_replacing_without_affine_or_running_statistics():
    layer = replace_batch_norm(nn.BatchNorm2d(2, affine=False, track_running_stats=False))
    images = torch.randn(3, 2, 4, 4)
    assert list(layer.parameters()) == []
    torch.testing.assert_close(layer(images), nn.BatchNorm2d(2, affine=False)(images))
    with normalising({layer: "norm"}, {"norm": (torch.tensor([1.0, 0.0]), torch.tensor([4.0, 1.0]))}):
        torch.testing.assert_close(layer(images)[:, 0], (images[:, 0] - 1) / (4 + 1e-5) ** 0.5)


def test_timm_layer_keeps_its_activation():
    timm_layers = pytest.importorskip("timm.layers")
    original = timm_layers.BatchNormAct2d(3, act_layer=nn.SiLU)
    images = torch.randn(2, 3, 4, 4)
    expected = original.train()(images)
    torch.testing.assert_close(replace_batch_norm(original)(images), expected)


def test_unknown_subclass_is_refused():
    class Odd(nn.BatchNorm2d):
        pass

    with pytest.raises(MetasegError, match="found Odd"):
        replace_batch_norm(nn.Sequential(Odd(3)))

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metaseg.errors import MetasegError
from metaseg.networks.attention_unet import AttentionUNet
from metaseg.networks.functional import forward, running_statistics, update_running
from metaseg.networks.normalisation import EpisodicBatchNorm2d


def episode(features=2, size=16, support=3, query=4, dtype=torch.double):
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    network = AttentionUNet(features).to(dtype)
    parameters = {name: value.detach().requires_grad_() for name, value in network.named_parameters()}
    images = [torch.randn(n, 3, size, size, generator=generator, dtype=dtype) for n in (support, query)]
    return network, parameters, *images


class FirstImagesNorm(nn.Module):
    """Reference: normalises a whole batch by the statistics of its first `first` images, in plain tensor operations."""

    def __init__(self, layer, first):
        super().__init__()
        self.weight, self.bias, self.first = layer.weight, layer.bias, first

    def forward(self, x):
        variance, mean = torch.var_mean(x[: self.first], (0, 2, 3), correction=0, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt() * self.weight[:, None, None] + self.bias[:, None, None]


def with_reference_norm(network, first):
    for name, child in network.named_children():
        is_norm = isinstance(child, EpisodicBatchNorm2d)
        setattr(network, name, FirstImagesNorm(child, first) if is_norm else with_reference_norm(child, first))
    return network


def curved(logits):
    """A scalar with curvature in every logit."""
    return F.softplus(logits * torch.linspace(-2, 2, logits.numel(), dtype=logits.dtype).view_as(logits)).mean()


def test_gradient_and_hessian_product_through_the_statistics_equal_the_reference():
    network, parameters, support, query = episode()
    tensors = list(parameters.values())
    directions = [torch.randn_like(tensor) for tensor in tensors]

    def first_and_second(loss):
        gradient = torch.autograd.grad(loss, tensors, create_graph=True)
        return loss, gradient, torch.autograd.grad(gradient, tensors, directions)

    _, statistics = forward(network, parameters, support)
    ours = first_and_second(curved(forward(network, parameters, query, statistics)[0]))
    reference = with_reference_norm(network, first=len(support))
    logits = torch.func.functional_call(reference, parameters, (torch.cat((support, query)),))
    torch.testing.assert_close(ours, first_and_second(curved(logits[len(support) :])))


def test_statistics_carry_a_gradient_that_detached_ones_do_not():
    network, parameters, support, query = episode()
    _, statistics = forward(network, parameters, support)
    frozen = {name: (mean.detach(), variance.detach()) for name, (mean, variance) in statistics.items()}
    weight = parameters["encoder1.enc1conv1.weight"]
    gradients = [
        torch.autograd.grad(curved(forward(network, parameters, query, used)[0]), weight)[0]
        for used in (statistics, frozen)
    ]
    assert not torch.allclose(*gradients, rtol=0.01)


def test_under_support_statistics_a_prediction_does_not_depend_on_the_other_images():
    network, parameters, support, query = episode(dtype=torch.float32)
    with torch.no_grad():
        _, statistics = forward(network, parameters, support)
        together, _ = forward(network, parameters, query, statistics)
        company = query.clone()
        company[1:] = 100 * torch.rand_like(company[1:])
        in_other_company, _ = forward(network, parameters, company, statistics)
        alone = torch.cat([forward(network, parameters, image[None], statistics)[0] for image in query])
    assert torch.equal(together[0], in_other_company[0])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)  # kernels may differ with the batch size


def test_under_batch_statistics_a_prediction_depends_on_the_other_images():
    network, parameters, _, query = episode()
    together, _ = forward(network, parameters, query)
    fewer, _ = forward(network, parameters, query[:2])
    assert (together[:2] - fewer).abs().max() > 0.01


def test_statistics_of_the_support_reproduce_its_own_batch():
    network, parameters, support, _ = episode()
    logits, statistics = forward(network, parameters, support)
    again, returned = forward(network, parameters, support, statistics)
    assert all(torch.equal(returned[name][0], mean) for name, (mean, _) in statistics.items())
    torch.testing.assert_close(logits, again)


def test_recorded_statistics_of_the_first_layer_are_those_of_its_input():
    network, parameters, support, _ = episode()
    _, statistics = forward(network, parameters, support)
    hidden = F.conv2d(support, parameters["encoder1.enc1conv1.weight"], padding=1)
    mean, variance = statistics["encoder1.enc1norm1"]
    torch.testing.assert_close(mean, hidden.mean((0, 2, 3)))
    torch.testing.assert_close(variance, hidden.var((0, 2, 3), correction=0))
    assert len(statistics) == 2 * 9 + 3 * 4


def test_mode_makes_no_difference_and_nothing_is_left_behind():
    network, parameters, support, _ = episode()
    own = {name: value.clone() for name, value in network.state_dict().items()}
    doubled = {name: 2 * value for name, value in parameters.items()}
    assert torch.equal(forward(network.train(), doubled, support)[0], forward(network.eval(), doubled, support)[0])
    for name, value in network.state_dict().items():
        assert torch.equal(value, own[name]), name


def test_forward_mode_equals_reverse_mode():
    network, parameters, support, query = episode()
    values = {name: value.detach() for name, value in parameters.items()}
    tangents = {name: torch.randn_like(value) for name, value in values.items()}

    def loss(parameters):
        return curved(forward(network, parameters, query, forward(network, parameters, support)[1])[0])

    gradient = torch.func.grad(loss)(values)
    expected = sum((gradient[name] * tangents[name]).sum() for name in values)
    torch.testing.assert_close(torch.func.jvp(loss, (values,), (tangents,))[1], expected)


def test_linearize_equals_jvp():
    # On a few layers: tracing the whole network takes seconds.
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 2, 3), EpisodicBatchNorm2d(2), nn.ReLU(inplace=True), nn.Conv2d(2, 1, 1))
    values = {name: value.detach() for name, value in network.named_parameters()}
    tangents = {name: torch.randn_like(value) for name, value in values.items()}
    support, query = torch.randn(2, 4, 3, 8, 8)

    def logits(parameters):
        return forward(network, parameters, query, forward(network, parameters, support)[1])[0]

    _, linear = torch.func.linearize(logits, values)
    torch.testing.assert_close(linear(tangents), torch.func.jvp(logits, (values,), (tangents,))[1])


def test_forward_over_reverse_equals_double_backward():
    network, parameters, support, _ = episode()
    values = {name: value.detach() for name, value in parameters.items()}
    tangents = {name: torch.randn_like(value) for name, value in values.items()}
    gradient_of = torch.func.grad(lambda parameters: curved(forward(network, parameters, support)[0]))
    _, product = torch.func.jvp(gradient_of, (values,), (tangents,))
    tensors = list(parameters.values())
    gradient = torch.autograd.grad(curved(forward(network, parameters, support)[0]), tensors, create_graph=True)
    expected = torch.autograd.grad(gradient, tensors, [tangents[name] for name in parameters])
    torch.testing.assert_close(list(product.values()), list(expected))


def test_parameters_left_out_are_the_networks_own():
    network, parameters, support, _ = episode()
    head = {"conv.bias": parameters["conv.bias"] + 1}
    torch.testing.assert_close(forward(network, head, support)[0], forward(network, {}, support)[0] + 1)


def test_running_statistics_start_at_zero_and_one_and_are_copies():
    network, *_ = episode()
    statistics = running_statistics(network)
    mean, variance = statistics["gate1.attention.1"]
    assert mean.tolist() == [0.0]
    assert variance.tolist() == [1.0]
    mean += 1
    assert running_statistics(network)["gate1.attention.1"][0].tolist() == [0.0]


def test_running_statistics_move_by_the_momentum():
    network, parameters, support, _ = episode()
    _, statistics = forward(network, parameters, support)
    update_running(network, statistics)
    for name, (mean, variance) in running_statistics(network).items():
        torch.testing.assert_close(mean, 0.1 * statistics[name][0].detach())
        torch.testing.assert_close(variance, 0.9 + 0.1 * statistics[name][1].detach())
        assert not mean.requires_grad


def test_ordinary_batch_norm_is_refused():
    with pytest.raises(MetasegError, match=r"found BatchNorm2d at 1: call .*replace_batch_norm"):
        forward(nn.Sequential(nn.Conv2d(3, 1, 1), nn.BatchNorm2d(1)), {}, torch.randn(2, 3, 4, 4))


def test_dropout_is_refused_unless_it_is_off():
    network = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Dropout2d(0.5))
    with pytest.raises(MetasegError, match="found active dropout at 1"):
        forward(network, {}, torch.randn(2, 3, 4, 4))
    assert forward(network.eval(), {}, torch.randn(2, 3, 4, 4))[1] == {}


def test_unknown_parameter_is_refused():
    network, _, support, _ = episode()
    with pytest.raises(MetasegError, match=r"found 'decoder9\.weight' \(1 unknown\)"):
        forward(network, {"decoder9.weight": torch.zeros(1)}, support)

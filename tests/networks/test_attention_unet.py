import pytest
import torch
import torch.nn.functional as F

from metaseg.errors import MetasegError
from metaseg.networks.attention_unet import AttentionGate, AttentionUNet, UNet


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_parameters_at_32_features():
    # The plain U-Net's number is that of the published brain-MRI U-Net. A gate of width F adds two F x F/2 and one F/2
    # convolution and batch norms of widths F/2, F/2 and 1: F² + 5F/2 + 2, summed over F = 32, 64, 128, 256.
    gates = sum(width**2 + 5 * width // 2 + 2 for width in (32, 64, 128, 256))
    assert count(UNet(32)) == 7_763_041
    assert count(AttentionUNet(32)) == 7_763_041 + gates == 7_851_289
    assert round(count(AttentionUNet(32)) / 1e6, 2) == 7.85


def hub_layout(features):
    """Names and shapes of the published brain-MRI U-Net, written down from its definition."""
    shapes = {}

    def block(part, name, channels_in, channels_out):
        for i, channels in ((1, channels_in), (2, channels_out)):
            shapes[f"{part}.{name}conv{i}.weight"] = (channels_out, channels, 3, 3)
            for tensor in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"{part}.{name}norm{i}.{tensor}"] = (channels_out,)
            shapes[f"{part}.{name}norm{i}.num_batches_tracked"] = ()

    channels = 3
    for level in (1, 2, 3, 4):
        width = features * 2 ** (level - 1)
        block(f"encoder{level}", f"enc{level}", channels, width)
        block(f"decoder{level}", f"dec{level}", 2 * width, width)
        shapes[f"upconv{level}.weight"] = (2 * width, width, 2, 2)
        shapes[f"upconv{level}.bias"] = (width,)
        channels = width
    block("bottleneck", "bottleneck", channels, 2 * channels)
    shapes["conv.weight"] = (1, features, 1, 1)
    shapes["conv.bias"] = (1,)
    return shapes


@pytest.mark.parametrize("features", [5, 32])
def test_names_and_shapes_are_those_of_the_brain_mri_unet(features):
    layout = hub_layout(features)
    assert {name: tuple(value.shape) for name, value in UNet(features).state_dict().items()} == layout
    with_gates = {name: tuple(value.shape) for name, value in AttentionUNet(features).state_dict().items()}
    assert {name: shape for name, shape in with_gates.items() if not name.startswith("gate")} == layout


def plain_unet(tensors, images):
    """The published network's forward pass, from its tensors alone."""

    def block(x, part, name):
        for i in (1, 2):
            x = F.conv2d(x, tensors[f"{part}.{name}conv{i}.weight"], padding=1)
            norm = f"{part}.{name}norm{i}."
            x = F.relu(F.batch_norm(x, None, None, tensors[norm + "weight"], tensors[norm + "bias"], training=True))
        return x

    skips = []
    for level in (1, 2, 3, 4):
        images = block(images, f"encoder{level}", f"enc{level}")
        skips.append(images)
        images = F.max_pool2d(images, 2)
    images = block(images, "bottleneck", "bottleneck")
    for level in (4, 3, 2, 1):
        images = F.conv_transpose2d(images, tensors[f"upconv{level}.weight"], tensors[f"upconv{level}.bias"], stride=2)
        images = block(torch.cat((images, skips.pop()), 1), f"decoder{level}", f"dec{level}")
    return F.conv2d(images, tensors["conv.weight"], tensors["conv.bias"])


def test_plain_unet_computes_what_the_published_one_does():
    torch.manual_seed(0)
    network = UNet(2).double()
    images = torch.randn(3, 3, 32, 48, dtype=torch.double)
    torch.testing.assert_close(network(images), plain_unet(network.state_dict(), images))


def test_attention_unet_with_open_gates_is_the_plain_one():
    torch.manual_seed(0)
    network, plain = AttentionUNet(2).double(), UNet(2).double()
    plain.load_state_dict({name: value for name, value in network.state_dict().items() if name in plain.state_dict()})
    images = torch.randn(2, 3, 32, 32, dtype=torch.double)
    assert not torch.allclose(network(images), plain(images))
    for level in (1, 2, 3, 4):
        norm = network.get_submodule(f"gate{level}").attention[1]
        torch.nn.init.zeros_(norm.weight)
        torch.nn.init.constant_(norm.bias, 50.0)  # sigmoid(50) is 1 to the last digit
    torch.testing.assert_close(network(images), plain(images))


def test_gate_by_hand():
    gate = AttentionGate(2, 2)  # inner width 1
    with torch.no_grad():
        gate.gating[0].weight.copy_(torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1))
        gate.skip[0].weight.copy_(torch.tensor([0.0, 1.0]).reshape(1, 2, 1, 1))
        gate.attention[0].weight.fill_(1.0)
    gating = torch.tensor([[[1.0, 3.0]], [[9.0, 9.0]]])[None]  # first channel normalises to -1, 1
    skip = torch.tensor([[[6.0, 5.0]], [[10.0, 20.0]]])[None]  # second channel too; the first is not looked at
    # The sum is -2, 2; after ReLU 0, 2; normalised -1, 1: α = sigmoid(-1), sigmoid(1).
    alpha = torch.tensor([0.2689414, 0.7310586])
    torch.testing.assert_close(gate(gating, skip), skip * alpha, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("features", [1, 3])
def test_any_width_gives_one_logit_a_pixel(features):
    assert AttentionUNet(features)(torch.randn(2, 3, 16, 48)).shape == (2, 1, 16, 48)


def test_size_that_cannot_be_halved_four_times_is_refused():
    with pytest.raises(MetasegError, match=r"multiples of 16 for UNet\(features=1\), found 64x50"):
        UNet(1)(torch.randn(1, 3, 64, 50))

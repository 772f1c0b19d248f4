"""The attention U-Net on a pre-trained encoder."""

import pytest
import torch

from metaseg.errors import MetasegError
from metaseg.networks.build import build
from metaseg.networks.functional import forward, norm_layers
from metaseg.networks.norms import Norms
from metaseg.networks.stages import PARTS, part_of

SETTINGS = {"name": "pretrained", "encoder": "timm-tf_efficientnet_lite0", "widths": (64, 48, 32, 24)}


@pytest.fixture(scope="module")
def network():
    return build(**SETTINGS, encoder_weights="package", seed=1)


def images(count=2, size=64):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_it_is_light_and_each_part_has_parameters(network):
    sizes = dict.fromkeys(PARTS, 0)
    for name, value in network.named_parameters():
        sizes[part_of(network, name)] += value.numel()
    assert sum(sizes.values()) < 5e6
    assert sizes == {"encoder": 2_958_848, "decoder": 357_344, "head": 25}


def test_it_carries_the_record_of_its_weights(network):
    assert network.weights.trained_on.startswith("ImageNet")
    assert network.weights.licence == "Apache-2.0"
    assert build(**SETTINGS, encoder_weights=None).weights is None


@pytest.mark.parametrize("last", PARTS[:-1])
def test_a_pass_in_two_stages_is_the_pass(network, last):
    parameters = {name: value.detach() for name, value in network.named_parameters()}
    following = PARTS[PARTS.index(last) + 1]
    hidden, some = forward(network, parameters, images(), last=last)
    found, rest = forward(network, parameters, hidden, first=following)
    expected, statistics = forward(network, parameters, images())
    torch.testing.assert_close(found, expected)
    assert (some | rest).keys() == statistics.keys()


@pytest.mark.parametrize("widths", [(8, 8, 8), (8, 8, 8, 8), (8, 8, 8, 8, 8)])
@pytest.mark.parametrize("size", [64, 192])
def test_logits_have_the_size_of_the_images_whatever_the_levels(widths, size):
    small = build(**SETTINGS | {"widths": widths}, encoder_weights=None)
    assert small(images(1, size)).shape == (1, 1, size, size)


def test_a_prediction_with_a_frozen_encoder_does_not_depend_on_other_images(network):
    norms = Norms.of(network, {"encoder": "frozen", "decoder": "support"})
    parameters = {name: value.detach() for name, value in network.named_parameters()}
    _, found = forward(network, parameters, images(3))
    assert not any(name.startswith("encoder.") for name in found)
    assert {name for name, layer in norm_layers(network).items() if layer.frozen} == {
        name for name in norm_layers(network) if name.startswith("encoder.")
    }
    given = norms.given(found, {})
    together, _ = forward(network, parameters, images(4), given)
    alone, _ = forward(network, parameters, images(4)[:1], given)
    torch.testing.assert_close(together[:1], alone)


def test_frozen_statistics_are_those_of_the_weights_however_long_it_trains(network):
    Norms.of(network, {"encoder": "frozen", "decoder": "support"})
    with torch.no_grad():
        hidden = network(images())
    network.train()
    with torch.no_grad():
        torch.testing.assert_close(network(images()), hidden)


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"widths": ()}, "model.widths"),
        ({"widths": (8,) * 6}, "model.widths"),
        ({"widths": (8, 0)}, "model.widths"),
        ({"encoder": "timm-tf_efficientnet_lite9"}, "model.encoder"),
        ({"init": "brain_mri"}, "model.init"),
        ({"encoder_weights": "no_such_file.pth"}, "encoder_weights"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, setting):
    with pytest.raises(MetasegError, match=setting):
        build(**SETTINGS | {"encoder_weights": None} | changes)


def test_a_size_that_cannot_be_halved_is_refused(network):
    with pytest.raises(MetasegError, match=r"data\.size"):
        network(images(1, 80))

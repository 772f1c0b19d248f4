import pytest
import torch
from tensors import saved
from torchvision.models import vgg16

from metaseg.errors import MetasegError
from metaseg.networks import vgg
from metaseg.networks.build import build
from metaseg.networks.feyjie import FeyjieNetwork
from metaseg.networks.pmg import PMGNetwork
from metaseg.networks.smp import LibraryNetwork
from metaseg.networks.vgg import VGG16, load_vgg16

MEAN, DEVIATION = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def original():
    torch.manual_seed(0)
    return vgg16(weights=None).features.eval()


def named(original):
    return {f"features.{name}": value.contiguous() for name, value in original.state_dict().items()}


@pytest.fixture(scope="module")
def weights(original, tmp_path_factory):
    return saved(tmp_path_factory.mktemp("vgg") / "vgg16.safetensors", named(original))


def pictures(count=2, side=32):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def normalised(images):
    return ((images + 1) / 2 - MEAN[:, None, None]) / DEVIATION[:, None, None]


def test_blocks_have_the_widths_and_strides_they_are_said_to_have():
    outputs = VGG16(3, blocks=5, pools=2, dilated=(14,))(pictures())
    assert [tuple(one.shape) for one in outputs] == [
        (2, 6, 32, 32),
        (2, 12, 16, 16),
        (2, 24, 8, 8),
        (2, 48, 8, 8),
        (2, 48, 8, 8),
    ]
    assert len(VGG16(1, blocks=4)(pictures())) == 4
    assert all(one.std() > 0.01 for one in outputs)  # nothing shrinks away on the way


@pytest.mark.long
def test_with_all_poolings_and_a_files_weights_it_is_torchvisions_network(weights, original):
    images = pictures()
    outputs = VGG16(weights=weights)(images)
    expected = normalised(images)
    for number, layer in enumerate(original[:30]):
        expected = layer(expected)
        if number in (3, 8, 15, 22, 29):
            torch.testing.assert_close(outputs.pop(0), expected, rtol=1e-4, atol=1e-5)
    assert not outputs


def test_a_dilated_convolution_is_the_only_difference_of_block_three(weights, original):
    network = VGG16(blocks=3, pools=2, dilated=(14,), weights=weights)
    images = pictures()
    before = original[:14](normalised(images))
    layer = original[14]
    expected = torch.relu(torch.nn.functional.conv2d(before, layer.weight, layer.bias, padding=2, dilation=2))
    torch.testing.assert_close(network(images)[2], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_weights_load_by_name_from_files_of_every_kind_in_half_precision(original, tmp_path, suffix):
    tensors = {name: value.half() for name, value in named(original).items()}
    path = saved(tmp_path / f"half{suffix}", tensors | {"classifier.0.weight": torch.zeros(2)})
    module = VGG16(blocks=4)
    load_vgg16(module, path)
    value = module.features.get_submodule("21").weight
    assert value.dtype == torch.float32
    assert torch.equal(value, tensors["features.21.weight"].float())


@pytest.mark.long
def test_smps_encoder_takes_the_same_file(weights):
    network = build(name="smp", arch="Unet", encoder="vgg16", encoder_weights=str(weights))
    ours, images = VGG16(weights=weights), pictures()
    rescaled = images[:, network.order] * network.scale[:, None, None] + network.offset[:, None, None]
    torch.testing.assert_close(rescaled, normalised(images))
    found = network.network.encoder(rescaled)
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(ours(images), found, strict=False))
    with pytest.raises(MetasegError, match=r"encoder_weights .* resnet18"):
        LibraryNetwork("Unet", "resnet18", str(weights))


@pytest.mark.parametrize("kind", [FeyjieNetwork, PMGNetwork])
def test_the_few_shot_networks_take_the_file_at_full_width_only(weights, original, kind):
    network = kind(encoder_weights=weights)
    assert network.weights is network.encoder.weights
    assert network.weights.source == weights.name
    assert torch.equal(network.encoder.features.get_submodule("10").weight, original[10].weight)
    with pytest.raises(MetasegError, match=r"model\.features=32"):
        kind(features=8, encoder_weights=weights)


def test_the_published_widths_are_those_of_32_features():
    network = FeyjieNetwork()
    assert network.encode(pictures(1)).shape == (1, 512, 8, 8)
    assert network.of_support[0].out_channels == network.of_query[0].out_channels == 128
    widths = [layer.out_channels for layer in network.decoder if isinstance(layer, torch.nn.Conv2d)]
    assert widths == [128, 128, 128, 128, 64, 2, 1]
    assert network.denoise(pictures(1)).shape == (1, 3, 8, 8)


@pytest.mark.long
def test_a_file_that_does_not_fit_is_refused_in_words(original, tmp_path):
    tensors = named(original)
    del tensors["features.7.bias"]
    cases = {
        saved(tmp_path / "less.pt", tensors): r"7\.bias",
        saved(tmp_path / "list.pt", [1, 2]): "named tensors, found a list",
        tmp_path / "none.pt": "no such file",
        tmp_path / "imaginet": "encoder_weights to be",
    }
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "text.pth").write_text("hello")
    cases |= {tmp_path / "text.safetensors": "cannot be read", tmp_path / "text.pth": "cannot be read"}
    for path, words in cases.items():
        with pytest.raises(MetasegError, match=words):
            VGG16(weights=path)


def test_without_a_connection_the_remedy_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(vgg, "URL", (tmp_path / "nowhere" / "vgg16-397923af.pth").as_uri())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(MetasegError, match="fetch the file elsewhere"):
        VGG16(weights="imagenet")


def test_imagenet_means_torchvisions_published_file(monkeypatch, original, weights):
    asked = []
    monkeypatch.setattr(vgg, "cached_download", lambda url, *_: asked.append(url) or weights)
    network = VGG16(weights="imagenet")
    assert asked == ["https://download.pytorch.org/models/vgg16-397923af.pth"]
    assert torch.equal(network.features.get_submodule("0").weight, original[0].weight)


def test_sizes_that_cannot_be_halved_are_refused_in_words():
    with pytest.raises(MetasegError, match="multiples of 4 for VGG16, found 30x32"):
        VGG16(1, pools=2)(torch.zeros(1, 3, 30, 32))
    with pytest.raises(MetasegError, match="at least 1, found 0"):
        VGG16(0)

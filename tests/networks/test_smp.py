import pytest
import torch

pytest.importorskip("segmentation_models_pytorch")

from segmentation_models_pytorch import Unet
from torch import nn

from metaseg.errors import MetasegError
from metaseg.networks.build import build, fingerprint
from metaseg.networks.functional import forward
from metaseg.networks.normalisation import EpisodicBatchNorm2d
from metaseg.networks.smp import LibraryNetwork
from metaseg.networks.weights_record import rescaling


def smp_network(**settings):
    return build(name="smp", seed=0, **settings)


@pytest.mark.long
@pytest.mark.parametrize(
    ("arch", "encoder"),
    [
        ("Unet", "resnet18"),
        ("UnetPlusPlus", "mobilenet_v2"),
        ("MAnet", "resnet18"),
        ("Linknet", "timm-efficientnet-b0"),  # norm layers with built-in activation, stochastic depth
        ("FPN", "resnet18"),  # dropout
        ("DeepLabV3Plus", "resnet18"),  # dropout, pooling to 1x1
    ],
)
def test_support_statistics_make_predictions_independent(arch, encoder):
    network = smp_network(arch=arch, encoder=encoder).train().double()  # train: as a trainer does
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())
    generator = torch.Generator().manual_seed(0)
    support, query = torch.rand(2, 3, 3, 64, 64, generator=generator, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        logits, statistics = forward(network, {}, support)
        assert torch.equal(logits, forward(network, {}, support)[0])  # nothing random
        together, _ = forward(network, {}, query, statistics)
        alone, _ = forward(network, {}, query[:1], statistics)
        own, _ = forward(network, {}, query)
    assert together.shape == (3, 1, 64, 64)
    norms = {name for name, module in network.named_modules() if isinstance(module, EpisodicBatchNorm2d)}
    assert 0 < len(statistics) <= len(norms)  # fewer where the encoder has layers that a segmentation leaves out
    assert set(statistics) <= norms
    scale = together.std()
    torch.testing.assert_close(together[:1] / scale, alone / scale, atol=1e-9, rtol=0)
    assert (own - together).abs().max() > 0.05 * scale


def test_equals_the_librarys_own_network_in_training_mode():
    network = smp_network()
    original = Unet("resnet18", encoder_weights=None).train()
    tensors = network.network.state_dict()
    original.load_state_dict(tensors)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(network(images), original(images))


def test_attention_can_be_differentiated_twice():
    class Attention(nn.Module):
        def forward(self, images):
            return nn.functional.scaled_dot_product_attention(images, images, images)

    network = LibraryNetwork()
    network.network, network.staged = Attention(), False
    images = torch.randn(2, 3, 32, 32, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(images).square().mean(), images, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), images)
    assert torch.isfinite(second).all()
    assert second.abs().max() > 0


def test_images_are_rescaled_to_what_the_encoder_was_trained_on():
    imagenet = {"input_space": "RGB", "input_range": [0, 1], "mean": [0.5, 0.4, 0.2], "std": [0.25, 0.5, 1.0]}
    order, scale, offset = rescaling(imagenet)
    pixel = torch.tensor([1.0, -1.0, 0.0])  # 1, 0 and 0.5 in [0, 1]
    torch.testing.assert_close(pixel[order] * scale + offset, torch.tensor([2.0, -0.8, 0.3]))
    caffe = {"input_space": "BGR", "input_range": [0, 255], "mean": [100.0, 110.0, 120.0], "std": [1.0, 1.0, 1.0]}
    order, scale, offset = rescaling(caffe)
    torch.testing.assert_close(pixel[order] * scale + offset, torch.tensor([127.5 - 100, 0.0 - 110, 255.0 - 120]))


def test_fingerprint_names_architecture_and_encoder():
    assert fingerprint(smp_network()).startswith("smp.Unet(resnet18), 14,328,209 parameters, layout ")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"arch": "Segnet"}, "model.arch to be one of Unet, UnetPlusPlus, MAnet, Linknet, FPN"),
        ({"encoder": "resnet19"}, "found 'resnet19': did you mean resnet1"),
        ({"encoder": "tu-no_such_network"}, "(Unknown model"),
        ({"encoder_weights": "imaginet"}, "Wrong pretrained weights `imaginet` for encoder `resnet18`"),
        ({"arch": "UnetPlusPlus", "encoder": "mit_b0"}, "UnetPlusPlus with encoder mit_b0"),
    ],
)
def test_invalid_settings_are_refused(settings, sentence):
    with pytest.raises(MetasegError) as error:
        LibraryNetwork(**settings)
    assert sentence in str(error.value)


def test_size_that_cannot_be_halved_is_refused():
    with pytest.raises(MetasegError, match=r"multiples of 32 for smp\.Linknet\(resnet18\), found 48x64"):
        smp_network(arch="Linknet")(torch.randn(1, 3, 48, 64))


def test_size_that_leaves_nothing_to_pool_is_refused():
    network = smp_network(arch="PAN")
    with pytest.raises(MetasegError, match=r"at least 128x128 pixels for smp\.PAN\(resnet18\), found 96x128"):
        network(torch.randn(2, 3, 96, 128))
    assert network(torch.randn(2, 3, 128, 128)).shape == (2, 1, 128, 128)

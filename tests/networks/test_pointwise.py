import pytest
import torch
import torch.nn.functional as F

from metaseg.networks.pointwise import Pointwise2d


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("channels", "outputs"), [(5, 3), (4, 1), (1, 2)])
def test_equals_the_convolution_with_its_gradients_and_keeps_the_layout(channels, outputs, bias, memory_format):
    torch.manual_seed(0)
    layer = Pointwise2d(channels, outputs, bias=bias).double()
    images = torch.randn(2, channels, 6, 4, dtype=torch.float64).contiguous(memory_format=memory_format)
    images.requires_grad_()
    found, expected = layer(images), F.conv2d(images, layer.weight, layer.bias)
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous(memory_format=memory_format) or channels == 1  # One channel lies the same in both.
    weights = torch.randn_like(expected)
    inputs = [images, *layer.parameters()]
    torch.testing.assert_close(*(torch.autograd.grad((out * weights).sum(), inputs) for out in (found, expected)))

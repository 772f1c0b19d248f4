"""1x1 convolutions as matrix products."""

import torch
from torch import Tensor, nn


class Pointwise2d(nn.Conv2d):
    """A 1x1 convolution (B, C, H, W) → (B, O, H, W), computed as a matrix product.

    On a CPU the convolution library is much slower for few channels; the row "K+2 passes through metaseg's layers" of
    ``python -m benchmarks outer_step`` shows the gain for a whole network. Parameters have the names and shapes of
    ``nn.Conv2d``.

    Args:
        in_channels: C.
        out_channels: O.
        bias: add a bias.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        """Mix the channels of every pixel of (B, C, H, W)."""
        weight = self.weight.flatten(1)
        # One product per image: torch.matmul would first transpose and copy the images. input.shape[0] rather than
        # len(), which would fix the batch size on export.
        if input.is_contiguous():
            product = torch.bmm(weight.expand(input.shape[0], -1, -1), input.flatten(2)).unflatten(2, input.shape[2:])
        else:
            pixels = input.permute(0, 2, 3, 1)
            product = torch.bmm(pixels.flatten(1, 2), weight.t().expand(input.shape[0], -1, -1))
            product = product.unflatten(1, pixels.shape[1:3]).permute(0, 3, 1, 2)
        return product if self.bias is None else product + self.bias[:, None, None]

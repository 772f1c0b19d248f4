"""The attention U-Net of Oktay et al. 2018 (arXiv 1804.03999), on the U-Net of Buda et al. 2019.

The U-Net's parameters have the names of the brain-MRI U-Net on torch hub (mateuszbuda/brain-segmentation-pytorch), so
that its weights load by name; the gates are additional. The layout is that of the public code of the paper's first
author, with one difference: there the decoder gets (skip, upsampled), although its weights expect (upsampled, skip).
"""

from collections import OrderedDict
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from metaseg.networks.normalisation import EpisodicBatchNorm2d
from metaseg.networks.pointwise import Pointwise2d
from metaseg.networks.stages import StagedNetwork, require_multiples

LEVELS = (1, 2, 3, 4)


def _double_convolution(channels_in: int, channels_out: int, name: str) -> nn.Sequential:
    """Twice 3x3 convolution, batch norm, ReLU. No bias, because the batch norm's makes it redundant."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i in (1, 2):
        layers[f"{name}conv{i}"] = nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1, bias=False)
        layers[f"{name}norm{i}"] = EpisodicBatchNorm2d(channels_out)
        layers[f"{name}relu{i}"] = nn.ReLU(inplace=True)
        channels_in = channels_out
    return nn.Sequential(layers)


class AttentionGate(nn.Module):
    """Weights a skip connection by attention from the coarser level: skip · α(skip, gating), α in (0, 1).

    α = sigmoid(BN(ψ * relu(BN(W_g * gating) + BN(W_x * skip)))), all convolutions 1x1. As in the author's code, the
    gating signal is the upsampled decoder output at the skip's resolution, so nothing is resampled. The convolutions
    have no bias, because each is followed by batch norm.

    Args:
        gating: channels G of the gating signal.
        skip: channels F of the skip connection; the inner width is F/2, at least 1.
    """

    def __init__(self, gating: int, skip: int) -> None:
        super().__init__()
        inner = max(skip // 2, 1)
        self.gating = nn.Sequential(Pointwise2d(gating, inner, bias=False), EpisodicBatchNorm2d(inner))
        self.skip = nn.Sequential(Pointwise2d(skip, inner, bias=False), EpisodicBatchNorm2d(inner))
        self.attention = nn.Sequential(Pointwise2d(inner, 1, bias=False), EpisodicBatchNorm2d(1))

    def forward(self, gating: Tensor, skip: Tensor) -> Tensor:
        """(B, G, H, W) and (B, F, H, W) → the weighted skip (B, F, H, W)."""
        alpha = self.attention(torch.relu(self.gating(gating) + self.skip(skip))).sigmoid()
        return skip * alpha


class UNet(StagedNetwork):
    """U-Net: images (B, 3, H, W) in [-1, 1] → logits (B, 1, H, W).

    Encoder widths F, 2F, 4F, 8F, bottleneck 16F; the decoder mirrors them. The head includes the two convolutions of
    the last level [our decision: the last layer alone has 9 parameters at 8 features].

    Args:
        features: F. 32 in the first author's public code; any width ≥ 1.

    Raises:
        MetasegError: in the forward pass, H or W is not a multiple of 16.
    """

    def __init__(self, features: int = 32) -> None:
        super().__init__()
        self.label = f"{type(self).__name__}(features={features})"
        widths = {level: features * 2 ** (level - 1) for level in LEVELS}
        self.pool = nn.MaxPool2d(kernel_size=2, stride=2)
        channels = 3
        for level in LEVELS:
            self.add_module(f"encoder{level}", _double_convolution(channels, widths[level], f"enc{level}"))
            channels = widths[level]
        self.bottleneck = _double_convolution(channels, 2 * channels, "bottleneck")
        for level in reversed(LEVELS):
            width = widths[level]
            self.add_module(f"upconv{level}", nn.ConvTranspose2d(2 * width, width, kernel_size=2, stride=2))
            self.add_module(f"decoder{level}", _double_convolution(2 * width, width, f"dec{level}"))
        self.conv = Pointwise2d(features, 1)

    stride = 2 ** len(LEVELS)
    modules_of = MappingProxyType(
        {"encoder": (*(f"encoder{level}" for level in LEVELS), "bottleneck"), "head": ("decoder1", "conv")}
    )

    def stage(self, part: str, hidden: Any) -> Any:
        """Encoder: images → five feature maps, finest first; decoder: these → the input of the head; head: logits."""
        if part == "encoder":
            return self._encode(hidden)
        return self._decode(hidden) if part == "decoder" else self._finish(hidden)

    def _encode(self, images: Tensor) -> list[Tensor]:
        require_multiples(self.label, self.stride, *images.shape[-2:])
        features = []
        hidden = images
        for level in LEVELS:
            features.append(self.get_submodule(f"encoder{level}")(hidden))
            hidden = self.pool(features[-1])
        return [*features, self.bottleneck(hidden)]

    def _decode(self, features: list[Tensor]) -> Tensor:
        *skips, hidden = features
        for level in reversed(LEVELS):
            hidden = self.get_submodule(f"upconv{level}")(hidden)
            hidden = torch.cat((hidden, self.gate(level, hidden, skips.pop())), dim=1)
            if level > 1:
                hidden = self.get_submodule(f"decoder{level}")(hidden)
        return hidden

    def _finish(self, hidden: Tensor) -> Tensor:
        return self.conv(self.get_submodule("decoder1")(hidden))

    def gate(self, level: int, gating: Tensor, skip: Tensor) -> Tensor:
        """The skip connection (B, F_level, H, W) of `level` as passed to the decoder; here unchanged."""
        return skip


class AttentionUNet(UNet):
    """U-Net with an attention gate on each of the four skip connections: images (B, 3, H, W) → logits (B, 1, H, W).

    7 851 289 parameters (7.85 M) at 32 features. Arguments and errors as for `UNet`.
    """

    def __init__(self, features: int = 32) -> None:
        super().__init__(features)
        for level in LEVELS:
            width = features * 2 ** (level - 1)
            self.add_module(f"gate{level}", AttentionGate(width, width))

    def gate(self, level: int, gating: Tensor, skip: Tensor) -> Tensor:
        """The skip (B, F_level, H, W), weighted by attention with the upsampled decoder output `gating`."""
        return self.get_submodule(f"gate{level}")(gating, skip)

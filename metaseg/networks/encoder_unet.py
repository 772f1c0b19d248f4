"""An attention U-Net on a pre-trained library encoder: few parameters, cheap to adapt."""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaseg.errors import MetasegError
from metaseg.networks.attention_unet import AttentionGate
from metaseg.networks.normalisation import EpisodicBatchNorm2d, replace_batch_norm
from metaseg.networks.pointwise import Pointwise2d
from metaseg.networks.smp import library_encoder, register_rescaling, rescaled
from metaseg.networks.stages import StagedNetwork, require_multiples

WIDTHS = (64, 48, 32, 24)
"""Widths of the decoder's levels, coarsest first [our decision]."""


class EncoderUNet(StagedNetwork):
    """Images (B, 3, H, W) in [-1, 1] → logits (B, 1, H, W).

    The decoder doubles the resolution at each level and receives the encoder's features through attention gates
    [Oktay et al. 2018], as in the paper's network. With fewer levels than the encoder, the logits have a lower
    resolution (one half with four of five levels) and are upsampled bilinearly.

    Args:
        encoder: an encoder of smp, or "tu-<name>" for one of timm.
        encoder_weights: pre-trained weights, see `encoder_weights.load_encoder`; None: random.
        widths: channels of the decoder's levels, coarsest first.

    Raises:
        MetasegError: an unavailable encoder or weights; a width below 1 or more levels than the encoder has; in the
            forward pass, a height or width not divisible by the encoder's stride.
    """

    modules_of = MappingProxyType({"encoder": ("encoder",), "head": ("head",)})
    order: Tensor
    scale: Tensor
    offset: Tensor

    def __init__(
        self,
        encoder: str = "timm-tf_efficientnet_lite0",
        encoder_weights: str | Path | None = "package",
        widths: Sequence[int] = WIDTHS,
    ) -> None:
        super().__init__()
        self.label = f"EncoderUNet({encoder}, {'-'.join(str(width) for width in widths)})"
        found = library_encoder(encoder, encoder_weights)
        self.weights = found.weights
        self.encoder = replace_batch_norm(found.encoder)
        register_rescaling(self, found.rescaling)
        *skips, channels = found.channels
        if not 0 < len(widths) <= len(skips) + 1 or min(widths) < 1:
            raise MetasegError(
                f"Expected model.widths to be one to {len(skips) + 1} numbers of at least 1, found {list(widths)}: set "
                "the channels of the decoder's levels, coarsest first."
            )
        self.stride = 2 ** len(found.channels)
        self.levels = nn.ModuleList()
        for width, skip in zip(widths, [*reversed(skips), 0], strict=False):
            self.levels.append(Level(channels, skip, width))
            channels = width
        self.head = Pointwise2d(channels, 1)
        self.train(False)

    def train(self, mode: bool = True) -> "EncoderUNet":
        """Stay in evaluation mode: dropout in the encoder would make the loss random."""
        return super().train(False)

    def stage(self, part: str, hidden: Any) -> Any:
        """Encoder: images → feature maps at 1/2 to 1/32; decoder: these → the input of the head; head: logits."""
        if part == "encoder":
            return self._encode(hidden)
        return self._decode(hidden) if part == "decoder" else self._finish(hidden)

    def _encode(self, images: Tensor) -> list[Tensor]:
        require_multiples(self.label, self.stride, *images.shape[-2:])
        features: list[Tensor] = list(self.encoder(rescaled(self, images))[1:])
        return features

    def _decode(self, features: list[Tensor]) -> Tensor:
        *skips, hidden = features
        for level in self.levels:
            hidden = level(hidden, skips.pop() if skips else None)
        return hidden

    def _finish(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.head(hidden)
        missing = self.stride // 2 ** len(self.levels)
        if missing > 1:
            logits = F.interpolate(logits, scale_factor=missing, mode="bilinear", align_corners=False)
        return logits


class Level(nn.Module):
    """One level of the decoder: upsample, concatenate the gated skip connection, convolve.

    Args:
        channels: channels of the coarser level.
        skip: channels of the skip connection; 0: none.
        width: channels of the result.
    """

    def __init__(self, channels: int, skip: int, width: int) -> None:
        super().__init__()
        self.gate = AttentionGate(channels, skip) if skip else None
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv"] = nn.Conv2d(channels + skip, width, kernel_size=3, padding=1, bias=False)
        layers["norm"] = EpisodicBatchNorm2d(width)
        layers["relu"] = nn.ReLU(inplace=True)
        self.convolution = nn.Sequential(layers)

    def forward(self, hidden: Tensor, skip: Tensor | None) -> Tensor:
        """(B, C, H, W) and (B, S, 2H, 2W) → (B, width, 2H, 2W)."""
        hidden = F.interpolate(hidden, scale_factor=2, mode="nearest")
        if skip is not None and self.gate is not None:
            hidden = torch.cat((hidden, self.gate(hidden, skip)), dim=1)
        result: Tensor = self.convolution(hidden)
        return result

"""The two-branch network of Feyjie et al. 2020 (arXiv 2003.08462), based on its authors' public Keras code.

As in that code: VGG16's blocks 1 to 4 with two poolings and conv3_3 dilated by 2, shared by both branches, all layers
trained; separate 3x3 convolutions to 128 + ReLU for support and query; masked average pooling over all support images
and locations, concatenated with the query's features at each location; conv128-BN-ReLU, then as the decoder
conv128-BN-ReLU, up by 2, conv128-BN-ReLU, up by 2, conv128-BN-ReLU, conv64-ReLU, conv2-ReLU, 1x1 convolution to one
logit; the surrogate branch conv128-BN-ReLU, conv64, conv3, sigmoid.

Assumed, because unknown: Keras' initial weights in both branches; 3x3 convolutions wherever no size is given;
upsampling by nearest neighbour (Keras' default); no activation after the surrogate's conv64; masks resized to the
features by area.

Different [our decision]: one is added to the area by which pooled features are divided (masks may be empty); widths,
except the decoder's 2, scale with F, and are the published ones at F = 32; batch norm is the project's, so a query's
prediction does not depend on other queries.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from metaseg.networks.comparing import ComparingNetwork, at_size_of, glorot_, pooled, tiled
from metaseg.networks.normalisation import EpisodicBatchNorm2d
from metaseg.networks.vgg import FULL, VGG16

DILATED = (14,)
"""conv3_3."""


class FeyjieNetwork(ComparingNetwork):
    """Segmentation and denoising with a shared encoder.

    Args:
        features: F ≥ 1; 32 is the published width.
        encoder_weights: weights of VGG16 (see `load_vgg16`), a path or "imagenet", only at F = 32. None: random.

    Raises:
        MetasegError: see `VGG16`.
    """

    def __init__(self, features: int = FULL, encoder_weights: str | Path | None = None) -> None:
        super().__init__()
        self.label = f"FeyjieNetwork(features={features})"
        self.encoder = VGG16(features, blocks=4, pools=2, dilated=DILATED, weights=encoder_weights)
        self.weights, self.stride = self.encoder.weights, self.encoder.stride
        deep, width, half = self.encoder.widths[-1], 4 * features, 2 * features
        self.of_support = nn.Sequential(_convolution(deep, width), nn.ReLU())
        self.of_query = nn.Sequential(_convolution(deep, width), nn.ReLU())
        self.decoder = nn.Sequential(
            *_normalised(2 * width, width),
            *_normalised(width, width),
            nn.Upsample(scale_factor=2),
            *_normalised(width, width),
            nn.Upsample(scale_factor=2),
            *_normalised(width, width),
            _convolution(width, half),
            nn.ReLU(),
            _convolution(half, 2),
            nn.ReLU(),
            nn.Conv2d(2, 1, 1),
        )
        self.surrogate = nn.Sequential(*_normalised(deep, width), _convolution(width, half), _convolution(half, 3))
        for part in (self.of_support, self.of_query, self.decoder, self.surrogate):
            glorot_(part)

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → features (B, 16F, H/4, W/4)."""
        features: Tensor = self.encoder(images)[-1]
        return features

    def summarise(self, features: Tensor, masks: Tensor) -> Tensor:
        """The support's foreground as one vector (4F,)."""
        hidden = self.of_support(features)
        return pooled(hidden, at_size_of(hidden, masks))

    def compare(self, summary: Tensor, features: Tensor) -> Tensor:
        """Logits (B, 1, H, W)."""
        hidden = self.of_query(features)
        logits: Tensor = self.decoder(torch.cat((hidden, tiled(summary, hidden)), dim=1))
        return logits

    def denoise(self, images: Tensor) -> Tensor:
        """Noisy images (B, 3, H, W) → logits (B, 3, H/4, W/4) of the clean images with values in [0, 1]."""
        logits: Tensor = self.surrogate(self.encode(images))
        return logits


def _convolution(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1)


def _normalised(channels_in: int, channels_out: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    return _convolution(channels_in, channels_out), EpisodicBatchNorm2d(channels_out), nn.ReLU()

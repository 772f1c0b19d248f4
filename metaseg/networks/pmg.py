"""A network based on the abstract of Xiao et al. 2021 (PMG); metaseg/learners/pmg.py states what is known about it.

Every layer is our assumption. The encoder is VGG16 with three poolings (block 5 is dilated by 2 instead of the fourth).
Block 5 gives the prior mask; blocks 3 and 4, at a quarter of the images' size, give the features that are compared.
"""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaseg.networks.comparing import ComparingNetwork, at_size_of, glorot_, pooled, tiled
from metaseg.networks.normalisation import EpisodicBatchNorm2d
from metaseg.networks.vgg import FULL, VGG16

DILATED = (24, 26, 28)
"""Block 5."""


class Features(NamedTuple):
    """Features of B images, for the prior mask (B, 16F, H/8, W/8) and for comparison (B, 4F, H/4, W/4)."""

    high: Tensor
    middle: Tensor


class Summary(NamedTuple):
    """Summary of K support images: unit features (K, 16F, h·w) times masks, and the foreground prototype (4F,)."""

    masked: Tensor
    prototype: Tensor


class PMGNetwork(ComparingNetwork):
    """Prior mask, then inference by residual convolutions.

    Args:
        features: F ≥ 1; 32 is the width of VGG16.
        encoder_weights: weights of VGG16 (see `load_vgg16`), a path or "imagenet", only at F = 32. None: random.

    Raises:
        MetasegError: see `VGG16`.
    """

    def __init__(self, features: int = FULL, encoder_weights: str | Path | None = None) -> None:
        super().__init__()
        self.label = f"PMGNetwork(features={features})"
        self.encoder = VGG16(features, blocks=5, pools=3, dilated=DILATED, weights=encoder_weights)
        self.weights, self.stride = self.encoder.weights, self.encoder.stride
        width, half = 4 * features, 2 * features
        self.reduction = nn.Sequential(nn.Conv2d(sum(self.encoder.widths[2:4]), width, 1), nn.ReLU())
        self.inference = nn.Sequential(
            nn.Conv2d(2 * width + 1, width, 3, padding=1, bias=False),
            EpisodicBatchNorm2d(width),
            nn.ReLU(),
            Residual(width),
            Residual(width),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.Conv2d(width, half, 3, padding=1, bias=False),
            EpisodicBatchNorm2d(half),
            nn.ReLU(),
            Residual(half),
            nn.Conv2d(half, 1, 1),
            nn.Upsample(scale_factor=2, mode="bilinear"),
        )
        glorot_(self.reduction)
        glorot_(self.inference)

    def encode(self, images: Tensor) -> Features:
        """(B, 3, H, W) → features."""
        *_, third, fourth, fifth = self.encoder(images)
        fourth = F.interpolate(fourth, size=third.shape[-2:], mode="bilinear")
        return Features(fifth, self.reduction(torch.cat((third, fourth), dim=1)))

    def summarise(self, features: Features, masks: Tensor) -> Summary:
        """The support's foreground, per location and on average."""
        masked = unit(features.high) * at_size_of(features.high, masks)
        return Summary(masked.flatten(2), pooled(features.middle, at_size_of(features.middle, masks)))

    def compare(self, summary: Summary, features: Features) -> Tensor:
        """Logits (B, 1, H, W)."""
        middle = features.middle
        prior = F.interpolate(prior_mask(summary.masked, features.high), size=middle.shape[-2:], mode="bilinear")
        logits: Tensor = self.inference(torch.cat((middle, tiled(summary.prototype, middle), prior), dim=1))
        return logits


class Residual(nn.Module):
    """relu(x + BN(conv(relu(BN(conv(x)))))), with 3x3 convolutions of constant width and no bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.first_norm = EpisodicBatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second_norm = EpisodicBatchNorm2d(channels)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape."""
        change = self.second_norm(self.second(torch.relu(self.first_norm(self.first(hidden)))))
        return torch.relu(hidden + change)


def unit(features: Tensor) -> Tensor:
    """Features (B, C, h, w) normalised to length 1 at each location; zeros stay 0."""
    return F.normalize(features, dim=1, eps=1e-6)


def prior_mask(masked: Tensor, features: Tensor) -> Tensor:
    """Similarity of queries to the support's foreground, (B, 1, h, w) in [0, 1].

    The cosine similarity of each query location to each support location, times the latter's share of foreground;
    maximised over the support image; rescaled to 0 to 1 over each query image; averaged over the K support images
    [PFENet, Tian et al. 2020, section 3.2]. It has no parameters, and is zero for an empty support mask.

    Args:
        masked: unit features of the support times its masks, (K, C, h·w).
        features: features of the queries, (B, C, h, w).
    """
    queries = unit(features).flatten(2)
    total = queries.new_zeros(())
    # One support image at a time: all at once would need K times the largest tensor of the network.
    for shot in masked:
        likeness = torch.einsum("bcq,cs->bqs", queries, shot).amax(2)
        least, most = likeness.amin(1, keepdim=True), likeness.amax(1, keepdim=True)
        total = total + (likeness - least) / (most - least + 1e-6)
    return (total / len(masked)).unflatten(1, features.shape[-2:]).unsqueeze(1)

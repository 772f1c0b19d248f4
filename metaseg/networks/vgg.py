"""The convolutional layers of VGG16 (Simonyan and Zisserman 2015) at any width, and loading pre-trained weights."""

import logging
from collections import OrderedDict
from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor, nn

from metaseg.errors import MetasegError
from metaseg.networks.encoder_weights import load_encoder
from metaseg.networks.stages import require_multiples
from metaseg.networks.weight_files import cached_download
from metaseg.networks.weights_record import WeightsRecord

URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
FULL = 32
"""`features` of the original VGG16."""

_BLOCKS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
"""Torchvision's indices of each block's convolutions; each is followed by a ReLU, and each block by a pooling."""
_WIDTHS = (2, 4, 8, 16, 16)
"""Channels of each block, in units of `features`."""

log = logging.getLogger(__name__)


class VGG16(nn.Module):
    """The convolutions of VGG16 without batch norm: images (B, 3, H, W) in [-1, 1] → the output of each block.

    Parameters have torchvision's names (``features.N.weight``). Random weights use torchvision's initialisation
    (normal, He et al. 2015, fan out; biases 0): PyTorch's default would shrink the variance by a factor of six per
    layer, and without batch norm the signal would vanish.

    Args:
        features: F ≥ 1. Blocks have 2F, 4F, 8F, 16F and 16F channels; 32 is the original VGG16.
        blocks: number of blocks, 1 to 5.
        pools: number of poolings between blocks; the later ones are omitted.
        dilated: torchvision's indices of the 3x3 convolutions with dilation 2.
        weights: pre-trained weights (see `load_vgg16`), only at F = 32; images are then rescaled to ImageNet's mean and
            deviation. None: random weights, no rescaling.

    Raises:
        MetasegError: F below 1; weights at F other than 32, unavailable or not matching; in the forward pass, a height
            or width that the poolings cannot halve.
    """

    scale: Tensor
    offset: Tensor
    weights: WeightsRecord | None = None

    def __init__(
        self,
        features: int = FULL,
        blocks: int = 5,
        pools: int = 4,
        dilated: Collection[int] = (),
        weights: str | Path | None = None,
    ) -> None:
        super().__init__()
        if features < 1:
            raise MetasegError(f"Expected model.features of at least 1, found {features}: set a positive width.")
        if weights is not None and features != FULL:
            raise MetasegError(
                f"Expected model.features={FULL} with pre-trained encoder_weights, found {features}: set "
                f"model.features={FULL}, or encoder_weights=null."
            )
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = 3
        self.ends: list[int] = []
        for block, numbers in enumerate(_BLOCKS[:blocks]):
            if block:
                layers[str(numbers[0] - 1)] = nn.MaxPool2d(2) if block <= pools else nn.Identity()
            for number in numbers:
                dilation = 2 if number in dilated else 1
                width = _WIDTHS[block] * features
                layers[str(number)] = nn.Conv2d(channels, width, 3, padding=dilation, dilation=dilation)
                layers[str(number + 1)] = nn.ReLU(inplace=True)
                channels = width
            self.ends.append(numbers[-1] + 1)
        self.features = nn.Sequential(layers)
        self.widths = [width * features for width in _WIDTHS[:blocks]]
        self.stride = 2 ** min(pools, blocks - 1)
        he_(self)
        scale, offset = torch.ones(3), torch.zeros(3)
        if weights is not None:
            self.weights = load_vgg16(self, weights)
            _, scale, offset = self.weights.rescaling()
        # Buffers are stored in checkpoints, so loading one does not need the encoder's weights.
        self.register_buffer("scale", scale)
        self.register_buffer("offset", offset)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) → of each block its last ReLU's (B, C, H', W')."""
        require_multiples("VGG16", self.stride, *images.shape[-2:])
        outputs = []
        hidden = images * self.scale[:, None, None] + self.offset[:, None, None]
        for number, layer in self.features.named_children():
            hidden = layer(hidden)
            if int(number) in self.ends:
                outputs.append(hidden)
        return outputs


def he_(module: nn.Module) -> None:
    """Torchvision's initialisation of VGG's convolutions: normal [He et al. 2015, fan out], biases 0; in place."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def load_vgg16(module: nn.Module, source: str | Path) -> WeightsRecord:
    """Load VGG16's convolutions in place into a module with torchvision's parameter names (see `load_encoder`).

    Args:
        module: with parameters ``features.N.weight`` and ``features.N.bias`` of VGG16's widths, i.e. `VGG16` at 32.
            Missing blocks are skipped.
        source: path of a file; or "imagenet": torchvision's weights, downloaded once into torch hub's cache (528 MB).

    Raises:
        MetasegError: no network connection, or as `load_encoder`.
    """
    if str(source) == "imagenet":
        source = cached_download(
            URL,
            "VGG16's weights",
            "fetch the file elsewhere and set its path instead of imagenet, or start from random weights with "
            "encoder_weights=null",
        )
    record = load_encoder(module.get_submodule("features"), "vgg16", source)
    log.info("Initial weights: %s.", record.sentence())
    return record

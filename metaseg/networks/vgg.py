"""The convolutions of VGG16 (Simonyan and Zisserman 2015), of any width, and their pre-trained weights by file."""

import logging
from collections import OrderedDict
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, hub, nn

from metaseg.errors import MetasegError
from metaseg.networks.rescaling import IMAGENET, rescaling

URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
SUFFIXES = (".safetensors", ".pt", ".pth")
FULL = 32
"""`features` at which the network is VGG16 itself."""

_BLOCKS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
"""Torchvision's numbers of each block's convolutions; a ReLU follows each, a pooling each block."""
_WIDTHS = (2, 4, 8, 16, 16)
"""Channels of each block, in units of `features`."""

log = logging.getLogger(__name__)


class VGG16(nn.Module):
    """The convolutions of VGG16 without batch norm: images (B, 3, H, W) in [-1, 1] → the output of each block.

    Parameters bear torchvision's names (``features.N.weight``). Random weights are torchvision's initialisation
    (normal, He et al. 2015, fan out; biases 0): PyTorch's own would shrink what passes by a factor of six in variance a
    layer, and without batch norm nothing would be left of it.

    Args:
        features: F ≥ 1. Blocks have 2F, 4F, 8F, 16F and 16F channels; 32 is VGG16 itself.
        blocks: how many blocks there are, 1 to 5.
        pools: how many of the poolings between blocks halve the resolution; the later ones are left out.
        dilated: torchvision's numbers of the 3x3 convolutions that are dilated by 2.
        weights: pre-trained weights (see `load_vgg16`); images are then rescaled to ImageNet's mean and deviation.
            None: random, and images pass as they are.

    Raises:
        MetasegError: F below 1; weights that cannot be had or do not fit; in the forward pass, a height or width that
            the poolings cannot halve.
    """

    scale: Tensor
    offset: Tensor

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
        initialise(self)
        scale, offset = torch.ones(3), torch.zeros(3)
        if weights is not None:
            load_vgg16(self, weights)
            _, scale, offset = rescaling(IMAGENET)
        # Buffers, and so part of a checkpoint: whoever loads one need not have the encoder's weights.
        self.register_buffer("scale", scale)
        self.register_buffer("offset", offset)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) → of each block its last ReLU's (B, C, H', W')."""
        height, width = images.shape[-2:]
        if height % self.stride or width % self.stride:
            raise MetasegError(
                f"Expected images whose height and width are multiples of {self.stride}, found {height}x{width}: "
                "choose another data.size."
            )
        outputs = []
        hidden = images * self.scale[:, None, None] + self.offset[:, None, None]
        for number, layer in self.features.named_children():
            hidden = layer(hidden)
            if int(number) in self.ends:
                outputs.append(hidden)
        return outputs


def initialise(module: nn.Module) -> None:
    """Torchvision's initialisation of VGG's convolutions: normal [He et al. 2015, fan out], biases 0; in place."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def is_file(weights: str | Path | None) -> bool:
    """Whether this names a file of weights rather than weights that a library knows by name."""
    return weights is not None and Path(weights).suffix in SUFFIXES


def load_vgg16(module: nn.Module, source: str | Path) -> None:
    """Load VGG16's convolutions into a module whose parameters bear torchvision's names, in place; nothing is executed.

    What the source has beyond the module (the classifier, later blocks) is left out.

    Args:
        module: with parameters ``features.N.weight`` and ``features.N.bias``, of VGG16's own widths: `VGG16` at 32
            features, or smp's encoder "vgg16".
        source: path of a .safetensors, .pt or .pth file in torchvision's names, of any float type; or "imagenet":
            torchvision's weights, downloaded once into torch hub's cache (528 MB).

    Raises:
        MetasegError: no such file; one of another kind; no network connection; a tensor missing or of another shape.
    """
    found = _download() if str(source) == "imagenet" else _read(Path(source))
    expected = {name: value for name, value in module.state_dict().items() if name.startswith("features.")}
    for name, value in expected.items():
        if name not in found:
            raise MetasegError(
                f"Expected {source} to hold VGG16's tensors by torchvision's names, found no {name}: use a file with "
                f"features.N.weight and features.N.bias, such as {URL}."
            )
        if found[name].shape != value.shape:
            raise MetasegError(
                f"Expected {name} of shape {tuple(value.shape)}, found {tuple(found[name].shape)} in {source}: "
                f"pre-trained weights are those of VGG16 itself, so set model.features={FULL}, or encoder_weights=null."
            )
    module.load_state_dict(dict(module.state_dict()) | {name: found[name].to(expected[name]) for name in expected})
    log.info("Initial weights: %d tensors of VGG16 loaded from %s.", len(expected), source)


def _download() -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = hub.load_state_dict_from_url(
            URL, map_location="cpu", weights_only=True, check_hash=True, progress=False
        )
    except (OSError, RuntimeError) as error:
        raise MetasegError(
            f"Could not download VGG16's weights from {URL} ({error}): fetch the file elsewhere and name its path in "
            "place of imagenet, or start from random weights with null."
        ) from error
    return tensors


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix not in SUFFIXES:
        raise MetasegError(
            f"Expected VGG16's weights as imagenet or as a file {', '.join(SUFFIXES)}, found {str(path)!r}: correct "
            "encoder_weights."
        )
    if not path.is_file():
        raise MetasegError(f"Expected VGG16's weights at {path}, found no such file: correct encoder_weights.")
    try:
        tensors: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # readers raise what a foreign file makes them stumble over
        raise MetasegError(
            f"Expected {path} to hold tensors by name and nothing else, found something that cannot be read "
            f"({type(error).__name__}): use a file in the layout of {URL}."
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise MetasegError(
            f"Expected {path} to hold tensors by name, found {type(tensors).__name__} of other things: use a file in "
            f"the layout of {URL}."
        )
    return tensors

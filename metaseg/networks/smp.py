"""Networks of segmentation-models-pytorch (smp), adapted to episodic training."""

import difflib
import logging
import re
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from metaseg.errors import MetasegError
from metaseg.networks.encoder_weights import library_record, load_encoder, loads_here
from metaseg.networks.normalisation import replace_batch_norm
from metaseg.networks.stages import PARTS, StagedNetwork, require_multiples
from metaseg.networks.weights_record import WeightsRecord, rescaling

SMALLEST = {"PAN": 128}
"""Smallest height and width in pixels; below it, an architecture's feature maps would be empty."""

ARCHITECTURES = {model.__name__: model for model in smp.MODEL_ARCHITECTURES_MAPPING.values()}

log = logging.getLogger(__name__)


class LibraryNetwork(StagedNetwork):
    """A network of smp: images (B, 3, H, W) in [-1, 1] → logits (B, 1, H, W).

    Every batch norm is an `EpisodicBatchNorm2d`. The network stays in evaluation mode even after `train()`: dropout and
    stochastic depth would make the loss, and curvature products of it, random. With an encoder that uses layer norm
    (mit_b*) or no normalisation (vgg16), `model.norm` affects only the decoder. Some networks (efficientnet*, PSPNet)
    have unused parameters, for which `torch.autograd.grad` needs `materialize_grads=True`.

    Args:
        arch: one of `ARCHITECTURES`.
        encoder: an encoder of smp, or "tu-<name>" for one of timm.
        encoder_weights: a name such as "imagenet", downloaded by smp; or "package" or the path of a file (see
            `load_encoder`). Images are then rescaled to the encoder's input range. None: random.

    Raises:
        MetasegError: an unknown name; an incompatible pair of names; unavailable weights; in the forward pass, a height
            or width that is too small or not divisible by the encoder's stride.
    """

    modules_of = MappingProxyType({"encoder": ("network.encoder",), "head": ("network.segmentation_head",)})
    order: Tensor
    scale: Tensor
    offset: Tensor

    def __init__(
        self, arch: str = "Unet", encoder: str = "resnet18", encoder_weights: str | Path | None = None
    ) -> None:
        super().__init__()
        if arch not in ARCHITECTURES:
            raise MetasegError(
                f"Expected model.arch to be one of {', '.join(ARCHITECTURES)}, found {arch!r}: choose one of them."
            )
        require_encoder(encoder)
        self.label = f"smp.{arch}({encoder})"
        of_library = by_library(encoder_weights)
        try:
            network = ARCHITECTURES[arch](encoder_name=encoder, encoder_weights=of_library, in_channels=3, classes=1)
        except BUILDING as error:
            raise not_built(f"{arch} with encoder {encoder}", encoder_weights, error) from error
        self.weights, channels = pretrained(network.encoder, encoder, encoder_weights)
        register_rescaling(self, channels)
        # Other architectures do more in their forward pass than run these three parts.
        self.staged = type(network).forward is smp.base.SegmentationModel.forward
        self.smallest = SMALLEST.get(arch, 1)
        self.stride: int = network.encoder.output_stride if network.requires_divisible_input_shape else 1
        self.network = replace_batch_norm(network)
        self.train(False)

    def train(self, mode: bool = True) -> "LibraryNetwork":
        """Stay in evaluation mode (see the class)."""
        return super().train(False)

    def forward(self, hidden: Any, first: str = PARTS[0], last: str = PARTS[-1]) -> Any:
        """(B, 3, H, W) in [-1, 1] → logits (B, 1, H, W); or some of the stages, see `StagedNetwork`."""
        # The only attention kernel of PyTorch that is twice differentiable.
        with sdpa_kernel(SDPBackend.MATH):
            if self.staged:
                return super().forward(hidden, first, last)
            return self.network(self._prepared(hidden))

    def stage(self, part: str, hidden: Any) -> Any:
        """Encoder: images → feature maps, finest first; decoder: these → the input of the head; head: logits."""
        if part == "encoder":
            return list(self.network.get_submodule("encoder")(self._prepared(hidden)))
        module: nn.Module = self.network.get_submodule("decoder" if part == "decoder" else "segmentation_head")
        return module(hidden)

    def _prepared(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        require_multiples(self.label, self.stride, height, width)
        if min(height, width) < self.smallest:
            raise MetasegError(
                f"Expected images of at least {self.smallest}x{self.smallest} pixels for {self.label}, found "
                f"{height}x{width}: choose another data.size."
            )
        return rescaled(self, images)


BUILDING = (KeyError, ValueError, RuntimeError, OSError, NotImplementedError)
"""Exceptions that smp raises when it cannot build a network."""


class LibraryEncoder(NamedTuple):
    """An encoder of smp.

    Attributes:
        encoder: images → feature maps at 1, 1/2, 1/4, ... of their size.
        channels: channels of the feature maps, starting at 1/2.
        weights: its pre-trained weights; None: random.
        rescaling: order, scale and offset that map RGB in [-1, 1] to its input range.
    """

    encoder: nn.Module
    channels: list[int]
    weights: WeightsRecord | None
    rescaling: tuple[Tensor, Tensor, Tensor]


def library_encoder(encoder: str, encoder_weights: str | Path | None) -> LibraryEncoder:
    """An encoder that halves the resolution five times, without the layers after its last features.

    Raises:
        MetasegError: an unknown name; weights that are unavailable or do not fit.
    """
    require_encoder(encoder)
    try:
        module = smp.encoders.get_encoder(encoder, in_channels=3, depth=5, weights=by_library(encoder_weights))
    except BUILDING as error:
        raise not_built(f"encoder {encoder}", encoder_weights, error) from error
    weights, channels = pretrained(module, encoder, encoder_weights)
    for name in ("conv_head", "bn2"):  # of timm's EfficientNets, between the last features and the classifier
        if hasattr(module, name):
            delattr(module, name)
    return LibraryEncoder(module, list(module.out_channels[1:]), weights, channels)


def require_encoder(encoder: str) -> None:
    """Refuse an unknown encoder.

    Raises:
        MetasegError: smp does not have it; the message suggests similar names.
    """
    known = smp.encoders.get_encoder_names()
    # Not tu-hf-hub:NAME or tu-local-dir:PATH, from which timm would fetch: the settings may be of a foreign file.
    if encoder not in known and not re.fullmatch(r"tu-[\w.-]+", encoder):
        close = difflib.get_close_matches(encoder, known, n=5, cutoff=0.4)
        raise MetasegError(
            f"Expected model.encoder to be one of smp's {len(known)} encoders, found {encoder!r}: did you mean "
            f"{', '.join(close or known[:5])}? Use tu-<name> for encoders of timm."
        )


def by_library(encoder_weights: str | Path | None) -> str | None:
    """The weights for smp to load; None: random."""
    return None if encoder_weights is None or loads_here(encoder_weights) else str(encoder_weights)


def not_built(what: str, encoder_weights: str | Path | None, error: Exception) -> MetasegError:
    """The error for a network that smp cannot build."""
    reason = error.args[0] if error.args else error
    return MetasegError(
        f"Expected a model that smp can build, but it cannot build {what} with weights {encoder_weights} ({reason}): "
        "choose another model.arch, model.encoder or model.encoder_weights."
    )


def pretrained(
    module: nn.Module, encoder: str, encoder_weights: str | Path | None
) -> tuple[WeightsRecord | None, tuple[Tensor, Tensor, Tensor]]:
    """Load an encoder's weights unless smp has done so; returns their record and the rescaling of images."""
    if encoder_weights is None:
        return None, (torch.arange(3), torch.ones(3), torch.zeros(3))
    of_library = by_library(encoder_weights)
    if of_library is None:
        weights = load_encoder(module, encoder, encoder_weights)
        channels = weights.rescaling()
    else:
        trained_on = smp.encoders.get_preprocessing_params(encoder, of_library)
        weights, channels = library_record(module, encoder, of_library, trained_on), rescaling(trained_on)
    log.info("Initial weights: %s.", weights.sentence())
    return weights, channels


def register_rescaling(network: nn.Module, channels: tuple[Tensor, Tensor, Tensor]) -> None:
    """Register order, scale and offset as buffers, so that loading a checkpoint does not need the encoder's weights."""
    for name, value in zip(("order", "scale", "offset"), channels, strict=True):
        network.register_buffer(name, value)


def rescaled(network: Any, images: Tensor) -> Tensor:
    """RGB images (B, 3, H, W) in [-1, 1], rescaled to the encoder's input range."""
    ordered: Tensor = images[:, network.order]
    return ordered * network.scale[:, None, None] + network.offset[:, None, None]

"""Networks of segmentation-models-pytorch (smp), made fit for episodes."""

import difflib
import logging
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from metaseg.errors import MetasegError
from metaseg.networks.encoder_weights import library_record, load_encoder, loads_here
from metaseg.networks.normalisation import replace_batch_norm
from metaseg.networks.rescaling import rescaling
from metaseg.networks.weights_record import WeightsRecord

SMALLEST = {"PAN": 128}
"""Height and width, in pixels, below which an architecture's feature maps would be empty."""

ARCHITECTURES = {model.__name__: model for model in smp.MODEL_ARCHITECTURES_MAPPING.values()}

log = logging.getLogger(__name__)


class LibraryNetwork(nn.Module):
    """A network of smp: images (B, 3, H, W) in [-1, 1] → logits (B, 1, H, W).

    Every batch norm is an `EpisodicBatchNorm2d`. The network stays in evaluation mode whatever `train()` says: dropout
    and stochastic depth would make the loss a random function of the parameters, and curvature products on it noise.
    Where an encoder normalises by layer norm (mit_b*) or not at all (vgg16), only the decoder has statistics for
    `model.norm` to choose. Some networks (efficientnet*, PSPNet) hold parameters that a segmentation does not use and
    whose gradient `torch.autograd.grad` gives only with `materialize_grads=True`.

    Args:
        arch: one of `ARCHITECTURES`.
        encoder: a name of smp's, or "tu-<name>" for one of timm's.
        encoder_weights: such as "imagenet", which smp downloads; or "package" or the path of a file (see
            `load_encoder`). The images are then rescaled to what the encoder was trained on. None: random.

    Raises:
        MetasegError: an unknown name; two that do not go together; weights that cannot be had; in the forward pass, a
            height or width that is too small or that the encoder cannot halve as often as it must.
    """

    order: Tensor
    scale: Tensor
    offset: Tensor
    weights: WeightsRecord | None = None
    """Pre-trained weights that it began from."""

    def __init__(
        self, arch: str = "Unet", encoder: str = "resnet18", encoder_weights: str | Path | None = None
    ) -> None:
        super().__init__()
        if arch not in ARCHITECTURES:
            raise MetasegError(
                f"Expected model.arch to be one of {', '.join(ARCHITECTURES)}, found {arch!r}: choose one of them."
            )
        known = smp.encoders.get_encoder_names()
        if encoder not in known and not encoder.startswith("tu-"):
            close = difflib.get_close_matches(encoder, known, n=5, cutoff=0.4)
            raise MetasegError(
                f"Expected model.encoder to be one of smp's {len(known)} encoders, found {encoder!r}: did you mean "
                f"{', '.join(close or known[:5])}? tu-<name> takes any of timm's."
            )
        self.label = f"smp.{arch}({encoder})"
        order, scale, offset = torch.arange(3), torch.ones(3), torch.zeros(3)
        of_library = None if encoder_weights is None or loads_here(encoder_weights) else str(encoder_weights)
        try:
            network = ARCHITECTURES[arch](encoder_name=encoder, encoder_weights=of_library, in_channels=3, classes=1)
            if of_library is not None:
                trained_on = smp.encoders.get_preprocessing_params(encoder, of_library)
                order, scale, offset = rescaling(trained_on)
                self.weights = library_record(network.encoder, encoder, of_library, trained_on)
        except (KeyError, ValueError, RuntimeError, OSError, NotImplementedError) as error:
            reason = error.args[0] if error.args else error
            raise MetasegError(
                f"Expected smp to build {arch} with encoder {encoder} and weights {encoder_weights}, found that it "
                f"does not ({reason}): choose another model.arch, model.encoder or model.encoder_weights."
            ) from error
        if encoder_weights is not None and of_library is None:
            self.weights = load_encoder(network.encoder, encoder, encoder_weights)
            order, scale, offset = self.weights.rescaling()
        if self.weights is not None:
            log.info("Initial weights: %s.", self.weights.sentence())
        # Buffers, and so part of a checkpoint: whoever loads one need not have the encoder's weights.
        self.register_buffer("order", order)
        self.register_buffer("scale", scale)
        self.register_buffer("offset", offset)
        self.smallest = SMALLEST.get(arch, 1)
        self.stride: int = network.encoder.output_stride if network.requires_divisible_input_shape else 1
        self.network = replace_batch_norm(network)
        self.train(False)

    def train(self, mode: bool = True) -> "LibraryNetwork":
        """Stay in evaluation mode (see the class)."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] → logits (B, 1, H, W)."""
        height, width = images.shape[-2:]
        if height % self.stride or width % self.stride:
            raise MetasegError(
                f"Expected images whose height and width are multiples of {self.stride} for {self.label}, found "
                f"{height}x{width}: choose another data.size."
            )
        if min(height, width) < self.smallest:
            raise MetasegError(
                f"Expected images of at least {self.smallest}x{self.smallest} pixels for {self.label}, found "
                f"{height}x{width}: choose another data.size."
            )
        # Of PyTorch's attention kernels only this one can be differentiated twice.
        with sdpa_kernel(SDPBackend.MATH):
            return self.network(images[:, self.order] * self.scale[:, None, None] + self.offset[:, None, None])

"""Prototypes: a pixel is foreground if its features are closer to the support's foreground than to its background.

After PANet [Wang et al. 2019, arXiv 1908.06391]. As there: masked average prototypes of both classes, per image and
then averaged over the shots; cosine similarity times 20; the alignment loss, of weight 1, which swaps queries and
support; no gradient at test time. Different [our decision]: the features come from the group ``model`` at full
resolution, not from VGG16 at an eighth of it, so that the learner has the same network and initial weights
(``model.init``) as the learners it is compared with; masks are therefore not resized, and logits not upsampled; the
loss is the run's. Only the last layer differs: as many linear outputs as inputs instead of one logit. Its inputs cannot
serve as features: after a ReLU many pixels are zero in all channels, where the cosine has no derivative (PANet also
omits its last ReLU).
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaseg.errors import MetasegError
from metaseg.learners.metric import MetricLearner
from metaseg.networks.attention_unet import UNet
from metaseg.networks.build import fingerprint
from metaseg.networks.comparing import ComparingNetwork, at_size_of
from metaseg.networks.encoder_unet import EncoderUNet
from metaseg.networks.stages import StagedNetwork
from metaseg.runs.schema import Natural, Positive


class Prototypes(MetricLearner):
    """Segments by the nearest prototype.

    Args:
        network: of the group ``model``; its last layer is replaced in place.
        scale: > 0, multiplier of the cosine similarities.
        seed: of the new last layer's random weights.
        settings: see ``MetricLearner``; ``reversal`` weighs the alignment loss.

    Raises:
        MetasegError: on a network with an unknown last layer.
    """

    network: "PrototypeNetwork"

    def __init__(self, *, network: nn.Module, scale: Positive, seed: Natural, **settings: Any) -> None:
        super().__init__(network=PrototypeNetwork(network, scale, seed), **settings)

    def as_start(self, checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
        """A checkpoint of the network of the group ``model`` gives all layers but the last, which keeps its weights."""
        if checkpoint.get("architecture") != self.network.made_of:
            return checkpoint
        weights = self.state_dict()
        for name, value in checkpoint["state_dict"].items():
            own = name.replace("network.", "network.backbone.", 1)
            if weights[own].shape == value.shape:  # not so in the last layer, with its one output
                weights[own] = value
        return {**checkpoint, "architecture": fingerprint(self.network), "state_dict": weights}


class PrototypeNetwork(ComparingNetwork):
    """A segmentation network with features in place of logits, and their parameter-free comparison."""

    def __init__(self, network: nn.Module, scale: float, seed: int) -> None:
        super().__init__()
        self.label = f"prototypes of {getattr(network, 'label', type(network).__name__)}"
        self.made_of = fingerprint(network)
        self.backbone = embedding(network, seed)
        self.weights = self.backbone.weights
        self.modules_of = {
            part: tuple(f"backbone.{name}" for name in names) for part, names in self.backbone.modules_of.items()
        }
        self.scale = scale

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → features (B, C, H, W)."""
        features: Tensor = self.backbone(images)
        return features

    def summarise(self, features: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Prototypes (C,) of foreground and background."""
        share = at_size_of(features, masks)
        return prototype(features, share), prototype(features, 1 - share)

    def compare(self, summary: tuple[Tensor, Tensor], features: Tensor) -> Tensor:
        """The logits (B, 1, H, W) of a softmax over both similarities: scale · (to foreground - to background)."""
        foreground, background = (F.cosine_similarity(features, one[None, :, None, None], eps=1e-6) for one in summary)
        return self.scale * (foreground - background).unsqueeze(1)


def prototype(features: Tensor, masks: Tensor) -> Tensor:
    """Mean of features (K, C, h, w) under masks (K, 1, h, w), per image, then over the images: (C,).

    An image with an empty mask contributes zero; if all masks are empty, the prototype is zero and similar to nothing.
    """
    return ((features * masks).sum((2, 3)) / masks.sum((2, 3)).clamp_min(1e-6)).mean(0)


def embedding(network: nn.Module, seed: int) -> StagedNetwork:
    """Replace, in place, the last convolution by one with as many outputs as inputs: features instead of logits.

    Raises:
        MetasegError: if the last layer is unknown.
    """
    # The 1x1 convolution of UNet and EncoderUNet, or the first part of smp's head.
    inner = getattr(network, "network", None)
    holder: nn.Module | None = network if isinstance(network, UNet | EncoderUNet) else None
    name = "conv" if isinstance(network, UNet) else "head"
    if holder is None:
        holder, name = getattr(inner, "segmentation_head", None), "0"
    last = getattr(holder, name, None)
    if not isinstance(network, StagedNetwork) or holder is None or not isinstance(last, nn.Conv2d):
        raise MetasegError(
            "learner=prototypes supports the networks of model=attention_unet, unet, pretrained and smp, found "
            f"{type(network).__name__}; choose one of these."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kernel = last.kernel_size[0]  # in all of these networks square, and padded to keep the size
        new = nn.Conv2d(last.in_channels, last.in_channels, kernel, padding=kernel // 2)
    setattr(holder, name, new)
    return network

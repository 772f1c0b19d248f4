"""Prototypes: a pixel is foreground where its features look more like the support's foreground than its background.

After PANet [Wang et al. 2019, arXiv 1908.06391]. From it: masked average prototypes of both classes, per image and then
averaged over the shots; cosine similarity times 20; the alignment loss, of weight 1, in which queries and support change
roles; no gradient at test. Different from it [our decision]: the features are those of the group ``model`` before its
last layer, at full resolution and not VGG16's at an eighth of it, so that the learner has the same network and initial
weights (``model.init``) as those it is compared with, all but a last layer that it has no use for; masks are therefore
not resized, and logits not upsampled; the loss is the run's.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from metaseg.errors import MetasegError
from metaseg.learners.metric import MetricLearner
from metaseg.networks.attention_unet import UNet
from metaseg.networks.comparing import ComparingNetwork, at_size_of


class Prototypes(MetricLearner):
    """Segments by the nearer prototype.

    Args:
        network: of the group ``model``; its last layer is taken off, in place.
        scale: > 0, what cosine similarities are multiplied by.
        reversal: weight ≥ 0 of the alignment loss.
        settings: see ``Learner``.

    Raises:
        MetasegError: on a value out of range, or a network whose last layer is not known.
    """

    def __init__(self, *, network: nn.Module, scale: float, reversal: float, **settings: Any) -> None:
        if scale <= 0:
            raise MetasegError(f"learner.scale must be > 0, found {scale}.")
        super().__init__(network=PrototypeNetwork(network, scale), reversal=reversal, **settings)


class PrototypeNetwork(ComparingNetwork):
    """A segmentation network without its last layer, and the comparison with prototypes, which has no parameters."""

    def __init__(self, network: nn.Module, scale: float) -> None:
        super().__init__()
        self.label = f"prototypes of {getattr(network, 'label', type(network).__name__)}"
        self.backbone = without_last_layer(network)
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
        """The logit (B, 1, H, W) of a softmax over both similarities: scale · (cosine to foreground - to background)."""
        foreground, background = (F.cosine_similarity(features, one[None, :, None, None], eps=1e-6) for one in summary)
        return self.scale * (foreground - background).unsqueeze(1)


def prototype(features: Tensor, masks: Tensor) -> Tensor:
    """Mean of features (K, C, h, w) under masks (K, 1, h, w), per image, then over the images: (C,).

    An image whose mask is empty adds nothing; where all are, the prototype is zero and similar to nothing.
    """
    return ((features * masks).sum((2, 3)) / masks.sum((2, 3)).clamp_min(1e-6)).mean(0)


def without_last_layer(network: nn.Module) -> nn.Module:
    """The network with features in place of logits: what went into its last convolution, at full resolution; in place.

    Raises:
        MetasegError: if the last layer is not known.
    """
    if isinstance(network, UNet):
        network.conv = nn.Identity()
        return network
    head = getattr(getattr(network, "network", None), "segmentation_head", None)  # segmentation-models-pytorch
    if not isinstance(head, nn.Sequential):
        raise MetasegError(
            f"learner=prototypes knows the last layer of attention_unet, unet and smp, found {type(network).__name__}; "
            "choose one of these as model."
        )
    head[0] = nn.Identity()
    return network

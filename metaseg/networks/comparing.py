"""What networks that segment by comparing with the support have in common: three parts, and pooling under a mask."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class ComparingNetwork(nn.Module):
    """A network in three parts, which a learner calls one by one.

    ``functional.forward`` lends parameters and norm statistics to one call of the module. What is called here are its
    parts, so what is to be computed with them is the argument of the call.
    """

    @abstractmethod
    def encode(self, images: Tensor) -> Any:
        """Images (B, 3, H, W) in [-1, 1] → features of each, any nest of tensors."""

    @abstractmethod
    def summarise(self, features: Any, masks: Tensor) -> Any:
        """Features of K support images and their masks (K, 1, H, W) in {0, 1} → what queries are compared with."""

    @abstractmethod
    def compare(self, summary: Any, features: Any) -> Tensor:
        """What the support says, and features of B queries → their logits (B, 1, H, W)."""

    def forward(self, steps: Callable[[Any], Any]) -> Any:
        """``steps(self)``."""
        return steps(self)


def at_size_of(features: Tensor, masks: Tensor) -> Tensor:
    """Masks (K, 1, H, W) at the size of features (K, C, h, w): the share of each cell that is foreground, in [0, 1]."""
    height, width = features.shape[-2:]
    return F.adaptive_avg_pool2d(masks, (height, width))


def pooled(features: Tensor, masks: Tensor) -> Tensor:
    """Mean of features (K, C, h, w) under masks (K, 1, h, w), over all images and places together: (C,).

    One is added to the mask's area, so that empty masks give zeros [our decision; the authors of Feyjie et al. divide
    by the area alone].
    """
    return (features * masks).sum((0, 2, 3)) / (masks.sum() + 1)


def tiled(vector: Tensor, features: Tensor) -> Tensor:
    """A vector (C,) at each place of features (B, _, h, w): (B, C, h, w)."""
    return vector[None, :, None, None].expand(len(features), -1, *features.shape[-2:])


def initialise(module: nn.Module) -> None:
    """Keras' initialisation of convolutions: uniform [Glorot and Bengio 2010], biases 0; in place.

    Unlike that of VGG (fan out), it keeps a layer of few outputs as small as its inputs are many. With VGG's, the
    logits of Feyjie's network start near ±5, and the first steps that shrink them kill both units of the decoder's
    narrowest layer: its loss then stays at log 2 [measured].
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)

"""Common parts of metric-based networks, which segment by comparison with the support set."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class ComparingNetwork(nn.Module):
    """A network in three parts that a learner calls separately.

    ``functional.forward`` sets parameters and norm statistics only during a call of the module, so the computation with
    its parts is passed as the argument of that call.
    """

    @abstractmethod
    def encode(self, images: Tensor) -> Any:
        """Images (B, 3, H, W) in [-1, 1] → features of each, as nested tensors."""

    @abstractmethod
    def summarise(self, features: Any, masks: Tensor) -> Any:
        """Features of K support images and masks (K, 1, H, W) in {0, 1} → summary for comparison with queries."""

    @abstractmethod
    def compare(self, summary: Any, features: Any) -> Tensor:
        """Summary of the support and features of B queries → their logits (B, 1, H, W)."""

    def forward(self, steps: Callable[[Any], Any]) -> Any:
        """Return ``steps(self)``."""
        return steps(self)


def at_size_of(features: Tensor, masks: Tensor) -> Tensor:
    """Masks (K, 1, H, W) resized to features (K, C, h, w): the foreground share of each cell, in [0, 1]."""
    height, width = features.shape[-2:]
    return F.adaptive_avg_pool2d(masks, (height, width))


def pooled(features: Tensor, masks: Tensor) -> Tensor:
    """Mean of features (K, C, h, w) under masks (K, 1, h, w), over all images and locations together: (C,).

    One is added to the mask's area, so that empty masks give zeros [our decision; the authors of Feyjie et al. divide
    by the area alone].
    """
    return (features * masks).sum((0, 2, 3)) / (masks.sum() + 1)


def tiled(vector: Tensor, features: Tensor) -> Tensor:
    """A vector (C,) repeated at each location of features (B, _, h, w): (B, C, h, w)."""
    return vector[None, :, None, None].expand(len(features), -1, *features.shape[-2:])


def glorot_(module: nn.Module) -> None:
    """Keras' initialisation of convolutions: uniform [Glorot and Bengio 2010], biases 0; in place.

    Unlike VGG's (fan out), it keeps the outputs of a layer with many inputs and few outputs small. With VGG's, the
    logits of Feyjie's network start near ±5, and the first steps, which shrink them, kill both units of the decoder's
    narrowest layer, so that its loss stays at log 2 [measured].
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)

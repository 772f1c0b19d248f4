"""Segmenters, the result of adapting a learner to a dataset."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from metaseg.meta.vectors import Parameters
from metaseg.networks.functional import Statistics, forward, norm_layers

Segmenter = Callable[[Tensor], Tensor]
"""Images (B, 3, H, W) in [-1, 1] → foreground probabilities (B, 1, H, W)."""


@dataclass(frozen=True)
class AdaptedNetwork:
    """A network with adapted parameters and norm statistics; a `Segmenter`.

    Attributes:
        network: the architecture; its own parameters are not used.
        parameters: the adapted parameters.
        statistics: norm statistics for prediction; norm layers that are missing here and not frozen use those of each
            batch (``model.norm=batch``), so a prediction then depends on the other images of its batch.
    """

    network: nn.Module
    parameters: Parameters
    statistics: Statistics

    def by_batch(self) -> bool:
        """Whether a prediction depends on the other images of its batch."""
        layers = norm_layers(self.network).items()
        return any(not layer.frozen and name not in self.statistics for name, layer in layers)

    def __call__(self, images: Tensor) -> Tensor:
        """Foreground probabilities (B, 1, H, W) of images (B, 3, H, W) in [-1, 1], on the parameters' device."""
        device = next(iter(self.parameters.values())).device
        with torch.no_grad():
            logits, _ = forward(self.network, self.parameters, images.to(device), self.statistics)
        return torch.sigmoid(logits)


@dataclass(frozen=True)
class Followed:
    """The point θ + α (φ - θ) chosen along a descent from θ to φ.

    Attributes:
        share: α, in [0, 1].
        held_out: α → mean Dice of held-out support images at that point; empty if none were held out.
    """

    share: float
    held_out: dict[float, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Ensemble:
    """Averages the probabilities of several networks and views of an image; a `Segmenter`.

    Attributes:
        members: one or more networks; the first was adapted to all support images, the others to a part of them.
        flips: whether each member also sees the three mirror images of an image (`VIEWS`).
        alone: the first member at α = 1, the result of plain fine-tuning.
        followed: the members' α.
        held_out: for each member, the support images it was not adapted to, as indices.
    """

    members: tuple[AdaptedNetwork, ...]
    flips: bool
    alone: AdaptedNetwork
    followed: Followed
    held_out: tuple[np.ndarray, ...] = ()

    def __call__(self, images: Tensor) -> Tensor:
        """Mean foreground probabilities (B, 1, H, W) of images (B, 3, H, W) in [-1, 1]."""
        return averaged(self.members, images, self.flips)


VIEWS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))
"""Axes along which an image is mirrored, starting with the identity."""


def averaged(networks: Sequence[Callable[[Tensor], Tensor]], images: Tensor, flips: bool) -> Tensor:
    """The mean prediction of networks for images (B, C, H, W), and for their mirror images if ``flips``."""
    views = VIEWS if flips else VIEWS[:1]
    # A running sum keeps at most two predictions in memory.
    total: Tensor | None = None
    for axes in views:
        for network in networks:
            found = network(images.flip(axes) if axes else images)
            found = found.flip(axes) if axes else found
            total = found if total is None else total + found
    assert total is not None
    return total / (len(views) * len(networks))

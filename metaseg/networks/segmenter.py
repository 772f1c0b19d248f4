"""What a learner returns when it has met a dataset: something that segments images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from metaseg.meta.vectors import Parameters
from metaseg.networks.functional import Statistics, forward, norm_layers

Segmenter = Callable[[Tensor], Tensor]
"""Images (B, 3, H, W) in [-1, 1] → foreground probabilities (B, 1, H, W)."""


@dataclass(frozen=True)
class AdaptedNetwork:
    """A network with the parameters and norm statistics that adaptation found; a `Segmenter`.

    Attributes:
        network: the architecture; its own parameters are not used.
        parameters: the adapted parameters.
        statistics: norm statistics to predict with; norm layers that it does not name, and that are not frozen, take
            those of each batch (``model.norm=batch``): a prediction then depends on the images it shares a batch with.
    """

    network: nn.Module
    parameters: Parameters
    statistics: Statistics

    def by_batch(self) -> bool:
        """Whether a prediction depends on the images it shares a batch with."""
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
    """How far a descent from θ to φ was followed: θ + α (φ - θ).

    Attributes:
        share: α, in [0, 1].
        held_out: α → mean Dice of held-out support images there; empty where none were held out.
    """

    share: float
    held_out: dict[float, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Ensemble:
    """Networks, and views of an image, whose probabilities are averaged; a `Segmenter`.

    Attributes:
        members: one or more; the first was adapted to all support images, each other one to a part of them.
        flips: whether each member sees an image as it is and in its three mirror images (`VIEWS`).
        alone: the first at α = 1: what plain fine-tuning would have made.
        followed: the members' α.
    """

    members: tuple[AdaptedNetwork, ...]
    flips: bool
    alone: AdaptedNetwork
    followed: Followed

    def __call__(self, images: Tensor) -> Tensor:
        """Mean foreground probabilities (B, 1, H, W) of images (B, 3, H, W) in [-1, 1]."""
        return averaged(self.members, images, self.flips)


VIEWS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))
"""Axes along which an image is mirrored: not at all, and in three ways."""


def averaged(networks: Sequence[Callable[[Tensor], Tensor]], images: Tensor, flips: bool) -> Tensor:
    """The mean of what networks say of images (B, C, H, W), and of their mirror images where ``flips`` is true."""
    views = VIEWS if flips else VIEWS[:1]
    # A running sum, so that no more than two predictions are held at a time.
    total: Tensor | None = None
    for axes in views:
        for network in networks:
            found = network(images.flip(axes) if axes else images)
            found = found.flip(axes) if axes else found
            total = found if total is None else total + found
    assert total is not None
    return total / (len(views) * len(networks))

"""Logistic regression of pixels on the features of a frozen encoder: what the features alone achieve.

As in ilastik and Convpaint: no gradient descent through a network, and a fit takes seconds. The features of every
level are upsampled to one resolution and combined linearly. As both operations are linear, prediction combines first,
at each level's resolution, and upsamples a single channel.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaseg.data.batches import SupportSet
from metaseg.errors import MetasegError
from metaseg.learners.base import Learner
from metaseg.meta.vectors import Parameters
from metaseg.networks.functional import Statistics, forward, running_statistics
from metaseg.networks.segmenter import Segmenter
from metaseg.networks.stages import StagedNetwork
from metaseg.runs.schema import Count, Natural, Positive

ITERATIONS = 100
"""Maximum iterations of L-BFGS; its tolerances usually stop it after 30 to 60."""


class Linear(Learner):
    """Logistic regression on encoder features, fitted to the target's support images alone.

    Args:
        network: a `StagedNetwork` whose encoder returns feature maps; random weights give random features.
        penalty: > 0, weight of the squared norm of the coefficients of the standardised features.
        pixels: maximum number of pixels ≥ 1 to fit to; sampled at random if the images have more.
        copies: augmented copies ≥ 0 of the support images to fit to, besides the images themselves.
        settings: see ``Learner``; ``adapt.steps`` must be 0.

    Raises:
        MetasegError: on adaptation steps, or a network without a separate encoder.
    """

    trains = False
    learns_from_scribbles = False
    network: StagedNetwork

    def __init__(
        self, *, network: nn.Module, penalty: Positive, pixels: Count, copies: Natural, **settings: Any
    ) -> None:
        if not (isinstance(network, StagedNetwork) and network.staged):
            raise MetasegError(
                f"learner=linear needs a network whose encoder runs separately, found {type(network).__name__}; "
                "set model=pretrained, attention_unet or smp."
            )
        super().__init__(network=network, **settings)
        if self.adapt_loop.steps:
            raise MetasegError(f"learner=linear needs learner.adapt.steps=0, found {self.adapt_loop.steps}.")
        self.penalty, self.pixels, self.copies = penalty, pixels, copies

    def adaptation(
        self,
        support: SupportSet,
        steps: Sequence[int],
        progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> Iterator[tuple[int, Segmenter]]:
        """Fit to the support set; yields (0, segmenter) once and ignores ``steps``."""
        batches = [support.clean(), *(support.augmented(number) for number in range(self.copies))]
        clean = batches[0][0].to(self.device, memory_format=self.memory_format)
        statistics = self._statistics(clean)
        with torch.no_grad():
            samples, targets = zip(*(self._sample(*batch, len(batches), statistics) for batch in batches), strict=True)
        # Copy the weights, as training may continue while the segmenter is in use.
        theta = {name: value.clone() for name, value in self.theta().items()}
        weight, bias = fit(torch.cat(samples), torch.cat(targets), self.penalty)
        yield 0, WeighedFeatures(self.network, theta, statistics, weight, bias)

    def _statistics(self, clean: Tensor) -> Statistics:
        running = running_statistics(self.network) if self.norms.any("running") else {}
        with torch.no_grad():
            _, found = forward(self.network, self.theta(), clean, last="encoder")
        return self.norms.given(found, running)

    def _sample(self, images: Tensor, masks: Tensor, batches: int, given: Statistics) -> tuple[Tensor, Tensor]:
        """Features (n, C) and targets (n,) of a random n pixels, at half the images' resolution."""
        images = images.to(self.device, memory_format=self.memory_format)
        features, _ = forward(self.network, self.theta(), images, given, last="encoder")
        size = half(images)
        targets = F.adaptive_avg_pool2d(masks.to(self.device), size).flatten()
        generator = torch.Generator().manual_seed(0)
        chosen = torch.randperm(len(targets), generator=generator)[: max(1, self.pixels // batches)].to(self.device)
        columns = [enlarged(level, size).permute(0, 2, 3, 1).flatten(0, 2)[chosen] for level in features]
        return torch.cat(columns, dim=1), targets[chosen]


def half(images: Tensor) -> tuple[int, int]:
    """Half the height and width of images (B, C, H, W): the finest resolution at which encoders have features."""
    height, width = images.shape[-2:]
    return height // 2, width // 2


def enlarged(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Features (B, C, h, w) resized bilinearly."""
    return F.interpolate(features, size=size, mode="bilinear", align_corners=False)


def fit(features: Tensor, targets: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Weights and bias of a logistic regression, by L-BFGS.

    Args:
        features: (n, C), of any scale; standardised internally.
        targets: (n,), probabilities in [0, 1].
        penalty: times half the squared norm of the weights of the standardised features.

    Returns:
        Weights (C,) of the original features, and the bias ().
    """
    mean, deviation = features.mean(0), features.std(0, correction=0).clamp_min(1e-6)
    standardised = (features - mean) / deviation
    weight = standardised.new_zeros(standardised.shape[1]).requires_grad_()
    bias = standardised.new_zeros(()).requires_grad_()
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(standardised @ weight + bias, targets)
        loss = loss + penalty / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(objective)  # type: ignore[arg-type]
    scaled = weight.detach() / deviation
    return scaled, bias.detach() - mean @ scaled


@dataclass(frozen=True)
class WeighedFeatures:
    """A weighted sum of encoder features; a `Segmenter`.

    Attributes:
        network: provides the encoder.
        parameters: of the network.
        statistics: norm statistics to predict with.
        weight: (C,), of all features, finest level first.
        bias: ().
    """

    network: StagedNetwork
    parameters: Parameters
    statistics: Statistics
    weight: Tensor
    bias: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """Foreground probabilities (B, 1, H, W) of images (B, 3, H, W) in [-1, 1], on the weights' device."""
        with torch.no_grad():
            features, _ = forward(
                self.network, self.parameters, images.to(self.weight.device), self.statistics, last="encoder"
            )
            parts = self.weight.split([level.shape[1] for level in features])
            finest = half(images)
            # Weighting and bilinear upsampling commute, so upsample one channel instead of hundreds.
            weighed = [
                enlarged(torch.einsum("bchw,c->bhw", level, part).unsqueeze(1), finest)
                for level, part in zip(features, parts, strict=True)
            ]
            height, width = images.shape[-2:]
            logits = enlarged(torch.stack(weighed).sum(0) + self.bias, (height, width))
        return torch.sigmoid(logits)

"""Fine-tuning on the support set of a target: how far to follow it, and who has a say at its end.

The descent leads from the meta-parameters θ to φ, which after many steps knows a few images by heart. The target is
segmented at θ + α (φ - θ) [Wortsman et al. 2022, there between a pre-trained and a fine-tuned classifier]. Which α
serves best differs between targets: 1 where all images are alike, less where they vary. The support set says it: each
part of it is segmented by the same descent on the other parts. These descents are not thrown away: each ends somewhere
else, and the mean of what they and the descent on all images say is better than what each says alone [Breiman 1996,
bagging; that it is done here is our decision].
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_f1_score

from metaseg.data.batches import SupportSet
from metaseg.learners.segmenter import AdaptedNetwork, Ensemble, Segmenter
from metaseg.meta.inner_loop import InnerLoop, by_autograd, descend
from metaseg.meta.losses import Loss
from metaseg.meta.vectors import Parameters, detach, interpolate
from metaseg.networks.functional import Statistics, forward, running_statistics

SHARES = (0.5, 0.75, 1.0)
"""The values of α to choose from. None is below one half: parts of the support set are few images, and ask for less."""

OF_ONE_IMAGE = 0.5
"""α with a single support image, which cannot be held out [Wortsman et al. 2022: where nothing is known]."""


@dataclass(frozen=True)
class Stage:
    """A point of the descent.

    Attributes:
        step: steps taken.
        phi: the parameters after them.
        running: running norm statistics after them.
    """

    step: int
    phi: Parameters
    running: Statistics


@dataclass(frozen=True)
class FineTuning:
    """The descent on a support set, and what segments the target after it.

    Attributes:
        network: the architecture; its own parameters are not used.
        loss: the segmentation loss.
        norm: statistics that predictions are normalised with: "support", "batch" or "running".
        loop: the descent.
        folds: parts of the support set, each held out once, which makes as many further members of an ensemble and
            chooses their α; 0: φ alone, with α = 1.
        device: where to compute.
        memory_format: of images and activations.
    """

    network: nn.Module
    loss: Loss
    norm: str
    loop: InnerLoop
    folds: int
    device: torch.device
    memory_format: torch.memory_format

    def run(self, theta: Parameters, support: SupportSet, at: Sequence[int]) -> Iterator[tuple[int, Segmenter]]:
        """Descend from θ, and yield (step, segmenter) at each step number in ``at`` (0: before the first step)."""
        parts = held_out(support, self.folds) if any(at) else []
        descents = [self.stages(theta, rest, at) for rest, _ in parts]
        images = self._there(support.clean())[0]
        clean = [(self._there(rest.clean())[0], *self._there(part.clean())) for rest, part in parts]
        for stage, *of_parts in zip(self.stages(theta, support, at), *descents, strict=True):
            moved = stage.step and self.folds
            share = self._share(theta, of_parts, clean) if moved else 1.0
            # Whoever held some images out is still normalised with all of them, as the target is like all of them.
            ends = [self._place(theta, one, images, share) for one in (stage, *(of_parts if moved else ()))]
            members = tuple(AdaptedNetwork(self.network, *end) for end in ends)
            yield stage.step, members[0] if len(members) == 1 else Ensemble(members)

    def stages(self, theta: Parameters, support: SupportSet, at: Sequence[int]) -> Iterator[Stage]:
        """The descent's points at the step numbers in ``at``."""
        running = running_statistics(self.network)
        taken = 0

        def objective(parameters: Parameters) -> tuple[Tensor, Statistics]:
            images, masks = self._there(support.augmented(taken))
            logits, statistics = forward(self.network, parameters, images)
            return self.loss(logits, masks), statistics

        if 0 in at:
            yield Stage(0, theta, dict(running))
        for step in descend(by_autograd(objective), theta, replace(self.loop, steps=max(at, default=0))):
            taken += 1
            running = _moved(running, step.before.found)
            if taken in at:
                yield Stage(taken, step.parameters, running)

    def _share(
        self, theta: Parameters, stages: Sequence[Stage], parts: Sequence[tuple[Tensor, Tensor, Tensor]]
    ) -> float:
        """The α with the highest Dice of held-out images; the smallest of several.

        Each part: the images of the rest, its own images, and their masks.
        """
        if not parts:
            return OF_ONE_IMAGE
        scores = [
            torch.cat([self._held_out_dice(theta, *one, share) for one in zip(stages, parts, strict=True)]).mean()
            for share in SHARES
        ]
        return SHARES[int(torch.stack(scores).argmax())]

    def _held_out_dice(
        self, theta: Parameters, stage: Stage, part: tuple[Tensor, Tensor, Tensor], share: float
    ) -> Tensor:
        """Of each of the part's images, of shape (number,)."""
        rest, images, masks = part
        probabilities = AdaptedNetwork(self.network, *self._place(theta, stage, rest, share))(images)
        # Of a single image torchmetrics gives a scalar.
        return binary_f1_score(probabilities, masks.int(), multidim_average="samplewise").reshape(len(images))

    def _place(
        self, theta: Parameters, stage: Stage, images: Tensor, share: float
    ) -> tuple[Parameters, Statistics | None]:
        """θ + α (φ - θ), and the norm statistics there."""
        parameters = detach(interpolate(theta, stage.phi, share))
        with torch.no_grad():
            found = forward(self.network, parameters, images)[1] if self.norm == "support" else {}
        return parameters, {"support": found, "batch": None, "running": stage.running}[self.norm]

    def _there(self, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        images, masks = pair
        return (
            images.to(self.device, memory_format=self.memory_format),
            masks.to(self.device, memory_format=self.memory_format),
        )


def held_out(support: SupportSet, folds: int) -> list[tuple[SupportSet, SupportSet]]:
    """(the rest, the part) for each of ``folds`` parts of a support set, or of as many as it has images.

    The parts are runs of images in their order: what lies side by side may be frames of one film, and stays together.
    """
    everything = np.arange(len(support.images))
    parts = np.array_split(everything, min(folds, len(everything))) if folds and len(everything) > 1 else []
    return [(support.only(np.setdiff1d(everything, part)), support.only(part)) for part in parts]


def _moved(running: Statistics, found: Statistics, momentum: float = 0.1) -> Statistics:
    return {
        layer: (mean.lerp(found[layer][0].detach(), momentum), variance.lerp(found[layer][1].detach(), momentum))
        for layer, (mean, variance) in running.items()
    }

"""Whether more annotated images would help: the expected Dice by their number."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from metaseg.adapting.decision import with_threshold
from metaseg.adapting.model import Adapted
from metaseg.data.batches import image_tensor
from metaseg.errors import MetasegError
from metaseg.evaluation.scores import THRESHOLD, dice
from metaseg.learners.fine_tuning import held_out
from metaseg.meta.losses import UNMARKED
from metaseg.networks.segmenter import Segmenter

TYPICAL = 0.1
"""Exponent b of error = a K^-b from 5 to 20 images in the same time: the mean of eleven kinds of image, -0.1 to 0.3
(`python -m benchmarks own_images`). With as much time as the images ask for, it is 0.25 on Kvasir-SEG and 0.27 on
ISIC-2018 (experiments/own_images.md)."""

BELIEVED = 0.25
"""Weight of the measured exponent beside `TYPICAL` [D]. From the expected Dice with five images, the gain to 20 is 4.0
points off on average over these kinds, and 0.7 too low; with 0 and 0.5 it is 4.3 and 4.0 off."""

STEEPEST = 0.8
"""Largest exponent that is believed [D]: what five images show beyond it is chance."""

WORTH_IT = 0.03
"""Gain in Dice for which twice as many images are worth their annotation [D]."""


@dataclass(frozen=True)
class LearningCurve:
    """Dice by number of annotated images K, as 1 - a K^-b.

    Attributes:
        images: the number of annotated images.
        few: mean number of images that the smallest networks were adapted to, and their Dice on the others.
        most: the same of the fold networks, on the same images.
        expected: the expected Dice with all images.
    """

    images: int
    few: tuple[float, float]
    most: tuple[float, float]
    expected: float

    @property
    def exponent(self) -> float:
        """b: a weighted mean of what was measured and `TYPICAL`, because few images measure it poorly."""
        (fewer, low), (more, high) = self.few, self.most
        if low >= 1 or high >= 1:
            return TYPICAL
        measured = math.log((1 - low) / (1 - high)) / math.log(more / fewer)
        return BELIEVED * min(max(measured, 0.0), STEEPEST) + (1 - BELIEVED) * TYPICAL

    def at(self, images: int) -> float:
        """The expected Dice with so many annotated images."""
        return 1 - (1 - self.expected) * (images / self.images) ** -self.exponent

    def sentence(self) -> str:
        """The curve, and whether to annotate more."""
        ahead = ", ".join(f"{100 * self.at(n * self.images):.0f} % with {n * self.images}" for n in (2, 4))
        gain = self.at(2 * self.images) - self.expected
        advice = "more will help" if gain >= WORTH_IT else "more will change little"
        return (
            f"Dice by number of annotated images: {100 * self.few[1]:.0f} % with {self.few[0]:.1f} and "
            f"{100 * self.most[1]:.0f} % with {self.most[0]:.1f} (held out); {100 * self.expected:.0f} % with "
            f"{self.images}, about {ahead} (extrapolated): {advice}."
        )


def learning_curve(adapted: Adapted, progress: Callable[[int, int], None] = lambda done, of: None) -> LearningCurve:
    """Adapt the model to each fold by itself, and compare with the networks adapted to the other folds.

    With three folds this takes about as long as one network takes to adapt.

    Args:
        adapted: with fold networks, and the model they were made from.
        progress: called with (folds done, folds).

    Raises:
        MetasegError: if there are fewer than three folds, or the segmenter's file does not hold the model.
    """
    plan, support, count = adapted.plan, adapted.support, len(adapted.support.images)
    if adapted.estimate is None or plan.folds < 3:
        raise MetasegError(
            f"Expected three folds or more, to see how the Dice grows with the number of annotated images, found "
            f"{plan.folds}; annotate three images or more, or raise folds or the budget."
        )
    if not adapted.model.complete:
        raise MetasegError("Expected the model that was adapted, but the file of a segmenter does not hold it.")
    everything = np.arange(count)
    parts = held_out(count, plan.folds)
    few: list[list[float]] = [[] for _ in everything]
    most = np.empty(count)
    for number, (part, member) in enumerate(zip(parts, adapted.members, strict=True)):
        most[part] = _scores(member, adapted, part)
        others = np.setdiff1d(everything, part)
        alone = with_threshold(adapted.model.fine_tuned(support.only(part), plan), adapted.threshold)
        for index, score in zip(others, _scores(alone, adapted, others), strict=True):
            few[index].append(score)
        progress(number + 1, len(parts))
    size = count / len(parts)
    return LearningCurve(
        count,
        (size, float(np.mean([np.mean(scores) for scores in few]))),
        (count - size, float(most.mean())),
        adapted.estimate.expected,
    )


def _scores(segmenter: Segmenter, adapted: Adapted, indices: np.ndarray) -> np.ndarray:
    """Dice (n,) of support images at the working size, over the marked pixels."""
    with torch.no_grad():
        found = segmenter(image_tensor(adapted.support.images[indices]))[:, 0].cpu().numpy() > THRESHOLD
    masks = adapted.support.masks[indices]
    return dice(found & (masks != UNMARKED), masks == 1)

"""How to adapt to a user's images within a time: at what size, for how many steps, with how many networks."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from metaseg.adapting.arrays import resized_mask, shrunk
from metaseg.adapting.working_size import KEPT, SIDES, Shape, kept, shape_of
from metaseg.data.batches import SupportSet
from metaseg.learners.base import Learner
from metaseg.networks.segmenter import VIEWS

FOLDS = 3
"""Folds of the annotated images: each holds out a part of them for a network of the estimate."""

FEWEST_STEPS = 60
"""Fewest steps; if there is no time for them on whole images, the network learns from crops [D]."""

FEWEST_IMAGES = 3
"""Fewest images of a step [D]: as many as a fold network sees of five images."""

ROOMY = 192
"""Side of the working size that is taken if all steps there fit into the budget [D]: five images of Kvasir-SEG give a
Dice of 65.8 % at 192 pixels and 60.2 % at 128 (experiments/own_images.md). In equal time, with 70 steps instead of 160,
it is no better: 61.5 and 59.9 on CVC-ClinicDB, 56.8 and 58.0 on brain MRI (one draw each)."""

SMALLEST_CROP = 128
"""Side in pixels of the smallest crops [D]."""

PREDICTED = 20
"""New images whose segmentation is part of the budget."""

STRIDE = 32
"""Multiple of working heights and widths: the largest stride of a network here."""

_FORWARD = 0.3  # a forward pass, as a share of an image's time in a step


@dataclass(frozen=True)
class Plan:
    """Settings of an adaptation.

    Attributes:
        shape: (h, w) at which the network sees images.
        steps: of each network.
        folds: of the support images; 0: one network, and no estimate.
        crop: side of the square crops of the support images that a step sees; None: whole images.
        batch: maximum number of images per step and network; None: all.
        kept: mean Dice that the support masks keep at this shape, in [0, 1].
        side: in pixels of the square that the shape was made from; None: the shape is the run's.
        lr: step size; None: the recipe's.
    """

    shape: Shape
    steps: int
    folds: int
    crop: int | None = None
    batch: int | None = None
    kept: float = 1.0
    side: int | None = None
    lr: float | None = None

    @classmethod
    def keeping(cls, masks: Sequence[np.ndarray], steps: int, folds: int, shape: Shape | None = None) -> "Plan":
        """The smallest shape at which the masks keep `KEPT` of their Dice, or the best shape if none does.

        Args:
            masks: K support masks, bool (H, W).
            steps: of each network.
            folds: of the support images.
            shape: a given shape.
        """
        if shape is not None:
            return cls(shape, steps, folds, kept=kept(masks, shape))
        plans = []
        for side in SIDES:
            plans.append(cls.at(side, masks, steps, folds))
            if plans[-1].kept >= KEPT:
                break
        return max(plans, key=lambda plan: plan.kept)

    @classmethod
    def at(cls, side: int, masks: Sequence[np.ndarray], steps: int, folds: int) -> "Plan":
        """The shape of about `side`² pixels with the masks' proportions; other arguments as for `keeping`."""
        shape = shape_of(side, [(mask.shape[0], mask.shape[1]) for mask in masks], STRIDE)
        return cls(shape, steps, folds, kept=kept(masks, shape), side=side)

    def roomier(self, masks: Sequence[np.ndarray]) -> "Plan":
        """The plan at `ROOMY` pixels, if that is larger.

        Args:
            masks: the support masks, bool (H, W).
        """
        found = replace(Plan.at(ROOMY, masks, self.steps, self.folds), crop=self.crop, batch=self.batch)
        larger = found.shape[0] * found.shape[1] > self.shape[0] * self.shape[1]
        return found if larger else self

    def settings(self) -> str:
        """The settings that give this plan again."""
        chosen: dict[str, float | None] = {"size": self.side, "crop": self.crop, "per_step": self.batch}
        chosen |= {"steps": self.steps, "folds": self.folds, "lr": self.lr}
        return " ".join(f"{name}={value}" for name, value in chosen.items() if value is not None)

    def images_a_step(self, images: int) -> int:
        """Images that all networks together see in a step, of K support images."""
        most = self.batch or images
        # Each fold network misses one fold.
        return min(most, images) + self.folds * min(most, images - images // max(1, self.folds))

    def seconds(self, images: int, per_pixel: float) -> float:
        """Time of the adaptation and of segmenting `PREDICTED` images.

        Args:
            images: K support images.
            per_pixel: seconds of a step per pixel and image.
        """
        whole = self.shape[0] * self.shape[1]
        adapting = self.steps * self.images_a_step(images) * (whole if self.crop is None else self.crop**2)
        return per_pixel * (adapting + PREDICTED * (len(VIEWS) + self.folds) * _FORWARD * whole)


def within(plan: Plan, budget: float, images: int, per_pixel: float) -> Plan:
    """The plan changed to take no longer than the budget.

    It first uses fewer images per step, which costs little Dice: 160 steps on five images of CVC-ClinicDB and of brain
    MRI give 59.9 and 58.0 with all images, 57.6 and 58.2 with three; on twenty of CVC-ClinicDB 70.4 with ten and 68.3
    with five (128 pixels, one draw each). Then it takes fewer steps, then crops images, then drops the folds. At least
    `FEWEST_STEPS` are always taken.

    Args:
        plan: with the maximum number of steps.
        budget: seconds.
        images: K support images.
        per_pixel: seconds of a step per pixel and image.
    """
    if plan.seconds(images, per_pixel) <= budget:
        return plan
    plan = replace(plan, batch=min(plan.batch or images, max(FEWEST_IMAGES, -(-images // 4))))
    crops: list[int | None] = [plan.crop]
    if plan.crop is None:
        crops += [side for side in range(max(SIDES), SMALLEST_CROP - 1, -STRIDE) if side < min(plan.shape)]
    candidates = [
        replace(plan, crop=crop, folds=folds, steps=min(FEWEST_STEPS, plan.steps))
        for folds in dict.fromkeys((plan.folds, 0))
        for crop in crops
    ]
    affordable = [one for one in candidates if one.seconds(images, per_pixel) <= budget]
    chosen = affordable[0] if affordable else candidates[-1]
    free = (budget - replace(chosen, steps=0).seconds(images, per_pixel)) / (
        replace(chosen, steps=1).seconds(images, per_pixel) - replace(chosen, steps=0).seconds(images, per_pixel)
    )
    return replace(chosen, steps=int(max(chosen.steps, min(plan.steps, free // 10 * 10))))


def seconds_per_pixel(learner: Learner, images: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> float:
    """Seconds of a fine-tuning step per pixel and image, measured."""
    # Two networks or more keep all threads busy, as in the plan.
    plan = Plan.at(SMALLEST_CROP, masks, steps=3, folds=2 if len(images) > 1 else 0)
    small = np.stack([shrunk(image, plan.shape) for image in images])
    support = SupportSet(small, np.stack([resized_mask(mask, plan.shape) for mask in masks]), "standard", 0)
    ends: list[float] = []
    timed = learner.with_adaptation(steps=plan.steps, folds=plan.folds, batch=None)
    for _ in timed.adaptation(support, [plan.steps], lambda done, of: ends.append(time.perf_counter())):
        pass
    a_step = (ends[-1] - ends[0]) / (len(ends) - 1)  # the first warms up
    return a_step / plan.images_a_step(len(images)) / (plan.shape[0] * plan.shape[1])

"""The Python interface to a model: adapt it to annotated images, segment others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from metaseg.adapting.arguments import above_zero, at_least, several
from metaseg.adapting.arrays import resized_mask, rgb, same_size, shrunk
from metaseg.adapting.checks import place_of, require_different, thumbnail
from metaseg.adapting.confidence import confidence
from metaseg.adapting.decision import ONE_IMAGE, UNKNOWN, has_output_bias, threshold_for, with_threshold
from metaseg.adapting.estimate import Estimate, estimated
from metaseg.adapting.masks import Reading, foregrounds, of_array
from metaseg.adapting.plan import FOLDS, STRIDE, Plan, seconds_per_pixel, within
from metaseg.adapting.working_size import enlarged
from metaseg.data.batches import SupportSet, image_tensor
from metaseg.errors import MetasegError, plural
from metaseg.evaluation.scores import THRESHOLD
from metaseg.learners.base import Learner
from metaseg.learners.fine_tuning import held_out
from metaseg.meta.losses import UNMARKED
from metaseg.networks.segmenter import Ensemble, Segmenter
from metaseg.runs import schema

BUDGET = 60.0
"""Seconds for adapting to a few images and segmenting 20 [D]."""


@dataclass(frozen=True, repr=False)
class Model:
    """A trained learner with its settings. Immutable: several threads may adapt it at the same time.

    Attributes:
        learner: the learner, at its meta-parameters.
        settings: of the run.
        size: S, the side of the network's input in pixels in the run.
        augmentation: of the support images during adaptation.
        origin: what was loaded. The working size of a run is S; otherwise it follows the annotated masks.
        recipe: the name given to `load`.
        complete: whether the learner is at its meta-parameters; False: nothing but its architecture is known.
    """

    learner: Learner
    settings: schema.Trained
    size: int
    augmentation: str
    origin: Literal["run", "file", "built-in"] = "run"
    recipe: str | None = None
    complete: bool = True

    def __repr__(self) -> str:
        """A line, and not the network."""
        return f"Model({self.settings.learner.name}, {self.origin}, {self.size}×{self.size} pixels)"

    def adapt(
        self,
        images: Sequence[np.ndarray],
        masks: Sequence[np.ndarray],
        steps: int | None = None,
        lr: float | None = None,
        seed: int = 0,
        progress: Callable[[int, int], None] = lambda done, of: None,
        *,
        label: int | None = None,
        size: int | None = None,
        crop: int | None = None,
        per_step: int | None = None,
        folds: int | None = None,
        budget: float | None = BUDGET,
        thumbnails: np.ndarray | None = None,
    ) -> Adapted:
        """Adapt the network to annotated images; the model itself is not changed.

        Args:
            images: K ≥ 1 arrays (H, W), (H, W, 3) or (H, W, 4): uint8, floats in [0, 1], or other integers, such as 12
                or 16 bits, which are windowed by their content; sizes may differ.
            masks: K arrays: labels, a soft mask or bool, (H, W), or colours, (H, W, 3) or (H, W, 4). Read together, as
                docs/quickstart.md describes; by default all that is not background is foreground. Scribbles are
                integers with -1 where nothing is marked; they are learnt from, and scored, where they are marked.
            steps: adaptation steps, whatever time they take. None: the recipe's, or as many as the budget allows.
            lr: step size; None: the recipe's.
            seed: of the random augmentation.
            progress: called with (steps taken, total steps).
            label: the label of the masks that is foreground; None: all but the background.
            size: working size: the side in pixels of a square of as many pixels. None: the smallest that keeps the
                annotated masks, or the run's.
            crop: side in pixels of random crops to adapt to. None: whole images, unless the budget forbids it.
            per_step: maximum number of annotated images per step and network. None: the recipe's, or by the budget.
            folds: of the annotated images; each adds a network that has not seen it, for the estimate and the
                confidence. 0: none, and no estimate. None: three, or as many as there are images.
            budget: seconds to adapt and to segment 20 images. None: any time.
            thumbnails: of the first images (`metaseg.adapting.checks`), if those given are not the originals.

        Raises:
            MetasegError: on invalid images, masks or settings, if their numbers or sizes do not match, all masks are
                empty, or an image is there twice.
        """
        at_least(0, steps=steps, seed=seed, folds=folds)
        at_least(1, label=label, per_step=per_step)
        at_least(STRIDE, size=size, crop=crop)
        above_zero(lr=lr, budget=budget)
        pictures, truths, reading = checked(several(images, "images"), several(masks, "masks"), label)
        if any(map(scribbled, truths)) and not self.learner.learns_from_scribbles:
            raise MetasegError(
                f"Expected whole masks, found some with unmarked pixels (-1), which {type(self.learner).__name__} "
                "cannot learn from; mark every pixel, or use the built-in model."
            )
        plan = replace(self._plan(pictures, truths, size, crop, per_step, steps, folds, budget), lr=lr)
        small = np.stack([shrunk(picture, plan.shape) for picture in pictures])
        known = [] if thumbnails is None else list(thumbnails)
        thumbnails = np.stack([*known, *map(thumbnail, pictures[len(known) :])])
        require_different([f"image {number}" for number in range(len(small))], thumbnails)
        small_masks = np.stack([resized_mask(truth, plan.shape) for truth in truths])
        support = SupportSet(small, small_masks, self.augmentation, seed, plan.crop)
        segmenter = self.fine_tuned(support, plan, plan.folds, progress)
        threshold = THRESHOLD
        if not plan.folds:
            if self.origin == "built-in" and not support.scribbled:
                # It starts at the share of foreground, so after a few steps it is cautious.
                threshold = ONE_IMAGE if len(small) == 1 else UNKNOWN
            segmenter = with_threshold(segmenter, threshold)
            return Adapted(segmenter, plan, self, support, (), None, threshold, label, reading.colours, thumbnails)
        own_ensemble = bool(self.learner.folds)
        members = _members(segmenter) or self._without_each_fold(support, plan)
        if isinstance(segmenter, Ensemble) and not own_ensemble:
            # For these recipes an ensemble with networks that have seen fewer images is no better, or worse.
            segmenter = replace(segmenter, members=segmenter.members[:1], held_out=segmenter.held_out[:1])
        estimate = self._estimated(members, support, plan, pictures, truths)
        if has_output_bias(segmenter) and not support.scribbled:
            threshold = threshold_for(float(estimate.dsc.mean()))
            members = [(with_threshold(member, threshold), part) for member, part in members]
            segmenter = with_threshold(segmenter, threshold)
            estimate = self._estimated(members, support, plan, pictures, truths)
        others = tuple(member for member, _ in members)
        return Adapted(segmenter, plan, self, support, others, estimate, threshold, label, reading.colours, thumbnails)

    def _estimated(
        self,
        members: Sequence[tuple[Segmenter, np.ndarray]],
        support: SupportSet,
        plan: Plan,
        images: Sequence[np.ndarray],
        masks: Sequence[np.ndarray],
    ) -> Estimate:
        """From the annotated images, each segmented at its own size by the fold network that was not adapted to it."""
        found: dict[int, np.ndarray] = {}
        for member, part in members:
            predicted = Adapted(member, plan, self, support).segment([images[index] for index in part])
            found |= dict(zip(part.tolist(), predicted, strict=True))
        parts = [part for _, part in members]
        return estimated([found[index] for index in sorted(found)], parts, masks, support.images, support.masks)

    def _without_each_fold(self, support: SupportSet, plan: Plan) -> list[tuple[Segmenter, np.ndarray]]:
        """Segmenters for learners without an ensemble, each with the indices of the images it has not seen."""
        everything = np.arange(len(support.images))
        return [
            (self.fine_tuned(support.only(np.setdiff1d(everything, part)), plan), part)
            for part in held_out(len(everything), plan.folds)
        ]

    def _plan(
        self,
        images: Sequence[np.ndarray],
        masks: Sequence[np.ndarray],
        size: int | None,
        crop: int | None,
        per_step: int | None,
        steps: int | None,
        folds: int | None,
        budget: float | None,
    ) -> Plan:
        most = self.learner.adapt_loop.steps if steps is None else steps
        if folds is not None and folds != 0 and not 2 <= folds <= len(images):
            raise MetasegError(
                f"Expected folds to be 0, or from 2 to the number of annotated images, found {len(images)} images and "
                f"{folds} folds; annotate more, or set folds=0."
            )
        if folds is None:
            folds = min(FOLDS, len(images)) if len(images) > 1 else 0
        own = (self.size, self.size) if size is None and self.origin == "run" else None
        plan = Plan.keeping(masks, most, folds, own) if size is None else Plan.at(size, masks, most, folds)
        plan = replace(plan, crop=crop, batch=per_step or self.learner.batch)
        if crop is not None and crop > min(plan.shape):
            raise MetasegError(f"Expected crop to be at most the working size, {min(plan.shape)}, found {crop}.")
        if steps is not None or not most:
            return plan
        roomy = plan.roomier(masks) if size is None and self.origin != "run" else plan
        if budget is None:
            return roomy
        per_pixel = seconds_per_pixel(self.learner, images, masks)
        in_time = roomy.seconds(len(images), per_pixel) <= budget
        return roomy if in_time else within(plan, budget, len(images), per_pixel)

    def fine_tuned(
        self,
        support: SupportSet,
        plan: Plan,
        folds: int = 0,
        progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> Segmenter:
        """The network after the plan's steps on annotated images at the working size.

        Args:
            support: the images.
            plan: steps, their size and batch.
            folds: networks besides, each of which does not see a fold of the images.
            progress: as for `adapt`.
        """
        # Integers may be NumPy's.
        batch = plan.batch and int(plan.batch)
        changes: dict[str, Any] = {"steps": int(plan.steps), "folds": int(folds), "batch": batch}
        if plan.lr is not None:
            changes["lr"] = plan.lr
        if not self.learner.folds:
            # These folds serve the estimate; in a run's results the recipe has none to choose α by.
            changes["share"] = self.learner.fine_tuning().share_of(len(support.images))
        learner = self.learner.with_adaptation(**changes)
        progress(0, plan.steps)
        ((_, segmenter),) = learner.adaptation(support, [plan.steps], progress)
        return segmenter


def _members(segmenter: Segmenter) -> list[tuple[Segmenter, np.ndarray]]:
    """The networks of an ensemble that were not adapted to all images, each with the indices of the others."""
    if not isinstance(segmenter, Ensemble):
        return []
    pairs = zip(segmenter.members, segmenter.held_out, strict=True)
    return [(member, part) for member, part in pairs if len(part)]


def checked(
    images: Sequence[np.ndarray], masks: Sequence[np.ndarray], label: int | None
) -> tuple[list[np.ndarray], list[np.ndarray], Reading]:
    """A user's annotated images as uint8 (H, W, 3) and bool (H, W), or uint8 with `UNMARKED` for scribbles.

    Arguments as for `Model.adapt`; the last result is how the masks were read.

    Raises:
        MetasegError: on invalid images or masks, if their numbers or sizes do not match, or all masks are empty.
    """
    if not len(images) or len(images) != len(masks):
        raise MetasegError(
            f"Expected at least one image and a mask for each, found {len(images)} images and {len(masks)} masks."
        )
    coloured = [rgb(image, f"image {number}") for number, image in enumerate(images)]
    binary, reading = _foregrounds(masks, label)
    for number, (image, mask) in enumerate(zip(coloured, binary, strict=True)):
        same_size(image, mask, f"mask {number}")
    return coloured, binary, reading


def _foregrounds(
    masks: Sequence[np.ndarray], label: int | None, some: bool = True, like: Reading | None = None
) -> tuple[list[np.ndarray], Reading]:
    """As `checked`; `some`: whether to refuse masks without any foreground, and scribbles without any background.

    `like`: how earlier masks were read, see `metaseg.adapting.masks.decide`.
    """
    masks = [mask[..., 0] if mask.ndim == 3 and mask.shape[2] == 1 else mask for mask in masks]
    unmarked = [np.issubdtype(mask.dtype, np.signedinteger) & (mask == -1) for mask in masks]
    raws = [
        of_array(np.where(left, 0, mask) if left.any() else mask, f"mask {number}")
        for number, (mask, left) in enumerate(zip(masks, unmarked, strict=True))
    ]
    chosen, reading = foregrounds(raws, label, some, like)
    found = [
        np.where(left, np.uint8(UNMARKED), mask) if left.any() else mask
        for mask, left in zip(chosen, unmarked, strict=True)
    ]
    if some and found and not any((mask == 0).any() for mask in found):
        if any(map(scribbled, found)):
            found_none = "scribbles inside and outside, found none outside; mark some background as well"
        else:
            found_none = "foreground and background in the masks, found nothing but foreground; mark only the objects"
        raise MetasegError(f"Expected {found_none}.")
    return found, reading


def scribbled(mask: np.ndarray) -> bool:
    """Whether some pixels are unmarked."""
    return bool((mask == UNMARKED).any())


class Predicted(NamedTuple):
    """A segmented image.

    Attributes:
        probabilities: of the foreground, float32 (H, W) in [0, 1], at the image's size.
        confidence: in [0, 1], see `metaseg.adapting.confidence`.
    """

    probabilities: np.ndarray
    confidence: float


@dataclass(frozen=True, repr=False)
class Adapted:
    """A segmenter for one kind of image.

    Attributes:
        segmenter: images (B, 3, h, w) in [-1, 1] → foreground probabilities (B, 1, h, w).
        plan: how it was adapted, with its working shape (h, w).
        model: the model that was adapted.
        support: the annotated images at the working size.
        members: the fold networks, adapted to parts of the images, for the confidence.
        estimate: the expected Dice on new images; None if no annotated images were held out.
        threshold: where the networks decided before their logits were moved so that they decide at one half.
        label: the label of the masks that is foreground; None: all but the background.
        colours: of the masks, 0xRRGGBB → label; empty if they have none, or in a file of an earlier version.
        thumbnails: by which the annotated images are recognised, uint8 (K, SIDE, SIDE, 3) of
            `metaseg.adapting.checks`; None in a file of an earlier version.
    """

    segmenter: Segmenter
    plan: Plan
    model: Model
    support: SupportSet
    members: tuple[Segmenter, ...] = ()
    estimate: Estimate | None = None
    threshold: float = THRESHOLD
    label: int | None = None
    colours: Mapping[int, int] = field(default_factory=dict)
    thumbnails: np.ndarray | None = None

    def __repr__(self) -> str:
        """A line, and not the networks."""
        expected = "" if self.estimate is None else f", {self.estimate.sentence()}"
        return f"Adapted({plural(len(self.support.images), 'annotated image')}{expected})"

    def predict(self, images: Sequence[np.ndarray], batch: int = 16) -> list[Predicted]:
        """Segment images.

        Args:
            images: as for `Model.adapt`.
            batch: images segmented at a time.

        Raises:
            MetasegError: on invalid images, or if adaptation diverged.
        """
        at_least(1, batch=batch)
        images = several(images, "images")
        empty = not (self.support.masks == 1).any((1, 2)).all()  # else a new image without foreground is a surprise
        predicted: list[Predicted] = []
        for first in range(0, len(images), batch):
            some = [rgb(image, f"image {first + number}") for number, image in enumerate(images[first : first + batch])]
            small = image_tensor(np.stack([shrunk(image, self.plan.shape) for image in some]))
            found, *others = (one(small)[:, 0].cpu().numpy() for one in (self.segmenter, *self.members))
            if not np.isfinite(found).all():
                raise MetasegError(
                    "Expected probabilities from the network, found NaN: adaptation diverged or the checkpoint is "
                    "damaged; choose a smaller lr."
                )
            sure = confidence(found, others, empty).tolist()
            predicted += [
                Predicted(enlarged(piece, image.shape[:2]), one)
                for piece, image, one in zip(found, some, sure, strict=True)
            ]
        return predicted

    def place_of(self, image: np.ndarray) -> int | None:
        """The position of an image, uint8 (H, W, 3), among the annotated ones; None if it is not there."""
        if self.thumbnails is None:  # the images at the working size, which may have been another when they were learnt
            return place_of(shrunk(image, self.plan.shape), self.support.images)
        return place_of(thumbnail(image), self.thumbnails)

    def require_label(self, label: int | None) -> None:
        """Refuse another label than that of the masks.

        Raises:
            MetasegError: if both are labels and differ, or if the segmenter has learnt from several labels as one.
        """
        if None not in (self.label, label) and label != self.label:
            raise MetasegError(
                f"Expected label={self.label}, of the masks that the segmenter has learnt from, found label={label}; "
                "leave it out, or adapt the model again."
            )
        if label is not None and self.label is None and sum(one > 0 for one in self.colours.values()) > 1:
            raise MetasegError(
                f"Expected no label, because the segmenter has learnt all labels as one, found label={label}; leave it "
                "out, or adapt the model again."
            )

    def with_more(
        self, images: Sequence[np.ndarray], masks: Sequence[np.ndarray], label: int | None = None, **how: Any
    ) -> Adapted:
        """Adapt the model again, to the images it was adapted to and these.

        An image that is among the earlier ones replaces that one, with its mask. Adaptation starts from the model and
        not from this segmenter, which has seen every earlier image: the expected Dice would no longer be measured on
        images that a network has not seen.

        Args:
            images: K ≥ 0 further images, as for `Model.adapt`.
            masks: their masks, as for `Model.adapt`.
            label: as for `Model.adapt`; None: that of the earlier masks.
            how: further arguments of `Model.adapt`.

        Raises:
            MetasegError: as for `Model.adapt`, if the label is not that of the earlier masks, or if the file of a
                segmenter does not hold the model.
        """
        if not self.model.complete:
            raise MetasegError(
                "Expected the model that was adapted, but a segmenter's file contains it only if it is the built-in "
                "model; adapt your model or run to all images instead."
            )
        self.require_label(label)
        images, masks = several(images, "images"), several(masks, "masks")
        if not all(mask.dtype == bool for mask in masks):  # else it has been chosen already
            label = self.label if label is None else label
        earlier = Reading.of_colours(self.colours)
        new, reading = _foregrounds(masks, label, some=False, like=earlier)
        coloured = [rgb(image, f"image {number}") for number, image in enumerate(images)]
        again = {self.place_of(image) for image in coloured}
        kept = [number for number in range(len(self.support.images)) if number not in again]
        both = [np.where(mask == UNMARKED, -1, mask == 1) for mask in (*self.support.masks[kept], *new)]
        known = None if self.thumbnails is None else self.thumbnails[kept]
        adapted = self.model.adapt([*self.support.images[kept], *coloured], both, **how, thumbnails=known)
        return replace(
            adapted,
            label=self.label if label is None else label,
            colours=reading.after(earlier).colours,
            thumbnails=None if known is None else adapted.thumbnails,
        )

    def probabilities(self, images: Sequence[np.ndarray], batch: int = 16) -> list[np.ndarray]:
        """Foreground probabilities, float32 (H, W) in [0, 1], at each image's size. Arguments as for `predict`."""
        return [one.probabilities for one in replace(self, members=()).predict(images, batch)]

    def segment(self, images: Sequence[np.ndarray], batch: int = 16) -> list[np.ndarray]:
        """Masks, bool (H, W), of probabilities above 0.5. Arguments as for `predict`."""
        return [found > THRESHOLD for found in self.probabilities(images, batch)]

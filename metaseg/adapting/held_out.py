"""Cross-validated Dice: each annotated image is segmented by a network adapted to the others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from metaseg.adapting.arrays import binary_mask
from metaseg.adapting.model import Model
from metaseg.errors import MetasegError
from metaseg.evaluation.scores import dice
from metaseg.evaluation.trivial import mean_support_mask


@dataclass(frozen=True)
class HeldOut:
    """Dice of held-out annotated images.

    Attributes:
        dsc: (K,) in [0, 1], at each image's original size.
        mean_mask: (K,), Dice of the mean of the other masks, at the network's size: the baseline to beat.
        folds: number of networks; K means leave-one-out.
    """

    dsc: np.ndarray
    mean_mask: np.ndarray
    folds: int

    def sentence(self) -> str:
        """The estimate with its spread."""
        count = len(self.dsc)
        how = "leave-one-out" if self.folds == count else f"{self.folds}-fold cross-validation"
        return (
            f"Dice to expect: {100 * self.dsc.mean():.1f} % (standard deviation {100 * self.dsc.std(ddof=1):.1f}, from "
            f"{100 * self.dsc.min():.1f} to {100 * self.dsc.max():.1f}; {count} annotated images, {how}; "
            f"their mean mask alone: {100 * self.mean_mask.mean():.1f} %)"
        )


def hold_out(
    model: Model,
    images: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    folds: int | None = None,
    steps: int | None = None,
    lr: float | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> HeldOut:
    """Estimate the Dice on new images of the same kind; slightly pessimistic, as each network has seen fewer images.

    Args:
        model: the trained run.
        images: K ≥ 2 images, as for `Model.adapt`.
        masks: their masks.
        folds: number of folds; None: K, leave-one-out.
        steps: as for `Model.adapt`.
        lr: as for `Model.adapt`.
        seed: as for `Model.adapt`; also assigns images to folds.
        progress: called with (networks adapted, total networks).

    Raises:
        MetasegError: on fewer than two images, or folds out of range.
    """
    count = len(images)
    folds = count if folds is None else folds
    if not 2 <= folds <= count:
        raise MetasegError(
            f"The estimate needs at least two annotated images, and from 2 folds to as many as images, found {count} "
            f"images and {folds} folds; annotate more, or skip the estimate."
        )
    small_images, small_masks = model.support(images, masks)
    part = np.random.default_rng(seed).permutation(np.arange(count) % folds)
    scores, trivial = np.empty(count), np.empty(count)
    for fold in range(folds):
        others, held = np.flatnonzero(part != fold), np.flatnonzero(part == fold).tolist()
        adapted = model.adapt_to(small_images[others], small_masks[others], steps, lr, seed)
        mean = mean_support_mask(small_masks[others])
        for index, prediction in zip(held, adapted.segment([images[index] for index in held]), strict=True):
            scores[index] = dice(prediction[None], binary_mask(masks[index], f"mask {index}")[None])[0]
            trivial[index] = dice(mean[None], small_masks[index][None])[0]
        progress(fold + 1, folds)
    return HeldOut(scores, trivial, folds)

"""The expected Dice: each annotated image is segmented by a network adapted to others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metaseg.adapting.arrays import resized_mask
from metaseg.evaluation.scores import dice
from metaseg.evaluation.trivial import lesion_is_dark, mean_support_mask, otsu_green
from metaseg.meta.losses import UNMARKED

CORRECTION = 0.8
"""Error 1 - Dice of the final network on new images, relative to that of the fold networks on the images they did not
see: of 0.6, 0.7, ..., 1.1 the closest for eleven kinds of image, with five images as with twenty (`python -m benchmarks
own_images`)."""

ERROR = {20: (0.05, 0.18), 5: (0.07, 0.30)}
"""Mean distance of the corrected estimate from the Dice on other images of these eleven kinds, and by how much it was
too high for the worst of them, with so many annotated images; unknown with fewer. On average it is 0.05 too high
with five images and 0.01 with twenty, at worst 0.05 and 0.08 too low."""

GOOD, POOR = 0.85, 0.5
"""Dice from which masks can be used after a look at the least confident, and below which they are of no use [D]."""

AHEAD = 0.02
"""A network must be ahead of every trivial baseline by this much to be of use [D]."""

TRIVIAL = {
    "mean mask": "the mean of the other masks",
    "Otsu": "Otsu's threshold on green",
    "nothing": "marking nothing",
}
FEWEST, FEWEST_MARKED = min(ERROR), 3
"""Annotated images, and those among them with foreground, without which each mask should be looked at [D]."""


@dataclass(frozen=True)
class Estimate:
    """Dice of held-out annotated images.

    Attributes:
        dsc: (K,) in [0, 1], at each image's original size.
        trivial: name of a baseline that learns nothing → (K,), its Dice on the same images, likewise; empty if some
            images are scribbled.
        folds: number of networks; K means leave-one-out.
        scribbled: how many of the images are scribbled; their Dice is that of the marked pixels.
    """

    dsc: np.ndarray
    trivial: dict[str, np.ndarray]
    folds: int
    scribbled: int = 0

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "Estimate":
        """The estimate from the content of a file; the inverse of `plain`."""
        trivial = {str(name): np.asarray(values, np.float64) for name, values in plain["trivial"].items()}
        return cls(np.asarray(plain["dsc"], np.float64), trivial, int(plain["folds"]), int(plain["scribbled"]))

    def plain(self) -> dict[str, Any]:
        """Plain numbers, for a file."""
        trivial = {name: values.tolist() for name, values in self.trivial.items()}
        return {"dsc": self.dsc.tolist(), "trivial": trivial, "folds": self.folds, "scribbled": self.scribbled}

    @property
    def expected(self) -> float:
        """The expected mean Dice on new images."""
        return corrected(float(self.dsc.mean()))

    @property
    def marked(self) -> np.ndarray:
        """Which of the images have foreground, bool (K,)."""
        return self.trivial.get("nothing", np.zeros(len(self.dsc))) == 0

    @property
    def best_trivial(self) -> str:
        """The best of the trivial baselines."""
        return max(self.trivial, key=lambda name: float(self.trivial[name].mean()))

    def sentence(self) -> str:
        """The estimate with its spread."""
        count = len(self.dsc)
        how = "leave-one-out" if self.folds == count else f"{self.folds}-fold cross-validation"
        spread = f"{100 * self.dsc.mean():.1f}, from {100 * self.dsc.min():.1f} to {100 * self.dsc.max():.1f}"
        if self.scribbled:
            return f"Dice of marked pixels, which are easier than outlines: {spread} ({count} annotated images, {how})"
        best, marked = self.best_trivial, self.marked
        error = next((error for least, error in ERROR.items() if count >= least), None)
        off = f"unreliable with fewer than {FEWEST} images"
        if error is not None:
            off = f"{100 * error[0]:.0f} points off on average, at worst {100 * error[1]:.0f} too high"
        if not marked.all():
            spread += f", {100 * self.dsc[marked].mean():.1f} on the {marked.sum()} with foreground"
        return (
            f"Expected Dice: {100 * self.expected:.0f} %; such figures are {off} ({count} annotated images, {how}: "
            f"{spread}; {TRIVIAL[best]}: {100 * self.trivial[best].mean():.1f})"
        )

    def verdict(self) -> str:
        """One sentence: whether the masks can be used. Scribbles say nothing about outlines, so no more than a look."""
        if self.scribbled:
            if self.dsc.mean() < POOR:
                return "Do not use these masks: most of them will be wrong. Annotate more images."
            return "Look at the outline of each mask before you use it: scribbles cannot show how good it is."
        # On images without foreground, marking nothing is perfect, which shows nothing about the others.
        kinds = (slice(None), self.marked)
        # Both on the held-out images; the expected Dice is corrected, a baseline needs no correction.
        ahead = min(self.dsc[one].mean() - max(of[one].mean() for of in self.trivial.values()) for one in kinds)
        judged = min(corrected(float(self.dsc[one].mean())) for one in kinds)
        if judged < POOR or ahead < AHEAD:
            why = "they are no better than a trivial baseline" if ahead < AHEAD else "most of them will be wrong"
            return f"Do not use these masks: {why}. Annotate more images."
        if judged < GOOD or len(self.dsc) < FEWEST or self.marked.sum() < FEWEST_MARKED:
            return "Look at each mask before you use it, and correct it where it is wrong."
        return "Use the masks, and look at those that are named as least confident."


def corrected(held_out: float) -> float:
    """The expected Dice of the final network, from the mean Dice of fold networks on the images they did not see."""
    return 1 - CORRECTION * (1 - held_out)


def estimated(
    found: Sequence[np.ndarray],
    parts: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    small_images: np.ndarray,
    small_masks: np.ndarray,
) -> Estimate:
    """Score each image by the network that was not adapted to it.

    Args:
        found: K predicted masks, bool (H, W), each of the network that has not seen the image.
        parts: for each network, the indices of the images that it has not seen; together all K.
        masks: K true masks, bool (H, W), or uint8 with `UNMARKED` for scribbles.
        small_images: uint8 (K, h, w, 3), at the working size.
        small_masks: uint8 (K, h, w).
    """
    count = len(found)
    scribbled = sum(bool((mask == UNMARKED).any()) for mask in masks)
    scores = np.array(
        [dice((one & (mask != UNMARKED))[None], (mask == 1)[None])[0] for one, mask in zip(found, masks, strict=True)]
    )
    trivial = {name: np.empty(count) for name in TRIVIAL}
    for held in parts if not scribbled else ():  # the baselines need whole masks
        others = np.setdiff1d(np.arange(count), held)
        dark = lesion_is_dark(small_images[others], small_masks[others])
        mean = mean_support_mask(small_masks[others])
        for index, otsu in zip(held, otsu_green(small_images[held], dark), strict=True):
            for name, baseline in (("mean mask", mean), ("Otsu", otsu)):
                trivial[name][index] = dice(resized_mask(baseline, masks[index].shape)[None], masks[index][None])[0]
            trivial["nothing"][index] = 0.0 if masks[index].any() else 1.0
    return Estimate(scores, {} if scribbled else trivial, len(parts), scribbled)

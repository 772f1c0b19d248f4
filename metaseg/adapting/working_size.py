"""The size at which a network sees a user's images: large enough for the annotated objects, and no larger."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from metaseg.adapting.arrays import resized_mask
from metaseg.evaluation.scores import THRESHOLD, dice
from metaseg.meta.losses import UNMARKED

Shape = tuple[int, int]
"""(height, width) in pixels."""

SIDES = (128, 160, 192, 256, 320, 384)
"""Sides of a square with as many pixels as a working shape [D]. The pre-trained features serve all of them."""

KEPT = 0.97
"""Mean Dice that the annotated masks should keep when they are shrunk and enlarged again [D]: well above what a network
reaches with a few images, so that the size does not decide the result."""


def shape_of(side: int, sizes: Sequence[Shape], stride: int) -> Shape:
    """The working shape of about `side`² pixels with the images' proportions.

    Args:
        side: in pixels, a multiple of `stride`.
        sizes: (H, W) of the images; the median of their proportions counts.
        stride: height and width are multiples of it.
    """
    proportion = float(np.median([height / width for height, width in sizes]))
    height = max(1, round(side * proportion**0.5 / stride)) * stride
    # From the rounded height, so that the area stays close to that of the square.
    return height, max(1, round(side**2 / height / stride)) * stride


def kept(masks: Sequence[np.ndarray], shape: Shape) -> float:
    """Mean Dice, in [0, 1], between masks and what remains of them at a working shape: the best a network can do there.

    Args:
        masks: bool (H, W), of any sizes. Scribbles show no outlines and do not count; 1 if there are no others.
        shape: the working shape.
    """
    scores = [
        dice((enlarged(resized_mask(mask, shape), mask.shape) > THRESHOLD)[None], mask[None])[0]
        for mask in masks
        if not (mask == UNMARKED).any()
    ]
    return float(np.mean(scores)) if scores else 1.0


def enlarged(probabilities: np.ndarray, size: Shape) -> np.ndarray:
    """Probabilities (h, w), resized bilinearly to float32 (H, W), which keeps outlines smooth."""
    picture = Image.fromarray(probabilities.astype(np.float32))
    # Rounding errors may leave [0, 1].
    return np.clip(np.asarray(picture.resize(size[::-1], Image.Resampling.BILINEAR)), 0, 1)

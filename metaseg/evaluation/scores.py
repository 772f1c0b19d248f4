"""Dice and intersection over union of binary masks, per image and pooled.

All values are fractions in [0, 1]; tables print percentages. Foreground is a probability above 0.5 (our decision; the
author's code thresholds logits at 0.3). The headline score is the mean of the per-image values; the pooled value, where
large objects outweigh small ones, is reported as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from metaseg.errors import MetasegError

if TYPE_CHECKING:
    import torch

    Masks = np.ndarray | torch.Tensor

THRESHOLD = 0.5
"""A pixel is foreground if its probability exceeds this."""


def foreground(probabilities: Masks) -> np.ndarray:
    """Return the binary masks (same shape, bool) of probabilities in [0, 1]: p > 0.5, so exactly 0.5 is background.

    Raises:
        MetasegError: if a value is NaN or outside [0, 1], e.g. logits passed by mistake.
    """
    values = _array(probabilities)
    if values.size and not (values.min() >= 0 and values.max() <= 1):
        raise MetasegError(
            f"Expected probabilities in [0, 1] but found values from {values.min():.3g} to {values.max():.3g}: "
            "apply a sigmoid to logits first, and look for NaN in the network."
        )
    return values > THRESHOLD


def dice(prediction: Masks, truth: Masks) -> np.ndarray:
    """Return the Dice similarity 2|P∩T| / (|P|+|T|) of each image.

    Args:
        prediction: (N, H, W) or (N, 1, H, W) binary masks, bool or {0, 1} of any type, numpy or torch.
        truth: likewise, of the same shape.

    Returns:
        float64 (N,) in [0, 1]; 1 if prediction and truth are both empty (torchmetrics excludes such images as NaN).

    Raises:
        MetasegError: if shapes differ or are not those of masks, or values are not binary.
    """
    both, either_sum = pixel_counts(prediction, truth)
    return _ratio(2 * both, either_sum)


def iou(prediction: Masks, truth: Masks) -> np.ndarray:
    """Return the intersection over union |P∩T| / |P∪T| (Jaccard index) of each image; otherwise as `dice`."""
    both, either_sum = pixel_counts(prediction, truth)
    return _ratio(both, either_sum - both)


def pooled_dice(prediction: Masks, truth: Masks) -> float:
    """Return the Dice similarity over all pixels of all images: counts are summed before dividing.

    To pool images of different sizes, sum their `pixel_counts`. Arguments and errors as for `dice`.
    """
    both, either_sum = pixel_counts(prediction, truth)
    return float(_ratio(2 * both.sum(), either_sum.sum()))


def pixel_counts(prediction: Masks, truth: Masks) -> tuple[np.ndarray, np.ndarray]:
    """Return |P∩T| and |P|+|T| of each image, int64 (N,) each; their sums over batches give the pooled Dice."""
    predicted, true = _binary(prediction, "prediction"), _binary(truth, "truth")
    if predicted.shape != true.shape:
        raise MetasegError(
            f"Prediction and truth must have the same shape, but the prediction is {predicted.shape} and the truth "
            f"{true.shape}: resize one to the other (masks by nearest neighbour) before scoring."
        )
    axes = tuple(range(1, predicted.ndim))
    both = np.count_nonzero(predicted & true, axis=axes)
    return np.asarray(both), np.count_nonzero(predicted, axis=axes) + np.count_nonzero(true, axis=axes)


def _binary(masks: Masks, what: str) -> np.ndarray:
    values = _array(masks)
    if values.ndim == 4 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 3:
        raise MetasegError(f"Expected {what} masks of shape (N, H, W) or (N, 1, H, W) but found {values.shape}.")
    if values.dtype == bool:
        return values
    mask = values == 1
    if not np.array_equal(mask, values != 0):
        raise MetasegError(
            f"Expected binary {what} masks with values 0 and 1 but found {values[(values != 0) & ~mask][0]} too: "
            "threshold probabilities with `foreground`, and masks of 0 and 255 at 127."
        )
    return mask


def _array(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.double().numpy() if values.is_floating_point() else values.numpy()  # numpy has no bfloat16
    return np.asarray(values)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.where(denominator > 0, numerator / np.maximum(denominator, 1), 1.0)

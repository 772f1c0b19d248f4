"""Thin outlines of masks, the user's solid and the network's dashed, so that they differ in more than colour."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from metaseg.plots.overlays import PREDICTION_COLOUR, TRUTH_COLOUR

YOURS, PREDICTED = TRUTH_COLOUR, PREDICTION_COLOUR
_DASH = 5  # pixels


def drawn(pixels: np.ndarray, mask: np.ndarray, dashed: bool) -> np.ndarray:
    """An image with the outline of a mask, two pixels wide.

    Args:
        pixels: uint8 (H, W, 3).
        mask: bool (H, W).
        dashed: the network's, dashed and yellow; else the user's, solid and blue.
    """
    line = np.zeros(mask.shape, np.uint8)
    for contour in _contours(mask, cv2.CHAIN_APPROX_NONE):
        shown = np.arange(len(contour)) % (2 * _DASH) < _DASH if dashed else slice(None)
        line[contour[shown][:, 1], contour[shown][:, 0]] = 1
    wide = cv2.dilate(line, np.ones((2, 2), np.uint8)) > 0
    return np.where(wide[..., None], np.array(PREDICTED if dashed else YOURS, np.uint8), pixels)


def path(mask: np.ndarray) -> str:
    """The outline of a mask, bool (H, W), as the `d` of an SVG path in pixels."""
    return "".join(
        "M" + "L".join(f"{x + 0.5:g} {y + 0.5:g}" for x, y in contour) + "Z"
        for contour in _contours(mask, cv2.CHAIN_APPROX_SIMPLE)
    )


def _contours(mask: np.ndarray, points: int) -> Sequence[np.ndarray]:
    """Each connected outline, holes included, as (N, 2) of x and y."""
    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, points)
    return [contour[:, 0] for contour in found]

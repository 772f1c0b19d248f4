"""Images overlaid with the outlines of truth and prediction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image
from scipy import ndimage

from metaseg.errors import MetasegError
from metaseg.plots.figures import save

# Unlike skin and mucosa, and blue and yellow are distinct with every common colour blindness.
TRUTH_COLOUR = (0, 229, 255)
PREDICTION_COLOUR = (255, 235, 0)
_SHORTER_SIDE = 256  # minimum in pixels: on 64 × 64, outlines would hide what they outline


class OverlayRow(NamedTuple):
    """One image of a sheet: image (H, W, 3) uint8, masks (H, W) in {0, 1}, and a title with its Dice."""

    image: np.ndarray
    truth: np.ndarray
    before: np.ndarray | None
    after: np.ndarray
    title: str


def overlay(image: np.ndarray, truth: np.ndarray | None, prediction: np.ndarray | None) -> np.ndarray:
    """Draw the outlines of two masks on an enlarged image.

    The truth is drawn first and twice as wide, so that both are visible where they agree. A mask that reaches the
    image's edge is outlined along the edge.

    Args:
        image: (H, W, 3) uint8.
        truth: (H, W), foreground where > 0; None: not drawn.
        prediction: as truth.

    Returns:
        (sH, sW, 3) uint8, where s is the smallest integer that makes the shorter side at least 256 pixels.

    Raises:
        MetasegError: a mask and the image differ in size.
    """
    height, width = image.shape[:2]
    scale = max(1, math.ceil(_SHORTER_SIDE / min(height, width)))
    canvas = np.array(Image.fromarray(image).resize((width * scale, height * scale), Image.Resampling.BICUBIC))
    for name, mask, colour, reach in (
        ("truth", truth, TRUTH_COLOUR, 2),
        ("prediction", prediction, PREDICTION_COLOUR, 1),
    ):
        if mask is None:
            continue
        if mask.shape != (height, width):
            raise MetasegError(f"the {name} should have the image's size {(height, width)}, found {mask.shape}")
        canvas[_outline(np.kron(mask > 0, np.ones((scale, scale), bool)), reach)] = colour
    return canvas


def _outline(mask: np.ndarray, reach: int) -> np.ndarray:
    """Morphological gradient: `reach` pixels on either side of the boundary."""
    square = np.ones((3, 3), bool)
    return ndimage.binary_dilation(mask, square, reach) & ~ndimage.binary_erosion(mask, square, reach)


def best_median_worst(dsc: Sequence[float]) -> dict[str, int]:
    """Indices of the best, median and worst image by Dice; NaN counts as worst. Needs at least one value."""
    order = np.argsort(-np.nan_to_num(np.asarray(dsc, float), nan=-1.0), kind="stable")
    return {"best": int(order[0]), "median": int(order[len(order) // 2]), "worst": int(order[-1])}


def overlay_sheet(rows: Sequence[OverlayRow], path: Path, title: str = "") -> Path:
    """Draw one row per image: the image, and its outlines before and after adaptation, with a legend.

    Args:
        rows: the images; without any `before`, that column is omitted.
        path: output PNG.
        title: title of the sheet.

    Raises:
        MetasegError: no rows, or a mask and its image differ in size.
    """
    if not rows:
        raise MetasegError("an overlay sheet needs at least one image, found none")
    columns = ["image", "after adaptation"]
    if any(row.before is not None for row in rows):
        columns.insert(1, "before adaptation")
    figure = Figure(figsize=(2.6 * len(columns), 2.75 * len(rows) + 0.75), layout="constrained")
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    for line, row in zip(grid, [OverlayRow(*row) for row in rows], strict=True):
        for axes, column in zip(line, columns, strict=True):
            prediction = {"before adaptation": row.before, "after adaptation": row.after}.get(column)
            axes.imshow(overlay(row.image, None if column == "image" else row.truth, prediction))
            axes.set_axis_off()
        line[0].set_title(row.title, loc="left", fontsize=9)
    for axes, column in zip(grid[0][1:], columns[1:], strict=True):
        axes.set_title(column, fontsize=9)
    handles = [
        Line2D([], [], color="#{:02x}{:02x}{:02x}".format(*colour), linewidth=width, label=label)
        for label, colour, width in (("truth", TRUTH_COLOUR, 4), ("prediction", PREDICTION_COLOUR, 2))
    ]
    # A dark background, as yellow on white would be invisible.
    figure.legend(
        handles=handles, loc="outside lower center", ncols=2, fontsize=9, facecolor="0.25", labelcolor="white"
    )
    if title:
        figure.suptitle(title, fontsize=10)
    save(figure, path)
    return path

"""Figures that compare the runs of a table, and reduced pictures for the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from metaseg.plots.figures import Look, plain_axes, save
from metaseg.reporting.runs import Run
from metaseg.runs.result import Curve

_DASHES: tuple[str | tuple[int, tuple[float, ...]], ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
_PANELS = (
    ("training loss", "train/query_loss_after", 1),
    ("training Dice, %", "train/query_dice_after", 100),
    ("validation loss", "validation/query_loss_after", 1),
    ("validation Dice, %", "validation/dice_after", 100),
)


def mean_curve(curves: Sequence[Curve]) -> Curve | None:
    """Mean Dice of runs at their common adaptation steps; with the interval of a single one.

    None without common steps. Omits points without a value."""
    if not curves:
        return None
    dice = pd.concat([pd.Series(curve.dsc, curve.steps, dtype=float) for curve in curves], axis=1).dropna()
    mean = dice.mean(axis=1).sort_index()
    if mean.empty:
        return None
    alone = curves[0] if len(curves) == 1 else Curve()
    low, high = (
        [bound for step, bound in zip(alone.steps, bounds, strict=False) if step in mean.index]
        for bounds in (alone.low, alone.high)
    )
    return Curve(steps=mean.index.tolist(), dsc=mean.tolist(), low=low, high=high)


def epoch_curves(
    groups: Sequence[tuple[str, int, Sequence[Run]]], path: Path, looks: Mapping[str, Look]
) -> Path | None:
    """Draw training and validation loss and Dice after the inner loop over epochs, as the paper's figure 2.

    Args:
        groups: (learner's label, shots, runs); seeds are averaged per epoch. Colour shows the learner, line style the
            shots.
        path: where the PNG goes.
        looks: label → its look, whose colour is used.

    Returns:
        `path`, or None if nothing was logged.
    """
    shot_counts = sorted({shots for _, shots, _ in groups})
    figure = Figure(figsize=(6.8, 5.8), layout="constrained")
    drawn = False
    for axes, (title, column, scale) in zip(figure.subplots(2, 2).flat, _PANELS, strict=True):
        for label, shots, runs in groups:
            values = _over_epochs(runs, column)
            if values is None:
                continue
            drawn = True
            axes.plot(
                values.index + 1,
                scale * values,
                label=f"{label}, {shots} shots",
                color=looks[label]["color"],
                linestyle=_DASHES[shot_counts.index(shots) % len(_DASHES)],
                linewidth=1.6,
                marker="o" if len(values) <= 15 else None,
                markersize=3.5,
            )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        plain_axes(axes, "epoch", title)
    if not drawn:
        return None
    entries = {
        text: handle for axes in figure.axes for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        list(entries.values()),
        list(entries),
        frameon=False,
        fontsize=8,
        ncols=3,
        loc="outside lower center",
        handlelength=3,
    )
    save(figure, path)
    return path


def violins(series: Mapping[str, np.ndarray], path: Path, title: str, looks: Mapping[str, Look]) -> Path:
    """Draw the distribution of Dice over images: one violin per system, quartiles as a bar, median as a white dot.

    Args:
        series: label → Dice per image (mean over seeds and draws), fractions in [0, 1]; at least one value.
        path: where the PNG goes.
        title: of the figure.
        looks: label → its look, whose colour is used.
    """
    figure = Figure(figsize=(6.4, 1.0 + 0.36 * len(series)), layout="constrained")
    axes = figure.subplots()
    labels = list(series)[::-1]
    for height, label in enumerate(labels):
        percents = 100 * series[label]
        colour = looks[label]["color"]
        if percents.min() < percents.max():  # matplotlib refuses a violin of equal values
            parts: Any = axes.violinplot([percents], [height], orientation="horizontal", widths=0.8, showextrema=False)
            (body,) = parts["bodies"]
            body.set(facecolor=colour, alpha=0.45, edgecolor="none")
        lower, middle, upper = np.percentile(percents, [25, 50, 75])
        axes.plot([lower, upper], [height, height], color=colour, linewidth=4, solid_capstyle="butt")
        axes.plot([middle], [height], "o", color="white", markeredgecolor="black", markersize=4.5)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set_xlim(-1, 101)
    plain_axes(axes, "Dice of an image, %", "")
    axes.set_title(title, fontsize=10)
    save(figure, path)
    return path


def embedded(path: Path, width: int, photograph: bool = False) -> str:
    """A picture as a data URI, at most `width` pixels wide: JPEG for photographs, 128-colour PNG for curves."""
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    if picture.width > width:
        picture = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
    memory = io.BytesIO()
    if photograph:
        picture.save(memory, "JPEG", quality=72, optimize=True)
    else:
        picture.quantize(128, dither=Image.Dither.NONE).save(memory, "PNG", optimize=True)
    kind = "jpeg" if photograph else "png"
    return f"data:image/{kind};base64,{base64.b64encode(memory.getvalue()).decode('ascii')}"


def _over_epochs(runs: Sequence[Run], column: str) -> pd.Series | None:
    """Mean of a column over an epoch's steps, then over runs; None if no run logged it."""
    means = []
    for run in runs:
        table = run.metrics
        if table is not None and {column, "epoch"} <= set(table):
            mean = table.groupby("epoch")[column].mean().dropna()
            if not mean.empty:
                means.append(mean)
    return pd.concat(means, axis=1).mean(axis=1).sort_index() if means else None

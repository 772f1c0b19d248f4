"""Curves of loss and Dice over epochs, and of Dice over adaptation steps, drawn without pyplot's global state."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from metaseg.errors import MetasegError
from metaseg.runs.result import Curve
from metaseg.system import replacing

Look = Mapping[str, Any]
"""Matplotlib's settings of a line."""
DOTS = 150
"""Dots per inch."""
# Okabe and Ito's palette, distinct with every common colour blindness, without its yellow, too pale for lines on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_TRAINING, _VALIDATION = PALETTE[0], PALETTE[1]
BASELINE_DASHES = ((0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))

# Column of metrics.csv, label, colour, line style. Before the inner loop: dashed; after it: solid.
_LOSS = (
    ("train/loss", "training", _TRAINING, "-"),
    ("train/query_loss_after", "training, after inner loop", _TRAINING, "-"),
    ("validation/loss", "validation", _VALIDATION, "-"),
    ("validation/query_loss_before", "validation, before inner loop", _VALIDATION, "--"),
    ("validation/query_loss_after", "validation, after inner loop", _VALIDATION, "-"),
)
_DICE = (
    ("train/query_dice_after", "training, after inner loop", _TRAINING, "-"),
    ("validation/dice", "validation", _VALIDATION, "-"),
    ("validation/dice_before", "validation, before inner loop", _VALIDATION, "--"),
    ("validation/dice_after", "validation, after inner loop", _VALIDATION, "-"),
)
# Further systems repeat the palette's colours with hollow markers.
_MARKERS = "osD^vPX<>*hp"
_INSIDE = 6  # legend entries that fit next to a figure; a longer legend goes below it
_BESIDE = 30  # characters of a label that fit next to a figure
_FEW = 6
_ADAPTATION_TICKS = (0, 1, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


def save(figure: Figure, path: Path) -> None:
    """Write `figure` atomically as a PNG with `DOTS` dots per inch."""
    FigureCanvasAgg(figure)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=DOTS, format="png")


def learning_curves(metrics: Path, path: Path) -> Path | None:
    """Draw loss and Dice of training and validation over epochs.

    Args:
        metrics: a run's metrics.csv. A training point is the mean over the epoch's logged steps. Missing columns are
            omitted (a supervised learner has no inner loop). Without a column `epoch`, the axis shows steps.
        path: output PNG.

    Returns:
        `path`, or None if there is nothing to draw.

    Raises:
        MetasegError: `metrics` is missing or not a table.
    """
    try:
        table = pd.read_csv(metrics)
    except (OSError, ValueError) as error:  # pandas' EmptyDataError and ParserError are ValueErrors
        raise MetasegError(f"expected the table of a run's metrics in {metrics}, found none ({error})") from error
    axis = "epoch" if "epoch" in table else "step"
    if axis not in table:
        return None
    means = table.groupby(axis).mean(numeric_only=True)
    panels = [
        (title, [line for line in lines if line[0] in means and means[line[0]].notna().any()])
        for title, lines in (("Loss", _LOSS), ("Dice, %", _DICE))
    ]
    panels = [(title, lines) for title, lines in panels if lines]
    if not panels:
        return None
    # Without an inner loop there is no before and after.
    adapts = any("before" in column for _, lines in panels for column, *_ in lines)
    figure = Figure(figsize=(5.2 * len(panels), 4.3), layout="constrained")
    for axes, (title, lines) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        for column, label, colour, style in lines:
            name = label if adapts else label.partition(",")[0]
            values = means[column].dropna() * (100 if title.startswith("Dice") else 1)
            places = values.index + (1 if axis == "epoch" else 0)
            marker = "o" if len(values) <= 15 else None  # a single point needs a marker to be visible
            axes.plot(places, values, style, color=colour, label=name, marker=marker, markersize=4, linewidth=1.6)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        plain_axes(axes, axis, title)
        # Below the panel: inside, it would hide parts of lines in some runs.
        axes.legend(frameon=False, fontsize=8, ncols=2, handlelength=3, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    save(figure, path)
    return path


def adaptation_curve(
    series: Mapping[str, Curve],
    path: Path,
    baselines: Mapping[str, float | None] | None = None,
    title: str = "",
    looks: Mapping[str, Look] | None = None,
) -> Path:
    """Draw the mean Dice over adaptation steps with its interval as a band.

    Args:
        series: label → its curve, with at least one point. A single point, from a system that does not adapt, is drawn
            as a dashed line.
        path: output PNG.
        baselines: label → Dice in [0, 1], drawn as horizontal lines; None values are omitted.
        title: title of the figure.
        looks: label → its look, the same in several figures; default: by the order of `series`.
    """
    entries = len(series) + sum(value is not None for value in (baselines or {}).values())
    widest = max((len(label) for label in (*series, *(baselines or {}))), default=0)
    beside = entries <= _INSIDE and widest <= _BESIDE
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    last, measured = 1.0, set[int]()
    for index, (label, curve) in enumerate(series.items()):
        steps, dsc = np.asarray(curve.steps, float), 100 * np.asarray(curve.dsc, float)
        look = looks[label] if looks else look_of(index)
        if len(steps) == 1:
            dashed = dict(look) | {"linestyle": (0, (6, 3)), "markevery": (0, 1)}
            axes.axhline(float(dsc[0]), label=label, linewidth=1.5, **dashed)
            continue
        if curve.low and curve.high:
            low, high = (100 * np.asarray(bound, float) for bound in (curve.low, curve.high))
            axes.fill_between(steps, low, high, color=look["color"], alpha=0.18, linewidth=0)
        axes.plot(steps, dsc, label=label, linewidth=1.6, clip_on=False, **look)
        last = max(last, float(steps.max()))
        measured |= set(curve.steps)
    drawn = {label: value for label, value in (baselines or {}).items() if value is not None}
    for index, (label, value) in enumerate(drawn.items()):
        dashes = BASELINE_DASHES[index % len(BASELINE_DASHES)]
        axes.axhline(100 * value, color="0.35", linestyle=dashes, linewidth=1.1, label=label)
    # log(1 + steps): the first steps matter most, and step 0, before adaptation, must be on the axis.
    axes.set_xscale("function", functions=(np.log1p, np.expm1))
    # Where few steps were measured, nothing is known of others.
    ticks = sorted(measured) if 0 < len(measured) <= _FEW else [tick for tick in _ADAPTATION_TICKS if tick <= last]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(0, last * 1.04)
    plain_axes(axes, "adaptation steps", "Dice, %")
    axes.set_title(title, fontsize=10)
    if beside:
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    else:
        _legend_below(figure, entries)
    save(figure, path)
    return path


def _legend_below(figure: Figure, entries: int) -> None:
    """Add a legend in two columns, or one if two are wider than the figure, and enlarge the figure to fit."""
    for columns in (2, 1):
        looks = {"frameon": False, "fontsize": 8, "handlelength": 3, "columnspacing": 1}
        legend = figure.legend(ncols=columns, loc="outside lower center", **looks)
        figure.set_figheight(4.0 + 0.21 * (entries // columns + 1))
        if legend.get_window_extent().width <= figure.bbox.width:
            return
        if columns > 1:
            legend.remove()


def look_of(place: int, variant: int = 0) -> Look:
    """Colour, marker and line of a learner, by its place in a list that all figures share.

    Distinct for 12 learners and more; variants of a learner have a paler or darker colour, another marker and dashes.
    """
    colour = PALETTE[place % len(PALETTE)]
    if variant:
        red, green, blue = (0.5 * part + 0.5 * (variant % 2) for part in to_rgb(colour))
        colour = to_hex((red, green, blue))
    hollow = place >= len(PALETTE)
    return {
        "color": colour,
        "marker": _MARKERS[(place + variant) % len(_MARKERS)],
        "markersize": 4.5,
        "markerfacecolor": "white" if hollow else colour,
        "linestyle": (0, (4, 1.5)) if variant else "-",
    }


def plain_axes(axes: Axes, horizontal: str, vertical: str) -> None:
    """Set labels and a light grid, and remove the box."""
    axes.set_xlabel(horizontal)
    axes.set_ylabel(vertical)
    axes.grid(color="0.9", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)

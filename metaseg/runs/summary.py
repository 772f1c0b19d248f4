"""The summary table printed at the end of a run."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table

from metaseg.errors import plural
from metaseg.runs.directory import RunDirectory
from metaseg.runs.result import Interval, Result, TargetScores

TRIVIAL = {
    "all_foreground": "all foreground",
    "centred_disc": "centred disc",
    "mean_support_mask": "mean mask",
    "otsu": "Otsu",
}
"""Trivial baselines in table order: key in result.json → name."""


def trivial_name(key: str) -> str:
    """A trivial baseline's name for readers."""
    return TRIVIAL.get(key, key.replace("_", " "))


def print_summary(result: Result, run: RunDirectory, console: Console | None = None) -> None:
    """Print one table per target, and the paths of the existing checkpoint, scores and figures.

    Args:
        result: the run's result; absent values are omitted.
        run: the run's directory.
        console: where to print; default: standard output, without colour codes if it is not a terminal.
    """
    console = console or Console(highlight=False)
    for target, scores in result.targets.items():
        console.print(_table(target, scores, result.scratch.get(target)))
    if result.strengths is not None:
        console.print(_strengths(result.strongest))
    paths = [
        ("checkpoint", run.best if run.best.is_file() else run.last),
        ("scores", run.per_image),
        ("result", run.result),
    ]
    paths += [("overlays", run.overlays(target)) for target in result.targets]
    paths += [("curves", run.learning_curves)]
    paths += [("curves", run.adaptation_curve(target)) for target in result.targets]
    for label, path in paths:
        if path.exists():
            # Wrapped paths are hard to copy, and [brackets] in them are not markup.
            console.print(f"{label:<12}{path}", soft_wrap=True, markup=False, highlight=False)


def _strengths(learned: Iterable[tuple[str, float]]) -> Table:
    table = Table(title="proximal strengths", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("", min_width=37)
    table.add_column("lambda", justify="right", min_width=8)
    for name, value in learned:
        table.add_row(name, f"{value:.3g}")
    return table


def _table(target: str, scores: TargetScores, scratch: Interval | None) -> Table:
    known = ((scores.images, "image"), (scores.draws, "draw"))
    counts = ", ".join(plural(count, unit) for count, unit in known if count)
    table = Table(
        title=f"{target}: {counts}" if counts else target, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD
    )
    # Fixed widths align the tables of several targets.
    table.add_column("", min_width=37)
    table.add_column("Dice, %", justify="right", min_width=8)
    table.add_column(f"{100 * scores.dsc.level:.0f} % interval", justify="right", min_width=14)
    rows = [
        ("before adaptation", scores.dsc_before),
        ("after the inner problem alone", scores.dsc_inner),
        ("after adaptation, one network, α = 1", scores.dsc_alone),
        ("after adaptation", scores.dsc),
        ("trained from scratch on the support", scratch),
    ]
    for label, score in rows:
        if score is not None:
            style = "bold" if score is scores.dsc else None
            table.add_row(label, percent(score.mean), _interval(score), style=style)
    for name, value in scores.trivial.items():
        if value is not None:
            table.add_row(trivial_name(name), percent(value))
    return table


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction in per cent; – if missing or NaN."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.{digits}f}"


def _interval(score: Interval) -> str:
    return "" if score.low is None or score.high is None else f"{percent(score.low)} – {percent(score.high)}"

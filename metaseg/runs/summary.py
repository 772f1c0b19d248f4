"""The table that a run ends with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from metaseg.runs.directory import RunDirectory

TRIVIAL_NAMES = {
    "all_foreground": "all foreground",
    "centred_disc": "centred disc",
    "mean_support_mask": "mean support mask",
    "otsu": "Otsu's threshold",
}


def print_summary(result: Mapping[str, Any], run: RunDirectory, console: Console | None = None) -> None:
    """Print a table a target, and the paths of checkpoint, scores and pictures that exist.

    Args:
        result: what `RunDirectory.write_result` describes; absent values are left out.
        run: the run's directory.
        console: where to print; default: standard output, without colour codes where that is no terminal.
    """
    console = console or Console(highlight=False)
    for target, scores in result["targets"].items():
        console.print(_table(target, scores, result.get("scratch", {}).get(target)))
    if "lambda" in result:
        console.print(_strengths(result["lambda"]))
    paths = [("checkpoint", checkpoint_of(run)), ("scores", run.per_image), ("result", run.result)]
    paths += [("overlays", run.overlays(target)) for target in result["targets"]]
    paths += [("curves", run.learning_curves)]
    paths += [("curves", run.adaptation_curve(target)) for target in result["targets"]]
    for label, path in paths:
        if path is not None and path.exists():
            # A wrapped path cannot be copied; one that holds [brackets] is no markup.
            console.print(f"{label:<12}{path}", soft_wrap=True, markup=False, highlight=False)


def checkpoint_of(run: RunDirectory) -> Path | None:
    """The checkpoint to go on from: the newest that is not `last`, else `last`, else None."""
    found = sorted(run.checkpoints.glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    best = [path for path in found if not path.stem.startswith("last")]
    return (best or found)[-1] if found else None


def _strengths(learned: Mapping[str, float]) -> Table:
    """The learned proximal strengths, the strongest first: what is held most stands on top."""
    table = Table(title="held to theta", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("", min_width=36)
    table.add_column("lambda", justify="right", min_width=8)
    for name, value in sorted(learned.items(), key=lambda pair: -pair[1]):
        table.add_row(name, f"{value:.3g}")
    return table


def _table(target: str, scores: Mapping[str, Any], scratch: Any) -> Table:
    images, draws = scores.get("images"), scores.get("draws")
    counts = ", ".join(
        f"{count} {unit}{'' if count == 1 else 's'}" for count, unit in ((images, "image"), (draws, "draw")) if count
    )
    level = (scores.get("dsc") or {}).get("level", 0.95)
    table = Table(
        title=f"{target}: {counts}" if counts else target, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD
    )
    # Fixed widths: the tables of several targets align.
    table.add_column("", min_width=36)
    table.add_column("Dice, %", justify="right", min_width=8)
    table.add_column(f"{100 * level:.0f} % interval", justify="right", min_width=14)
    rows = [
        ("before adaptation", scores.get("dsc_before")),
        ("after the inner problem alone", scores.get("dsc_inner")),
        ("after adaptation", scores.get("dsc")),
        ("trained from scratch on the support", scratch),
    ]
    trivial = scores.get("trivial") or {}
    rows += [(TRIVIAL_NAMES.get(name, name.replace("_", " ")), value) for name, value in trivial.items()]
    for label, value in rows:
        if value is None:
            continue
        score = value if isinstance(value, Mapping) else {"mean": value}
        after = label == "after adaptation"
        table.add_row(label, _percent(score.get("mean")), _interval(score), style="bold" if after else None)
    return table


def _percent(value: float | None) -> str:
    return "–" if value is None or value != value else f"{100 * value:.1f}"


def _interval(score: Mapping[str, Any]) -> str:
    low, high = score.get("low"), score.get("high")
    return "" if low is None or high is None else f"{_percent(low)} – {_percent(high)}"

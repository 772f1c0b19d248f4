"""The dashboard's values of a result, as pure functions. Missing values are omitted."""

from __future__ import annotations

from typing import Any

from metaseg.runs.result import Result
from metaseg.runs.schema import Run


def summary_of(result: Result) -> dict[str, float]:
    """The columns of the table of runs: test/TARGET/… → fraction in [0, 1]; only the best trivial baseline."""
    values: dict[str, float | None] = {}
    for name, scores in result.targets.items():
        dsc, before, scratch = scores.dsc, scores.dsc_before, result.scratch.get(name)
        trivial = (value for value in scores.trivial.values() if value is not None)
        found = {"dsc": dsc.mean, "dsc_low": dsc.low, "dsc_high": dsc.high, "iou": scores.iou}
        found["dsc_before"] = before.mean if before else None
        found["dsc_scratch"] = scratch.mean if scratch else None
        found["dsc_trivial"] = max(trivial, default=None)
        values |= {f"test/{name}/{key}": value for key, value in found.items()}
    return {key: value for key, value in values.items() if value is not None}


def adaptation_points(result: Result) -> list[dict[str, float]]:
    """Dice over adaptation steps, one point per step: adaptation/step, adaptation/TARGET/dsc and …/dsc_scratch."""
    points: dict[int, dict[str, float]] = {}
    for label, of_targets in (("dsc", result.targets), ("dsc_scratch", result.scratch)):
        for name, scores in of_targets.items():
            for step, value in zip(scores.curve.steps, scores.curve.dsc, strict=True):
                if value is not None:
                    points.setdefault(step, {"adaptation/step": step})[f"adaptation/{name}/{label}"] = value
    return [points[step] for step in sorted(points)]


def about_model(settings: Run, result: Result, cell: str) -> dict[str, Any]:
    """The metadata of a checkpoint artifact; its files hold all settings."""
    known = {key: getattr(settings, key) for key in ("shots", "seed", "loss")}
    known |= {key: getattr(settings, key).name for key in ("learner", "pair", "protocol", "scale")}
    known |= {"cell": cell, "commit": result.commit}
    return known | {f"dsc/{name}": scores.dsc.mean for name, scores in result.targets.items()}

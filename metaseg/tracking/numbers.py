"""What the dashboard shows of a result: pure functions of what result.json holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def final_numbers(result: Mapping[str, Any]) -> dict[str, float]:
    """The columns of the table of runs: test/TARGET/… → fraction in [0, 1]; of trivial baselines the best."""
    numbers: dict[str, float] = {}
    for name, scores in result["targets"].items():
        dsc = scores["dsc"]
        found = {"dsc": dsc["mean"], "dsc_low": dsc["low"], "dsc_high": dsc["high"]}
        found |= {"dsc_before": scores["dsc_before"]["mean"], "iou": scores["iou"]}
        found |= {"dsc_trivial": max(scores["trivial"].values())}
        if name in result["scratch"]:
            found["dsc_scratch"] = result["scratch"][name]["mean"]
        numbers |= {f"test/{name}/{key}": value for key, value in found.items()}
    return numbers


def adaptation_points(result: Mapping[str, Any]) -> list[dict[str, float]]:
    """Dice over adaptation steps, a point each: adaptation/step, adaptation/TARGET/dsc and …/dsc_scratch."""
    points: dict[int, dict[str, float]] = {}
    for name, scores in result["targets"].items():
        curves = {"dsc": scores["curve"]}
        if name in result["scratch"]:
            curves["dsc_scratch"] = result["scratch"][name]["curve"]
        for label, curve in curves.items():
            for step, value in zip(curve["steps"], curve["dsc"], strict=True):
                points.setdefault(step, {"adaptation/step": step})[f"adaptation/{name}/{label}"] = value
    return [points[step] for step in sorted(points)]


def about_model(result: Mapping[str, Any], cell: str) -> dict[str, Any]:
    """What the page of a checkpoint shows; all settings are in the files beside it."""
    settings = result["settings"]
    known = {key: settings[key] for key in ("shots", "seed", "loss")}
    known |= {key: settings[key]["name"] for key in ("learner", "pair", "protocol", "scale")}
    known |= {"cell": cell, "commit": result["commit"]}
    return known | {f"dsc/{name}": scores["dsc"]["mean"] for name, scores in result["targets"].items()}

"""Dice over the number of annotated images: what a pair adds, and up to how many annotations."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from metaseg.errors import plural
from metaseg.evaluation.paired import PairedTest
from metaseg.plots.figures import BASELINE_DASHES, Look, plain_axes, save
from metaseg.reporting.cells import Ours, compare, covers, ours, trivial
from metaseg.reporting.exports import signed, signed_interval
from metaseg.reporting.runs import Run
from metaseg.runs.summary import trivial_name
from metaseg.runs.tables import identity

LEAST = 3
"""Numbers of shots that make a curve."""
APART, SPREAD = 0.03, 0.2
"""Distance of two learners' points, at most of all, as a share of the number of shots: no interval hides another."""
_BESIDE = ("pair", "tasks", "target", "shots", "evaluation")
"""Settings that may differ between the points of a curve, or between a learner with a pair and one without."""


class OverShots(NamedTuple):
    """One figure: learner → shots → result; and each trivial baseline's Dice by shots, a fraction in [0, 1].

    `pools`: the pair's datasets. `once`: learners whose networks are the same at all numbers of shots; the others were
    trained for each number.
    `leads`: shots → iMAML minus fine-tuning without a pair, paired.
    """

    pair: str
    pools: tuple[str, ...]
    mixing: str
    target: str
    learners: dict[str, dict[int, Ours]]
    trivial: dict[str, dict[int, float]]
    runs: tuple[str, ...]
    once: tuple[str, ...]
    leads: dict[int, PairedTest]

    def trained_on(self, titles: Mapping[str, str]) -> str:
        """The pair in display names."""
        return " and ".join(titles.get(pool, pool) for pool in self.pools)

    def sentence(self, titles: Mapping[str, str]) -> str:
        """What the pair is worth at each number of images; "" without runs of iMAML, or of fine-tuning without a pair.

        titles: display names of datasets.
        """
        if not self.leads:
            return ""
        parts = []
        for shots, test in self.leads.items():
            mean, low, high = test.difference
            seeds = f"; {test.seeds} seeds" if test.seeds > 1 else ""
            parts.append(f"{signed(mean)} points ({signed_interval(low, high)}{seeds}) with {plural(shots, 'image')}")
        title, pair = titles.get(self.target, self.target), self.trained_on(titles)
        over = covers(self.leads.values())
        differs = f"iMAML trained on {pair} differs from fine-tuning without a pair"
        return f"On {title}, {differs} by {', '.join(parts)}, over {over}."


def over_shots(runs: Sequence[Run]) -> list[OverShots]:
    """Figures for each pair, way of mixing and target at which some learner has `LEAST` numbers of shots.

    Learners that see no pair stand beside those of every pair; the others need two numbers of shots. The runs of a
    curve have equal settings. Their networks are the same at all numbers of shots, namely the checkpoint of test-only
    runs (`train: false`), or were trained for each number, never both; of several such curves that with the most
    numbers is drawn. A seed counts once in each point, by its run with the most scored images.
    """
    trained = [run for run in runs if _pair(run) != "none"]
    alone = [run for run in runs if _pair(run) == "none" and run.settings["learner"].get("train_on") != "target"]
    found = []
    for pair, mixing in sorted({(_pair(run), _mixing(run)) for run in trained}):
        here = [run for run in trained if (_pair(run), _mixing(run)) == (pair, mixing)]
        for target in sorted({target for run in here for target in run.targets}):
            scored = [run for run in (*here, *alone) if target in run.targets]
            learners = sorted({run.learner for run in scored})
            chosen = {learner: _of_one_kind(learner, scored, target) for learner in learners}
            curves = {learner: _curve(some, target) for learner, some in chosen.items()}
            with_pair = {run.learner for run in here if target in run.targets}
            if max(len(curves[learner]) for learner in with_pair) < LEAST:
                continue
            for learner in with_pair:
                if len(curves[learner]) < 2:
                    del chosen[learner], curves[learner]
            used = [run for some in chosen.values() for run in some]
            names = tuple(sorted(run.name for run in used))
            once = tuple(learner for learner, some in chosen.items() if _networks(some[0]))
            leads = _leads(chosen.get("imaml", ()), chosen.get("scratch", ()), target)
            pools = tuple(here[0].settings["pair"]["pools"])
            found.append(OverShots(pair, pools, mixing, target, curves, _trivial(used, target), names, once, leads))
    return found


def _leads(first: Sequence[Run], second: Sequence[Run], target: str) -> dict[int, PairedTest]:
    one, other = _by_shots(first), _by_shots(second)
    tests = {shots: compare(one[shots], other[shots], target) for shots in one if shots in other}
    return {shots: test for shots, test in tests.items() if test is not None}


def draw(figure: OverShots, path: Path, title: str, looks: Mapping[str, Look], labels: Mapping[str, str]) -> Path:
    """Draw the curves with their intervals, side by side at each number; intervals of one seed are dotted, and
    trivial baselines grey.

    Args:
        figure: what to draw.
        path: where the PNG goes.
        title: stands above the figure.
        looks: learner → its look.
        labels: learner → its name for readers; without one the learner's own is shown.
    """
    canvas = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = canvas.subplots()
    counts = sorted({shots for curve in figure.learners.values() for shots in curve})
    apart = min(APART, SPREAD / len(figure.learners))
    for number, (learner, curve) in enumerate(figure.learners.items()):
        means, lows, highs = (
            100 * np.array(values) for values in zip(*(point.dice for point in curve.values()), strict=True)
        )
        reach = np.nan_to_num(np.stack([means - lows, highs - means]))
        beside = np.array(list(curve)) * (1 + apart * (number - (len(figure.learners) - 1) / 2))
        label = labels.get(learner, learner)
        drawn = axes.errorbar(beside, means, reach, label=label, linewidth=1.6, capsize=2, **looks[learner])
        drawn.lines[2][0].set_linestyle([":" if point.seeds == 1 else "-" for point in curve.values()])
    for (name, floor), dashes in zip(figure.trivial.items(), itertools.cycle(BASELINE_DASHES)):
        percents = [100 * value for value in floor.values()]
        axes.plot(list(floor), percents, linestyle=dashes, color="0.6", linewidth=1.1, label=trivial_name(name))
    axes.set_xscale("log")
    axes.set_xticks(counts, list(map(str, counts)))
    axes.xaxis.set_minor_locator(NullLocator())
    plain_axes(axes, "annotated images", "Dice, %")
    canvas.suptitle(title, fontsize=10)  # wider than the axes
    entries = sorted(zip(*axes.get_legend_handles_labels(), strict=True), key=lambda one: isinstance(one[0], Line2D))
    axes.legend(*zip(*entries, strict=True), frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    save(canvas, path)
    return path


def _of_one_kind(learner: str, runs: Sequence[Run], target: str) -> list[Run]:
    """The runs of a learner's curve, one per seed and number of shots."""
    kinds: dict[tuple[str, str], dict[tuple[int, int], Run]] = {}
    # Later ones replace earlier ones of the same seed and shots.
    for run in sorted(runs, key=lambda run: run.matrix(target).shape[::-1]):
        if run.learner == learner:
            kind = _networks(run), repr(sorted(identity(run.settings, _BESIDE).items()))
            kinds.setdefault(kind, {})[run.settings["shots"], run.settings["seed"]] = run
    most = max(kinds.values(), key=lambda some: (len({shots for shots, _ in some}), len(some)))
    return list(most.values())


def _networks(run: Run) -> str:
    """The checkpoint that a run only tested, without its seed, by which those of a sweep differ; "" if it trained."""
    if run.settings.get("train", True) or _pair(run) == "none":
        return ""
    return str(run.settings.get("ckpt_path")).replace(f"seed{run.settings['seed']}", "seed")


def _curve(runs: Sequence[Run], target: str) -> dict[int, Ours]:
    cells = {shots: ours(some, target) for shots, some in _by_shots(runs).items()}
    return {shots: found for shots, found in cells.items() if found is not None}


def _trivial(runs: Sequence[Run], target: str) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for shots, some in _by_shots(runs).items():
        for name, value in trivial(some, target).items():
            found.setdefault(name, {})[shots] = value
    return found


def _by_shots(runs: Sequence[Run]) -> dict[int, list[Run]]:
    found: dict[int, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.settings["shots"]):
        found.setdefault(run.settings["shots"], []).append(run)
    return found


def _mixing(run: Run) -> str:
    return str((run.settings.get("tasks") or {}).get("mixing"))


def _pair(run: Run) -> str:
    return str((run.settings.get("pair") or {}).get("name", "none"))

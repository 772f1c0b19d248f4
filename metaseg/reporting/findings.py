"""What the tables show: a few sentences, and a figure of the differences that they count."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from metaseg.errors import listed, plural
from metaseg.evaluation.paired import PairedTest
from metaseg.plots.figures import look_of, plain_axes, save
from metaseg.reporting.cells import NO_PAIR, Block
from metaseg.reporting.differences import described
from metaseg.reporting.exports import signed

SIGNIFICANT = 0.05
"""Level of corrected p values."""
_ROW, _MARGINS = 0.3, 1.3  # inches of the figure
_APART = 0.25  # of a row, between systems
_TITLE = 24  # characters of a panel's title that fit above it


class Difference(NamedTuple):
    """A system's paired difference to another learner; `p` is corrected, see `Comparison`."""

    table: int
    target: str
    shots: int
    system: str
    opponent: str
    from_scratch: bool
    test: PairedTest
    p: float

    @property
    def side(self) -> int:
        """1 if the interval is above 0, -1 if below, else 0."""
        _, low, high = self.test.difference
        return int(low > 0) - int(high < 0)

    @property
    def certain(self) -> bool:
        """Whether the interval excludes 0 and the corrected p value, which needs two seeds, is small."""
        return self.p < SIGNIFICANT and self.side != 0


def differences(blocks: Sequence[Block]) -> list[Difference]:
    """The differences between iMAML's rows and other learners; one that several tables share counts once."""
    known: dict[tuple[str, str, str, int, float], Difference] = {}
    for block in blocks:
        for one in block.comparisons:
            if one.test is not None and one.opponent != "imaml":
                key = (one.first, one.second, block.target, one.shots, one.test.difference.mean)
                where = (block.table.number, block.target, one.shots)
                known.setdefault(
                    key, Difference(*where, one.first, one.second, one.opponent == "scratch", one.test, one.p)
                )
    return list(known.values())


def findings(blocks: Sequence[Block]) -> list[str]:
    """Sentences on the pair's worth, on the other learners, and on the paper's figures; those without results are left
    out. The first two are about the first of iMAML's rows, the paper's method.

    Args:
        blocks: of all tables. A comparison or line that several tables share counts once.
    """
    compared = differences(blocks)
    compared = [one for one in compared if one.system == compared[0].system]
    sentences = [
        _against([one for one in compared if one.from_scratch]),
        _against([one for one in compared if not one.from_scratch]),
        _published(blocks),
    ]
    return [sentence for sentence in sentences if sentence]


def draw(compared: Sequence[Difference], path: Path, titles: Mapping[str, str]) -> Path:
    """Draw the differences with their 95 % intervals: a panel per opponent, a row per table, target and shots.

    Args:
        compared: at least one.
        path: where the PNG goes.
        titles: display names of targets.
    """
    rows = sorted({(one.table, one.target, one.shots) for one in compared})
    systems = list(dict.fromkeys(one.system for one in compared))
    opponents = list(dict.fromkeys(one.opponent for one in sorted(compared, key=lambda one: not one.from_scratch)))
    figure = Figure(figsize=(2.2 + 2.4 * len(opponents), _MARGINS + _ROW * len(rows)), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(opponents), sharey=True, sharex=True))
    for opponent, axes in zip(opponents, panels, strict=True):
        axes.axvline(0, color="0.4", linewidth=1)
        for one in (one for one in compared if one.opponent == opponent):
            place = systems.index(one.system)
            height = rows.index((one.table, one.target, one.shots)) + _APART * (place - (len(systems) - 1) / 2)
            mean, low, high = (100 * value for value in one.test.difference)
            look = _point(place) | ({} if one.certain else {"markerfacecolor": "white"})
            reach = np.nan_to_num([[mean - low], [high - mean]])
            drawn = axes.errorbar([mean], [height], xerr=reach, linewidth=1.4, capsize=2, **look)
            if one.test.seeds == 1:
                drawn[2][0].set_linestyle((0, (1.5, 1)))
        plain_axes(axes, "points of Dice ahead", "")
        axes.set_title(textwrap.fill(f"against {in_a_sentence(opponent)}", _TITLE), fontsize=9)
    panels[0].set_yticks(range(len(rows)), [f"table {n}: {titles.get(to, to)}, {shots} shots" for n, to, shots in rows])
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    for place, system in enumerate(systems):
        look = _point(place) | {"markerfacecolor": "white"}
        panels[0].errorbar([], [], xerr=[], label=system, linewidth=1.4, capsize=2, **look)
    figure.legend(
        loc="outside lower center",
        frameon=False,
        fontsize=8,
        title="95 % intervals, dotted: of one seed. Filled: also corrected p < 5 %",
        title_fontsize=8,
        ncols=len(systems),
    )
    save(figure, path)
    return path


def _point(place: int) -> dict[str, Any]:
    """The look of one of iMAML's rows, without a line between points."""
    return {**look_of(0, place), "linestyle": "none"}


def _against(compared: Sequence[Difference]) -> str:
    """By how much the system is ahead of its opponents at each number of shots, and how sure that is."""
    if not compared:
        return ""
    system = compared[0].system
    names = [_without_a_pair(name) for name in dict.fromkeys(one.opponent for one in compared)]
    opponents = " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
    sentences: list[str] = []
    for shots in sorted({one.shots for one in compared}):
        here = [one for one in compared if one.shots == shots]
        means = sorted(one.test.difference.mean for one in here)
        leads = " to ".join(dict.fromkeys(map(signed, (means[0], means[-1]))))
        above, below = (sum(one.side == side for one in here) for side in (1, -1))
        fewest, most = (pick(one.test.seeds for one in here) for pick in (min, max))
        seeds = plural(most, "seed") if fewest == most else f"{fewest} to {most} seeds"
        with_images, ahead, behind = f"With {plural(shots, 'image')} ({seeds})", above or "none", below or "none"
        if sentences:
            sentences.append(f"{with_images}: {leads} points, ahead in {ahead} of {len(here)}, behind in {behind}.")
        else:
            sentences.append(
                f"{with_images}, {system} differs from {opponents} by {leads} points; it is ahead (95 % interval above "
                f"0) in {ahead} of {plural(len(here), 'comparison')} and behind (below 0) in {behind}."
            )
    tested = [one for one in compared if one.test.seeds > 1]
    if tested:
        certain = [one.side for one in tested if one.certain]
        side = f" ({system} is behind in {certain.count(-1)})" if len(set(certain)) > 1 else ""
        sentences.append(
            f"Significant after correction for multiple comparisons (p < 5 %): {len(certain) or 'none'} of "
            f"{len(tested)} with several seeds{side}."
        )
    return " ".join(sentences)


def in_a_sentence(label: str) -> str:
    """A system's label with a small first letter, unless it is an acronym."""
    return label if label[1:2].isupper() else label[0].lower() + label[1:]


def _without_a_pair(label: str) -> str:
    return "fine-tuning without a pair" if label == NO_PAIR else in_a_sentence(label)


def _published(blocks: Sequence[Block]) -> str:
    """Our means beside the paper's, except where the paper's is below that of marking every pixel."""
    found = {
        (line.row.label, block.target, line.shots, line.paper): line
        for block in blocks
        for line in block.lines
        if line.difference is not None
    }
    above, alone, of_alone, below_trivial = 0, 0, 0, 0
    for line in found.values():
        assert line.paper is not None
        assert line.difference is not None
        if line.paper <= line.trivial.get("all_foreground", 0.0):
            below_trivial += 1
            continue
        above += line.difference > 0
        of_alone += line.scratch is not None
        alone += line.scratch is not None and line.scratch > line.paper
    count = len(found) - below_trivial
    if not count:
        return ""
    runs = [run for block in blocks for cell in block.cells if not cell.row.further for run in cell.runs]
    runs = [run for run in runs if run.settings["learner"].get("network") is None] or runs  # a system's own comes last
    networks = sorted({f"{described(run.settings)} at {run.settings['data']['size']} pixels" for run in runs})
    uncounted = f" (left out: {below_trivial} in which marking every pixel exceeds the paper's figure)"
    return (
        f"Our means are above the paper's figures in {above} of {plural(count, 'cell')}"
        f"{uncounted if below_trivial else ''}, those of fine-tuning without a pair in {alone}"
        f"{'' if of_alone == count else f' of {of_alone}'}. Our network is {listed(networks, 3)}; the paper's is an "
        "attention U-Net with random or brain-MRI weights at 256 pixels."
    )

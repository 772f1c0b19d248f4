"""What the tables show: a few sentences, and a figure of the differences that they count."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from metaseg.errors import listed, plural
from metaseg.evaluation.paired import PairedTest
from metaseg.plots.figures import look_of, plain_axes, save
from metaseg.reporting.cells import Block, covers

SIGNIFICANT = 0.05
"""Level of p values corrected for all comparisons of a table."""
_ROW, _MARGINS = 0.3, 1.3  # inches of the figure
_APART = 0.25  # of a row, between systems


class Difference(NamedTuple):
    """A system's paired difference to another learner; `p` is corrected for all comparisons of its table."""

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
        _against([one for one in compared if one.from_scratch], "training from scratch"),
        _against([one for one in compared if not one.from_scratch], "the learners it is compared with"),
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
            look = look_of(place) | ({} if one.certain else {"markerfacecolor": "white"})
            reach = np.nan_to_num([[mean - low], [high - mean]])
            axes.errorbar([mean], [height], xerr=reach, linewidth=1.4, capsize=2, linestyle="none", **look)
        plain_axes(axes, "points of Dice ahead", "")
        acronym = opponent[1:2].isupper()
        axes.set_title(f"against {opponent if acronym else opponent[0].lower() + opponent[1:]}", fontsize=9)
    panels[0].set_yticks(range(len(rows)), [f"table {n}: {titles.get(to, to)}, {shots} shots" for n, to, shots in rows])
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    for place, system in enumerate(systems):
        panels[0].errorbar([], [], xerr=[], label=system, linewidth=1.4, capsize=2, linestyle="none", **look_of(place))
    over = textwrap.fill(f"95 % intervals over {covers(one.test for one in compared)}", 110)
    figure.legend(
        loc="outside lower center", frameon=False, fontsize=8, title=over, title_fontsize=8, ncols=len(systems)
    )
    save(figure, path)
    return path


def _against(compared: Sequence[Difference], opponent: str) -> str:
    sentences = []
    tested = [one for one in compared if one.test.seeds > 1]
    if tested:
        ahead, behind = (sum(one.certain and one.side == side for one in tested) for side in (1, -1))
        sentences.append(
            f"{tested[0].system} is ahead of {opponent} in {ahead} of {plural(len(tested), 'comparison')} and behind "
            f"in {behind}; in {len(tested) - ahead - behind} the difference could be chance."
        )
    alone = [one for one in compared if one.test.seeds == 1]
    if alone:
        above, below = (sum(one.side == side for one in alone) for side in (1, -1))
        sentences.append(
            f"Over {covers(one.test for one in alone)}, the 95 % interval of {alone[0].system}'s lead over {opponent} "
            f"is above 0 in {above} of {plural(len(alone), 'comparison')} and below 0 in {below}. This says nothing "
            "about other seeds."
        )
    return " ".join(sentences)


def _published(blocks: Sequence[Block]) -> str:
    to_the_paper = {
        (line.row.label, block.target, line.shots, line.paper): line
        for block in blocks
        for line in block.lines
        if line.difference is not None
    }
    if not to_the_paper:
        return ""
    lines = to_the_paper.values()
    above = sum(line.difference is not None and line.difference > 0 for line in lines)
    alone = sum(line.paper is not None and line.scratch is not None and line.scratch > line.paper for line in lines)
    weights = {
        f"{run.result.weights.name}, {run.result.weights.trained_on}"
        for block in blocks
        for cell in block.cells
        for run in cell.runs
        if run.outer_steps and run.result.weights is not None and run.settings["model"]["init"] != "brain_mri"
    }
    start = f", from other initial weights ({listed(sorted(weights))})" if weights else ""
    return (
        f"Our means are above the paper's in {above} of {plural(len(lines), 'cell')}{start}; training from scratch "
        f"alone is above them in {alone}."
    )

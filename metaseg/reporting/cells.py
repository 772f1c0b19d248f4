"""The numbers in a table's cells: our result with its interval, the paper's, their difference, and the baselines."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import TypedDict

import numpy as np
import pandas as pd

from metaseg.evaluation.intervals import Interval, bootstrap_interval, holm
from metaseg.evaluation.paired import PairedTest, paired_test
from metaseg.reporting.runs import Run
from metaseg.runs.tables import Row, Table, TableCell, fill, row_is_free

NO_PAIR = "No pair"
"""Label of fine-tuning on the K images without a pair, the learner scratch."""
FAILED = 0.5
"""An image whose Dice is below this, an IoU of a third, counts as failed [our decision]."""
_OPPONENTS = ("maml", "fomaml", "joint", "scratch")


@dataclass(frozen=True)
class Ours:
    """The result of our runs of a cell: Dice as a fraction in [0, 1] with its 95 % interval.

    `draws` counts support sets over all seeds, `groups` those of the images; `steps` is 0 if the system does not adapt;
    `by_seed` is seed → mean.
    """

    dice: Interval
    draws: int
    images: int
    groups: int
    steps: int
    by_seed: dict[int, float]

    @property
    def seeds(self) -> int:
        """Number of training seeds."""
        return len(self.by_seed)


@dataclass(frozen=True)
class Stages:
    """Where a system's Dice comes from, and what its training took: means over its runs, None where not recorded.

    The mean Dice by itself hides whether a few images fail or all are segmented a little worse.

    Attributes:
        before: Dice before adaptation, a fraction like the next two.
        inner: after the inner problem of training, without fine-tuning.
        alone: of the single fine-tuned network: alpha = 1, neither fold networks nor mirror images.
        failed: share of the scores, as tested, that are below `FAILED`.
        unsolved: share of training's inner problems that were not solved.
        passes: operations of training, in forward and backward passes of one image.
        seconds: of training without validation.
    """

    before: float | None
    inner: float | None
    alone: float | None
    failed: float | None
    unsolved: float | None
    passes: float | None
    seconds: float | None


@dataclass(frozen=True)
class Line:
    """One line of a table: a system at a number of shots, on one target. Dice values, including `paper`, are fractions.

    `shots` has several values if there are neither runs nor published figures at any of them. `scratch` is the mean of
    fine-tuning without a pair at the same shots, over the same seeds. `best` marks our highest mean at these shots
    among systems not trained on the target, over the most seeds that two of them have.
    """

    row: Row
    shots: tuple[int, ...]
    paper: float | None
    ours: Ours | None
    scratch: float | None
    trivial: dict[str, float]
    stages: Stages | None = None
    best: bool = False

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's."""
        return None if self.paper is None or self.ours is None else self.ours.dice.mean - self.paper


@dataclass(frozen=True)
class Comparison:
    """A planned paired test at a number of shots.

    `test` is None unless the two share an image scored in a common draw of the same data; `ran` is whether both have
    runs at all. `p` is corrected by Holm's method for the table's comparisons of the `family` at these shots on all
    targets, with runs or without [D]. `opponent` is the second's learner.
    """

    first: str
    second: str
    shots: int
    test: PairedTest | None
    p: float = math.nan
    opponent: str = ""
    family: str = ""
    ran: bool = True


@dataclass(frozen=True)
class Block:
    """A table on one of its targets."""

    table: Table
    target: str
    cells: list[TableCell]
    lines: list[Line]
    comparisons: list[Comparison] = field(default_factory=list)

    @property
    def runs(self) -> list[Run]:
        """Its runs, without duplicates."""
        return list({run.name: run for cell in self.cells for run in cell.runs}.values())

    @property
    def begun(self) -> bool:
        """Whether runs match it besides fine-tuning without a pair, which every table shares."""
        return any((cell.runs or cell.left_out) and not row_is_free(cell.row) for cell in self.cells)


def blocks(table: Table, runs: Sequence[Run]) -> list[Block]:
    """The table filled with runs, target by target."""
    cells = fill(table, runs)
    found = [_block(table, target, [cell for cell in cells if cell.target == target]) for target in table.columns]
    families: dict[tuple[str, int], list[Comparison]] = {}
    for one in (one for block in found for one in block.comparisons):
        families.setdefault((one.family, one.shots), []).append(one)
    corrected = {
        id(one): p
        for family in families.values()
        for one, p in zip(family, holm([one.test.p if one.test else math.nan for one in family]), strict=True)
    }
    return [
        replace(block, comparisons=[replace(one, p=corrected[id(one)]) for one in block.comparisons if one.ran])
        for block in found
    ]


def matrix(runs: Sequence[Run], target: str) -> pd.DataFrame:
    """Scores of runs: a row per (seed, draw), a column per image, NaN where an image was not scored."""
    return pd.concat([run.matrix(target) for run in runs])


def ours(runs: Sequence[Run], target: str) -> Ours | None:
    """The result of runs of one system, with an interval over seeds and groups of images; None without runs."""
    if not runs:
        return None
    scores = matrix(runs, target)
    labels = _labels(scores, runs, target)
    mean, low, high = bootstrap_interval(scores.to_numpy(np.float64), **labels)
    return Ours(
        # With few draws the interval can exceed [0, 1]; np.maximum keeps the NaN of a single score.
        dice=Interval(mean, float(np.maximum(low, 0.0)), float(np.minimum(high, 1.0))),
        draws=len(scores),
        images=scores.shape[1],
        groups=len(set(labels["groups"])),
        steps=runs[0].adapt_steps,
        by_seed={int(seed): float(np.nanmean(part.to_numpy())) for seed, part in scores.groupby(level="seed")},
    )


def _mean(runs: Sequence[Run], target: str) -> float:
    return float(np.nanmean(matrix(runs, target).to_numpy(np.float64)))


def trivial(runs: Sequence[Run], target: str) -> dict[str, float]:
    """Mean Dice of each trivial baseline over the runs that have it."""
    found: dict[str, list[float]] = {}
    for run in runs:
        scores = run.result.targets.get(target)
        for name, value in scores.trivial.items() if scores else ():
            if value is not None:
                found.setdefault(name, []).append(value)
    return {name: float(np.mean(values)) for name, values in found.items()}


def _failed(scores: np.ndarray) -> float:
    return float(np.mean(scores[~np.isnan(scores)] < FAILED))


def stages(runs: Sequence[Run], target: str) -> Stages | None:
    """The stages of runs of one system; None without runs."""
    if not runs:
        return None
    scores = [run.result.targets[target] for run in runs]
    costs = [run.result.compute for run in runs if run.result.compute is not None]
    return Stages(
        before=known_mean(one.dsc_before.mean for one in scores if one.dsc_before),
        inner=known_mean(one.dsc_inner.mean for one in scores if one.dsc_inner),
        alone=known_mean(one.dsc_alone.mean for one in scores if one.dsc_alone),
        failed=known_mean(_failed(run.matrix(target).to_numpy(np.float64)) for run in runs),
        unsolved=known_mean(
            cost.unsolved / cost.inner_problems for cost in costs if cost.inner_problems and cost.unsolved is not None
        ),
        passes=known_mean(cost.passes for cost in costs),
        seconds=known_mean(cost.seconds for cost in costs),
    )


def covers(results: Iterable[Ours | PairedTest]) -> str:
    """What the intervals of these results are over, for readers; "" without results."""
    found = {(one.seeds > 1, one.seeds > 1 or one.draws > 1, one.groups > 1) for one in results}
    texts = {
        (True, True, True): "seeds (or draws, if wider) and groups of images",
        (False, True, True): "draws and groups of images of one seed",
        (False, False, True): "groups of images of one draw",
    }
    of_one_group = {
        (True, True, False): "seeds (or draws, if wider)",
        (False, True, False): "draws of one seed",
    }
    text = ", or ".join(text for units, text in texts.items() if units in found)
    if not text:
        alone = ", or ".join(text for units, text in of_one_group.items() if units in found)
        return alone and f"{alone} only, because all images are one group"
    return f"{text} (without images where all are one group)" if found & set(of_one_group) else text


def known_mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are not None; None without any."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def scratch_beside(runs: Sequence[Run], target: str) -> float | None:
    """Mean Dice of fine-tuning without a pair within the runs, on the same support sets; None if no run has it."""
    return known_mean(run.result.scratch[target].mean for run in runs if target in run.result.scratch)


def compare(first: Sequence[Run], second: Sequence[Run], target: str) -> PairedTest | None:
    """First - second on common (seed, draw) rows and images; None if there are none.

    A draw's number stands for its support set only among the same prepared images, so seeds of other data are left out.
    """
    one, other = matrix(first, target), matrix(second, target)
    data = [{run.settings["seed"]: _key(run, target) for run in runs} for runs in (first, second)]
    one = one[[data[0][seed] == data[1].get(seed) for seed in one.index.get_level_values("seed")]]
    rows, images = one.index.intersection(other.index), one.columns.intersection(other.columns)
    one, other = one.loc[rows, images], other.loc[rows, images]
    if not (one.notna() & other.notna()).to_numpy().any():
        return None
    return paired_test(one.to_numpy(np.float64), other.to_numpy(np.float64), **_labels(one, first, target))


def _key(run: Run, target: str) -> str | None:
    """The hash of a target's prepared images; None if it was not recorded."""
    data = run.result.data.get(target)
    return None if data is None else data.key


class _Labels(TypedDict):
    seeds: list[int]
    groups: list[str]


def _labels(scores: pd.DataFrame, runs: Sequence[Run], target: str) -> _Labels:
    """The seed of each row and the group of each column."""
    groups = {image: group for run in runs for image, group in run.groups(target).items()}
    return {
        "seeds": scores.index.get_level_values("seed").tolist(),
        "groups": [groups[image] for image in scores.columns],
    }


def _block(table: Table, target: str, cells: list[TableCell]) -> Block:
    found = {id(cell): ours(cell.runs, target) for cell in cells}
    general = [run for cell in cells if cell.row.learner != "naive" for run in cell.runs]
    from_scratch = {cell.shots: cell.runs for cell in cells if cell.row.learner == "scratch"}
    # Without runs at these shots, take the baselines that ignore the support set from runs at other shots.
    anywhere = {name: value for name, value in trivial(general, target).items() if name != "mean_support_mask"}
    lines = []
    for group in _grouped(cells):
        cell = group[0]
        at_shots = [run for run in general if run.settings["shots"] == cell.shots]
        seeds = {run.settings["seed"] for run in cell.runs}
        known = [run for run in from_scratch.get(cell.shots, ()) if not seeds or run.settings["seed"] in seeds]
        complete = seeds <= {run.settings["seed"] for run in known}
        published = cell.row.published(target, cell.shots)
        lines.append(
            Line(
                row=cell.row,
                shots=tuple(one.shots for one in group),
                paper=None if published is None else published / 100,
                ours=found[id(cell)],
                scratch=_mean(known, target) if known and complete else scratch_beside(cell.runs or at_shots, target),
                trivial=trivial(cell.runs or at_shots, target) or anywhere,
                stages=stages(cell.runs, target),
            )
        )
    return Block(table, target, cells, _with_best(lines), _comparisons(cells))


def _grouped(cells: Sequence[TableCell]) -> list[list[TableCell]]:
    """Cells grouped into lines; cells of a system with neither runs nor published figures share one."""
    found: list[list[TableCell]] = []
    for row in {id(cell.row): cell.row for cell in cells}.values():
        own = [cell for cell in cells if cell.row is row]
        empty = not any(cell.runs for cell in own) and not any(row.published(own[0].target, s) for s in row.shots)
        found += [own] if empty else [[cell] for cell in own]
    return found


def _with_best(lines: list[Line]) -> list[Line]:
    """Mark the best line at each number of shots, over the most seeds that two lines share; a lone line is the best.

    Seeds differ, so lines without all of these do not compete.
    """
    found = list(lines)
    for shots in {line.shots[0] for line in lines}:
        # Systems trained on most of the target do not compete with those that saw a few of its images.
        competing = {
            place: line.ours.by_seed
            for place, line in enumerate(lines)
            if line.shots[0] == shots and line.ours and "learner.train_on=target" not in line.row.overrides
        }
        of_lines = [set(means) for means in competing.values()]
        shared = [one & other for one, other in combinations(of_lines, 2)] if of_lines[1:] else of_lines
        most = max(shared, key=len, default=set())
        means = {
            place: np.mean([means[seed] for seed in most])
            for place, means in competing.items()
            if most and most <= set(means)
        }
        for place, mean in means.items():
            found[place] = replace(lines[place], best=bool(mean == max(means.values())))
    return found


def _comparisons(cells: Sequence[TableCell]) -> list[Comparison]:
    """iMAML against the others, and its further rows against its first; if all rows have the same learner, each
    against the first. A family for each of iMAML's rows, or one for all."""
    rows = list({id(cell.row): cell.row for cell in cells}.values())
    alike = len({row.learner for row in rows}) == 1
    if alike:
        pairs = [(row, rows[0]) for row in rows[1:]]
    else:
        by_learner = {row.learner: row for row in rows}
        ours = [row for row in rows if row.learner == "imaml"]
        pairs = [(one, by_learner[name]) for one in ours for name in _OPPONENTS if name in by_learner]
        pairs += [(one, ours[0]) for one in ours[1:]]
    where = {(id(cell.row), cell.shots): cell for cell in cells if cell.runs}
    found = []
    for one, other in pairs:
        for shots in sorted({*one.shots} & {*other.shots}):
            mine, theirs = where.get((id(one), shots)), where.get((id(other), shots))
            test = compare(mine.runs, theirs.runs, mine.target) if mine and theirs else None
            found.append(
                Comparison(
                    first=one.label,
                    second=other.label,
                    shots=shots,
                    test=test,
                    opponent=other.learner or "",
                    family="" if alike else one.label,
                    ran=mine is not None and theirs is not None,
                )
            )
    return found

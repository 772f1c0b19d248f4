"""The report: compares all finished runs in a folder with the paper's tables, as a page and as exported tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from metaseg.data import catalogue
from metaseg.errors import MetasegError, plural
from metaseg.plots.figures import Look, adaptation_curve, look_of
from metaseg.reporting import comparisons
from metaseg.reporting.cells import NO_PAIR, Block, blocks, covers, matrix, trivial
from metaseg.reporting.datasets import export_datasets, read_datasets
from metaseg.reporting.differences import Initial, initial_weights
from metaseg.reporting.exports import export
from metaseg.reporting.findings import differences
from metaseg.reporting.findings import draw as draw_differences
from metaseg.reporting.page import FilledTable, TableFigure, render
from metaseg.reporting.runs import REPORT, Found, read_runs
from metaseg.reporting.shots import OverShots, draw, over_shots
from metaseg.runs.result import Curve
from metaseg.runs.summary import trivial_name
from metaseg.runs.tables import NUMBERS, TableCell, load_table
from metaseg.system import os_errors_explained, replacing

CURVE_WIDTH, PHOTOGRAPH_WIDTH = 900, 620  # pixels in the page; the files in report/figures are larger
_PLACES = (
    *("imaml", "maml", "joint", "fomaml", "anil", "reptile", "scratch"),  # with colours of their own; scratch is black
    *("prototypes", "linear", "pretrained", "pmg", "feyjie", "naive"),
)
"""Learners by their place among the looks of all figures."""


def write_report(folder: Path) -> tuple[Path, Found]:
    """Write folder/report: index.html, and for each table tableN.md, .tex, .csv and its figures.

    Args:
        folder: run directories at any depth.

    Returns:
        The page, and the runs found in the folder.

    Raises:
        MetasegError: if the folder has no readable finished run, or the report cannot be written.
    """
    found = read_runs(folder)
    if not found.runs:
        broken = "".join(f"; {name} is unreadable: {reason}" for name, reason in found.unreadable)
        raise MetasegError(
            f"expected at least one finished run (a directory with result.json) below {folder}, found none{broken}: "
            "run `metaseg train`, or give the folder that contains your runs"
        )
    out = folder / REPORT
    figures = out / "figures"
    with os_errors_explained(out):
        for old in figures.glob("*.png"):  # of an earlier report, perhaps of deleted runs
            old.unlink()
    titles = {name: catalogue.get(name).title for name in catalogue.names()}
    parts = []
    for number in NUMBERS:
        filled = blocks(load_table(number), found.runs)
        export(filled, titles, out)
        begun = any(block.begun for block in filled)
        parts.append(FilledTable(filled[0].table, filled, _pictures(filled, figures, titles) if begun else []))
    _refer_back(parts)
    datasets = read_datasets(folder)
    export_datasets(datasets, out)
    starts = [(group, _starts(group, figures, titles)) for group in initial_weights(found.runs)]
    page = out / "index.html"
    labels: dict[str, str] = {}
    for row in (row for part in parts for row in part.table.rows):
        labels.setdefault(row.learner, row.label)
    curves = over_shots(found.runs)
    summary = [*_differences(parts, figures, titles), *_over_shots(curves, figures, titles, labels)]
    said = [one.sentence(titles) for one in curves]
    text = render(found, parts, titles, [sentence for sentence in said if sentence], summary, starts, datasets)
    with replacing(page) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return page, found


def _differences(parts: Sequence[FilledTable], folder: Path, titles: dict[str, str]) -> list[TableFigure]:
    """The differences between iMAML and the other learners, in all tables."""
    compared = differences([block for part in parts for block in part.blocks])
    if not compared:
        return []
    path = draw_differences(compared, folder / "differences.png", titles)
    caption = (
        "Paired differences in Dice with 95 % intervals: over seeds and groups of images or, dotted, over draws and "
        "groups of images of a single seed. Filled: the interval excludes 0, and p, which needs two seeds and is "
        "corrected for what the table compares at these shots, is below 5 %; hollow: the others."
    )
    names = {run.name for part in parts for block in part.blocks for run in block.runs}
    return [TableFigure("differences", comparisons.embedded(path, CURVE_WIDTH), caption, tuple(sorted(names)))]


def _over_shots(
    curves: Sequence[OverShots], folder: Path, titles: dict[str, str], labels: dict[str, str]
) -> list[TableFigure]:
    """Dice over the number of annotated images, a figure for each pair and target."""
    found = []
    for one in curves:
        where = f"{titles.get(one.target, one.target)}, trained on {one.trained_on(titles)}, {one.mixing} tasks"
        path = folder / f"shots_{one.pair}_{one.mixing}_{one.target}.png"
        draw(one, path, where, {learner: _look(learner) for learner in one.learners}, labels)
        over = covers(point for curve in one.learners.values() for point in curve.values())
        once = ", ".join(labels.get(learner, learner) for learner in one.once)
        caption = (
            f"Dice over the number of annotated images, {where}, with 95 % intervals over {over}. Networks are trained "
            f"for each number{f', but those of {once} are the same at all numbers' if once else ''}. Dotted: one seed. "
            "Grey: trivial baselines."
        )
        found.append(TableFigure("shots", comparisons.embedded(path, CURVE_WIDTH), caption, one.runs))
    return found


def _pictures(filled: Sequence[Block], folder: Path, titles: dict[str, str]) -> list[TableFigure]:
    """A table's adaptation curves, distributions, learning curves and overlays."""
    table = filled[0].table
    variants, looks = Counter[str](), dict[str, Look]()
    for row in table.rows:
        looks[row.label] = _look(row.learner, variants[row.learner])
        variants[row.learner] += 1
    found = []
    for block in filled:
        for shots in sorted({cell.shots for cell in block.cells}):
            cells = [cell for cell in block.cells if cell.shots == shots and cell.runs]
            if not cells:
                continue
            where = f"table {table.number}: {titles.get(block.target, block.target)}, {shots} shots"
            stem = f"table{table.number}_{block.target}_{shots}shot"
            found += _adaptation(cells, folder / f"{stem}_adaptation.png", where, looks)
            values = {_of_seeds(cell): matrix(cell.runs, cell.target).mean().to_numpy(float) for cell in cells}
            styles = {_of_seeds(cell): looks[cell.row.label] for cell in cells}
            path = comparisons.violins(values, folder / f"{stem}_images.png", where, styles)
            caption = f"Dice of single images after adaptation, {where}: each is the mean over support draws and seeds."
            found.append(TableFigure("images", comparisons.embedded(path, CURVE_WIDTH), caption, _names(cells)))
    found += _learning_curves(filled[0], folder, looks)
    for block in filled:
        found += _overlays(block, titles)
    return found


def _look(learner: str, variant: int = 0) -> Look:
    return look_of(_PLACES.index(learner) if learner in _PLACES else len(_PLACES), variant)


def _of_seeds(cell: TableCell) -> str:
    """A system with the number of its seeds, which may differ between systems."""
    return f"{cell.row.label} ({plural(len({run.settings['seed'] for run in cell.runs}), 'seed')})"


def _adaptation(cells: Sequence[TableCell], path: Path, where: str, looks: Mapping[str, Look]) -> list[TableFigure]:
    target = cells[0].target
    curves = {
        _of_seeds(cell): comparisons.mean_curve([run.result.targets[target].curve for run in cell.runs])
        for cell in cells
    }
    known = {label: curve for label, curve in curves.items() if curve is not None}
    styles = {_of_seeds(cell): looks[cell.row.label] for cell in cells}
    if not any(cell.row.learner == "scratch" for cell in cells):
        beside = {
            run.settings["seed"]: run.result.scratch[target].curve
            for cell in cells
            for run in cell.runs
            if target in run.result.scratch and run.result.scratch[target].curve.steps
        }
        curve = comparisons.mean_curve(list(beside.values()))
        if curve is not None:
            known[NO_PAIR], styles[NO_PAIR] = curve, _look("scratch")
    if not known:
        return []
    # With more than a few series, bands hide each other.
    if len(known) > 3:
        known = {label: Curve(steps=curve.steps, dsc=curve.dsc) for label, curve in known.items()}
    floors = trivial([run for cell in cells if cell.row.learner != "naive" for run in cell.runs], target)
    names = {trivial_name(key): value for key, value in floors.items()}
    adaptation_curve(known, path, names, where, styles)
    band = " Bands: 95 % intervals." if any(curve.low for curve in known.values()) else ""
    caption = (
        f"Dice over adaptation steps, {where}, measured at the numbers below the axis on a subset of the images "
        "(evaluation.curve_limit); mean over the seeds that each system has. Coloured dashes without a curve: systems "
        f"that do not adapt; grey lines: trivial baselines.{band}"
    )
    return [TableFigure("adaptation", comparisons.embedded(path, CURVE_WIDTH), caption, _names(cells))]


def _starts(group: Initial, folder: Path, titles: dict[str, str]) -> list[TableFigure]:
    """Dice over adaptation steps from each of a group's initial weights."""
    found = []
    variants = sorted(group.variants.items())
    for target in variants[0][1][0].targets:
        curves = {
            name: comparisons.mean_curve([run.result.targets[target].curve for run in some]) for name, some in variants
        }
        known = {name: curve for name, curve in curves.items() if curve is not None}
        if not known:
            continue
        where = f"{titles.get(target, target)}, {group.shots} shots"
        path = folder / f"initial_{group.learner.replace(', ', '_')}_{group.shots}shot_{target}.png"
        adaptation_curve(known, path, title=where)
        caption = f"Dice over adaptation steps from different initial weights: {group.learner}, {where}."
        names = tuple(sorted(run.name for _, runs in variants for run in runs))
        found.append(TableFigure("initial", comparisons.embedded(path, CURVE_WIDTH), caption, names))
    return found


def _learning_curves(block: Block, folder: Path, looks: Mapping[str, Look]) -> list[TableFigure]:
    cells = [cell for cell in block.cells if cell.runs and cell.row.learner in ("maml", "imaml")]
    groups = [(cell.row.label, cell.shots, cell.runs) for cell in cells]
    path = folder / f"table{block.table.number}_learning_curves.png"
    if not groups or comparisons.epoch_curves(groups, path, looks) is None:
        return []
    caption = (
        "Loss and Dice of MAML and iMAML after the inner loop over epochs, as the paper's figure 2; validation is on "
        "held-out images of the source pair, never on the target. Mean over the seeds that each has."
    )
    return [TableFigure("epochs", comparisons.embedded(path, CURVE_WIDTH), caption, _names(cells))]


def _overlays(block: Block, titles: dict[str, str]) -> list[TableFigure]:
    """iMAML's best, median and worst image at the largest number of shots, from the first run that drew them."""
    cells = sorted((cell for cell in block.cells if cell.row.learner == "imaml"), key=lambda cell: -cell.shots)
    for cell in cells:
        for run in cell.runs:
            path = run.directory.overlays(cell.target)
            if not path.is_file():
                continue
            caption = (
                f"{cell.row.label} on {titles.get(cell.target, cell.target)}, {cell.shots} shots, seed "
                f"{run.settings['seed']}, first draw: best, median and worst image, as the paper's figures 3 and 4."
            )
            try:
                picture = comparisons.embedded(path, PHOTOGRAPH_WIDTH, photograph=True)
            except (OSError, ValueError):
                caption = f"{path.name} of {run.name} cannot be read as a picture."
                return [TableFigure("missing", "", caption, (run.name,))]
            return [TableFigure("overlays", picture, caption, (run.name,))]
    return []


def _names(cells: Iterable[TableCell]) -> tuple[str, ...]:
    return tuple(sorted({run.name for cell in cells for run in cell.runs}))


def _refer_back(parts: list[FilledTable]) -> None:
    """Show learning curves once for tables that share their training runs."""
    shown: dict[tuple[str, ...], int] = {}
    for part in parts:
        for place, picture in enumerate(part.pictures):
            if picture.kind != "epochs":
                continue
            if picture.runs in shown:
                text = f"Learning curves: the same training runs as in table {shown[picture.runs]}."
                part.pictures[place] = TableFigure("reference", "", text, picture.runs)
            else:
                shown[picture.runs] = part.table.number

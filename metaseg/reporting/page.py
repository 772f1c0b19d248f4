"""The page: prepares runs and tables for the template, which holds all markup."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from metaseg.reporting import exports
from metaseg.reporting.cells import Block, Comparison, Line, covers, known_mean
from metaseg.reporting.differences import Initial, described, settings_of, uneven
from metaseg.reporting.findings import findings
from metaseg.reporting.runs import Found, Run
from metaseg.runs.result import Weights
from metaseg.runs.summary import TRIVIAL, percent
from metaseg.runs.tables import Table

CAPSULE = "kvasir_capsule"


class TableFigure(NamedTuple):
    """A figure of a table: kind, data URI, caption, and the runs it shows.

    Kinds: adaptation, differences, epochs, images, initial, overlays, shots; reference and missing are text only.
    """

    kind: str
    uri: str
    caption: str
    runs: tuple[str, ...]


class FilledTable(NamedTuple):
    """A table with its blocks and figures; without runs there are no figures."""

    table: Table
    blocks: list[Block]
    pictures: list[TableFigure]


def render(
    found: Found,
    parts: Sequence[FilledTable],
    titles: Mapping[str, str],
    said: Sequence[str],
    summary: Sequence[TableFigure],
    starts: Sequence[tuple[Initial, list[TableFigure]]],
    datasets: Sequence[Mapping[str, str]],
) -> str:
    """The whole page.

    Args:
        found: the runs, and the directories that were unusable.
        parts: the tables.
        titles: display names of targets.
        said: sentences on Dice over the number of annotated images.
        summary: figures below the findings: differences, and Dice over the number of annotated images.
        starts: groups of runs that differ only in their initial weights, with their figures.
        datasets: rows of table 1.
    """
    environment = Environment(
        loader=PackageLoader("metaseg.reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"percent": percent, "signed": exports.signed}
    runs = found.runs
    return environment.get_template("report.html").render(
        findings=[*findings([block for part in parts for block in part.blocks]), *said],
        size=size_of(runs),
        synthetic=sorted(run.name for run in runs if (run.settings.get("data") or {}).get("source") == "synthetic"),
        parts=[_part(part, titles) for part in parts if any(block.begun for block in part.blocks)],
        empty=[part.table for part in parts if not any(block.begun for block in part.blocks)],
        summary=summary,
        trivial=TRIVIAL,
        capsule=capsule_facts(parts),
        weights=weights_of(runs, parts),
        strengths=strengths_of(runs),
        initial=[_initial(group, titles) | {"pictures": pictures} for group, pictures in starts],
        datasets=datasets,
        others=_others(runs, parts, titles),
        settings=settings_of(runs),
        ledger=[_ledger(run) for run in runs],
        versions=_versions(runs),
        unreadable=found.unreadable,
        unfinished=found.unfinished,
    )


def size_of(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """The size of the runs: (quantity, values over all runs)."""
    trained = [run for run in runs if run.outer_steps]
    facts: list[tuple[str, Iterable[Any]]] = [
        ("image side, pixels", (_at(run, "data", "size") for run in runs)),
        ("network", (described(run.settings) for run in runs)),
        ("epochs trained", (run.epochs for run in trained)),
        ("outer steps", (run.outer_steps for run in trained)),
        ("protocol", (_at(run, "protocol", "name") for run in runs)),
        ("initial weights", (_pretrained(run) for run in runs)),
        ("start of meta-training", (_start(run) for run in trained)),
        ("batch-norm statistics", (_norm(_at(run, "model", "norm")) for run in runs)),
        ("images scored at most", (_at(run, "evaluation", "limit") or "all" for run in runs)),
        ("seeds", (run.settings["seed"] for run in runs)),
    ]
    return [(name, _values(values)) for name, values in facts]


def _start(run: Run) -> str | None:
    """Where training started; of a checkpoint the folder of its run, because each pair and seed has its own."""
    path = Path(run.result.start or "")
    return f"checkpoints in {path.parents[2]}" if path.suffix == ".ckpt" and len(path.parents) > 3 else run.result.start


def _pretrained(run: Run) -> str:
    weights = run.result.weights
    return str(_at(run, "model", "init")) if weights is None else f"{weights.name} ({weights.trained_on})"


def capsule_facts(parts: Sequence[FilledTable]) -> dict[str, Any]:
    """Our runs' all-foreground score on KvasirCapsule-SEG (None without runs), and the paper's best figure."""
    blocks = [block for part in parts for block in part.blocks if block.target == CAPSULE]
    ours = [
        line.trivial["all_foreground"] for block in blocks for line in block.lines if "all_foreground" in line.trivial
    ]
    published = [line.paper for block in blocks for line in block.lines if line.paper is not None]
    return {"ours": statistics.fmean(ours) if ours else None, "paper": max(published) if published else None}


def weights_of(runs: Sequence[Run], parts: Sequence[FilledTable]) -> list[dict[str, str]]:
    """Pre-trained weights by system; a run outside the tables is listed under its learner's name."""
    rows: dict[str, list[str]] = {}
    for cell in (cell for part in parts for block in part.blocks for cell in block.cells):
        for run in cell.runs:
            rows.setdefault(run.name, []).append(cell.row.label)
    systems: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for run in runs:
        if run.result.weights is not None:
            shown = tuple((key, str(value)) for key, value in run.result.weights if key in Weights.model_fields)
            systems.setdefault(shown, []).extend(rows.get(run.name, [run.learner]))
    return [{**dict(record), "systems": ", ".join(dict.fromkeys(names))} for record, names in systems.items()]


def strengths_of(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The learned proximal strengths of each run that has them, largest first: (layer or part, λ)."""
    return [
        {"run": run.name, "rows": [(group, f"{lam:.3g}") for group, lam in run.result.strongest]}
        for run in runs
        if run.result.strongest
    ]


def _part(part: FilledTable, titles: Mapping[str, str]) -> dict[str, Any]:
    return {
        "table": part.table,
        "blocks": [_block(block, titles) for block in part.blocks],
        "pictures": part.pictures,
        "uneven": uneven(part.blocks),
        "left_out": sorted({reason for block in part.blocks for cell in block.cells for reason in cell.left_out}),
    }


def _block(block: Block, titles: Mapping[str, str]) -> dict[str, Any]:
    spans = Counter(id(line.row) for line in block.lines)
    lines = []
    previous = None
    for line in block.lines:
        first = line.row is not previous
        lines.append({"line": line, "texts": exports.texts(line), "first": first, "span": spans[id(line.row)]})
        previous = line.row
    return {
        "target": titles.get(block.target, block.target),
        "lines": lines,
        "over": covers(line.ours for line in block.lines if line.ours is not None),
        "by_seed": [
            (
                f"{line.row.label}, {line.shots[0]} shots",
                ", ".join(percent(mean) for mean in line.ours.by_seed.values()),
            )
            for line in block.lines
            if line.ours is not None and line.ours.seeds > 1
        ],
        "stages": [_stages(line) for line in block.lines if line.stages is not None],
        "comparisons": [_comparison(one) for one in block.comparisons],
        "compared_over": covers(one.test for one in block.comparisons if one.test is not None),
    }


def _stages(line: Line) -> dict[str, str]:
    found, mine = line.stages, line.ours
    assert found is not None
    return {
        "system": line.row.label,
        "shots": str(line.shots[0]),
        "before": percent(found.before),
        "inner": percent(found.inner),
        "alone": percent(found.alone),
        "tested": percent(mine.dice.mean if mine else None),
        "failed": "–" if found.failed is None else f"{100 * found.failed:.1f} %",
        "unsolved": "–" if found.unsolved is None else f"{100 * found.unsolved:.0f} %",
        "passes": "–" if found.passes is None else f"{found.passes:,.0f}",
        "minutes": "–" if found.seconds is None else f"{found.seconds / 60:.1f}",
    }


def _comparison(one: Comparison) -> dict[str, str]:
    found = {"pair": f"{one.first} − {one.second}", "shots": str(one.shots)}
    if one.test is None:
        return {
            **found,
            "difference": "–",
            "interval": "no common images and draws of the same data",
            "seeds": "",
            "p": "",
            "corrected": "",
            "counts": "",
        }
    mean, low, high = one.test.difference
    return {
        **found,
        "difference": exports.signed(mean),
        "interval": exports.signed_interval(low, high),
        "seeds": str(one.test.seeds),
        "p": "–" if math.isnan(one.test.p) else probability(one.test.p),
        "corrected": "–" if math.isnan(one.p) else probability(one.p),
        "counts": f"{one.test.images} ({one.test.ahead} / {one.test.behind}), {one.test.draws}",
    }


def probability(p: float) -> str:
    """A p value with two digits, or a bound if it is very small."""
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.01 else f"{p:.2f}"


def _initial(group: Initial, titles: Mapping[str, str]) -> dict[str, Any]:
    lines = []
    for start, runs in sorted(group.variants.items()):
        for target in runs[0].targets:
            scored = [run.result.targets[target] for run in runs if target in run.targets]
            lines.append(
                {
                    "start": start,
                    "target": titles.get(target, target),
                    "before": percent(known_mean(scores.dsc_before.mean for scores in scored if scores.dsc_before)),
                    "after": percent(known_mean(scores.dsc.mean for scores in scored)),
                    "interval": exports.interval(scored[0].dsc.low, scored[0].dsc.high) if len(scored) == 1 else "",
                    "seeds": str(len(scored)),
                }
            )
    return {"learner": group.learner, "shots": group.shots, "lines": lines}


def _others(runs: Sequence[Run], parts: Sequence[FilledTable], titles: Mapping[str, str]) -> list[dict[str, str]]:
    """Runs outside the tables, with their results."""
    used = {run.name for part in parts for block in part.blocks for run in block.runs}
    return [
        {
            "name": run.name,
            "learner": run.learner,
            "shots": str(run.settings["shots"]),
            "steps": str(run.adapt_steps or "–"),
            "target": titles.get(target, target),
            "before": percent(scores.dsc_before.mean if scores.dsc_before else None),
            "after": percent(scores.dsc.mean),
            "interval": exports.interval(scores.dsc.low, scores.dsc.high),
        }
        for run in runs
        if run.name not in used
        for target, scores in run.result.targets.items()
    ]


def _ledger(run: Run) -> dict[str, str]:
    """A line of the list of runs."""
    result = run.result
    hardware, commit, seconds = result.hardware, result.commit, result.wall_seconds
    peaks = [value for value in result.peak_memory_mib.values() if value is not None]
    return {
        "name": run.name,
        "learner": run.learner,
        "shots": str(run.settings["shots"]),
        "seed": str(run.settings["seed"]),
        "commit": f"{commit[:8]}{' + changes' if result.dirty else ''}" if commit else "–",
        "minutes": "–" if seconds is None else f"{seconds / 60:.1f}",
        "memory": f"{max(peaks):.0f}" if peaks else "–",
        "hardware": ", ".join(gpu.name for gpu in hardware.gpus) or f"{hardware.cpu}, {hardware.cores or '?'} cores",
    }


def _versions(runs: Sequence[Run]) -> list[tuple[str, str]]:
    names = dict.fromkeys(name for run in runs for name in run.result.versions)
    return [(name, _values(run.result.versions.get(name) for run in runs)) for name in names]


def _values(values: Iterable[Any]) -> str:
    known = list(dict.fromkeys(value for value in values if value is not None))
    if known and all(isinstance(value, int | float) for value in known):
        known.sort()
        if len(known) > 6:
            return f"{known[0]} to {known[-1]}"
    return ", ".join(map(str, known)) or "–"


def _norm(norm: Any) -> str | None:
    """The batch-norm statistics as text: one kind, or one each for encoder and decoder."""
    if not isinstance(norm, Mapping):
        return None if norm is None else str(norm)
    kinds = list(dict.fromkeys(norm.values()))
    return kinds[0] if len(kinds) == 1 else ", ".join(f"{kind} ({part})" for part, kind in norm.items())


def _at(run: Run, group: str, key: str) -> Any:
    return (run.settings.get(group) or {}).get(key)

"""The paper's tables as data: which runs fill which cell, by their settings.

A table is conf/experiment/tableN.yaml. Its key `table` holds
    number, title   as in the paper
    fixed           overrides of all its runs
    columns         targets shown, in this order
    paper_rows      the paper's systems, in its order
    further_rows    systems beyond the paper's; those of _systems.yaml where `defaults` names it
and a row
    label           in tables
    overrides       what makes the system; they take precedence over `fixed`. A row that names its own `target` fills
                    only these columns
    shots           a line of the table for each
    paper           optional: target → the published Dice in % for each of `shots`, null where there is none
    quoted          optional: the published figures are quotations or of unknown splits
    trains          optional: false where nothing is learnt from the pair

The same definition serves both ways: metaseg.sweeps makes the runs that a table needs, `fill` finds those that are
there. A run is judged by its resolved settings alone, never by the name of its directory.

What does not depend on the pair is run once for all tables: where a row does not train, `pair` and `tasks` are neither
compared; where it trains on the target, `pair`, `tasks.mixing` and `tasks.query` (there is one pool).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import yaml

from metaseg import configuration
from metaseg.errors import MetasegError
from metaseg.runs import schema
from metaseg.runs.settings import WITHOUT_EFFECT, leaves, within

FOLDER = configuration.FOLDER / "experiment"
DATASETS = "table1.json"
"""File of table 1: what a sweep found of the datasets."""
NUMBERS = (2, 3, 4, 5, 6, 7)
"""Tables of results; table 1 lists the datasets."""

_NO_PART = (
    *WITHOUT_EFFECT,
    *("seed", "learner.seed", "target", "pair.target", "train", "ckpt_path", "protocol", "scale", "evaluation.scratch"),
    *("evaluation.batch", "evaluation.curve", "evaluation.curve_limit"),
)
"""Settings that cannot change a score, or that others are made of."""
_SIZE = ("protocol.name", "data.source", "data.size", "model.name", "model.features")
_MISSING = object()


@dataclass(frozen=True)
class Row:
    """One system of a table, as the module's docstring describes; `paper`: target → a value for each of `shots`."""

    label: str
    overrides: tuple[str, ...]
    shots: tuple[int, ...]
    paper: Mapping[str, tuple[float | None, ...]]
    quoted: bool
    trains: bool
    further: bool

    def published(self, target: str, shots: int) -> float | None:
        """The paper's Dice in %, None where it has none."""
        values = self.paper.get(target)
        return None if values is None else values[self.shots.index(shots)]

    @property
    def learner(self) -> str:
        """The learner that its overrides name."""
        return _assignments(self.overrides)["learner"]


@dataclass(frozen=True)
class Table:
    """A table's definition; `rows` are the paper's, then the further ones."""

    number: int
    title: str
    fixed: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


class Finished(Protocol):
    """What `fill` needs of a finished run."""

    @property
    def name(self) -> str:
        """Its name, which decides the order of runs."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """The resolved configuration."""

    @property
    def targets(self) -> Iterable[str]:
        """Targets it was tested on."""


class TableCell(NamedTuple):
    """One cell: its runs, one a seed, all with equal settings; and (name, reason) of others that match."""

    row: Row
    shots: int
    target: str
    runs: tuple[Any, ...]
    left_out: tuple[tuple[str, str], ...]


def load_table(number: int, folder: Path = FOLDER) -> Table:
    """Read conf/experiment/table`number`.yaml, with _systems.yaml where its defaults name it.

    Raises:
        MetasegError: it is missing or is not what the module's docstring describes.
    """
    path = folder / f"table{number}.yaml"
    document = _document(path)
    found = dict(document["table"])
    if "_systems" in (document.get("defaults") or []):
        found = {**_document(folder / "_systems.yaml")["table"], **found}
    try:
        rows = [_row(row, further=False) for row in found["paper_rows"]]
        rows += [_row(row, further=True) for row in found.get("further_rows") or []]
        return Table(int(found["number"]), found["title"], tuple(found["fixed"]), tuple(found["columns"]), tuple(rows))
    except (KeyError, TypeError, ValueError) as error:
        raise MetasegError(
            f"{path} should define a table as metaseg/runs/tables.py describes, but has a fault: {error!r}."
        ) from error


def row_is_free(row: Row) -> bool:
    """Whether the row's runs do not depend on the pair."""
    return not row.trains or _assignments(row.overrides).get("learner.train_on") == "target"


def required(table: Table, row: Row) -> dict[str, Any]:
    """Settings that a run needs to belong to the row, path → value; the targets are judged by what was scored."""
    # A row that does not say so is not about networks that have seen the target.
    wanted = {"learner.train_on": "source", **_assignments(table.fixed), **_assignments(row.overrides)}
    return {key: value for key, value in wanted.items() if key != "target" and not within(key, _irrelevant(row))}


def matches(settings: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether resolved settings hold every wanted value; a group (`learner=imaml`) is compared by its `name`."""
    for path, value in wanted.items():
        found = _at(settings, path)
        if isinstance(found, Mapping):
            found = found.get("name", _MISSING)
        if found != value:
            return False
    return True


def numbers_of(settings: schema.Run) -> tuple[int, ...]:
    """Numbers of the tables that a run of these settings fills a line of."""
    targets = set(settings.target)

    def in_row(table: Table, row: Row) -> bool:
        shown = targets & set(table.columns) & set(_assignments(row.overrides).get("target", table.columns))
        return bool(shown) and settings.shots in row.shots and matches(settings.plain, required(table, row))

    tables = [load_table(number) for number in NUMBERS]
    return tuple(table.number for table in tables if any(in_row(table, row) for row in table.rows))


def fill(table: Table, runs: Sequence[Finished]) -> list[TableCell]:
    """All cells of the table, row by row, shots by shots, target by target; those without runs have none.

    A table is of one protocol, network and image size: those that most of its runs have. Several seeds fill a cell
    together. Runs that match but differ in other settings do not: the settings with the most seeds are shown, at a tie
    those that agree most with all other runs. The rest is left out with the reason.
    """
    usual = _usual(runs)
    found = [
        (row, shots, [run for run in runs if matches(run.settings, {**required(table, row), "shots": shots})])
        for row in table.rows
        for shots in row.shots
    ]
    sizes = Counter(_size(run) for _, _, some in found for run in some)
    size = min(sizes, key=lambda one: (-sizes[one], one), default=())
    cells = []
    for row, shots, some in found:
        own = _assignments(row.overrides).get("target")
        for target in [target for target in table.columns if own is None or target in own]:
            here = [run for run in some if target in run.targets]
            shown, left_out = _chosen(row, [run for run in here if _size(run) == size], usual)
            others = [run for run in here if _size(run) != size]
            reasons = tuple((run.name, f"another size or protocol: {_apart(_size(run), size)}") for run in others)
            cells.append(TableCell(row, shots, target, shown, left_out + reasons))
    return cells


def _size(run: Finished) -> tuple[tuple[str, str], ...]:
    """What all runs of a table have to share to be compared."""
    known = leaves(run.settings)
    return tuple((path, repr(value).strip("'")) for path, value in sorted(known.items()) if within(path, _SIZE))


def _apart(one: tuple[tuple[str, str], ...], other: tuple[tuple[str, str], ...]) -> str:
    return ", ".join(f"{path}={value}" for path, value in one if (path, value) not in other)


def identity(settings: Mapping[str, Any], irrelevant: Sequence[str] = ()) -> dict[str, Any]:
    """The settings that can change a score, path → value, less the seed and the groups or values named `irrelevant`."""
    skipped = (*_NO_PART, *irrelevant)
    return {path: value for path, value in leaves(settings).items() if not within(path, skipped)}


def _chosen(row: Row, runs: Sequence[Any], usual: Mapping[str, Any]) -> tuple[tuple[Any, ...], Any]:
    """The runs that fill a cell, one a seed, and (name, reason) of the others."""
    variants: dict[tuple[tuple[str, str], ...], list[Any]] = {}
    for run in sorted(runs, key=lambda run: run.name):
        known = identity(run.settings, _irrelevant(row))
        variants.setdefault(tuple(sorted((path, repr(value)) for path, value in known.items())), []).append(run)
    if not variants:
        return (), ()

    def rank(variant: tuple[tuple[str, str], ...]) -> tuple[int, int]:
        seeds = {run.settings["seed"] for run in variants[variant]}
        return len(seeds), sum(usual.get(path) == value for path, value in variant)

    best = max(variants, key=rank)  # the first of equals, hence by name
    shown: dict[Any, Any] = {}
    left_out = []
    for run in variants.pop(best):
        first = shown.setdefault(run.settings["seed"], run)
        if first is not run:
            left_out.append((run.name, f"same settings and seed as {first.name}"))
    for variant, others in variants.items():
        own, theirs = dict(best), dict(variant)
        changed = [path for path in sorted({*own, *theirs}) if own.get(path) != theirs.get(path)]
        gaps = [path + "=" + theirs.get(path, "absent").strip("'") for path in changed]
        left_out += [(run.name, f"other settings: {', '.join(gaps)}") for run in others]
    return tuple(shown[seed] for seed in sorted(shown, key=str)), tuple(left_out)


def _usual(runs: Sequence[Finished]) -> dict[str, str]:
    """The most frequent value of every setting."""
    counts: dict[str, Counter[str]] = {}
    for run in runs:
        for path, value in leaves(run.settings).items():
            counts.setdefault(path, Counter())[repr(value)] += 1
    return {path: counter.most_common(1)[0][0] for path, counter in counts.items()}


def _irrelevant(row: Row) -> tuple[str, ...]:
    if not row.trains:
        return "pair", "tasks"
    return ("pair", "tasks.mixing", "tasks.query") if row_is_free(row) else ()


def _assignments(overrides: Sequence[str]) -> dict[str, Any]:
    """Hydra's reading of overrides, key → value, so that `1e-3` is the number that a run's settings hold."""
    return dict(_parsed(tuple(overrides)))


@cache
def _parsed(overrides: tuple[str, ...]) -> tuple[tuple[str, Any], ...]:
    from hydra.core.override_parser.overrides_parser import OverridesParser  # a third of a second

    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return tuple((override.key_or_group, override.value()) for override in parsed)


def _at(settings: Mapping[str, Any], path: str) -> Any:
    found: Any = settings
    for part in path.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return _MISSING
        found = found[part]
    return found


def _document(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise MetasegError(f"expected the definition of a table in {path}, but it cannot be read ({error}).") from error
    if not isinstance(document, dict) or not isinstance(document.get("table"), dict):
        raise MetasegError(f"{path} should have a key `table`; metaseg/runs/tables.py describes it.")
    return document


def _row(row: Mapping[str, Any], further: bool) -> Row:
    known = {"label", "overrides", "shots", "paper", "quoted", "trains"}
    if set(row) - known:
        raise ValueError(f"unknown keys {sorted(set(row) - known)} in the row {row.get('label')!r}")
    paper = {target: tuple(values) for target, values in (row.get("paper") or {}).items()}
    for target, values in paper.items():
        if len(values) != len(row["shots"]):
            raise ValueError(f"{row['label']!r} has {len(row['shots'])} shots but {len(values)} figures for {target}")
    return Row(
        label=row["label"],
        overrides=tuple(row["overrides"]),
        shots=tuple(row["shots"]),
        paper=paper,
        quoted=bool(row.get("quoted", False)),
        trains=bool(row.get("trains", True)),
        further=further,
    )

"""The paper's tables as data, and the matching of runs to their cells by settings.

A table is defined in conf/experiment/tableN.yaml. Its key `table` has
    number, title   as in the paper
    fixed           overrides of all its runs
    columns         targets shown, in this order
    paper_rows      the paper's systems, in its order
    further_rows    additional systems; those of _systems.yaml if listed in `defaults`
and a row has
    label           name in tables
    overrides       overrides that define the system; they take precedence over `fixed`. A row with a `target` fills
                    only these columns
    shots           shot counts, one line of the table each
    paper           optional: target → the published Dice in % for each of `shots`, null if there is none
    quoted          optional: the published figures are quotations or of unknown splits
    trains          optional: false if nothing is learnt from the pair

Both directions use this definition: metaseg.sweeps creates the runs that a table needs, and `fill` finds existing ones.
Runs are matched only by their resolved settings, never by the name of their directory.

Runs that do not depend on the pair are shared by all tables: `pair` and `tasks` are not compared for a row that does
not train, nor `pair`, `tasks.mixing` and `tasks.query` for one that trains on the target (a single pool).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from metaseg import configuration
from metaseg.documents import read_yaml
from metaseg.errors import MetasegError
from metaseg.runs import schema
from metaseg.runs.settings import RETIRED, WITHOUT_EFFECT, leaves, within

FOLDER = configuration.FOLDER / "experiment"
DATASETS = "table1.json"
"""File with table 1, the state of the datasets found by a sweep."""
NUMBERS = (2, 3, 4, 5, 6, 7)
"""Numbers of the result tables; table 1 lists the datasets."""

_NO_PART = (
    *WITHOUT_EFFECT,
    *("seed", "learner.seed", "target", "pair.target", "train", "ckpt_path", "protocol", "scale", "evaluation.scratch"),
    *("evaluation.batch", "evaluation.curve", "evaluation.curve_limit"),
    *("model.recipe", "starts.dir", "starts.learner.adapt"),
)
"""Settings that cannot change a score, that only feed into others, or that `fill` handles itself."""
_ABSENT = {"learner.adapt.start_worth": 0, "learner.prior": False, **RETIRED}
"""What runs without these settings did. Earlier versions lack the first two (fine-tuning followed to its end, logits
from even odds), this one the others."""
_SIZE = ("protocol.name", "data.source", "data.size", "model.name", "model.features")
_TESTED = "only tested (train=false): its weights are those of another run, or initial ones"
_MISSING = object()


@dataclass(frozen=True)
class Row:
    """One system of a table, see the module's docstring; `paper`: target → a value for each of `shots`."""

    label: str
    overrides: tuple[str, ...]
    shots: tuple[int, ...]
    paper: Mapping[str, tuple[float | None, ...]]
    quoted: bool
    trains: bool
    further: bool

    def published(self, target: str, shots: int) -> float | None:
        """The paper's Dice in %, or None."""
        values = self.paper.get(target)
        return None if values is None else values[self.shots.index(shots)]

    @property
    def learner(self) -> str:
        """The learner named in the overrides."""
        return _assignments(self.overrides)["learner"]


@dataclass(frozen=True)
class Table:
    """A table's definition; `rows` are the paper's followed by the further ones."""

    number: int
    title: str
    fixed: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


class Finished(Protocol):
    """The attributes of a finished run that `fill` needs."""

    @property
    def name(self) -> str:
        """Name by which runs are sorted."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """The resolved configuration."""

    @property
    def targets(self) -> Iterable[str]:
        """Targets of the meta-test."""


class TableCell(NamedTuple):
    """One cell: its runs, one per seed, with equal settings; and (name, reason) of other matching runs."""

    row: Row
    shots: int
    target: str
    runs: tuple[Any, ...]
    left_out: tuple[tuple[str, str], ...]


def load_table(number: int, folder: Path = FOLDER) -> Table:
    """Read conf/experiment/table`number`.yaml, with _systems.yaml if listed in its defaults.

    Raises:
        MetasegError: it is missing or invalid.
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
            f"{path} should define a table as described in metaseg/runs/tables.py, but is invalid: {error!r}."
        ) from error


def row_is_free(row: Row) -> bool:
    """Whether the row's runs are independent of the pair."""
    return not row.trains or _assignments(row.overrides).get("learner.train_on") == "target"


def required(table: Table, row: Row) -> dict[str, Any]:
    """Settings that a run needs to belong to the row, path → value; targets are matched by what was scored."""
    # Unless a row says otherwise, its networks have not seen the target.
    wanted = {"learner.train_on": "source", **_assignments(table.fixed), **_assignments(row.overrides)}
    return {key: value for key, value in wanted.items() if key != "target" and not within(key, _irrelevant(row))}


def matches(settings: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether resolved settings have every wanted value; a group (`learner=imaml`) is compared by its `name`."""
    for path, value in wanted.items():
        found = _at(settings, path)
        if isinstance(found, Mapping):
            found = found.get("name", _MISSING)
        if found != value:
            return False
    return True


def rows_of(table: Table, runs: Sequence[Mapping[str, Any]]) -> list[tuple[Row, list[int]]]:
    """Each row of the table with the positions of the runs that belong to it.

    A run belongs to the rows whose settings it has, except those that a narrower row, with the same settings and more,
    takes it from.

    Args:
        table: the table.
        runs: the settings of each run.
    """
    wanted = [required(table, row) for row in table.rows]
    found = [{number for number, settings in enumerate(runs) if matches(settings, one)} for one in wanted]
    for one, own in zip(wanted, found, strict=True):
        own.difference_update(*(rest for other, rest in zip(wanted, found, strict=True) if one.items() < other.items()))
    return [(row, sorted(own)) for row, own in zip(table.rows, found, strict=True)]


def numbers_of(settings: schema.Run) -> tuple[int, ...]:
    """Numbers of the tables that contain a row for a run with these settings."""
    targets = set(settings.target)

    def shown(table: Table, row: Row) -> bool:
        columns = targets & set(table.columns) & set(_assignments(row.overrides).get("target", table.columns))
        return bool(columns) and settings.shots in row.shots

    tables, plain = [load_table(number) for number in NUMBERS], settings.plain
    return tuple(
        table.number
        for table in tables
        if any(own and shown(table, row) and _trained(row, plain) for row, own in rows_of(table, [plain]))
    )


def fill(table: Table, runs: Sequence[Finished]) -> list[TableCell]:
    """All cells of the table, by row, then shots, then target, including cells without runs.

    A table has a single protocol, network and image size, the most frequent among its runs. Seeds of the same settings
    share a cell. If matching runs differ in other settings, those with the most seeds are shown, or at a tie those
    closest to all other runs. The rest are left out with a reason; so are test-only runs of a row that trains, whose
    weights may be of other shots or untrained. A finished cell that a sweep tests again still has `train: true`.
    """
    usual = _usual(runs)
    found = [
        (row, shots, [runs[number] for number in own if runs[number].settings.get("shots") == shots])
        for row, own in rows_of(table, [run.settings for run in runs])
        for shots in row.shots
    ]
    sizes = Counter(_size(run) for row, _, some in found for run in some if _trained(row, run.settings))
    size = min(sizes, key=lambda one: (-sizes[one], one), default=())
    cells = []
    for row, shots, some in found:
        own = _assignments(row.overrides).get("target")
        for target in [target for target in table.columns if own is None or target in own]:
            here = [run for run in some if target in run.targets]
            trained = [run for run in here if _trained(row, run.settings)]
            shown, left_out = _chosen(row, [run for run in trained if _size(run) == size], usual)
            others = [run for run in trained if _size(run) != size]
            reasons = [(run.name, f"different size or protocol: {_apart(_size(run), size)}") for run in others]
            reasons += [(run.name, _TESTED) for run in here if not _trained(row, run.settings)]
            cells.append(TableCell(row, shots, target, shown, (*left_out, *reasons)))
    return cells


def _trained(row: Row, settings: Mapping[str, Any]) -> bool:
    """Whether a run trained the weights that it tested, or the row needs no training."""
    return not row.trains or bool(settings.get("train", True))


def _size(run: Finished) -> tuple[tuple[str, str], ...]:
    """The settings that all runs of a table must share."""
    known = leaves(run.settings)
    return tuple((path, repr(value).strip("'")) for path, value in sorted(known.items()) if within(path, _SIZE))


def _apart(one: tuple[tuple[str, str], ...], other: tuple[tuple[str, str], ...]) -> str:
    return ", ".join(f"{path}={value}" for path, value in one if (path, value) not in other)


def identity(settings: Mapping[str, Any], irrelevant: Sequence[str] = ()) -> dict[str, Any]:
    """The settings that can change a score, path → value, without the seed and the paths in `irrelevant`."""
    skipped = (*_NO_PART, *irrelevant)
    return {path: value for path, value in (_ABSENT | leaves(settings)).items() if not within(path, skipped)}


def in_common(row: Row, path: str) -> bool:
    """Whether a setting should be equal in all runs of a table because it can change a score of this row.

    Its learner, its overrides and the shots are meant to differ. `protocol` only feeds into others, but is the same for
    all learners, so it shows which of their settings another version had.
    """
    if within(path, ("protocol",)):  # an untrained start is worth no images
        return row.trains or (within(path, ("protocol.adapt",)) and path != "protocol.adapt.start_worth")
    meant = ("learner", "shots", *_assignments(row.overrides), *_irrelevant(row))
    training = () if row.trains else ("start", "starts", "trainer")
    return not within(path, (*_NO_PART, *meant, *training))


def _chosen(row: Row, runs: Sequence[Any], usual: Mapping[str, Any]) -> tuple[tuple[Any, ...], Any]:
    """The runs that fill a cell, one per seed, and (name, reason) of the others."""
    variants: dict[tuple[tuple[str, str], ...], list[Any]] = {}
    for run in sorted(runs, key=lambda run: run.name):
        known = identity(run.settings, _irrelevant(row))
        variants.setdefault(tuple(sorted((path, repr(value)) for path, value in known.items())), []).append(run)
    if not variants:
        return (), ()

    def rank(variant: tuple[tuple[str, str], ...]) -> tuple[int, int]:
        seeds = {run.settings["seed"] for run in variants[variant]}
        return len(seeds), sum(usual.get(path) == value for path, value in variant)

    best = max(variants, key=rank)  # ties: the first by name
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
        left_out += [(run.name, f"different settings: {', '.join(gaps)}") for run in others]
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
    """Overrides parsed by Hydra, key → value, so that `1e-3` becomes the same number as in a run's settings."""
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
        document = read_yaml(path)
    except (OSError, ValueError) as error:
        raise MetasegError(f"expected the definition of a table in {path}, but it cannot be read ({error}).") from error
    if not isinstance(document, dict) or not isinstance(document.get("table"), dict):
        raise MetasegError(f"{path} should have a key `table`, as described in metaseg/runs/tables.py.")
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

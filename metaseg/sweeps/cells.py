"""The cells of a sweep: training runs with their tests, named by the settings that distinguish them. Pure functions.

A table of conf/experiment is a list of rows; a row has one cell per shot count and seed. On the command line, a key
that a row sets (learner, shots, or one of its overrides) selects rows; any other key changes all cells, and several
values multiply them.
"""

import hashlib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from metaseg.errors import MetasegError
from metaseg.runs.settings import WITHOUT_EFFECT, within
from metaseg.runs.tables import Table

_OF_THE_SWEEP = ("scale", "protocol")
"""Settings that are already part of the name of a table's sweep directory."""
_NO_NAME = ("experiment", "trainer")
"""Settings that no cell is named by."""
_LONGEST = 150
"""Longest directory name in characters; most file systems allow 255 bytes."""


@dataclass(frozen=True)
class Choice:
    """A key on the command line with one value, or several to sweep over, as written."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        name: its directory below the sweep's; equal for equal cells of different tables.
        overrides: key → value, as on a command line.
        seedless: the name without the seed; equal for cells that differ only in seed.
    """

    name: str
    overrides: tuple[tuple[str, str], ...]
    seedless: str

    def arguments(self) -> list[str]:
        """The overrides as command-line arguments."""
        return [f"{key}={value}" for key, value in self.overrides]


def of_multirun(choices: Sequence[Choice]) -> list[Cell]:
    """All combinations of the choices, named by their overrides; the last one counts if a key is repeated."""
    cells = []
    choices = list({choice.key: choice for choice in choices}.values())
    for values in itertools.product(*(choice.values for choice in choices)):
        overrides = tuple((choice.key, value) for choice, value in zip(choices, values, strict=True))
        named = [(key, value) for key, value in overrides if not within(key, WITHOUT_EFFECT) and key not in _NO_NAME]
        name, seedless = (
            _safe(",".join(f"{key}={value}" for key, value in named if key not in left_out)) or "defaults"
            for left_out in ((), ("seed",))
        )
        cells.append(Cell(name, overrides, seedless))
    return _apart(cells)


def of_tables(tables: Iterable[Table], choices: Sequence[Choice], seeds: Sequence[int]) -> list[Cell]:
    """The distinct cells of tables.

    Args:
        tables: tables of conf/experiment; a row's overrides take precedence over the fixed ones.
        choices: the choices on the command line.
        seeds: seeds if the command line has none.

    Raises:
        MetasegError: no cell matches the choices.
    """
    given = {choice.key: choice.values for choice in choices}
    several = [key for key in ("experiment", *_OF_THE_SWEEP) if len(given.get(key, ())) > 1]
    if several:
        raise MetasegError(
            f"A sweep of tables takes a single {several[0]}, found {','.join(given[several[0]])}; run one command each."
        )
    seeds_wanted = given.pop("seed", tuple(str(seed) for seed in seeds))
    given.pop("experiment", None)  # it defines the sweep; a cell is a single run
    cells: list[Cell] = []
    for table in tables:
        fixed = _pairs(table.fixed)
        for row in table.rows:
            own = _pairs(row.overrides)
            for shots, seed in itertools.product(row.shots, seeds_wanted):
                chosen = own | {"shots": str(shots)}
                if any(_bare(value) not in map(_bare, given.get(key, (value,))) for key, value in chosen.items()):
                    continue
                free = [(key, values) for key, values in given.items() if key not in chosen]
                for combination in itertools.product(*(values for _, values in free)):
                    added = dict(zip((key for key, _ in free), combination, strict=True))
                    settings = fixed | chosen | added | {"seed": seed}
                    named = {key: value for key, value in added.items() if key not in (*_OF_THE_SWEEP, *_NO_NAME)}
                    name, seedless = (_name(settings, own, named, with_seed) for with_seed in (True, False))
                    cells.append(Cell(name, tuple(settings.items()), seedless))
    if not cells:
        said = " ".join(f"{key}={','.join(values)}" for key, values in given.items())
        raise MetasegError(f"No cell of the table matches {said}; choose learners and shots of the table.")
    return _apart(cells)


def _pairs(overrides: Iterable[str]) -> dict[str, str]:
    parts = (override.partition("=") for override in overrides)
    return {key: value for key, _, value in parts}


def _apart(cells: Iterable[Cell]) -> list[Cell]:
    """Remove duplicate cells.

    Raises:
        MetasegError: two different cells would share a directory.
    """
    found: dict[str, Cell] = {}
    for cell in cells:
        other = found.setdefault(cell.name, cell)
        if dict(other.overrides) != dict(cell.overrides):
            raise MetasegError(
                f"Two cells would share the directory {cell.name}: {' '.join(other.arguments())} and "
                f"{' '.join(cell.arguments())}; run them as two sweeps with different hydra.sweep.dir."
            )
    return list(found.values())


def _bare(value: str) -> str:
    """A value for comparison, without brackets and spaces."""
    return re.sub(r"[\[\] ]", "", value)


def _name(settings: Mapping[str, str], own: Mapping[str, str], named: Mapping[str, str], with_seed: bool) -> str:
    """<pair>_<mixing>/<learner>_<shots>shot_<other distinguishing settings>_seed<seed>; without a pair: alone/…

    Args:
        settings: all overrides of the cell.
        own: overrides of its row.
        named: overrides on the command line.
        with_seed: append the seed.
    """
    pair = settings.get("pair")
    folder = "alone" if pair in (None, "none") else f"{pair}_{settings.get('tasks.mixing', 'exclusive')}"
    general = ("learner", "pair", "tasks.mixing", "tasks.query")
    apart = [
        f"{key.rpartition('.')[2]}={value}"
        for key, value in own.items()
        if key not in general and (key != "target" or "learner.train_on" in own)
    ]
    apart += [f"{key}={value}" for key, value in named.items() if not within(key, WITHOUT_EFFECT)]
    parts = [
        settings["learner"],
        f"{settings['shots']}shot",
        *apart,
        *([f"seed{settings['seed']}"] if with_seed else []),
    ]
    return f"{folder}/{_safe('_'.join(parts))}"


def _safe(name: str) -> str:
    """A portable file name; long or altered names end in a hash."""
    plain = _bare(name)
    safe = re.sub(r"[^\w.=,+-]", "-", plain)
    if safe == plain and len(safe) <= _LONGEST:
        return safe
    return f"{safe[: _LONGEST - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"

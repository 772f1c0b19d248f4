"""The cells of a sweep: one training run with its tests each, named by what sets it apart. Pure functions.

A table of conf/experiment is a list of rows; a row stands for one cell a shot count and seed. What the command line
says about a key that a row sets (learner, shots, or one of its overrides) chooses among the rows; about any other key
it changes all cells, and several values multiply them.
"""

import hashlib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from metaseg.errors import MetasegError
from metaseg.runs.settings import WITHOUT_EFFECT, within
from metaseg.runs.tables import Table

_OF_THE_SWEEP = ("experiment", "scale", "protocol")
"""What the directory of a table's sweep is named by already."""
_LONGEST = 150
"""Characters of a directory's name; most file systems take 255 bytes."""


@dataclass(frozen=True)
class Choice:
    """What the command line says about one key: one value, or several to sweep over, as they were written."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        name: its directory below that of the sweep; equal for equal cells of different tables.
        overrides: key → value, as on a command line.
        seedless: the name without its seed; equal for cells that differ in nothing else.
    """

    name: str
    overrides: tuple[tuple[str, str], ...]
    seedless: str

    def arguments(self) -> list[str]:
        """The overrides as a command line has them."""
        return [f"{key}={value}" for key, value in self.overrides]


def of_multirun(choices: Sequence[Choice]) -> list[Cell]:
    """All combinations of what was chosen, the last time where a key was given twice; named by their overrides."""
    cells = []
    choices = list({choice.key: choice for choice in choices}.values())
    for values in itertools.product(*(choice.values for choice in choices)):
        overrides = tuple((choice.key, value) for choice, value in zip(choices, values, strict=True))
        named = [(key, value) for key, value in overrides if not within(key, WITHOUT_EFFECT) and key != "trainer"]
        name, seedless = (
            _safe(",".join(f"{key}={value}" for key, value in named if key not in left_out)) or "defaults"
            for left_out in ((), ("seed",))
        )
        cells.append(Cell(name, overrides, seedless))
    return _apart(cells)


def of_tables(tables: Iterable[Table], choices: Sequence[Choice], seeds: Sequence[int]) -> list[Cell]:
    """The cells of tables, each once.

    Args:
        tables: those of conf/experiment; a row's own overrides go before the fixed ones.
        choices: the command line's.
        seeds: where the command line names none.

    Raises:
        MetasegError: if nothing is left of the tables.
    """
    given = {choice.key: choice.values for choice in choices}
    several = [key for key in _OF_THE_SWEEP if len(given.get(key, ())) > 1]
    if several:
        raise MetasegError(
            f"A sweep of tables has one {several[0]}, found {','.join(given[several[0]])}; give one a command."
        )
    seeds_wanted = given.pop("seed", tuple(str(seed) for seed in seeds))
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
                    named = {key: value for key, value in added.items() if key not in (*_OF_THE_SWEEP, "trainer")}
                    name, seedless = (_name(settings, own, named, with_seed) for with_seed in (True, False))
                    cells.append(Cell(name, tuple(settings.items()), seedless))
    if not cells:
        said = " ".join(f"{key}={','.join(values)}" for key, values in given.items())
        raise MetasegError(f"No cell of the table is left with {said}; choose learners and shots that it has.")
    return _apart(cells)


def _pairs(overrides: Iterable[str]) -> dict[str, str]:
    parts = (override.partition("=") for override in overrides)
    return {key: value for key, _, value in parts}


def _apart(cells: Iterable[Cell]) -> list[Cell]:
    """Each cell once.

    Raises:
        MetasegError: if two that differ would share a directory.
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
    """A value for comparison: a list of one is that one, spaces do not count."""
    return re.sub(r"[\[\] ]", "", value)


def _name(settings: Mapping[str, str], own: Mapping[str, str], named: Mapping[str, str], with_seed: bool) -> str:
    """<pair>_<mixing>/<learner>_<shots>shot_<what else sets it apart>_seed<seed>; without a pair: alone/…

    Args:
        settings: all its overrides.
        own: those of its row.
        named: those of the command line.
        with_seed: whether the seed stands at the end.
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
    """A name that every file system takes; one that is long, or had to be changed, ends in its hash."""
    plain = _bare(name)
    safe = re.sub(r"[^\w.=,+-]", "-", plain)
    if safe == plain and len(safe) <= _LONGEST:
        return safe
    return f"{safe[: _LONGEST - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"

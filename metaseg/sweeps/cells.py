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
from metaseg.reporting.tables import Table

_UNNAMED = ("data.root", "data.workers", "logger", "trainer", "experiment", "scale")
"""Settings that do not tell one cell of a sweep from another."""
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
    """

    name: str
    overrides: tuple[tuple[str, str], ...]

    def arguments(self) -> list[str]:
        """The overrides as a command line has them."""
        return [f"{key}={value}" for key, value in self.overrides]


def of_multirun(choices: Sequence[Choice]) -> list[Cell]:
    """All combinations of what was chosen; named by their overrides."""
    cells = []
    for values in itertools.product(*(choice.values for choice in choices)):
        overrides = tuple((choice.key, value) for choice, value in zip(choices, values, strict=True))
        named = [(key, value) for key, value in overrides if not key.startswith(_UNNAMED)]
        cells.append(Cell(_safe(",".join(f"{key}={value}" for key, value in named)) or "defaults", overrides))
    return cells


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
    seeds_wanted = given.pop("seed", tuple(str(seed) for seed in seeds))
    cells: dict[str, Cell] = {}
    for table in tables:
        fixed = _pairs(table.fixed)
        for row in table.rows:
            own = _pairs(row.overrides)
            for shots, seed in itertools.product(row.shots, seeds_wanted):
                chosen = own | {"shots": str(shots)}
                if any(value not in given.get(key, (value,)) for key, value in chosen.items()):
                    continue
                free = [(key, values) for key, values in given.items() if key not in chosen]
                for combination in itertools.product(*(values for _, values in free)):
                    added = dict(zip((key for key, _ in free), combination, strict=True))
                    settings = fixed | chosen | added | {"seed": seed}
                    swept = {key: added[key] for key, values in free if len(values) > 1}
                    name = _name(settings, own | swept)
                    cells.setdefault(name, Cell(name, tuple(settings.items())))
    if not cells:
        said = " ".join(f"{key}={','.join(values)}" for key, values in given.items())
        raise MetasegError(f"No cell of the table is left with {said}; choose learners and shots that it has.")
    return list(cells.values())


def _pairs(overrides: Iterable[str]) -> dict[str, str]:
    parts = (override.partition("=") for override in overrides)
    return {key: value for key, _, value in parts}


def _name(settings: Mapping[str, str], own: Mapping[str, str]) -> str:
    """<pair>_<mixing>/<learner>_<shots>shot_<what else sets it apart>_seed<seed>; without a pair: alone/…"""
    pair = settings.get("pair")
    alone = pair in (None, "none")
    folder = "alone" if alone else f"{pair}_{settings.get('tasks.mixing', 'exclusive')}"
    general = ("learner", "pair", "tasks.mixing", "shots", "seed", "scale", "experiment")
    apart = [
        f"{key.rpartition('.')[2]}={value}"
        for key, value in own.items()
        if key not in general and not key.startswith(_UNNAMED) and (key != "target" or settings.get("learner.train_on"))
    ]
    return (
        folder
        + "/"
        + _safe("_".join([settings["learner"], f"{settings['shots']}shot", *apart, f"seed{settings['seed']}"]))
    )


def _safe(name: str) -> str:
    """A name that every file system takes; a long one ends in its hash."""
    safe = re.sub(r"[^\w.=,+-]", "", name.replace("/", "-"))
    return safe if len(safe) <= _LONGEST else f"{safe[: _LONGEST - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"

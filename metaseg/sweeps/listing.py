"""`--dry-run`: the cells of a sweep, how they stand, and an estimate of the time and memory that is still needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import track
from rich.table import Table

from metaseg.sweeps.estimate import Step, kind, measure, of_cell
from metaseg.sweeps.standing import Kind

if TYPE_CHECKING:
    from metaseg.sweeps.sweep import Planned

_SAYS = {Kind.FINISHED: "finished", Kind.NEW: "to run", Kind.OTHER: "other settings, left alone"}


def print_plan(plan: Sequence[Planned], console: Console) -> None:
    """Print a line a cell, and the sum.

    Raises:
        MetasegError: on settings that a cell would be refused for.
    """
    missing = [one for one in plan if one.standing.kind in (Kind.NEW, Kind.BEGUN)]
    kinds = {kind(one.settings): one.settings for one in missing}
    progress = Console(stderr=True)
    measured: dict[str, Step] = {
        name: measure(settings)
        for name, settings in track(
            kinds.items(), "measuring one step of each kind", console=progress, transient=True, disable=not kinds
        )
    }
    table = Table("cell", "state", "minutes", "GiB", box=None, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    seconds, mib = 0.0, 0.0
    for one in plan:
        begun = one.standing.kind is Kind.BEGUN
        said = f"to continue from outer step {one.standing.steps}" if begun else _SAYS[one.standing.kind]
        if one not in missing:
            table.add_row(one.cell.name, said, "", "")
            continue
        estimate = of_cell(one.settings, measured[kind(one.settings)], one.standing.steps)
        seconds, mib = seconds + estimate.seconds, max(mib, estimate.mib)
        table.add_row(one.cell.name, said, f"{estimate.seconds / 60:.1f}", f"{estimate.mib / 1024:.2f}")
    console.print(table)
    console.print(
        f"{len(missing)} of {len(plan)} cells to run: about {seconds / 3600:.1f} hours one after another, at most "
        f"{mib / 1024:.2f} GiB beside what the libraries need; estimated from one step on this machine. None was run."
    )

"""`--dry-run`: the cells of a sweep, their status, and estimates of the remaining time and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from metaseg.errors import MetasegError
from metaseg.progress import Progress
from metaseg.runs.schema import Run
from metaseg.runs.validation import checked
from metaseg.sweeps.estimate import StepCosts, kind, measure, of_cell
from metaseg.sweeps.status import State

if TYPE_CHECKING:
    from metaseg.sweeps.sweep import Planned

_SAYS = {State.FINISHED: "finished", State.NEW: "to run", State.OTHER: "different settings, kept"}


def print_plan(plan: Sequence[Planned], console: Console) -> None:
    """Print one line per cell and the totals; a cell with invalid settings shows the reason."""
    missing = [one for one in plan if one.status.state in (State.NEW, State.BEGUN)]
    typed = {one.cell.name: _typed(one.settings) for one in missing}
    kinds = {kind(settings): settings for settings in typed.values() if not isinstance(settings, str)}
    measured: dict[str, StepCosts | str] = {}
    with Progress("measuring one step of each kind", len(kinds), "kinds", shown=bool(kinds), brief=True) as progress:
        for done, (name, example) in enumerate(kinds.items(), start=1):
            measured[name] = _measured(example)
            progress.update(done)
    table = Table("cell", "state", "minutes", "GiB", box=None, pad_edge=False)
    table.columns[0].min_width = max((len(one.cell.name) for one in plan), default=0)  # unwrapped, to be copied
    for column in table.columns[2:]:
        column.justify = "right"
    seconds, mib = 0.0, 0.0
    for one in plan:
        begun = one.status.state is State.BEGUN
        said = f"to continue from outer step {one.status.steps}" if begun else _SAYS[one.status.state]
        if one not in missing:
            table.add_row(one.cell.name, said, "", "")
            continue
        settings = typed[one.cell.name]
        step = settings if isinstance(settings, str) else measured[kind(settings)]
        if isinstance(step, str) or isinstance(settings, str):
            table.add_row(one.cell.name, f"{said}, would be refused: {step}", "", "")
            continue
        estimate = of_cell(settings, step, one.status.steps)
        seconds, mib = seconds + estimate.seconds, max(mib, estimate.mib)
        table.add_row(one.cell.name, said, f"{estimate.seconds / 60:.1f}", f"{estimate.mib / 1024:.2f}")
    console.print(table)
    console.print(
        f"{len(missing)} of {len(plan)} cells to run: about {seconds / 3600:.1f} hours in sequence, at most "
        f"{mib / 1024:.2f} GiB in addition to the libraries; estimated from one step on this machine. None was run."
    )


def _typed(settings: Mapping[str, Any]) -> Run | str:
    try:
        return checked(Run, settings)
    except MetasegError as error:
        return str(error)


def _measured(settings: Run) -> StepCosts | str:
    try:
        return measure(settings)
    except MetasegError as error:
        return str(error)

"""`--dry-run`: the cells of a sweep, their status, and estimates of the remaining time and memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from hydra.utils import get_class
from rich.console import Console
from rich.table import Column, Table

from metaseg.errors import MetasegError
from metaseg.progress import Progress
from metaseg.runs.directory import RunDirectory
from metaseg.runs.schema import Run
from metaseg.runs.validation import checked
from metaseg.sweeps.estimate import StepCosts, kind, measure, of_cell
from metaseg.sweeps.status import State, status_of
from metaseg.training.start import directory_of, joint_settings, starting_point

if TYPE_CHECKING:
    from metaseg.sweeps.sweep import Planned

_SAYS = {State.FINISHED: "finished", State.NEW: "to run", State.OTHER: "different settings, kept"}


def print_plan(plan: Sequence[Planned], console: Console) -> None:
    """Print a line per cell and per shared start to be trained, and the totals; invalid settings show the reason."""
    rows: list[tuple[str, str, Run | str | None, int]] = []
    for one in plan:
        state, steps = one.status.state, one.status.steps
        said = f"to continue from outer step {steps}" if state is State.BEGUN else _SAYS[state]
        typed = _or_reason(partial(checked, Run), one.settings) if state in (State.NEW, State.BEGUN) else None
        rows.append((one.cell.name, said, typed, steps))
    missing = sum(settings is not None for _, _, settings, _ in rows)
    starts = {directory_of(start): start for _, _, settings, _ in rows if (start := _start(settings))}
    for path, start in starts.items():
        rows.append((str(path), "shared start", start, status_of(RunDirectory(path), start.plain).steps))
    kinds = {kind(settings): settings for _, _, settings, _ in rows if isinstance(settings, Run)}
    measured: dict[str, StepCosts | str] = {}
    with Progress("measuring one step of each kind", len(kinds), "kinds", shown=bool(kinds), brief=True) as progress:
        for done, (name, example) in enumerate(kinds.items(), start=1):
            measured[name] = _or_reason(measure, example)
            progress.update(done)
    cell = Column("cell", min_width=max((len(name) for name, *_ in rows), default=0))  # unwrapped, to be copied
    minutes, gib = (Column(name, justify="right") for name in ("minutes", "GiB"))
    table = Table(cell, "state", minutes, gib, box=None, pad_edge=False)
    total, most = 0.0, 0.0
    for name, said, settings, steps in rows:
        step = measured[kind(settings)] if isinstance(settings, Run) else settings
        if isinstance(settings, Run) and isinstance(step, StepCosts):
            seconds, mib = of_cell(settings, step, steps)
            total, most = total + seconds, max(most, mib)
            table.add_row(name, said, f"{seconds / 60:.1f}", f"{mib / 1024:.2f}")
        else:
            table.add_row(name, f"{said}, would be refused: {step}" if step else said, "", "")
    console.print(table)
    console.print(
        f"{missing} of {len(plan)} cells to run: about {total / 3600:.1f} hours in sequence, at most "
        f"{most / 1024:.2f} GiB in addition to the libraries; estimated from one step on this machine. None was run."
    )


def _start(settings: Run | str | None) -> Run | None:
    """The training of the shared start that a cell needs; None: it needs none, or it is there."""
    with suppress(MetasegError):  # another start than the shared one, which a run will refuse
        if isinstance(settings, Run) and starting_point(settings, get_class(settings.learner.target_)) == "joint":
            start = joint_settings(settings)
            return None if RunDirectory(directory_of(start)).trained.is_file() else start
    return None


def _or_reason(call: Callable[[Any], Any], settings: Any) -> Any:
    try:
        return call(settings)
    except MetasegError as error:
        return str(error)

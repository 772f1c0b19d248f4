"""`metaseg status`: the state of each cell of a sweep. In a terminal the table is refreshed until all have ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from metaseg.cli.arguments import Parser
from metaseg.errors import MetasegError
from metaseg.sweeps.overview import CellState, Phase, read_cells, seconds_left

_SHOWN = 100
"""Longest detail in a pipe, in characters."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = Parser(prog="metaseg status", description=__doc__)
    parser.add_argument("folder", type=Path, help="the sweep's directory, hydra.sweep.dir")
    parser.add_argument("--once", action="store_true", help="print it once in a terminal, too")
    parser.add_argument("--every", type=float, default=5.0, metavar="SECONDS", help="time between updates; default: 5")
    options = parser.parse_args(arguments)
    if options.every <= 0:
        raise MetasegError(f"Expected --every to be more than 0 seconds, found {options.every:g}.")
    cells = read_cells(options.folder)
    if options.once or not sys.stdout.isatty():
        print("\n".join(lines(cells)))
        return
    with suppress(KeyboardInterrupt):
        _watch(options.folder, options.every, cells)


def lines(cells: Sequence[CellState]) -> list[str]:
    """A line for each cell, and the totals."""
    width = max(len(one.name) for one in cells)
    said = [f"{one.name:<{width}}  {one.phase.value:<11}  {one.detail[:_SHOWN]}".rstrip() for one in cells]
    return [*said, totals(cells)]


def totals(cells: Sequence[CellState]) -> str:
    """The number of cells in each state, and the time left."""
    counts = {state: sum(one.phase is state for one in cells) for state in Phase}
    said = ", ".join(f"{count} {state.value}" for state, count in counts.items() if count)
    left = seconds_left(cells)
    about = "" if left is None else f"; about {left / 3600:.1f} hours left, if the rest take as long"
    return f"{len(cells)} cells: {said}{about}"


def _watch(folder: Path, every: float, cells: Sequence[CellState]) -> None:
    with Live(_table(cells), console=Console(highlight=False), auto_refresh=False) as live:
        while any(one.phase in (Phase.RUNNING, Phase.WAITING) for one in cells):
            time.sleep(every)
            cells = read_cells(folder)
            live.update(_table(cells), refresh=True)


def _table(cells: Sequence[CellState]) -> Group:
    table = Table("cell", "state", "", box=None, pad_edge=False)
    for one in cells:
        table.add_row(one.name, one.phase.value, one.detail)
    return Group(table, totals(cells))

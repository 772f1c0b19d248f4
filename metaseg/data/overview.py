"""Datasets as a table on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from metaseg.data import catalogue


def print_table(datasets: Sequence[catalogue.Dataset]) -> None:
    """Print table 1 of the paper, followed by the URL, licence and citation of each dataset."""
    rows = catalogue.table(datasets)
    console = wide_console()
    shown = ("name", "dataset", "images", "size", "imaging", "segmented", "foreground")
    table = Table(*shown, title="Table 1: the datasets", title_justify="left", show_edge=False, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(row[column]) for column in shown))
    console.print(table)
    for row in rows:
        console.print()
        console.print(Text(row["dataset"], style="bold"))
        for key in ("url", "licence", "citation"):
            console.print(Text(f"  {key}: {row[key]}"), soft_wrap=True)


def wide_console() -> Console:
    """Standard output, wide enough for the tables even if it is not a terminal."""
    # rich wraps tables at 80 columns when output goes to a file.
    console = Console()
    return console if console.is_terminal else Console(width=140)

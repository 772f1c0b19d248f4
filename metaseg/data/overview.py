"""Datasets as a table on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from metaseg.data import catalogue


def print_table(datasets: Sequence[catalogue.Dataset]) -> None:
    """Print table 1 of the paper, followed by the URL, licence and citation of each dataset."""
    console = wide_console()
    shown = ("name", "dataset", "images", "size", "imaging", "segmented", "foreground")
    table = Table(*shown, title="Table 1: the datasets", title_justify="left", show_edge=False, pad_edge=False)
    for one in datasets:
        images = "" if one.count is None else str(one.count)
        if images and one.paper_count not in (None, one.count):
            images += f" (paper: {one.paper_count})"
        foreground = "" if one.foreground is None else f"{100 * one.foreground:.1f} %"
        row = (one.name, one.title, images, one.image_size, one.imaging, one.lesion, foreground)
        table.add_row(*map(Text, row))
    console.print(table)
    for one in datasets:
        console.print()
        console.print(Text(one.title, style="bold"))
        for key in ("url", "licence", "citation"):
            console.print(Text(f"  {key}: {getattr(one, key)}"), soft_wrap=True)


def wide_console() -> Console:
    """Standard output, wide enough for the tables even if it is not a terminal."""
    # rich wraps tables at 80 columns when output goes to a file.
    console = Console()
    return console if console.is_terminal else Console(width=140)

"""Command line of the data room: `python -m metaseg.data table | check | prepare`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from rich.console import Console
from rich.table import Table
from rich.text import Text

from metaseg.data import catalogue, check, pools
from metaseg.errors import MetasegError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise MetasegError(f"{message}; `python -m metaseg.data --help` shows what is understood")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status: 1 where anything is missing or faulty, told in one sentence a dataset."""
    try:
        options = _options(arguments)
        datasets = [catalogue.get(name) for name in options.datasets or catalogue.names()]
    except MetasegError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.command == "table":
        print_table(datasets)
        return 0
    return max(_one(options, dataset) for dataset in datasets)


def _one(options: argparse.Namespace, dataset: catalogue.Dataset) -> int:
    try:
        if options.command == "check":
            report = check.check(dataset, options.root)
            wide_console().print(report.table(), "")
            return 1 if report.errors else 0
        pool = pools.prepare(dataset, options.root, options.size, threads=options.threads)
        print(f"{dataset.title}: {len(pool)} images at {options.size}×{options.size}, ready")
    except MetasegError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def print_table(datasets: Sequence[catalogue.Dataset]) -> None:
    """Table 1 of the paper, and below it where each dataset is, on which terms, and what to cite."""
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


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(prog="python -m metaseg.data", description="The datasets: what they are, whether they are whole.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="table | check | prepare")
    names = ", ".join(catalogue.names())
    root = os.environ.get("METASEG_DATA") or "data"
    for name, text in (
        ("table", "print table 1 of the paper, with addresses, licences and citations"),
        ("check", "read every file and report all faults at once; exit status 1 if there are errors"),
        ("prepare", "decode a dataset into the cache, as training does when it starts"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("datasets", nargs="*", metavar="DATASET", help=f"of {names}; default: all")
        if name != "table":
            command.add_argument("--root", default=root, help=f"folder that holds the datasets (default: {root})")
        if name == "prepare":
            command.add_argument("--size", type=int, default=256, help="side of the images in pixels (default: 256)")
            command.add_argument("--threads", type=int, help="threads that decode (default: one a core)")
    return parser.parse_args(arguments)


def wide_console() -> Console:
    """Standard output, wide enough for the tables where it is no terminal."""
    # Without a terminal, rich would fold tables to 80 columns in whatever file they are sent to.
    console = Console()
    return console if console.is_terminal else Console(width=140)


if __name__ == "__main__":
    sys.exit(main())

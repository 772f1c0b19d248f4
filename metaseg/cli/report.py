"""Command line of the reports: `python -m metaseg.reporting DIR`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from metaseg.cli.arguments import Parser
from metaseg.errors import MetasegError


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a report; exit status 1 where nothing could be reported or a directory was unreadable."""
    parser = Parser(
        prog="metaseg report",
        description="Put all finished runs below DIR beside the paper's tables. Writes DIR/report/: index.html, one "
        "page that needs nothing else; for each of tables 2 to 7 tableN.md, tableN.tex (booktabs) and tableN.csv; and "
        "the figures. A run belongs to a line of a table by its settings, not by its directory's name; "
        "conf/experiment/tableN.yaml defines the lines. Several seeds of one line are pooled.",
        epilog="Exit status 1: no finished run was found, or a directory could not be read (the others are reported).",
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder that holds run directories, at any depth")
    try:
        options = parser.parse_args(arguments)
        from metaseg.reporting.report import write_report  # pandas, scipy and matplotlib take seconds

        page, found = write_report(options.folder)
    except MetasegError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{page}: {len(found.runs)} run{'' if len(found.runs) == 1 else 's'}")
    if found.unfinished:
        print(f"not finished, left out: {', '.join(found.unfinished)}")
    for name, reason in found.unreadable:
        print(f"error: {name} is unreadable and left out: {reason}", file=sys.stderr)
    return 1 if found.unreadable else 0

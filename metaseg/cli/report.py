"""`metaseg report DIR`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from metaseg.cli.arguments import Parser, tell
from metaseg.errors import plural


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a report; return 1 if a directory was unreadable, else 0."""
    parser = Parser(
        prog="metaseg report",
        description="Compare all finished runs below DIR with the paper's tables. Writes DIR/report/: a self-contained "
        "index.html; tableN.md, tableN.tex (booktabs) and tableN.csv for tables 2 to 7; and the figures. Runs are "
        "matched to table rows, defined in conf/experiment/tableN.yaml, by their settings, not by directory name. "
        "Seeds of the same row are pooled.",
        epilog="Exit status 1: no finished run was found, or a directory could not be read (the others are reported).",
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder with run directories at any depth")
    options = parser.parse_args(arguments)
    from metaseg.reporting.report import write_report  # pandas, scipy and matplotlib take seconds to import

    page, found = write_report(options.folder)
    print(f"{page}: {plural(len(found.runs), 'run')}")
    if found.unfinished:
        print(f"unfinished, skipped: {', '.join(found.unfinished)}")
    for name, reason in found.unreadable:
        tell(f"{name} is unreadable and was skipped: {reason}")
    return 1 if found.unreadable else 0

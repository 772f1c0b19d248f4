"""`metaseg dashboard ENTITY/PROJECT`: a saved report at Weights & Biases."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from metaseg.cli.arguments import Parser
from metaseg.errors import MetasegError
from metaseg.runs.tables import NUMBERS
from metaseg.tracking import dashboard


def main(arguments: Sequence[str] | None = None) -> int:
    """Save a report, or list its panels; exit status 1 where it could not be saved."""
    parser = Parser(
        prog="metaseg dashboard",
        description="Save a report at Weights & Biases that lays out results, learning curves, the diagnostics of "
        "meta-gradients, images over epochs and scores by image. Each call makes a new report.",
    )
    parser.add_argument("project", metavar="ENTITY/PROJECT", help="whose runs are shown; ENTITY is a user or a team")
    parser.add_argument(
        "--tables", type=int, nargs="+", choices=NUMBERS, default=[], help="only runs of these tables of the paper"
    )
    parser.add_argument("--title", default="metaseg", help="of the report")
    parser.add_argument("--dry-run", action="store_true", help="list the panels; nothing is sent")
    try:
        options = parser.parse_args(arguments)
        entity, _, project = options.project.partition("/")
        if not entity or not project or "/" in project:
            parser.error(f"expected ENTITY/PROJECT, found {options.project!r}")
        if options.dry_run:
            print(dashboard.listing())
            return 0
        report = dashboard.build(entity, project, options.tables, options.title)
        dashboard.save(report)
    except MetasegError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(report.url)
    return 0

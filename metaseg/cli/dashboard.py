"""`metaseg dashboard ENTITY/PROJECT`: save a report on Weights & Biases."""

from __future__ import annotations

from collections.abc import Sequence

from metaseg.cli.arguments import Parser
from metaseg.runs.tables import NUMBERS
from metaseg.tracking import dashboard


def main(arguments: Sequence[str] | None = None) -> None:
    """Save a report, or list its panels."""
    parser = Parser(
        prog="metaseg dashboard",
        description="Save a Weights & Biases report with results, learning curves, meta-gradient diagnostics, "
        "overlays over epochs and per-image scores. Each call creates a new report.",
    )
    parser.add_argument(
        "project", metavar="ENTITY/PROJECT", help="project whose runs to show; ENTITY is a user or a team"
    )
    parser.add_argument(
        "--tables", type=int, nargs="+", choices=NUMBERS, default=[], help="show only the runs of these paper tables"
    )
    parser.add_argument("--title", default="metaseg", help="title of the report")
    parser.add_argument("--dry-run", action="store_true", help="list the panels without sending anything")
    options = parser.parse_args(arguments)
    entity, _, project = options.project.partition("/")
    if not entity or not project or "/" in project:
        parser.error(f"expected ENTITY/PROJECT, found {options.project!r}")
    if options.dry_run:
        print(dashboard.listing())
        return
    report = dashboard.build(entity, project, options.tables, options.title)
    dashboard.save(report)
    print(report.url)

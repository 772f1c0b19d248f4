"""Table 1 of the paper: the five datasets, checked file by file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metaseg.data import catalogue
from metaseg.data.check import check
from metaseg.data.overview import print_table, wide_console
from metaseg.data.synthetic.twins import DEFAULT_COUNTS
from metaseg.errors import MetasegError
from metaseg.runs.directory import write_json
from metaseg.runs.tables import DATASETS


def table_of_datasets(data: Mapping[str, Any], folder: Path | None) -> None:
    """Print table 1, check the datasets under ``data.root``, and save the findings for the report.

    Args:
        data: the settings group ``data``; synthetic twins need no check.
        folder: folder for table1.json; None: it is not written.

    Raises:
        MetasegError: a dataset is missing or has errors; raised after all have been reported.
    """
    names = catalogue.published()
    print_table([catalogue.get(name) for name in names])
    console = wide_console()
    found: dict[str, dict[str, Any]] = {}
    faulty = []
    for name in names:
        dataset = catalogue.get(name)
        row: dict[str, Any] = {"title": dataset.title, "paper": dataset.paper_count, "published": dataset.count}
        if data["source"] == "synthetic":
            row |= {"found": DEFAULT_COUNTS.get(name), "source": "synthetic twin"}
        else:
            try:
                report = check(dataset, data["root"])
            except MetasegError as error:
                console.print(f"\n{error}", markup=False)
                faulty.append(name)
                row |= {"found": None, "source": "missing"}
            else:
                console.print("", report.table())
                row |= {"found": len(report.ids), "errors": len(report.errors), "warnings": len(report.warnings)}
                row |= {"foreground": report.foreground, "source": "files"}
                if report.errors:
                    faulty.append(name)
        found[name] = row
    if folder is not None:
        write_json(folder / DATASETS, found)
    if faulty:
        raise MetasegError(
            f"Table 1 needs all five datasets without errors; missing or faulty (see above): {', '.join(faulty)}; fix "
            "the files, or set data.root."
        )

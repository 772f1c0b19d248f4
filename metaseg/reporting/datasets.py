"""Table 1: the datasets as found by `experiment=table1`, and the numbers in the paper."""

from __future__ import annotations

from pathlib import Path

from metaseg.data import catalogue
from metaseg.documents import read_json
from metaseg.errors import MetasegError
from metaseg.reporting.exports import escaped
from metaseg.runs.directory import write_csv
from metaseg.runs.tables import DATASETS
from metaseg.system import replacing

COLUMNS = ("dataset", "paper", "published", "found", "source", "image_size", "imaging", "lesion", "foreground")
_HEADINGS = ("Dataset", "Paper", "Published", "Found", "In", "Image size", "Imaging", "Segmented", "Foreground, %")


def read_datasets(folder: Path) -> list[dict[str, str]]:
    """Rows of table 1 as texts; found values are – if `experiment=table1` has not been run.

    Raises:
        MetasegError: if table1.json is not a JSON object.
    """
    path = folder / DATASETS
    try:
        found = read_json(path) if path.is_file() else {}
        if not (isinstance(found, dict) and all(isinstance(row, dict) for row in found.values())):
            raise ValueError("it is not an object of objects")
    except (OSError, ValueError) as error:
        raise MetasegError(f"Expected the output of experiment=table1, but {path} cannot be read: {error}.") from error
    rows = []
    for name in catalogue.published():
        dataset, row = catalogue.get(name), found.get(name, {})
        foreground = row.get("foreground")
        values = (
            dataset.title,
            dataset.paper_count,
            dataset.count,
            row.get("found"),
            row.get("source"),
            dataset.image_size,
            dataset.imaging,
            dataset.lesion,
            None if foreground is None else f"{100 * foreground:.1f}",
        )
        texts = ("–" if value is None else str(value) for value in values)
        rows.append(dict(zip(COLUMNS, texts, strict=True)))
    return rows


def export_datasets(rows: list[dict[str, str]], folder: Path) -> None:
    """Write table1.md, table1.tex and table1.csv."""
    cells = [[row[column] for column in COLUMNS] for row in rows]
    markdown = [f"| {' | '.join(line)} |" for line in (_HEADINGS, ["---"] * len(COLUMNS), *cells)]
    latex = [
        r"\begin{tabular}{lrrrlllll}",
        r"\toprule",
        *(" & ".join(map(escaped, line)) + r" \\" for line in (_HEADINGS, *cells)),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    latex.insert(3, r"\midrule")
    for suffix, lines in (("md", ["# Table 1: the datasets", "", *markdown]), ("tex", latex)):
        with replacing(folder / f"table1.{suffix}") as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_csv(folder / "table1.csv", rows, COLUMNS)

"""A dataset as a CSV file with one pair per line.

Columns, in any order; others are ignored:
    image, mask  paths, relative to the CSV file or absolute
    group        optional: what must stay together in every split, such as a patient or video; empty: only this image
    id           optional: name of the image in results; default: its path as written, without suffix
UTF-8, separated by commas, or by semicolons if the first line has no comma.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from metaseg.documents import text_of
from metaseg.errors import MetasegError, expanded, shown

MOST_LINES = 200_000
"""Longest CSV file: more images than any dataset of this kind has."""
MOST_BYTES = 2**26
"""Largest CSV file, some 330 bytes a line."""


class Pair(NamedTuple):
    """One image and its mask; `group`: name of the group that no split may separate, from the layout or a CSV file."""

    id: str
    image: Path
    mask: Path
    group: str | None = None


def read(file: Path) -> list[Pair]:
    """The lines of a CSV file of pairs, in order; their files need not exist.

    Raises MetasegError if the file cannot be read or lacks a column, or a line lacks a value.
    """
    try:
        # utf-8-sig: spreadsheet programs write a byte-order mark.
        text = text_of(file, MOST_BYTES, "utf-8-sig")
        if text.count("\n") > MOST_LINES:
            raise ValueError(f"it has more than {MOST_LINES} lines")
        delimiter = "," if "," in text.partition("\n")[0] else ";"
        return list(_rows(file, csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)))
    except OSError as error:
        raise MetasegError(f"cannot read {file}: {error.strerror}; correct `pairs` or the file") from error
    except (csv.Error, ValueError) as error:
        raise MetasegError(f"{file} is not a UTF-8 CSV file of images and masks: {error}; save it as one") from error


def _rows(file: Path, table: csv.DictReader[str]) -> Iterator[Pair]:
    columns = [(name or "").strip() for name in table.fieldnames or ()]
    table.fieldnames = columns
    if missing := [name for name in ("image", "mask") if name not in columns]:
        raise MetasegError(
            f"{file} should begin with a header line of the columns image, mask and, optionally, group and id; "
            f"{', '.join(missing)} is missing, found {shown(', '.join(columns))}"
        )
    for line in table:
        values = {name: (line[name] or "").strip() for name in ("image", "mask", "group", "id") if name in columns}
        if not values["image"] or not values["mask"]:
            raise MetasegError(
                f"{file}, line {table.line_num}, should name an image and a mask, found {shown(values['image'])} "
                f"and {shown(values['mask'])}: complete or remove the line"
            )
        image, mask = (_path(file, table.line_num, values[key]) for key in ("image", "mask"))
        name = values.get("id") or PurePosixPath(values["image"]).with_suffix("").as_posix()
        yield Pair(name, image, mask, values.get("group") or None)


def _path(file: Path, line: int, written: str) -> Path:
    """A path as written, from the CSV file's folder on."""
    path = expanded(written)
    if not path.name:
        raise ValueError(f"line {line} names {shown(written)}, which cannot be a file")
    return file.parent / path

"""The datasets the project knows: one YAML in conf/dataset each, so that a new dataset is one new file.

Keys of such a file
    name             name in configs and results; also the file's name
    title            name in tables
    folders          folders to look for under data.root, in this order; `.` is data.root itself
    count            number of images as published
    paper_count      number of images in table 1 of Khadka et al. 2022
    image_size       width×height in pixels, as published
    imaging          imaging type
    lesion           what is segmented; pairs of "the same class" share it
    foreground       mean share of foreground pixels, 0 to 1
    url, licence, citation, how
                     where it is, on which terms, what to cite, and how to get it (half a sentence for error messages)
    layouts          optional: where images and masks lie inside the folder, without their suffix; `{stem}` is the
                     image's id. The plain layout images/{stem}, masks/{stem} is always tried last, unmentioned
    sequence_starts  optional: ids are frame numbers; the first frame of every video sequence
    blocks           optional: the images, in order, are cut into so many blocks of consecutive frames
Images of one sequence, or of one block, are never separated by a split.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from metaseg.errors import MetasegError

FOLDER = Path(__file__).parents[2] / "conf" / "dataset"


@dataclass(frozen=True)
class Layout:
    """Where images and masks lie inside a dataset's folder: paths without suffix, with `{stem}` for the image's id."""

    images: str
    masks: str


PLAIN = Layout(images="images/{stem}", masks="masks/{stem}")


@dataclass(frozen=True)
class Dataset:
    """What is known of a dataset before a file is read; the fields are the keys listed in this module's docstring."""

    name: str
    title: str
    folders: tuple[str, ...]
    count: int
    paper_count: int
    image_size: str
    imaging: str
    lesion: str
    foreground: float
    url: str
    licence: str
    citation: str
    how: str
    layouts: tuple[Layout, ...] = (PLAIN,)
    sequence_starts: tuple[int, ...] = ()
    blocks: int = 0


def load_catalogue(folder: Path = FOLDER) -> dict[str, Dataset]:
    """Read every conf/dataset/*.yaml; datasets by name, in alphabetical order.

    Raises MetasegError where a file is missing a key, holds an unknown one, or a value of another type.
    """
    files = sorted(folder.glob("*.yaml"))
    if not files:
        raise MetasegError(
            f"expected one YAML file a dataset in {folder}, found none: run from a checkout of the project, where "
            f"conf/ lies beside metaseg/"
        )
    return {file.stem: _read(file) for file in files}


@cache
def _catalogue() -> dict[str, Dataset]:
    return load_catalogue()


def names() -> list[str]:
    """Names of all datasets of the catalogue."""
    return list(_catalogue())


def get(name: str) -> Dataset:
    """The dataset of that name. Raises MetasegError, with the allowed names, for any other."""
    try:
        return _catalogue()[name]
    except KeyError:
        raise MetasegError(f"unknown dataset '{name}': choose from {', '.join(names())}") from None


def table(datasets: Iterable[Dataset] | None = None) -> list[dict[str, str]]:
    """Table 1 of the paper as rows of text, with what a user needs to obtain and cite each dataset."""
    chosen = _catalogue().values() if datasets is None else datasets
    return [
        {
            "name": d.name,
            "dataset": d.title,
            "images": str(d.count) if d.count == d.paper_count else f"{d.count} (paper: {d.paper_count})",
            "size": d.image_size,
            "imaging": d.imaging,
            "segmented": d.lesion,
            "foreground": f"{100 * d.foreground:.1f} %",
            "licence": d.licence,
            "url": d.url,
            "citation": d.citation,
        }
        for d in chosen
    ]


def _read(file: Path) -> Dataset:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MetasegError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise MetasegError(f"{file} should hold the keys of a dataset, such as name and count; it holds none")

    fields = {field.name: field for field in dataclasses.fields(Dataset)}
    if unknown := sorted(str(key) for key in content if key not in fields):
        raise MetasegError(f"{file} has the unknown key {', '.join(unknown)}: allowed are {', '.join(fields)}")
    required = [name for name, field in fields.items() if field.default is dataclasses.MISSING]
    if missing := [name for name in required if name not in content]:
        raise MetasegError(f"{file} lacks the key {', '.join(missing)}: add it (see metaseg/data/catalogue.py)")

    values = {key: _typed(file, key, value, str(fields[key].type)) for key, value in content.items()}
    values["layouts"] = (*values.get("layouts", ()), PLAIN)
    dataset = Dataset(**values)
    # A name becomes part of cache file names, in which the hyphen separates the parts.
    if dataset.name != file.stem or not re.fullmatch(r"[a-z0-9_]+", dataset.name):
        raise MetasegError(
            f"{file} names its dataset '{dataset.name}': the name must be the file's own, '{file.stem}', of lower-case "
            f"letters, digits and _"
        )
    if dataset.sequence_starts and dataset.blocks:
        raise MetasegError(f"{file} has both sequence_starts and blocks: keep the one that describes the images")
    return dataset


def _typed(file: Path, key: str, value: Any, kind: str) -> Any:
    """The value of a key as the dataclass wants it; `kind` is the field's annotation as text."""

    def is_int(number: Any) -> bool:
        return isinstance(number, int) and not isinstance(number, bool) and number >= 0

    match kind:
        case "str" if isinstance(value, str) and value.strip():
            return value
        case "int" if is_int(value):
            return value
        case "float" if isinstance(value, int | float) and 0 <= value <= 1:
            return float(value)
        case "tuple[str, ...]" if isinstance(value, list) and value and all(isinstance(v, str) for v in value):
            return tuple(value)
        case "tuple[int, ...]" if isinstance(value, list) and all(map(is_int, value)) and value == sorted(set(value)):
            return tuple(value)
        case "tuple[Layout, ...]" if isinstance(value, list) and all(map(_is_layout, value)):
            return tuple(Layout(**layout) for layout in value)
    expected = {
        "str": "text",
        "int": "a whole number, 0 or more",
        "float": "a number from 0 to 1",
        "tuple[str, ...]": "a list of texts",
        "tuple[int, ...]": "a list of rising whole numbers",
        "tuple[Layout, ...]": "a list of {images: path, masks: path}, each path with {stem}",
    }[kind]
    raise MetasegError(f"{file}: {key} should be {expected}, not {value!r}")


def _is_layout(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"images", "masks"}
        and all(isinstance(path, str) and "{stem}" in path for path in value.values())
    )

"""The datasets the project knows and the user's own; each is described by one YAML file.

Dataset NAME is described by conf/dataset/NAME.yaml, as those of the paper are, or by NAME.yaml in data.root. Names
consist of lower-case letters, digits and _. Only `title` is required:

    title            name in tables
    folder           folder of the files, below data.root or absolute; default: NAME. Or `folders`: several, tried in
                     order; `.` is data.root itself
    images, masks    paths of images and masks inside the folder; `{stem}` is the image's id, `{group}` what must stay
                     together (a patient, a video), `*` anything; a pattern without suffix matches any. Default:
                     images/{stem} and masks/{stem}. Or `layouts`: several such pairs, tried in order, the default last
    pairs            alternatively, a CSV file of pairs inside the folder; columns: metaseg/data/pair_files.py
    sequence_starts  first frame of every video sequence; ids are then frame numbers
    blocks           number of blocks of consecutive frames that the images are cut into
    count            number of images as published
    paper_count      number of images in table 1 of Khadka et al. 2022; absent for datasets not in it
    image_size       width×height in pixels, as published
    imaging          imaging modality
    lesion           what is segmented; equal in pairs of "the same class"
    foreground       mean share of foreground pixels, 0 to 1
    url, licence, citation, how
                     address, terms, what to cite, and how to get it (a phrase for error messages)
    sources          archives that `metaseg data fetch` downloads and unpacks into the first folder: url, and
                     optionally file (its name on disk), sha256 and bytes
A split never separates images of one group, sequence or block.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from metaseg import configuration
from metaseg.documents import read_yaml
from metaseg.errors import MetasegError, expanded, quoted, shown

FOLDER = configuration.FOLDER / "dataset"

NAME = re.compile(r"[a-z0-9_]+")
"""Valid dataset names; they become part of file names that use other characters as separators."""


@dataclass(frozen=True)
class Layout:
    """Paths of images and masks inside a dataset's folder, with `{stem}` for the image's id."""

    images: str
    masks: str


PLAIN = Layout(images="images/{stem}", masks="masks/{stem}")


@dataclass(frozen=True)
class RemoteFile:
    """An archive to download: its URL, name on disk, and SHA-256 and size in bytes where known."""

    url: str
    file: str
    sha256: str | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class Dataset:
    """A dataset's description; the fields are the keys listed in this module's docstring."""

    name: str
    title: str
    folders: tuple[str, ...]
    layouts: tuple[Layout, ...] = (PLAIN,)
    pairs: str = ""
    sequence_starts: tuple[int, ...] = ()
    blocks: int = 0
    count: int | None = None
    paper_count: int | None = None
    image_size: str = ""
    imaging: str = ""
    lesion: str = ""
    foreground: float | None = None
    url: str = ""
    licence: str = ""
    citation: str = ""
    how: str = ""
    sources: tuple[RemoteFile, ...] = ()


@cache
def _catalogue() -> dict[str, Dataset]:
    """The datasets of conf/dataset by name, in alphabetical order."""
    files = sorted(FOLDER.glob("*.yaml"))
    if not files:
        raise MetasegError(
            f"expected one YAML file per dataset in {FOLDER}, found none: reinstall metaseg, or run from a complete "
            f"checkout with conf/ next to metaseg/"
        )
    return {file.stem: read(file) for file in files}


def names(root: str | Path | None = None) -> list[str]:
    """Names of the datasets in conf/dataset and, given data.root, of those described there."""
    return [*_catalogue(), *sorted(_own(root).keys() - _catalogue().keys())]


def published() -> list[str]:
    """Names of the datasets in the paper's table 1."""
    return [name for name, dataset in _catalogue().items() if dataset.paper_count is not None]


def get(name: str, root: str | Path | None = None) -> Dataset:
    """The dataset of that name, from conf/dataset or data.root.

    Raises MetasegError for an unknown name, listing the known ones, and for a name described in both.
    """
    own = _file(root, name)
    if name in _catalogue():
        if own:
            raise MetasegError(f"{own} describes '{name}', which {FOLDER / own.name} already describes: rename it")
        return _catalogue()[name]
    if own:
        return read(own)
    where = "" if root is None else f", or describe it in {expanded(root) / name}.yaml (see docs/datasets.md)"
    raise MetasegError(f"unknown dataset '{name}': choose from {', '.join(names(root))}{where}")


def _file(root: str | Path | None, name: str) -> Path | None:
    """The YAML file that describes a dataset in data.root, or None."""
    if root is None or not NAME.fullmatch(name):
        return None
    file = expanded(root) / f"{name}.yaml"
    return file if file.is_file() else None


def _own(root: str | Path | None) -> dict[str, Path]:
    """Files in data.root that appear to describe a dataset, by name."""
    if root is None:
        return {}
    found = {}
    for file in sorted(expanded(root).glob("*.yaml")):
        # Other YAML files may lie there; they are ignored unless requested by name.
        text = file.read_text(encoding="utf-8", errors="replace") if NAME.fullmatch(file.stem) else ""
        if re.search(r"^title\s*:", text, re.MULTILINE):
            found[file.stem] = file
    return found


def read(file: Path) -> Dataset:
    """The dataset that a YAML file describes.

    Raises MetasegError if the file lacks a key, has an unknown one, or a value of the wrong type.
    """
    try:
        content = read_yaml(file)
    except OSError as error:
        raise MetasegError(f"cannot read {file}: {error.strerror}; make the file readable") from error
    except ValueError as error:
        raise MetasegError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise MetasegError(f"{file} should have the keys of a dataset, such as title and images, but has none")

    fields = {field.name: str(field.type) for field in dataclasses.fields(Dataset)}
    if unknown := sorted(str(key) for key in content if key not in (*fields, *_SHORT)):
        raise MetasegError(
            f"{file} has the unknown key {shown(', '.join(unknown))}: allowed keys are {', '.join((*fields, *_SHORT))}"
        )
    if "title" not in content:
        raise MetasegError(f"{file} lacks the key title: add it (see metaseg/data/catalogue.py)")
    # Cache file names contain the name and use hyphens as separators.
    if content.setdefault("name", file.stem) != file.stem or not NAME.fullmatch(file.stem):
        raise MetasegError(
            f"{file} names its dataset {shown(content['name'])!r}: the name must match the file, '{file.stem}', "
            f"and consist of lower-case letters, digits and _"
        )
    _alone(file, content)
    values = {key: _typed(file, key, value, fields.get(key, "str")) for key, value in content.items()}
    return Dataset(**_spelt_out(file, values))


_SHORT = ("folder", "images", "masks")
"""Shorthand keys for `folders` or `layouts` with a single entry."""


def _alone(file: Path, content: Mapping[str, Any]) -> None:
    """Refuse redundant or incomplete combinations of keys."""
    for one, others in (
        ("folder", ("folders",)),
        ("layouts", ("images", "masks", "pairs")),
        ("pairs", ("images", "masks")),
        ("sequence_starts", ("blocks",)),
    ):
        if one in content and (twice := [key for key in others if key in content]):
            raise MetasegError(f"{file} has both {one} and {twice[0]}: keep the one that describes the images")
    if ("images" in content) != ("masks" in content):
        raise MetasegError(f"{file} has only one of images and masks: add the other")


def _spelt_out(file: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Expand shorthand keys into the fields of a `Dataset`."""
    folder = values.pop("folder", values["name"])
    values.setdefault("folders", (folder,))
    if "images" in values:
        patterns = {key: values.pop(key) for key in ("images", "masks")}
        for key, pattern in patterns.items():
            # Accept the familiar form `images/*.jpg`.
            if "{stem}" not in pattern and pattern.count("*") == 1:
                patterns[key] = pattern.replace("*", "{stem}")
        if not _is_layout(patterns):
            raise MetasegError(
                f"{file}: images and masks should be paths inside the folder with {{stem}} for the image's id, and "
                f"{{group}} in both or neither, not {patterns['images']!r} and {patterns['masks']!r}"
            )
        values["layouts"] = (Layout(**patterns),)
    else:
        values["layouts"] = (*values.get("layouts", ()), PLAIN)
    return values


def _typed(file: Path, key: str, value: Any, kind: str) -> Any:
    """Check a value and convert it to its field's type; `kind` is the field's annotation as text."""

    def is_int(number: Any) -> bool:
        return isinstance(number, int) and not isinstance(number, bool) and number >= 0

    match kind.removesuffix(" | None"):
        case "str" if isinstance(value, str) and value.strip():
            return value
        case _ if value is None and kind.endswith("None"):
            return None
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
        case "tuple[RemoteFile, ...]" if isinstance(value, list) and all(map(_is_source, value)):
            return tuple(RemoteFile(**{"file": _last_part(source["url"])} | source) for source in value)
    expected = {
        "str": "text",
        "int": "a whole number, 0 or more",
        "float": "a number from 0 to 1",
        "tuple[str, ...]": "a list of strings",
        "tuple[int, ...]": "a list of increasing whole numbers",
        "tuple[Layout, ...]": "a list of {images: path, masks: path}, each path with {stem}",
        "tuple[RemoteFile, ...]": "a list of {url: http…}, optionally with file: name, sha256: 64 digits, "
        "bytes: number",
    }[kind.removesuffix(" | None")]
    raise MetasegError(f"{file}: {key} should be {expected}, not {quoted(value)}")


def _is_layout(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != {"images", "masks"}:
        return False
    paths = list(value.values())
    return (
        all(isinstance(path, str) and "{stem}" in path and "**" not in path for path in paths)
        and not any(path.startswith("/") or ".." in PurePosixPath(path).parts for path in paths)
        and len({"{group}" in path for path in paths}) == 1
    )


def _is_source(value: Any) -> bool:
    if not isinstance(value, dict) or not {"url"} <= set(value) <= {"url", "file", "sha256", "bytes"}:
        return False
    url, digest, size = (value.get(key) for key in ("url", "sha256", "bytes"))
    return (
        _fits(r"https?://[\w.:@-]+([/?#].*)?", url)
        and _fits(r"\w[\w. +-]*", value.get("file", _last_part(str(url))))
        and (digest is None or _fits(r"[0-9a-f]{64}", digest))
        and (size is None or (isinstance(size, int) and size > 0))
    )


def _fits(pattern: str, value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _last_part(url: str) -> str:
    return PurePosixPath(urlsplit(url).path).name

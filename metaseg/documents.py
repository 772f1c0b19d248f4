"""Text, YAML and JSON of files that anybody may have written, read within limits."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import yaml
from yaml.loader import SafeLoader  # the one in Python, whose methods can be overridden

from metaseg.errors import reason

MOST_YAML = 2**18
"""Largest YAML file in bytes, twenty times a run's settings; reading one of this size takes a second."""
MOST_JSON = 2**24
"""Largest JSON file in bytes, a thousand times a run's result."""

_INVALID = (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What PyYAML raises: "!!int x", "2001-99-99" and "!!bool x" each end in an error of another type."""


class _Loader(SafeLoader):
    """Builds plain containers alone, without aliases: nine lists of nine aliases each would hold 9⁹ values."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("it has aliases (*name); write out what they stand for")
        return super().compose_node(parent, index)


def text_of(file: Path, most: int, encoding: str = "utf-8") -> str:
    """The text of a file of at most `most` bytes, unpacked if it is *.gz.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is larger, or encoded otherwise.
    """
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as opened:
        try:
            content = opened.read(most + 1)
        except (zlib.error, EOFError, gzip.BadGzipFile) as error:
            raise ValueError(reason(error)) from error
    if len(content) > most:
        raise ValueError(f"it is larger than {most / 2**20:g} MiB")
    return content.decode(encoding)


def read_yaml(file: Path) -> Any:
    """The content of a YAML file as plain containers.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not YAML, has aliases, or is larger than `MOST_YAML`.
    """
    text = text_of(file, MOST_YAML)
    try:
        return yaml.load(text, _Loader)
    except _INVALID as error:
        raise ValueError(reason(error)) from error


def read_json(file: Path) -> Any:
    """The content of a JSON file.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not JSON, or larger than `MOST_JSON`.
    """
    return json_of(text_of(file, MOST_JSON))


def json_of(text: str) -> Any:
    """The content of a JSON text.

    Raises:
        ValueError: if it is not JSON.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error

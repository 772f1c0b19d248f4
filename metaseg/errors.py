"""The one exception whose message is addressed to the user."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from pathlib import Path

DISTRIBUTION = "metaseg-implicit"
"""The package's name for pip; on PyPI, metaseg is another project."""
_ABRIDGED = reprlib.Repr()
_ABRIDGED.maxstring = _ABRIDGED.maxother = 200


class MetasegError(Exception):
    """A problem the user can fix, as one sentence: what was expected, what was found, what to do.

    Entry points print it without a traceback and exit with status 1.
    """


def shown(text: object) -> str:
    """Foreign text for a sentence: on one line, and no longer than one."""
    return " ".join(str(text).split())[:200] or "nothing"


def reason(error: BaseException) -> str:
    """What an error says, for a sentence; its type if it says nothing."""
    return shown(str(error).strip() or type(error).__name__)


def listed(values: Sequence[object], most: int = 8) -> str:
    """The first values for a sentence, and how many more there are."""
    return ", ".join(map(str, values[:most])) + (f" and {len(values) - most} more" if len(values) > most else "")


def plural(number: int, noun: str) -> str:
    """`1 error`, `2 errors`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def quoted(value: object) -> str:
    """A foreign value for a sentence, abridged."""
    try:
        return _ABRIDGED.repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits
        return "a number of thousands of digits"


def require_text(name: str | Path) -> None:
    """Refuse a file name that is not valid UTF-8, such as one in Latin-1 on Linux, before work on its file is lost.

    Raises:
        MetasegError: if it is not valid UTF-8.
    """
    try:
        str(name).encode()
    except UnicodeEncodeError as error:
        raise MetasegError(f"Expected file names in UTF-8, found {str(name)!a}; rename it.") from error


def expanded(path: str | Path) -> Path:
    """A path whose `~` is replaced by the home folder.

    Raises:
        MetasegError: if there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise MetasegError(f"Expected a path, found {shown(path)}, but there is no such user; correct it.") from error


def needs(what: str, library: str, extra: str) -> str:
    """The sentence that a library of an extra is missing, and how to install it.

    Args:
        what: what needs the library; the subject of the sentence.
        library: its name, or names.
        extra: as in pyproject.toml.
    """
    return f"{what} needs {library}: {installing(extra)}."


def installing(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"

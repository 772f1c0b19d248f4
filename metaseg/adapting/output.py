"""The folder that results go to: what an earlier call left in it, and never a file that no call wrote."""

import csv
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from metaseg.adapting.results import RESULTS
from metaseg.errors import MetasegError

FOLDERS = ("masks", "overlays", "probabilities")
"""Of pictures, one for each line of results.csv."""
SEGMENTERS = ("segmenter.onnx", "segmenter.pt2")


def check(out: Path, inputs: Sequence[tuple[str, Path]], overwrite: bool) -> None:
    """Refuse a folder in which something could be lost; nothing is written.

    Args:
        out: the folder, there or not.
        inputs: name of a setting, and a folder that is read because of it.
        overwrite: whether results of an earlier call may be replaced.

    Raises:
        MetasegError: `out` is a file, its folders are read from or not of an earlier call, or it holds results.
    """
    if out.exists() and not out.is_dir():
        raise MetasegError(f"out must be a folder, found the file {out}; choose another.")
    for name in FOLDERS:
        for setting, folder in inputs:
            if (out / name).resolve() == folder.resolve():
                raise MetasegError(
                    f"{out / name} would be written to, but {setting} is read from it; choose another out."
                )
    there = [name for name in (*FOLDERS, RESULTS, *SEGMENTERS) if (out / name).exists()]
    if any(name in FOLDERS or name == RESULTS for name in there) and _images(out) is None:
        # Every mask is preceded by its line in results.csv, so these may be a user's own.
        raise MetasegError(
            f"{out} holds {there[0]}, but no {RESULTS} of an earlier call, so they may be your own; choose another "
            "folder."
        )
    if there and not overwrite:
        raise MetasegError(f"{out} holds {there[0]} of an earlier call; choose another folder, or add overwrite=true.")


def clear(out: Path) -> None:
    """Make the folder, and remove what an earlier call wrote: what its results.csv names, and no other file.

    Raises:
        MetasegError: there can be no such folder, or files cannot be removed.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for image in _images(out) or ():
            for name in FOLDERS:
                (out / name / f"{image}.png").unlink(missing_ok=True)
        for name in (RESULTS, *SEGMENTERS):
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise MetasegError(
            f"{out} could not be written to ({error.strerror or error}); choose another folder for out."
        ) from error
    for name in FOLDERS:
        with suppress(OSError):  # not there, or not empty
            (out / name).rmdir()


def _images(out: Path) -> Sequence[str] | None:
    """Names of the images in results.csv; None where there is none of ours."""
    try:
        with (out / RESULTS).open(newline="", encoding="utf-8") as file:
            rows: list[dict[str, Any]] = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error):
        return None
    names = [row.get("image") for row in rows]
    # A name that is a path would lead out of the folder.
    if not names or any(not name or Path(name).name != name for name in names):
        return None
    return [str(name) for name in names]

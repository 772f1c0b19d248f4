"""The output folder: replaces results of an earlier call, and never touches other files."""

import csv
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from metaseg.adapting.results import RESULTS
from metaseg.errors import MetasegError, expanded
from metaseg.system import os_errors_explained

_REMEDY = "choose another folder for out"  # without a promise: earlier results are replaced one by one
FOLDERS = ("masks", "overlays", "probabilities")
"""Folders of pictures, one picture per line of results.csv."""
SEGMENTERS = ("segmenter.safetensors", "segmenter.onnx", "segmenter.pt2")
_UNFINISHED, _LOCK = ".metaseg-unfinished", ".metaseg-lock"


def check(out: Path, inputs: Sequence[tuple[str, Path]], overwrite: bool) -> None:
    """Refuse a folder in which files could be lost; writes nothing.

    Args:
        out: the folder; need not exist.
        inputs: (name of a setting, folder that it reads).
        overwrite: whether to replace results of an earlier call.

    Raises:
        MetasegError: if `out` is a file, its folders are inputs or not from an earlier call, or it holds results.
    """
    if out.exists() and not out.is_dir():
        raise MetasegError(f"out must be a folder, found the file {out}; choose another path.")
    for name in FOLDERS:
        for setting, folder in inputs:
            if (out / name).resolve() == folder.resolve():
                raise MetasegError(
                    f"{out / name} is an output folder, but {setting} reads from it; choose another out."
                )
    there = [name for name in (*FOLDERS, RESULTS, *SEGMENTERS) if (out / name).exists()]
    if any(name in FOLDERS or name == RESULTS for name in there) and _images(out) is None:
        # Every mask is preceded by its line in results.csv, so these may be the user's.
        raise MetasegError(
            f"out={out} contains {there[0]} but no {RESULTS} of an earlier call, so these may be your own files; "
            "choose another folder."
        )
    if there and not overwrite:
        raise MetasegError(
            f"out={out} contains {there[0]} of an earlier call; choose another folder, or add overwrite=true."
        )


@contextmanager
def replaced(
    out: Path, inputs: Sequence[tuple[str, Path]] = (), overwrite: bool = False, kept: str | None = None
) -> Iterator[Path]:
    """Create the folder, and yield the folder to write results to, which no other call uses at the same time.

    Where an earlier call left results, that is one beside them, whose content takes their place once the block ends
    without an error. Earlier results are the files that results.csv names; no others are replaced or removed.

    Args:
        out: the folder.
        inputs, overwrite: as for `check`, which is done again, as another call may have ended since.
        kept: path of an earlier segmenter that is in use, and so is replaced but not removed.

    Raises:
        MetasegError: as for `check`, if another call is writing to the folder, or if it cannot be created or files
            cannot be replaced.
    """
    with os_errors_explained(out, _REMEDY):
        out.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        check(out, inputs, overwrite)
        with _beside(out, kept) as folder:
            yield folder


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    lock = FileLock(out / _LOCK)
    with os_errors_explained(out, _REMEDY):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise MetasegError(
                f"Expected no other call to write to out={out}, found one that is writing to it; wait, or choose "
                "another folder."
            ) from None
    try:
        yield
    finally:
        with suppress(OSError):
            (out / _LOCK).unlink()
        lock.release()


@contextmanager
def _beside(out: Path, kept: str | None) -> Iterator[Path]:
    with os_errors_explained(out, _REMEDY):
        earlier = _earlier(out)
        used = {path for path in earlier if kept is not None and (out / path).resolve() == expanded(kept).resolve()}
        beside = out / _UNFINISHED
        shutil.rmtree(beside, ignore_errors=True)  # of a call that was killed
        if earlier:
            beside.mkdir()
    try:
        yield beside if earlier else out
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    if not earlier:
        return
    rest = next(path for number in count(1) if not (path := out / f"not-replaced-{number}").exists())
    try:
        with os_errors_explained(out, f"new results that have not replaced earlier ones are in {rest}"):
            _take_over(beside, out, earlier - used)
    except BaseException:
        beside.rename(rest)  # under a name that no later call removes
        raise
    shutil.rmtree(beside, ignore_errors=True)


def _earlier(out: Path) -> set[Path]:
    """An earlier call's results, relative to the folder."""
    pictures = [Path(name) / f"{image}.png" for image in _images(out) or () for name in FOLDERS]
    return {path for path in (*pictures, Path(RESULTS), *map(Path, SEGMENTERS)) if (out / path).is_file()}


def _take_over(beside: Path, out: Path, earlier: set[Path]) -> None:
    new = {path.relative_to(beside) for path in beside.rglob("*") if path.is_file()}
    if not new:
        return  # nothing was to be written
    # The table first: it is the file that another program most often has open, and then nothing has been replaced yet.
    for path in sorted(new, key=lambda path: (path != Path(RESULTS), path)):
        (out / path).parent.mkdir(exist_ok=True)
        (beside / path).replace(out / path)
    for path in earlier - new:
        (out / path).unlink(missing_ok=True)
    for name in FOLDERS:
        with suppress(OSError):  # missing or not empty
            (out / name).rmdir()


def _images(out: Path) -> Sequence[str] | None:
    """Names of the images in results.csv; None if there is no such file of ours."""
    try:
        with (out / RESULTS).open(newline="", encoding="utf-8") as file:
            rows: list[dict[str, Any]] = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error):
        return None
    names = [row.get("image") for row in rows]
    # A name that is a path would leave the folder.
    if not names or any(not name or Path(name).name != name for name in names):
        return None
    return [str(name) for name in names]

"""The on-disk cache of prepared datasets, with atomic writes.

A prepared dataset is a folder `<name>-<size>-<key>` with images.npy, masks.npy and meta.json. The key is a hash of all
source files and of everything else that determines the result, so a stale folder is never mistaken for a current one.

- A dataset is written to a temporary folder, flushed and renamed. A killed process leaves only the temporary folder,
  which the next process to prepare the same dataset removes.
- Of two processes, the second waits for the first one's file lock and finds the work done.
- meta.json records the sizes of the arrays, so a truncated folder is detected on opening and rebuilt.
- Arrays are written with ordinary writes: with a memory map, a full disk would kill the process with SIGBUS.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock, Timeout

from metaseg.documents import read_json
from metaseg.errors import MetasegError, expanded
from metaseg.system import cores, hashed, os_errors_explained, replacing

FOLDER = ".metaseg_cache"
LARGE = 2**20
"""Minimum size in bytes for a file's hash to be remembered. Smaller files are cheap to hash again."""

_ARRAYS = ("images.npy", "masks.npy")
Records = dict[str, list[Any]]  # path → size in bytes, modification time in ns, hash


@dataclass(frozen=True)
class Entry:
    """The identity of a cached dataset: name, size in pixels, content key and source folder."""

    name: str
    size: int
    key: str
    source: str

    @property
    def prefix(self) -> str:
        """Common prefix of the folders of all versions of this dataset at this size."""
        return f"{self.name}-{self.size}-"

    @property
    def folder(self) -> str:
        """Name of the folder of this version."""
        return self.prefix + self.key[:24]


@dataclass(frozen=True)
class Cached:
    """An opened cache folder: its arrays as read-only memory maps, and the content of meta.json."""

    folder: Path
    images: np.ndarray
    masks: np.ndarray
    meta: dict[str, Any]


def places(root: Path, chosen: str | Path | None) -> list[Path]:
    """Candidate cache folders in order: the argument, or METASEG_CACHE, or the one below root and the user's."""
    if named := chosen or os.environ.get("METASEG_CACHE"):
        return [expanded(named)]
    own = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metaseg"
    return [root / FOLDER, own]


def writable(candidates: Iterable[Path]) -> Path:
    """The first folder that can be created and written to. Raises MetasegError if there is none."""
    reasons = []
    for folder in candidates:
        if not (reason := _why_not(folder)):
            return folder
        reasons.append(f"{folder} ({reason})")
    raise MetasegError(
        f"no writable folder for prepared images: tried {', '.join(reasons)}; name one with METASEG_CACHE=DIR"
    )


def _why_not(folder: Path) -> str:
    """Why a folder is not writable, empty if it is. Creates the folder if needed."""
    above = folder.parent
    # root can write anywhere, but a folder that its owner made read-only should be left alone.
    if not folder.exists() and above.is_dir() and not above.stat().st_mode & 0o222:
        return f"{above} is read-only"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def content_key(
    files: list[Path],
    folder: Path,
    settings: dict[str, Any],
    known: Records | None = None,
    advance: Callable[[], None] = lambda: None,
) -> tuple[str, Records]:
    """Hash of the files' names relative to folder, their contents and the settings; and new records to remember.

    A file of 1 MiB or more that is in `known` is hashed again only if its size or modification time differs: ISIC-2018
    as published is 10 GB. `advance` is called once per file. Raises MetasegError naming a file that cannot be read.
    """
    known, fresh = known or {}, {}

    def digest(path: Path) -> str:
        stat = path.stat()
        state = [stat.st_size, stat.st_mtime_ns]
        record = known.get(str(path.absolute()))
        if stat.st_size >= LARGE and record and record[:2] == state:
            return str(record[2])
        value = hashed(path, hashlib.blake2b(digest_size=16))
        if stat.st_size >= LARGE:
            fresh[str(path.absolute())] = [*state, value]
        return value

    try:
        with ThreadPoolExecutor(cores()) as pool:
            digests = []
            for value in pool.map(digest, files):
                digests.append(value)
                advance()
    except OSError as error:
        raise MetasegError(f"cannot read {error.filename}: {error.strerror}; make the file readable") from error
    # A CSV file may list files outside its folder.
    names = [Path(os.path.relpath(path, folder)).as_posix() for path in files]
    text = json.dumps([settings, list(zip(names, digests, strict=True))], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest(), fresh


def recall(candidates: list[Path], name: str) -> Records:
    """The hash records of a dataset's large files, from the first folder that has any."""
    for place in candidates:
        if isinstance(records := _json(place / f"{name}-digests.json"), dict):
            return records
    return {}


def remember(place: Path, name: str, records: Records) -> None:
    """Save the records in the cache; if it is read-only or full, the next start is merely slower."""
    with suppress(MetasegError), replacing(place / f"{name}-digests.json") as draft:
        draft.write_text(json.dumps(records))


def load(folder: Path, key: str) -> Cached | None:
    """Open a cache folder; None if it is missing, damaged or has another key."""
    meta = _json(folder / "meta.json")
    try:
        if not isinstance(meta, dict) or meta["key"] != key:
            return None
        if meta["bytes"] != [(folder / name).stat().st_size for name in _ARRAYS]:
            return None
        images, masks = (np.load(folder / name, mmap_mode="r") for name in _ARRAYS)
    except (OSError, ValueError, KeyError):
        return None
    return Cached(folder, images, masks, meta)


def _json(path: Path) -> Any:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None


def obtain(entry: Entry, candidates: list[Path], build: Callable[[Path], dict[str, Any]]) -> Cached:
    """The entry from the first folder that holds it intact, else built in the first writable folder.

    build: writes images.npy and masks.npy into an empty folder, and returns the fields of meta.json other than key,
    source and sizes. Raises MetasegError if no folder is writable or the disk is full, and whatever `build` raises;
    the previous content of the cache is then untouched.
    """
    for place in candidates:
        if cached := load(place / entry.folder, entry.key):
            return cached
    place = writable(candidates)
    lock = FileLock(place / f"{entry.prefix}lock")
    with os_errors_explained(
        place / entry.folder, "existing files are untouched: free space, or name another folder with METASEG_CACHE=DIR"
    ):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"waiting for another process that is preparing {entry.name} in {place}", file=sys.stderr)
            lock.acquire()
        try:
            return load(place / entry.folder, entry.key) or _build(entry, place, build)
        finally:
            lock.release()


def _build(entry: Entry, place: Path, build: Callable[[Path], dict[str, Any]]) -> Cached:
    # Under the lock, any temporary folder of this dataset and size was left by a dead process.
    for leftover in place.glob(f".{entry.prefix}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    final, draft = place / entry.folder, _temporary(entry, place)
    try:
        draft.mkdir()
        meta = {**build(draft), "key": entry.key, "source": entry.source}
        meta["bytes"] = [(draft / name).stat().st_size for name in _ARRAYS]
        with (draft / "meta.json").open("w", encoding="utf-8") as file:
            json.dump(meta, file)
            _flush(file)
        _flush_folder(draft)
        _discard(final, entry, place)
        draft.rename(final)
        _flush_folder(place)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    # Remove earlier versions made from the same source folder, but not those of other copies of the dataset. Processes
    # that still read them keep their memory maps.
    for folder in place.glob(f"{entry.prefix}*/"):
        other = _json(folder / "meta.json")
        if folder != final and isinstance(other, dict) and other.get("source") == entry.source:
            _discard(folder, entry, place)
    if not (cached := load(final, entry.key)):
        raise MetasegError(f"{final} was changed by another program while it was being opened: run the command again")
    return cached


def _temporary(entry: Entry, place: Path) -> Path:
    return place / f".{entry.prefix}{uuid.uuid4().hex}"


def _discard(folder: Path, entry: Entry, place: Path) -> None:
    """Rename a folder, then remove it, so that no process opens it half-deleted."""
    if folder.exists():
        aside = _temporary(entry, place)
        folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


class ArrayWriter:
    """Writes a uint8 .npy file of known shape (N, ...) sequentially, item by item, and flushes it to disk."""

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self._file = path.open("wb")
        header = {"descr": np.dtype(np.uint8).str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)

    def write(self, item: np.ndarray) -> None:
        """Append one item, uint8 of shape[1:]."""
        self._file.write(np.ascontiguousarray(item, dtype=np.uint8).data)

    def __enter__(self) -> ArrayWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                _flush(self._file)
        finally:
            self._file.close()


def _flush(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

"""Where prepared datasets are kept on disk, and how they get there whole or not at all.

A prepared dataset is a folder `<name>-<size>-<key>` with images.npy, masks.npy and meta.json. The key is a hash of the
contents of all its source files and of everything that shapes the result: a folder is right, or has another name.

- Written into a temporary folder, flushed to disk, then renamed: a process that dies leaves no half of a dataset, only
  a temporary folder, which the next one to prepare the same dataset removes.
- Two processes: the second waits for the first one's file lock and finds the work done.
- meta.json records the sizes of the arrays: a truncated folder is found when it is opened, and rebuilt.
- Arrays are written by ordinary writes, not through a memory map, where a full disk would end the process by SIGBUS.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock, Timeout

from metaseg.data.check import cores
from metaseg.errors import MetasegError

FOLDER = ".metaseg_cache"
LARGE = 2**20
"""Bytes from which on a file's hash is remembered. Smaller files are always read again, which costs next to nothing."""

_ARRAYS = ("images.npy", "masks.npy")
Records = dict[str, list[Any]]  # path → size in bytes, time of change in ns, hash


@dataclass(frozen=True)
class Entry:
    """What a cached dataset is called: dataset, size in pixels, key of its content, and the folder it was made from."""

    name: str
    size: int
    key: str
    source: str

    @property
    def prefix(self) -> str:
        """Common start of the folders that hold any version of this dataset at this size."""
        return f"{self.name}-{self.size}-"

    @property
    def folder(self) -> str:
        """Name of the folder that holds this very version."""
        return self.prefix + self.key[:24]


@dataclass(frozen=True)
class Cached:
    """An opened cache folder: its arrays as read-only memory maps, and what meta.json says."""

    folder: Path
    images: np.ndarray
    masks: np.ndarray
    meta: dict[str, Any]


def places(root: Path, chosen: str | Path | None) -> list[Path]:
    """Folders a cache may lie in, best first: the argument, or METASEG_CACHE, or one below root and the user's own."""
    if named := chosen or os.environ.get("METASEG_CACHE"):
        return [Path(named).expanduser()]
    own = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metaseg"
    return [root / FOLDER, own]


def writable(candidates: Iterable[Path]) -> Path:
    """The first folder that can be made and written to. Raises MetasegError where none can."""
    reasons = []
    for folder in candidates:
        if not (reason := _why_not(folder)):
            return folder
        reasons.append(f"{folder} ({reason})")
    raise MetasegError(
        f"no folder for prepared images can be written to: tried {', '.join(reasons)}; name one by METASEG_CACHE=DIR"
    )


def _why_not(folder: Path) -> str:
    """Why nothing can be written to a folder; empty where something can. The folder is made if need be."""
    above = folder.parent
    # The administrator may write anywhere; a folder that its owner closed to everyone is left alone all the same.
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
    """Hash of the files' names below folder, of their contents and of the settings; and records worth remembering.

    A file of 1 MiB or more that is in `known` is hashed again only if its size or time of change differs: ISIC-2018 as
    published is 10 GB. `advance` is called once a file. Raises MetasegError naming a file that cannot be read.
    """
    known, fresh = known or {}, {}

    def digest(path: Path) -> str:
        stat = path.stat()
        state = [stat.st_size, stat.st_mtime_ns]
        record = known.get(str(path.absolute()))
        if stat.st_size >= LARGE and record and record[:2] == state:
            return str(record[2])
        value = hashlib.blake2b(digest_size=16)
        with path.open("rb") as file:
            while chunk := file.read(LARGE):
                value.update(chunk)
        if stat.st_size >= LARGE:
            fresh[str(path.absolute())] = [*state, value.hexdigest()]
        return value.hexdigest()

    try:
        with ThreadPoolExecutor(cores()) as pool:
            digests = []
            for value in pool.map(digest, files):
                digests.append(value)
                advance()
    except OSError as error:
        raise MetasegError(f"cannot read {error.filename}: {error.strerror}; make the file readable") from error
    # Files that a CSV file names may lie outside of its folder.
    names = [Path(os.path.relpath(path, folder)).as_posix() for path in files]
    text = json.dumps([settings, list(zip(names, digests, strict=True))], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest(), fresh


def recall(candidates: list[Path], name: str) -> Records:
    """The records of a dataset's large files, from the first place that holds any."""
    for place in candidates:
        if isinstance(records := _json(place / f"{name}-digests.json"), dict):
            return records
    return {}


def remember(place: Path, name: str, records: Records) -> None:
    """Keep the records in the cache; where it is read-only or full, the next start is slower, nothing else."""
    path = place / f"{name}-digests.json"
    draft = place / f".{path.name}-{uuid.uuid4().hex}"
    try:
        draft.write_text(json.dumps(records))
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)


def load(folder: Path, key: str) -> Cached | None:
    """Open a cache folder; None where it is missing, damaged or of another key."""
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
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def obtain(entry: Entry, candidates: list[Path], build: Callable[[Path], dict[str, Any]]) -> Cached:
    """The entry from the first place that holds it; built in the first writable place where it is missing or damaged.

    build: writes images.npy and masks.npy into an empty folder, and returns what meta.json says beside key, source and
    sizes. Raises MetasegError where no folder can be written to or the disk is full, and whatever `build` raises; what
    the cache held before is then still there.
    """
    for place in candidates:
        if cached := load(place / entry.folder, entry.key):
            return cached
    place = writable(candidates)
    lock = FileLock(place / f"{entry.prefix}lock")
    with _os_errors_explained(entry, place):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"waiting for another process that prepares {entry.name} in {place}", file=sys.stderr)
            lock.acquire()
        try:
            return load(place / entry.folder, entry.key) or _build(entry, place, build)
        finally:
            lock.release()


@contextmanager
def _os_errors_explained(entry: Entry, place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = f"{entry.name} at {entry.size}×{entry.size} could not be prepared in {place}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise MetasegError(
                f"the disk is full: {what}; free some space, or name a folder on another disk by METASEG_CACHE=DIR. "
                f"Nothing written before is damaged"
            ) from error
        raise MetasegError(f"{what}: {error.strerror or error}; name another folder by METASEG_CACHE=DIR") from error


def _build(entry: Entry, place: Path, build: Callable[[Path], dict[str, Any]]) -> Cached:
    # Under the lock, any temporary folder of this dataset and size belongs to a process that is no more.
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
    # Earlier versions made from the same folder go, those of other copies of the dataset stay. Processes that still
    # read them keep their memory maps until they end.
    for folder in place.glob(f"{entry.prefix}*/"):
        other = _json(folder / "meta.json")
        if folder != final and isinstance(other, dict) and other.get("source") == entry.source:
            _discard(folder, entry, place)
    if not (cached := load(final, entry.key)):
        raise MetasegError(f"{final} was changed by another program while it was being opened: start again")
    return cached


def _temporary(entry: Entry, place: Path) -> Path:
    return place / f".{entry.prefix}{uuid.uuid4().hex}"


def _discard(folder: Path, entry: Entry, place: Path) -> None:
    """Remove a folder by renaming it first, so that nobody finds half of it under its own name."""
    if folder.exists():
        aside = _temporary(entry, place)
        folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


class ArrayWriter:
    """Writes a uint8 .npy file of known shape (N, ...) front to back, one item at a time, and flushes it to disk."""

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

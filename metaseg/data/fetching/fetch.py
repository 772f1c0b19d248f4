"""`python -m metaseg.data fetch`: archives of a dataset, downloaded, verified, unpacked and put where they are read.

Archives lie in ROOT/downloads until they are unpacked; one that is put there by hand is taken as it is. What was
downloaded is noted in ROOT/fetched.json: later downloads of the same address have to be the same file. SHA-256 that the
catalogue knows is verified; where it knows none, the first download is believed and this is said.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from metaseg.data.catalogue import Dataset, RemoteFile
from metaseg.data.fetching import archives
from metaseg.data.fetching.download import download
from metaseg.data.layouts import Listing, scan
from metaseg.errors import MetasegError

RECORDS = "fetched.json"
DOWNLOADS = "downloads"


@dataclass(frozen=True)
class _Place:
    """A data.root: where archives, records and drafts lie in it."""

    root: Path

    @property
    def downloads(self) -> Path:
        return self.root / DOWNLOADS

    def records(self) -> dict[str, dict[str, Any]]:
        file = self.root / RECORDS
        try:
            return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}
        except (OSError, ValueError) as error:
            raise MetasegError(
                f"{file} should hold what was fetched, but cannot be read ({error}): mend or remove it"
            ) from error

    def note(self, url: str, **values: Any) -> None:
        records = self.records()
        records[url] = records.get(url, {}) | values
        draft = self.root / f".{RECORDS}-{uuid.uuid4().hex}"
        draft.write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")
        draft.replace(self.root / RECORDS)


def fetch(dataset: Dataset, root: str | Path, keep: bool = False) -> Listing:
    """Download and unpack what is not there yet.

    Args:
        dataset: with its `sources`.
        root: data.root, made if need be; the files go to the dataset's first folder in it.
        keep: leave the archives in ROOT/downloads.

    Returns:
        What lies there then.

    Raises:
        MetasegError: the dataset cannot be downloaded by a program; a download fails or is not what it should be; an
            archive is hostile or damaged; files are in the way; another process fetches into the same root.
    """
    place = _Place(Path(root).expanduser())
    if there := _there(dataset, place.root):
        print(f"{dataset.title}: {len(there.pairs)} pairs are in {there.folder} already")
        return there
    if not dataset.sources:
        how = f"{dataset.how} ({dataset.url})" if dataset.how else "its YAML file names no sources"
        raise MetasegError(f"{dataset.name} ({dataset.title}) cannot be fetched by a program: {how}")
    for key in ("licence", "citation"):
        if text := getattr(dataset, key):
            print(f"{dataset.title}, {key}: {text}")
    try:
        place.downloads.mkdir(parents=True, exist_ok=True)
        with FileLock(place.downloads / ".lock", timeout=0):
            for source in dataset.sources:
                _one(dataset, source, place, keep)
    except Timeout:
        raise MetasegError(f"another process fetches into {place.root}: wait for its end") from None
    except OSError as error:
        raise MetasegError(
            f"{dataset.name} could not be unpacked in {place.root}: {error.strerror or error}; free some space or make "
            f"the folder writable, and repeat the command"
        ) from error
    listing = scan(dataset, root)
    published = f" of {dataset.count} published" if dataset.count not in (None, len(listing.pairs)) else ""
    print(f"{dataset.title}: {len(listing.pairs)} pairs{published} in {listing.folder}")
    return listing


def _there(dataset: Dataset, root: Path) -> Listing | None:
    try:
        listing = scan(dataset, root)
    except MetasegError:
        return None
    return listing if listing.pairs and not listing.faults else None


def _one(dataset: Dataset, source: RemoteFile, place: _Place, keep: bool) -> None:
    folder = place.root / Path(dataset.folders[0]).expanduser()
    unpacked = place.records().get(source.url, {}).get("unpacked", [])
    if unpacked and all((folder / name).exists() for name in unpacked):
        return
    archive = place.downloads / source.file
    if not archive.exists():
        download(source.url, archive, source.bytes)
    _verify(source, archive, place)
    draft = place.root / f".unpacking-{dataset.name}-{uuid.uuid4().hex}"
    for leftover in place.root.glob(f".unpacking-{dataset.name}-*"):  # of a process that was killed
        shutil.rmtree(leftover)
    print(f"unpacking {source.file}", flush=True)
    draft.mkdir()
    try:
        archives.unpack(archive, draft)
        names = sorted(path.name for path in draft.iterdir())
        _move(draft, folder)
    except archives.DamagedError as error:
        archive.unlink()
        raise MetasegError(f"{error}; it was removed: repeat the command to download it again") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    place.note(source.url, unpacked=names)
    if not keep:
        archive.unlink()


def _move(draft: Path, folder: Path) -> None:
    """All of a draft into a folder, which may hold other things; nothing is replaced."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft.rename(folder)
        return
    if taken := sorted(path.name for path in draft.iterdir() if (folder / path.name).exists()):
        raise MetasegError(
            f"{folder / taken[0]} is in the way of what was fetched, and is no whole dataset: move it away and repeat "
            f"the command, which will not download the archive again"
        )
    for path in sorted(draft.iterdir()):
        path.rename(folder / path.name)


def _verify(source: RemoteFile, archive: Path, place: _Place) -> None:
    """Compare an archive with what the catalogue knows of it, else with what was fetched before, else note it."""
    size, digest = archive.stat().st_size, _sha256(archive)
    for what, expected, found in (("bytes", source.bytes, size), ("sha256", source.sha256, digest)):
        if expected is not None and expected != found:
            archive.unlink()
            raise MetasegError(
                f"{source.file} should have {what} {expected}, but has {found}: it is another file than the published "
                f"one, and was removed; repeat the command, or download it by hand"
            )
    record = place.records().get(source.url, {})
    if record.get("sha256", digest) != digest:
        raise MetasegError(
            f"{archive} differs from what was fetched from {source.url} on {record.get('date')}: expected sha256 "
            f"{record['sha256']}, found {digest}; if its publisher replaced it, remove its entry from "
            f"{place.root / RECORDS}, else remove the archive, and repeat the command"
        )
    if source.sha256 is None and "sha256" not in record:
        print(f"{source.file}: no published hash is known; noted sha256 {digest} in {place.root / RECORDS}", flush=True)
    if "sha256" not in record:
        date = time.strftime("%Y-%m-%d")
        place.note(source.url, file=source.file, bytes=size, sha256=digest, known=source.sha256 is not None, date=date)


def _sha256(path: Path) -> str:
    value = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            value.update(block)
    return value.hexdigest()

"""`metaseg data fetch`: download, verify and unpack the archives of a dataset.

Archives stay in ROOT/downloads until they are unpacked; one placed there by hand is used as is. ROOT/fetched.json
records every download: later downloads from the same URL must be the same file. A SHA-256 in the catalogue is verified;
without one, the first download is trusted, with a notice.
"""

from __future__ import annotations

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
from metaseg.errors import MetasegError, expanded
from metaseg.system import hashed, replacing

RECORDS = "fetched.json"
DOWNLOADS = "downloads"


@dataclass(frozen=True)
class _Place:
    """A data.root with its downloads, records and temporary folders."""

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
                f"{file} should record earlier downloads, but cannot be read ({error}): repair or remove it"
            ) from error

    def note(self, url: str, **values: Any) -> None:
        records = self.records()
        records[url] = records.get(url, {}) | values
        with replacing(self.root / RECORDS) as draft:
            draft.write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")


def fetch(dataset: Dataset, root: str | Path, keep: bool = False) -> Listing:
    """Download and unpack the missing archives of a dataset.

    Args:
        dataset: the dataset, with `sources`.
        root: data.root, created if needed; the files go to the dataset's first folder in it.
        keep: keep the archives in ROOT/downloads.

    Returns:
        The listing of the unpacked dataset.

    Raises:
        MetasegError: the dataset cannot be downloaded automatically; a download fails or does not match; an archive is
            malicious or damaged; files are in the way; another process is fetching into the same root.
    """
    place = _Place(expanded(root))
    if existing := _existing(dataset, place.root):
        found = len(existing.pairs)
        published = f" of {dataset.count} published" if dataset.count and found < dataset.count else ""
        print(f"{dataset.title}: {found}{published} pairs are already in {existing.folder}")
        return existing
    if not dataset.sources:
        how = f"{dataset.how} ({dataset.url})" if dataset.how else "its YAML file names no sources"
        raise MetasegError(f"{dataset.name} ({dataset.title}) cannot be fetched automatically: {how}")
    for key in ("licence", "citation"):
        if text := getattr(dataset, key):
            print(f"{dataset.title}, {key}: {text}")
    try:
        place.downloads.mkdir(parents=True, exist_ok=True)
        with FileLock(place.downloads / ".lock", timeout=0):
            for source in dataset.sources:
                _one(dataset, source, place, keep)
    except Timeout:
        raise MetasegError(f"another process is fetching into {place.root}: wait for it to finish") from None
    except OSError as error:
        raise MetasegError(
            f"{dataset.name} could not be unpacked in {place.root}: {error.strerror or error}; free some space or make "
            f"the folder writable, and repeat the command"
        ) from error
    listing = scan(dataset, root)
    published = f" of {dataset.count} published" if dataset.count not in (None, len(listing.pairs)) else ""
    print(f"{dataset.title}: {len(listing.pairs)} pairs{published} in {listing.folder}")
    return listing


def _existing(dataset: Dataset, root: Path) -> Listing | None:
    try:
        listing = scan(dataset, root)
    except MetasegError:
        return None
    return listing if listing.pairs and not listing.faults else None


def _one(dataset: Dataset, source: RemoteFile, place: _Place, keep: bool) -> None:
    folder = place.root / expanded(dataset.folders[0])
    unpacked = place.records().get(source.url, {}).get("unpacked", [])
    if unpacked and all((folder / name).exists() for name in unpacked):
        return
    archive = place.downloads / source.file
    if not archive.exists():
        download(source.url, archive, source.bytes)
    _verify(source, archive, place)
    draft = place.root / f".unpacking-{dataset.name}-{uuid.uuid4().hex}"
    for leftover in place.root.glob(f".unpacking-{dataset.name}-*"):  # left by a killed process
        shutil.rmtree(leftover)
    print(f"unpacking {source.file}", flush=True)
    draft.mkdir()
    try:
        archives.unpack(archive, draft)
        names = sorted(path.name for path in draft.iterdir())
        _move(draft, folder)
    except archives.DamagedError as error:
        archive.unlink()
        raise MetasegError(f"{error}; it was deleted: repeat the command to download it again") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    place.note(source.url, unpacked=names)
    if not keep:
        archive.unlink()


def _move(draft: Path, folder: Path) -> None:
    """Move the contents of a draft into a folder that may have other contents; nothing is overwritten."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(draft, folder)  # the catalogue may name a folder on another disk
        return
    if taken := sorted(path.name for path in draft.iterdir() if (folder / path.name).exists()):
        raise MetasegError(
            f"{folder / taken[0]} already exists, but the dataset is incomplete: move it away and repeat the command; "
            f"the archive will not be downloaded again"
        )
    for path in sorted(draft.iterdir()):
        shutil.move(path, folder / path.name)


def _verify(source: RemoteFile, archive: Path, place: _Place) -> None:
    """Compare an archive with the catalogue, else with the record of an earlier download, else record it."""
    size, digest = archive.stat().st_size, hashed(archive)
    for what, expected, found in (("bytes", source.bytes, size), ("sha256", source.sha256, digest)):
        if expected is not None and expected != found:
            archive.unlink()
            raise MetasegError(
                f"{source.file} should have {what} {expected}, but has {found}: it is not the published file and was "
                f"deleted; repeat the command, or download it by hand"
            )
    record = place.records().get(source.url, {})
    if record.get("sha256", digest) != digest:
        raise MetasegError(
            f"{archive} differs from the file fetched from {source.url} on {record.get('date')}: expected sha256 "
            f"{record['sha256']}, found {digest}; if the publisher replaced it, remove its entry from "
            f"{place.root / RECORDS}, else remove the archive, and repeat the command"
        )
    if source.sha256 is None and "sha256" not in record:
        print(f"{source.file}: no published hash; recorded sha256 {digest} in {place.root / RECORDS}", flush=True)
    if "sha256" not in record:
        date = time.strftime("%Y-%m-%d")
        place.note(source.url, file=source.file, bytes=size, sha256=digest, known=source.sha256 is not None, date=date)

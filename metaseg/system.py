"""What the operating system gives: cores, memory in use, hashes of files, files written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from metaseg.errors import MetasegError

RSS_PER_MIB = 2**20 if sys.platform == "darwin" else 2**10
"""ru_maxrss is in bytes on macOS, in KiB elsewhere."""


def cores() -> int:
    """Number of cores available to this process; a scheduler may give it some of the machine's only."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resident(field: str = "VmRSS", process: int | str = "self") -> float:
    """Resident memory in MiB: VmRSS, that of now, or VmHWM, the highest so far; NaN where the system does not tell.

    Args:
        field: of /proc/PID/status. Without that file, as on macOS, only this process's VmHWM is known.
        process: its number.
    """
    status = Path(f"/proc/{process}/status")
    if status.exists():  # before ru_maxrss, which survives exec on Linux: a child would report its parent's peak
        lines = dict(line.split(":", 1) for line in status.read_text(errors="replace").splitlines() if ":" in line)
        if field in lines:
            return int(lines[field].split()[0]) / 1024
    if (field, process) != ("VmHWM", "self") or os.name != "posix":
        return float("nan")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / RSS_PER_MIB


def hashed(path: Path, digest: hashlib._Hash | hashlib.blake2b | None = None) -> str:
    """Hexadecimal digest of a file, read in pieces; `digest`: an empty one of hashlib, SHA-256 if None.

    Raises:
        OSError: the file cannot be read.
    """
    digest = digest or hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`, and move it to `path` if the block succeeds.

    A killed process, a full disk or an error in the block leaves the old file unchanged. The temporary name keeps the
    suffix, by which image writers choose the format.

    Raises:
        MetasegError: the file cannot be written (full disk, no permission).
    """
    # Not tempfile, whose files only their owner can read; other members of a group should see results.
    # Short, as the name of the file may be as long as the file system allows.
    temporary = path.with_name(f".{uuid.uuid4().hex[:12]}.tmp{path.suffix}")
    try:
        with os_errors_explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            # Without fsync, some file systems may write the new name before the new contents.
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.replace(path)
    finally:
        with suppress(OSError):  # missing after success; after a failure, the first error should be raised
            temporary.unlink()


_REMEDY = "existing files are untouched: free space or choose another folder"


@contextmanager
def os_errors_explained(path: Path, remedy: str = _REMEDY) -> Iterator[None]:
    """Raise the operating system's errors in writing `path` as a `MetasegError`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise MetasegError(f"{path} could not be written ({reason}); {remedy}") from error

"""Safe unpacking of untrusted archives.

Zip and tar are read by Python, and each member is checked before it is written. Rar needs one of the programs in
`TOOLS`, which unpacks into an empty folder that is checked during and after unpacking. Refused are members with paths
outside the folder, links, devices and encrypted members, and archives that grow more than images and masks can.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import os
import shutil
import stat
import struct
import subprocess
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from metaseg.errors import MetasegError, reason

MOST_MEMBERS = 200_000
GROWTH = 100
"""Largest expansion factor of an archive: bitmaps of masks expand 40 times, a zip bomb 1000 times."""
LONGEST_NAME = 255
"""Bytes of a file's name, in all common file systems."""
ALWAYS = 2**26
"""Unpacked size in bytes that is always allowed."""

TOOLS: dict[str, Callable[[Path, Path], list[str]]] = {
    "unar": lambda archive, target: ["-quiet", "-no-directory", "-output-directory", str(target), str(archive)],
    "unrar": lambda archive, target: ["x", "-y", "-p-", str(archive), f"{target}/"],
    "7zz": lambda archive, target: ["x", "-y", "-p-", f"-o{target}", str(archive)],
    "7z": lambda archive, target: ["x", "-y", "-p-", f"-o{target}", str(archive)],
    "bsdtar": lambda archive, target: ["-x", "-f", str(archive), "-C", str(target)],
}
"""Programs that read rar, with their arguments; the first support more variants of the format."""

_MAGIC = {b"PK\x03\x04": "zip", b"PK\x05\x06": "zip", b"Rar!\x1a\x07": "rar", b"\x1f\x8b": "tar", b"BZh": "tar"}
_BLOCK = 2**20


_DAMAGED = (zlib.error, lzma.LZMAError, EOFError, NotImplementedError, ValueError, struct.error)
"""What the readers of compressed files raise for damaged ones, besides OSErrors without a reason of the system."""


class DamagedError(MetasegError):
    """The file is not an archive, or an incomplete one: it must be downloaded again."""


def kind(archive: Path) -> str:
    """`zip`, `rar` or `tar`, by the file's first bytes. Raises MetasegError if it is none of them."""
    with archive.open("rb") as file:
        start = file.read(512)
    for magic, name in _MAGIC.items():
        if start.startswith(magic):
            return name
    if start[257:262] == b"ustar" or start.startswith(b"\xfd7zXZ"):
        return "tar"
    looks = "a web page" if start.lstrip()[:1] == b"<" else "something else"
    raise DamagedError(f"{archive.name} should be a zip, rar or tar archive, but is {looks}")


def unpack(archive: Path, target: Path) -> None:
    """Unpack an archive into an empty folder.

    Raises:
        MetasegError: the archive is damaged, malicious or of an unknown kind, or no program for rar is installed. The
            caller removes what was written.
        OSError: the disk is full or not writable.
    """
    try:
        {"zip": _unpack_zip, "tar": _unpack_tar, "rar": _unpack_by_tool}[kind(archive)](archive, target)
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # a seek to an offset that cannot be
            raise
        raise _damaged(archive, error) from error


def _limit(archive: Path) -> int:
    return max(ALWAYS, GROWTH * archive.stat().st_size)


def _refuse(archive: Path, member: str, why: str) -> MetasegError:
    return MetasegError(
        f"{archive.name} was refused and nothing was unpacked: its member {member[:200]!r} {why}; this is hardly the "
        f"published archive: remove {archive} to download it again"
    )


def _check_path(archive: Path, name: str) -> None:
    path, windows = PurePosixPath(name), PureWindowsPath(name)
    outside = path.is_absolute() or windows.anchor or ".." in path.parts or ".." in windows.parts
    if outside or "\0" in name:
        raise _refuse(archive, name, "has a path outside the folder")
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts):
        raise _refuse(archive, name, f"has a name of more than {LONGEST_NAME} bytes")


def _check_sizes(archive: Path, members: int, size: int) -> None:
    limit = _limit(archive)
    if members > MOST_MEMBERS or size > limit:
        raise MetasegError(
            f"{archive.name} was refused: its {members} members would take {size / 2**20:,.0f} MiB, expected "
            f"at most {MOST_MEMBERS} members and {limit / 2**20:,.0f} MiB for an archive of its size"
        )
    free = shutil.disk_usage(archive.parent).free
    if size > free:
        raise MetasegError(
            f"{archive.name} needs {size / 2**20:,.0f} MiB unpacked, but {archive.parent} has "
            f"only {free / 2**20:,.0f} MiB left: free some space and repeat the command"
        )


def _damaged(archive: Path, error: Exception) -> DamagedError:
    return DamagedError(
        f"{archive.name} is damaged ({reason(error)}): it is truncated, or is not the published archive"
    )


def _unpack_zip(archive: Path, target: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as file:
            members = file.infolist()
            for member in members:
                _check_path(archive, member.filename)
                kind_of = stat.S_IFMT(member.external_attr >> 16)
                if kind_of not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise _refuse(archive, member.filename, "is a link or a device")
                if member.flag_bits & 1:
                    raise _refuse(archive, member.filename, "is encrypted")
            _check_sizes(archive, len(members), sum(member.file_size for member in members))
            for member in members:
                if member.is_dir():
                    (target / member.filename).mkdir(parents=True, exist_ok=True)
                else:
                    with file.open(member) as source:
                        _write(archive, target, member.filename, source)
    except (zipfile.BadZipFile, *_DAMAGED) as error:
        raise _damaged(archive, error) from error


def _unpack_tar(archive: Path, target: Path) -> None:
    try:
        with _opened(archive) as content, tarfile.open(fileobj=_Pieces(content), mode="r:") as file:  # type: ignore[call-overload]
            for member in _checked(archive, file):
                if member.isfile() and (target / member.name).exists():
                    raise _refuse(archive, member.name, "occurs twice")
                file.extract(member, target, set_attrs=False, filter="data")
    except tarfile.FilterError as error:
        raise _refuse(archive, error.tarinfo.name, "has a path outside the folder") from error
    except (FileExistsError, NotADirectoryError):
        raise _refuse(archive, member.name, "occurs twice") from None
    except (tarfile.TarError, *_DAMAGED) as error:
        raise _damaged(archive, error) from error


def _opened(archive: Path) -> IO[bytes]:
    with archive.open("rb") as file:
        start = file.read(2)
    return {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}.get(start, open)(archive, "rb")  # type: ignore


class _Pieces:
    """A file for tarfile, which would read a header of any length, such as a name of a gigabyte, into memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self.seek, self.tell, self._read = file.seek, file.tell, file.read

    def read(self, size: int) -> bytes:
        """Up to `size` bytes: contents are read piece by piece."""
        if size > _BLOCK:
            raise tarfile.ReadError(f"a header has {size} bytes, and the limit is {_BLOCK}")
        return self._read(size)


def _checked(archive: Path, file: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Check and yield the members in order; the size of a compressed tar is only known as it is read."""
    size = 0
    for number, member in enumerate(file, 1):
        _check_path(archive, member.name)
        if not (member.isfile() or member.isdir()) or member.issparse():
            raise _refuse(archive, member.name, "is a link or a device")
        size += member.size
        if number % 1000 == 1 or size > _limit(archive):
            _check_sizes(archive, number, size)
        yield member


def _write(archive: Path, target: Path, name: str, source: IO[bytes]) -> None:
    path = target / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            shutil.copyfileobj(source, file, _BLOCK)
    except (FileExistsError, NotADirectoryError):
        raise _refuse(archive, name, "occurs twice") from None


def _unpack_by_tool(archive: Path, target: Path) -> None:
    tools = [name for name in TOOLS if shutil.which(name)]
    if not tools:
        raise MetasegError(
            f"{archive} is a rar archive, and none of {', '.join(TOOLS)} is installed: install one (Debian: apt "
            f"install unar libarchive-tools; macOS: brew install unar) and repeat the command, which will not download "
            f"the archive again, or unpack it by hand"
        )
    failed = []
    for tool in tools:
        if not (said := _run(tool, archive, target)):
            return
        failed.append(f"{tool}: {said}")
        shutil.rmtree(target)
        target.mkdir()
    raise MetasegError(
        f"{archive} could not be unpacked by {'; '.join(failed)}: it may be damaged, so remove it and repeat the "
        f"command, or install another of {', '.join(TOOLS)}, as not all of them read every rar"
    )


def _run(tool: str, archive: Path, target: Path) -> str:
    """Unpack with a program; returns why it failed, empty on success."""
    limit = _limit(archive)
    command = [tool, *TOOLS[tool](archive.absolute(), target.absolute())]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            while process.poll() is None:
                _look_over(archive, target, limit)
                time.sleep(0.1)
        finally:
            process.kill()  # no effect if it has ended
            process.wait()
        _look_over(archive, target, limit)
        output.seek(0)
        said = " ".join(output.read().decode(errors="replace").split())[-200:]
    return "" if process.returncode == 0 else said or f"exit status {process.returncode}"


def _look_over(archive: Path, target: Path, limit: int) -> None:
    """Refuse unpacked contents that are too large, or anything other than files and folders."""
    total = number = 0
    for path in target.rglob("*"):
        try:
            status = path.lstat()
        except FileNotFoundError:  # the program renames files when they are complete
            continue
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise _refuse(archive, path.relative_to(target).as_posix(), "is a link or a device")
        total, number = total + status.st_size, number + 1
        if total > limit or number > MOST_MEMBERS:
            raise MetasegError(
                f"{archive.name} was refused: it exceeds {limit / 2**20:,.0f} MiB or {MOST_MEMBERS} members, far more "
                f"than expected for an archive of its size"
            )

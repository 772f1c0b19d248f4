"""Download one file, resumably; a partial file is never mistaken for a complete one.

During the download the file is called FILE.part, and FILE.part.json describes its source. A partial file is resumed by
an HTTP range only if an ETag or date proves that the file on the server is unchanged; else the download starts over.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import requests
import urllib3

from metaseg.errors import MetasegError, reason
from metaseg.progress import Progress

ATTEMPTS = 6
"""Consecutive attempts without progress after which a download fails."""
PAUSE = 1.0
"""Seconds before the second attempt; doubled for each further one, up to `LONGEST`."""
LONGEST = 60.0
TIMEOUT = (20, 60)
"""Seconds to connect, and to wait for the next byte."""
_BLOCK = 2**18
_LATER = (408, 425, 429, 500, 502, 503, 504)


class InterruptedDownloadError(MetasegError):
    """The user interrupted a download with Ctrl+C."""


class _TryAgainError(Exception):
    """A failure worth another attempt; `wait`: seconds requested by the server."""

    def __init__(self, reason: str, wait: float = 0) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class Described:
    """A server's description of a file: ETag (strong ones only), modification date and length in bytes, if given."""

    url: str
    etag: str | None
    modified: str | None
    total: int | None

    @property
    def validator(self) -> str | None:
        """The value by which a server detects that its file has changed."""
        return self.etag or self.modified


def download(url: str, target: Path, expected: int | None = None) -> None:
    """Download `url` to `target`.

    Args:
        url: http or https.
        target: in an existing folder; created only once complete, as far as the server states its length.
        expected: size in bytes, if known; a server that announces another length is refused.

    Raises:
        InterruptedDownloadError: on Ctrl+C; the next call resumes.
        MetasegError: the server refuses, is unreachable, repeatedly breaks off or announces another length; the disk is
            full. The partial download is kept.
    """
    part = target.with_name(f"{target.name}.part")
    failures, longest = 0, _size(part)
    while (problem := _tried(url, part, expected)) is not None:
        failures = 0 if _size(part) > longest else failures + 1
        longest = max(longest, _size(part))
        if failures >= ATTEMPTS:
            raise MetasegError(f"{url} could not be downloaded: {problem}, {ATTEMPTS} times in a row; {_kept(part)}")
        wait = min(LONGEST, max(problem.wait, PAUSE * 2 ** max(0, failures - 1)))
        print(f"{target.name}: {problem}; retrying in {wait:.0f} s", flush=True)
        try:
            time.sleep(wait)
        except KeyboardInterrupt:
            raise InterruptedDownloadError(f"interrupted; {_kept(part)}") from None
    part.replace(target)
    _state(part).unlink(missing_ok=True)


def _tried(url: str, part: Path, expected: int | None) -> _TryAgainError | None:
    """One attempt: None if the file is now complete, else the reason to try again."""
    try:
        with Progress(part.stem, unit="MiB", brief=True) as progress:
            _attempt(url, part, expected, progress)
    except _TryAgainError as problem:
        return problem
    except KeyboardInterrupt:
        raise InterruptedDownloadError(f"interrupted; {_kept(part)}") from None
    except OSError as error:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
        raise MetasegError(f"{part} could not be written ({reason}): fix this first; {_kept(part)}") from error
    return None


def _attempt(url: str, part: Path, expected: int | None, progress: Progress) -> None:
    """One request; returns when the file is complete."""
    known = _known(part, url)
    have = _size(part) if known else 0
    if known and have == known.total:  # killed just before the file was renamed
        return
    headers = {"Accept-Encoding": "identity", "User-Agent": "metaseg"}
    if known and known.validator and have:
        headers |= {"Range": f"bytes={have}-", "If-Range": known.validator}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            _check_status(url, response)
            if response.status_code == 416:
                _discard(part)
                raise _TryAgainError(f"the server cannot resume after {have} bytes")
            found = _described(url, response)
            if response.status_code == 206:
                have = _continued(known, found, response, have, part)
            else:
                if have:
                    print(f"{part.name}: the file has changed or cannot be resumed: starting over", flush=True)
                _discard(part)
                have = 0
                _state(part).write_text(json.dumps(asdict(found)))
            _check_length(url, found, expected, have, part)
            with part.open("ab") as file:
                for block in response.raw.stream(_BLOCK, decode_content=False):
                    file.write(block)
                    have += len(block)
                    progress.update(have // 2**20, found.total and found.total // 2**20)
    except (requests.exceptions.SSLError, urllib3.exceptions.SSLError) as error:
        raise MetasegError(
            f"{urlsplit(url).netloc} has no valid certificate ({_reason(error)}): download {url} with a browser, save "
            f"it as {part.with_suffix('')}, and repeat the command"
        ) from error
    except (requests.exceptions.InvalidURL, requests.exceptions.TooManyRedirects) as error:
        raise MetasegError(
            f"{url} is not a valid address ({_reason(error)}): correct it, or see the dataset's page"
        ) from error
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise _TryAgainError(_broken(have, part) or f"no connection ({_reason(error)})") from error
    if found.total is not None and have != found.total:
        raise _TryAgainError(_broken(have, part))


def _broken(have: int, part: Path) -> str:
    """How far the download got; empty if nothing arrived."""
    known = _known(part, None)
    if not have or not known:
        return ""
    total = f"{known.total}" if known.total is not None else "an unknown number"
    return f"the connection ended after {have} bytes of {total}"


def _check_status(url: str, response: requests.Response) -> None:
    if response.status_code in (200, 206, 416):
        if url.startswith("https://") and any(one.url.startswith("http://") for one in (*response.history, response)):
            raise MetasegError(f"{url} redirects to an insecure address, {response.url}: download it by hand")
        return
    said = f"{response.status_code} {response.reason}".strip()
    if response.status_code in _LATER:
        after = response.headers.get("Retry-After", "")
        raise _TryAgainError(f"the server answered {said}", float(after) if after.isdecimal() else 0)
    raise MetasegError(
        f"{url} cannot be downloaded: the server answered {said}; the address may have changed, see the dataset's page"
    )


def _described(url: str, response: requests.Response) -> Described:
    etag, length = response.headers.get("ETag"), response.headers.get("Content-Length", "")
    total = int(length) if length.isdecimal() else None
    if response.status_code == 206:
        match = re.fullmatch(r"bytes \d+-\d+/(\d+)", response.headers.get("Content-Range", ""))
        total = int(match[1]) if match else None
    strong = etag if etag and not etag.startswith("W/") else None
    return Described(url, strong, response.headers.get("Last-Modified"), total)


def _continued(known: Described | None, found: Described, response: requests.Response, have: int, part: Path) -> int:
    """The number of bytes already present, once the response is known to continue the same file from there."""
    start = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    same = known is not None and (known.validator, known.total) == (found.validator, found.total)
    if not have or not start or int(start[1]) != have or not same:
        _discard(part)
        raise _TryAgainError("the server did not continue the same file")
    return have


def _check_length(url: str, found: Described, expected: int | None, have: int, part: Path) -> None:
    if expected is not None and found.total is not None and found.total != expected:
        _discard(part)
        raise MetasegError(
            f"{url} should be {expected} bytes, but the server announces {found.total}: it is not the published file; "
            f"see the dataset's page"
        )
    left, free = (found.total or 0) - have, shutil.disk_usage(part.parent).free
    if left > free:
        raise MetasegError(
            f"{url} needs {left / 2**20:,.0f} MiB more, but {part.parent} has {free / 2**20:,.0f} MiB left: free some "
            f"space, or set another folder with --root; {_kept(part)}"
        )


def _state(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _known(part: Path, url: str | None) -> Described | None:
    """The description recorded for a partial file; None if there is none, or it is of another URL."""
    try:
        found = Described(**json.loads(_state(part).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return found if url in (None, found.url) else None


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _state(part).unlink(missing_ok=True)


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _kept(part: Path) -> str:
    if size := _size(part):
        return f"{size / 2**20:,.1f} MiB are kept in {part}; repeat the command to resume"
    return "repeat the command to try again"


def _reason(error: BaseException) -> str:
    """The innermost reason in a chain of network errors, shortened."""
    while inner := error.__cause__ or error.__context__ or getattr(error, "reason", None):
        if not isinstance(inner, BaseException):
            break
        error = inner
    return reason(error)

"""One session per open page, removed when the page is closed, lost, or unused for long."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from metaseg.app.collection import SESSION
from metaseg.app.session import Network, Session
from metaseg.app.uploads import Limits
from metaseg.errors import MetasegError

_PREFIX = "metaseg-app-"
_LOCK = "lock"
_UNUSED = 3600.0  # seconds: longer than an upload waits while others learn
FORGOTTEN = 12 * 3600.0
"""Seconds after which the session of a page that nobody uses is removed: half a day, so no lunch or meeting ends it."""
LOST = 600.0
"""Seconds that a page may be without a connection before its session is removed [D]: a tunnel or a laptop may pause."""


class Sessions:
    """Sessions by the key of their browser page; no page can reach another's session.

    Args:
        network: shared by all.
        limits: of each session's uploads.
        folder: parent of their folders.
    """

    def __init__(self, network: Network, limits: Limits, folder: Path) -> None:
        self.network = network
        self.limits = limits
        self.folder = folder
        self._of: dict[str, Session] = {}
        self._used: dict[str, float] = {}
        self._lost: dict[str, float] = {}
        self._ended: set[str] = set()
        self._lock = threading.Lock()

    def of(self, key: str) -> Session:
        """The session of a page, created if missing.

        Raises:
            MetasegError: if it has ended.
        """
        with self._lock:
            if key in self._ended:
                raise MetasegError(
                    f"The images of this page were removed: it was closed, lost its connection for {LOST / 60:g} "
                    f"minutes, or was unused for {FORGOTTEN / 3600:g} hours; reload it."
                )
            self._lost.pop(key, None)
            self._used[key] = time.monotonic()
            if key not in self._of:
                self._of[key] = Session(self.network, self.limits, self.folder)
            return self._of[key]

    def has(self, key: str) -> bool:
        """Whether a page is open."""
        return key in self._of

    def lose(self, key: str) -> None:
        """Stop the work of a page whose connection has ended; it may come back within `LOST`."""
        with self._lock:
            if key in self._of:
                self._lost[key] = time.monotonic()
                self._of[key].stopping.set()

    def end(self, key: str) -> None:
        """Remove a page's images and masks."""
        with self._lock:
            session = self._of.pop(key, None)
            self._used.pop(key, None)
            self._lost.pop(key, None)
            self._ended.add(key)
        if session is not None:
            session.close()
            self.sweep(_UNUSED if self._of else 0)

    def sweep(self, older_than: float = _UNUSED) -> None:
        """Remove leftovers of the web library: copies of paintings, interrupted uploads.

        Args:
            older_than: seconds; spares uploads in progress.
        """
        now = time.time()
        for path in list(self.folder.iterdir()):
            if path.name == _LOCK or path.name.startswith(SESSION):
                continue
            with suppress(OSError):
                if now - path.stat().st_mtime >= older_than:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    def forget(self) -> None:
        """End the sessions of pages that nobody has used for `FORGOTTEN`, or that have been lost for `LOST`."""
        now = time.monotonic()
        with self._lock:
            old = {key for key, used in self._used.items() if now - used >= FORGOTTEN}
            old |= {key for key, since in self._lost.items() if now - since >= LOST}
        for key in old:
            self.end(key)

    def end_all(self) -> None:
        """Remove everyone's."""
        for key in list(self._of):
            self.end(key)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder readable only by this user, removed at the end; also removes leftovers of killed programs."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        # In use by another running program, or owned by another user.
        with suppress(Timeout, OSError), FileLock(left / _LOCK, timeout=0):
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    try:
        with FileLock(folder / _LOCK):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)

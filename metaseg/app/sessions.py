"""Who is on the page: a session for each open page, removed when it is closed."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from metaseg.app.session import SESSION, Network, Session
from metaseg.app.uploads import Limits

_PREFIX = "metaseg-app-"
_LOCK = "lock"
_UNUSED = 600.0  # seconds


class Sessions:
    """Sessions by the key that the browser's page was given; no page reaches another's.

    Args:
        network: what all adapt.
        limits: of each.
        folder: where their folders go.
    """

    def __init__(self, network: Network, limits: Limits, folder: Path) -> None:
        self.network = network
        self.limits = limits
        self.folder = folder
        self._of: dict[str, Session] = {}
        self._lock = threading.Lock()

    def of(self, key: str) -> Session:
        """The session of a page, a new one if it has none."""
        with self._lock:
            if key not in self._of:
                self._of[key] = Session(self.network, self.limits, self.folder)
            return self._of[key]

    def end(self, key: str) -> None:
        """Remove a page's images and masks."""
        with self._lock:
            session = self._of.pop(key, None)
        if session is not None:
            session.close()
            self.sweep(_UNUSED if self._of else 0)

    def sweep(self, older_than: float = _UNUSED) -> None:
        """Remove what the web library keeps beside the sessions: copies of paintings, uploads that were broken off.

        Args:
            older_than: seconds; an upload of many files may be under way.
        """
        now = time.time()
        for path in list(self.folder.iterdir()):
            if path.name == _LOCK or path.name.startswith(SESSION):
                continue
            with suppress(OSError):
                if now - path.stat().st_mtime >= older_than:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    def end_all(self) -> None:
        """Remove everyone's."""
        for key in list(self._of):
            self.end(key)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that only this user can read, removed at the end; also removes what a killed program left."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        # Another page is being served from it, or it is another user's.
        with suppress(Timeout, OSError), FileLock(left / _LOCK, timeout=0):
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    try:
        with FileLock(folder / _LOCK):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)

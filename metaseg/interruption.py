"""Ending on a signal: at once, or once the current step is finished and saved."""

import logging
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)

INTERRUPTED = 130
"""Exit status after Ctrl+C, following the shell convention."""

PATIENCE = 8.0
"""Seconds that a step may take after the first signal; schedulers wait 10 to 30 before they kill [D]."""

LONG_PATIENCE = 25.0
"""The same after SIGUSR1, which comes a minute before the end [D]."""

_LIKE_CTRL_C = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
"""A request to end, a closed terminal, and Slurm's notice that time is nearly up; Windows has only the first."""

_ALARM = (signal.SIGALRM,) if hasattr(signal, "SIGALRM") else ()
"""Windows has none."""


@contextmanager
def like_ctrl_c() -> Iterator[None]:
    """Make SIGTERM, SIGHUP and SIGUSR1 raise KeyboardInterrupt, as Ctrl+C does; no effect outside the main thread."""
    with handled(dict.fromkeys(_LIKE_CTRL_C, _at_once)):
        yield


class Interruption:
    """A request to end, which long work looks at between its steps.

    Attributes:
        requested: whether a signal has come.
    """

    def __init__(self) -> None:
        self.requested = False
        self._waiting = False

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Note the first signal in ``requested``; a second one, or too long a step, raises KeyboardInterrupt.

        Lightning's Trainer turns a KeyboardInterrupt into a silent SystemExit with status 1, and SIGTERM into one with
        status 0, which are turned back here: the entry points say how to resume. No effect on signals outside the main
        thread.
        """
        numbers = (signal.SIGINT, *_LIKE_CTRL_C)
        try:
            with handled(dict.fromkeys(numbers, self._note) | dict.fromkeys(_ALARM, _at_once)):
                try:
                    yield
                finally:
                    if self._waiting:
                        signal.setitimer(signal.ITIMER_REAL, 0)
            if self.requested:  # in the last step
                raise KeyboardInterrupt
        except SystemExit as end:
            if self.requested or isinstance(end.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            raise

    def note_sigterm(self) -> None:
        """Note SIGTERM without Lightning's handler, which it sets when training begins.

        That one waits for all ranks, wherever they are, and a rank that waits for them in an outer step hangs.
        """
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        log.warning("Interrupted: finishing this step and saving it; interrupt again to end at once.")
        if _ALARM:
            self._waiting = True
            early = number == getattr(signal, "SIGUSR1", None)
            signal.setitimer(signal.ITIMER_REAL, LONG_PATIENCE if early else PATIENCE)


def _at_once(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def handled(handlers: Mapping[Any, Any]) -> Iterator[None]:
    """Set signal handlers (number → handler) and restore the old ones at the end; no effect outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

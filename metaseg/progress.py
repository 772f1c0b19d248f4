"""Progress reports on standard error: a bar in a terminal, a line every few seconds in a pipe or file."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column
from rich.text import Text

FIRST = 1.0
"""Seconds until the first line."""
EVERY = 5.0
"""Seconds between lines."""


class Progress:
    """Shows the progress of one task: its name, how much is done, the latest values and the time left.

    A context manager. In a terminal it draws a bar. Elsewhere it writes a line after `FIRST` seconds, then at most one
    every `EVERY` seconds, and one at the end:

        training  37/160 steps, loss 0.43, Dice 71.2 %, 0:35 left

    Lines appear even between updates, so a slow step does not look like a hang. If the stream can no longer be written
    to, reporting stops and the work continues.

    Args:
        what: name of the task.
        total: total units of work; None while unknown.
        unit: plural name of the unit; "%" shows the share of `total` instead of counts.
        done: units already done, for a resumed run.
        shown: False: print nothing.
        brief: for tasks that are usually short: no final line unless an earlier one was written, and the bar disappears
            when done.
        stream: where to write; None: standard error.
        clock: seconds from any origin.
    """

    def __init__(
        self,
        what: str,
        total: float | None = None,
        unit: str = "",
        done: float = 0,
        *,
        shown: bool = True,
        brief: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.what, self.total, self.unit, self.done, self.shown, self.brief = what, total, unit, done, shown, brief
        self._start = done
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._values: dict[str, str] = {}
        self._note = ""
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._bar: Bar | None = None
        self._spoke = False

    def __enter__(self) -> Progress:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(failed=kind is not None)

    def start(self) -> None:
        """Start the clock and begin to report."""
        self._began = self._clock()
        self._due = self._began + FIRST
        self._past: deque[tuple[float, float]] = deque([(self._began, self.done)])
        self._gap = 0.0
        if not self.shown:
            return
        console = Console(file=self._stream, force_terminal=True)
        # rich would also treat a pipe as a terminal if the environment forces colours.
        if self._stream.isatty() and not console.is_dumb_terminal:
            columns = (TextColumn("{task.description}", markup=False), BarColumn(20), _Text(self))
            self._bar = Bar(*columns, console=console, transient=self.brief)
            self._task = self._bar.add_task(self.what, total=self.total)
            self._bar.start()
            self._refresh()
        else:
            threading.Thread(target=self._beat, name="progress", daemon=True).start()

    def update(self, done: float, total: float | None = None, values: Mapping[str, str] | None = None) -> None:
        """Report that `done` units are done; the count never decreases.

        Args:
            done: units done so far.
            total: total units of work, if now known or changed.
            values: latest values as text, {"loss": "0.43"}; each stays until replaced.
        """
        if not self.shown:
            return
        with self._lock:
            self.total = self.total if total is None else total
            self._values = self._values | dict(values or {})
            if done > self.done:
                self.done = done
                self._remember(self._clock())
        self._refresh()

    def advance(self) -> None:
        """Report that one more unit is done."""
        with self._lock:
            self.update(self.done + 1)

    def note(self, text: str) -> None:
        """Set the text that describes the current activity; "" clears it."""
        if self.shown:
            self._note = text
            self._refresh()

    def stop(self, failed: bool = False) -> None:
        """Show the final state and stop; further calls do nothing.

        Args:
            failed: the work raised an error; no final line is written unless an earlier one was.
        """
        with self._lock:
            if self._over.is_set():
                return
            self._ended = self._clock()
            self._over.set()
            if not failed:
                self._note = ""
            if self._bar is None and self.shown and (self._spoke or not (failed or self.brief)):
                self._write()
        if self._bar is not None:
            self._bar.stop()

    def text(self) -> str:
        """Counts, values, current activity and time, without the name.

        In a terminal the time precedes the values, because long lines are truncated at the end.
        """
        rest = [*(f"{name} {value}" for name, value in self._values.items()), self._note]
        time_left = self._time()
        parts = [self._count(), time_left, *rest] if self._bar else [self._count(), *rest, time_left]
        return ", ".join(part for part in parts if part)

    def _count(self) -> str:
        if self.unit == "%":
            return f"{math.floor(100 * self.done / self.total)} %" if self.total else ""
        if not self.unit:
            return ""
        return f"{self.done:g}/{self.total:g} {self.unit}" if self.total is not None else f"{self.done:g} {self.unit}"

    def _time(self) -> str:
        if self._over.is_set():
            whole = self.total is None or self.done >= self.total
            return f"{'took' if whole else 'stopped after'} {duration(self._ended - self._began)}"
        now = self._clock()
        left = self._left(now)
        return f"{duration(now - self._began)} so far" if left is None else f"{duration(left)} left"

    def _left(self, now: float) -> float | None:
        """Seconds left, from the pace of the most recent half of the work; None if unknown."""
        with self._lock:
            (first, before), (last, done) = self._past[0], self._past[-1]
            if self.total is None or done >= self.total or done <= before:
                return None
            left = (self.total - done) * (last - first) / (done - before)
            # Count down between updates, but no longer than the last gap between them: then the work is late.
            return max(0.0, left - min(now - last, self._gap))

    def _remember(self, now: float) -> None:
        """Record the time of this count and drop the first half of the history, as the pace may have changed."""
        self._gap = now - self._past[-1][0]
        self._past.append((now, self.done))
        middle = (self._start + self.done) / 2
        while len(self._past) > 2 and self._past[1][1] <= middle:
            self._past.popleft()

    def _refresh(self) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, total=self.total)
        else:
            self._speak()

    def _beat(self) -> None:
        while not self._over.wait(FIRST):
            self._speak()

    def _speak(self) -> None:
        """Write a line if one is due."""
        with self._lock:
            now = self._clock()
            if now < self._due or self._over.is_set():
                return
            self._due = now + EVERY
            self._spoke = True
            self._write()

    def _write(self) -> None:
        try:
            self._stream.write(f"{self.what}  {self.text()}\n")
            self._stream.flush()
        except (OSError, ValueError):  # broken pipe, closed file
            self.shown = False


class _Text(ProgressColumn):
    """The text of a `Progress`, refreshed whenever the bar is drawn."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(Column(no_wrap=True, overflow="ellipsis"))
        self._progress = progress

    def render(self, task: Task) -> Text:
        """The text next to the bar."""
        return Text(self._progress.text())


def duration(seconds: float) -> str:
    """Format seconds ≥ 0 as M:SS, or H:MM:SS from one hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

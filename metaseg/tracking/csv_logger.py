"""Writes metrics.csv row by row."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from metaseg.errors import MetasegError
from metaseg.system import replacing


class CsvLogger(Logger):
    """Appends each logged step to one CSV file: columns `step`, `epoch` (by Lightning) and the metrics' names.

    Lightning's CSVLogger deletes the file when a run is resumed, and rereads all of it at every new column. Here each
    row is appended and flushed immediately; the file is rewritten only for a new column, a few times in the first
    epoch. A resumed run drops the rows logged after its checkpoint: those from the step of its first new row on.

    Raises (when logging):
        MetasegError: if the file cannot be written.
    """

    def __init__(self, path: Path, resume: bool = False) -> None:
        super().__init__()
        self.path = path
        self.resume = resume
        self._columns: list[str] = []
        self._file: IO[str] | None = None

    @property
    def name(self) -> str:
        """Empty, so that Lightning creates no subfolders in the run directory."""
        return ""

    @property
    def version(self) -> str:
        """Empty, like `name`."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run directory."""
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: config.yaml holds the settings."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Append one row; tensors must have one element."""
        row = {"step": step} | {name: _number(value) for name, value in metrics.items()}
        if self._file is None:
            self._start(row)
        new = [column for column in row if column not in self._columns]
        if new:
            self._rewrite(self._read(), self._columns + new)
        try:
            csv.DictWriter(self._file, self._columns).writerow(row)  # type: ignore[arg-type]
            self._file.flush()  # type: ignore[union-attr]
        except OSError as error:
            raise self._not_written(error) from error

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the file; a later row reopens it."""
        if self._file is not None:
            try:
                self._file.close()
            except OSError as error:
                if status != "failed":  # else the first failure to write should be reported
                    raise self._not_written(error) from error
            self._file = None

    def _not_written(self, error: OSError) -> MetasegError:
        return MetasegError(f"cannot write {self.path} ({error.strerror}); free space and resume")

    def _start(self, row: Mapping[str, Any]) -> None:
        if self._columns:  # closed by finalize in this process: nothing to drop
            self._file = self.path.open("a", newline="", encoding="utf-8")
            return
        kept: list[dict[str, str]] = []
        if self.resume and self.path.exists():
            self._columns = self._header()
            kept = [old for old in self._read() if old["step"].isdecimal() and int(old["step"]) < row["step"]]
        self._rewrite(kept, self._columns or list(row))

    def _header(self) -> list[str]:
        with self.path.open(newline="", encoding="utf-8", errors="replace") as file:
            columns = next(csv.reader(file), [])
        return columns if "step" in columns else []  # else it is damaged

    def _read(self) -> Iterator[dict[str, str]]:
        """The complete rows: a killed process may have left half a line."""
        with self.path.open(newline="", encoding="utf-8", errors="replace") as file:
            next(file, None)
            for line in file:
                cells = next(csv.reader([line]))
                if line.endswith("\n") and len(cells) == len(self._columns):
                    yield dict(zip(self._columns, cells, strict=True))

    def _rewrite(self, rows: Iterable[Mapping[str, str]], columns: list[str]) -> None:
        with replacing(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        if self._file is not None:
            self._file.close()
        self._columns = columns
        self._file = self.path.open("a", newline="", encoding="utf-8")


def _number(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value

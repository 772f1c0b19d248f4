"""Reads finished runs from run directories."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from metaseg.documents import text_of
from metaseg.errors import MetasegError, shown
from metaseg.runs.directory import RunDirectory, holding
from metaseg.runs.result import Result

REPORT = "report"
"""Report folder, inside the folder of runs."""

MOST_BYTES = 2**27
"""Largest table, unpacked: a million scores."""
_COLUMNS = ("dataset", "image", "draw", "dsc_after")


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        name: its directory, relative to the report's folder of runs.
        directory: the directory.
        result: result.json.
        scores: per_image.csv; Dice as fractions in [0, 1].
        metrics: metrics.csv, None without training.
    """

    name: str
    directory: RunDirectory
    result: Result
    scores: pd.DataFrame
    metrics: pd.DataFrame | None

    @property
    def settings(self) -> Mapping[str, Any]:
        """The resolved configuration."""
        return self.result.settings

    @property
    def targets(self) -> list[str]:
        """The targets it was tested on."""
        return list(self.result.targets)

    @property
    def learner(self) -> str:
        """The learner's name."""
        return self.settings["learner"]["name"]

    @property
    def adapt_steps(self) -> int:
        """Adaptation steps at the target; 0: no adaptation by gradient."""
        return int((self.settings["learner"].get("adapt") or {}).get("steps") or 0)

    @cached_property
    def _matrices(self) -> dict[str, pd.DataFrame]:
        return {}

    def matrix(self, target: str) -> pd.DataFrame:
        """Dice on a target: a row per (seed, draw), a column per image; NaN where an image was not scored."""
        if target not in self._matrices:
            rows = self.scores[self.scores["dataset"] == target]
            table = rows.pivot(index="draw", columns="image", values="dsc_after")
            table.index = pd.MultiIndex.from_product([[self.settings["seed"]], table.index], names=["seed", "draw"])
            self._matrices[target] = table
        return self._matrices[target]

    def groups(self, target: str) -> Mapping[str, str]:
        """Image → its patient or video, or its own name if the run did not record one."""
        rows = self.scores[self.scores["dataset"] == target]
        own = rows["image"] if "group" not in rows else rows["group"].astype(str)
        return dict(zip(rows["image"], own, strict=True))

    @property
    def epochs(self) -> int:
        """Epochs trained, 0 without training."""
        return self._count("epoch")

    @property
    def outer_steps(self) -> int:
        """Outer steps trained, 0 without training."""
        return self._count("step")

    def _count(self, column: str) -> int:
        if self.metrics is None or column not in self.metrics or self.metrics[column].dropna().empty:
            return 0
        return int(self.metrics[column].max()) + 1


@dataclass(frozen=True)
class Found:
    """Runs in a folder: finished ones by name; (name, reason) of unreadable ones; and names of directories with a
    config.yaml but no result.json, which were interrupted or are still running."""

    runs: list[Run]
    unreadable: list[tuple[str, str]]
    unfinished: list[str]


def read_runs(folder: Path) -> Found:
    """Read all runs below `folder`, except its report.

    Raises:
        MetasegError: if `folder` is not a folder.
    """
    if not folder.is_dir():
        raise MetasegError(
            f"expected a folder of run directories, found no folder at {folder}; give the folder of your runs"
        )
    runs, unreadable, finished = [], [], _directories(folder, "result.json")
    for path in finished:
        name = path.relative_to(folder).as_posix()
        try:
            run = read_run(path, folder.resolve().name if name == "." else name)
        except MetasegError as error:
            unreadable.append((name, str(error)))
        else:
            runs += [run] if run.targets else []  # without targets, it only made a model
    begun = [path for path in _directories(folder, "config.yaml") if path not in finished]
    unfinished = [path for path in begun if not RunDirectory(path).is_finished_start]
    return Found(runs, unreadable, [path.relative_to(folder).as_posix() for path in unfinished])


def read_run(path: Path, name: str) -> Run:
    """Read one finished run.

    Raises:
        MetasegError: if its result or scores are missing or invalid.
    """
    directory = RunDirectory(path)
    result = directory.read_result()
    scores = _read_scores(directory)
    lacking = [target for target in result.targets if target not in set(scores["dataset"])]
    if lacking:
        raise MetasegError(
            f"{directory.result} names the target {', '.join(lacking)}, but its scores file has no image of it; run "
            "the evaluation again"
        )
    metrics = None
    if directory.metrics.is_file():
        try:
            metrics = pd.read_csv(io.StringIO(text_of(directory.metrics, MOST_BYTES)))
        except (OSError, ValueError) as error:
            raise MetasegError(f"expected a table, but {directory.metrics} cannot be read ({shown(error)})") from error
    return Run(name, directory, result, scores, metrics)


def _directories(folder: Path, file: str) -> list[Path]:
    return [path for path in holding(folder, file) if path.relative_to(folder).parts[:1] != (REPORT,)]


def _read_scores(directory: RunDirectory) -> pd.DataFrame:
    path = directory.per_image
    if not path.is_file():
        raise MetasegError(f"expected the scores {path} (or .csv.gz), found none; run the evaluation again")
    try:
        table = pd.read_csv(io.StringIO(text_of(path, MOST_BYTES)), dtype={"image": str, "dataset": str})
    except (OSError, ValueError) as error:
        raise MetasegError(f"expected a table of scores, but {path} cannot be read ({shown(error)})") from error
    lacking = [column for column in _COLUMNS if column not in table]
    if lacking:
        raise MetasegError(f"expected the columns {', '.join(_COLUMNS)} in {path}, but {', '.join(lacking)} is missing")
    values = pd.to_numeric(table["dsc_after"], errors="coerce").to_numpy(np.float64)
    known = values[~np.isnan(values)]
    if len(table) and (not len(known) or known.min() < 0 or known.max() > 1):
        raise MetasegError(
            f"expected Dice values from 0 to 1 in dsc_after of {path}, found others; run the evaluation again"
        )
    table["dsc_after"] = values
    table = table[~np.isnan(values)]
    if table.duplicated(["dataset", "image", "draw"]).any():
        raise MetasegError(f"expected each image once per draw in {path}, found duplicates; run the evaluation again")
    return table

"""Run directories, read: what a report knows of a finished run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from metaseg.errors import MetasegError
from metaseg.runs.directory import RunDirectory
from metaseg.runs.result import Result

REPORT = "report"
"""Folder of a report, below the folder of runs."""

_COLUMNS = ("dataset", "image", "draw", "dsc_after")


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        name: its directory, relative to the report's folder of runs.
        directory: the directory.
        result: result.json.
        scores: per_image.csv; Dice as fractions in [0, 1].
        metrics: metrics.csv, None where nothing was trained.
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
        """Adaptation steps at the target; 0: it does not adapt by gradient."""
        return int((self.settings["learner"].get("adapt") or {}).get("steps") or 0)

    @cached_property
    def _matrices(self) -> dict[tuple[str, str], pd.DataFrame]:
        return {}

    def matrix(self, target: str, column: str = "dsc_after") -> pd.DataFrame:
        """Scores of a target: a row for each (seed, draw), a column an image; NaN where an image was not scored."""
        if (target, column) not in self._matrices:
            rows = self.scores[self.scores["dataset"] == target]
            table = rows.pivot(index="draw", columns="image", values=column)
            table.index = pd.MultiIndex.from_product([[self.settings["seed"]], table.index], names=["seed", "draw"])
            self._matrices[target, column] = table
        return self._matrices[target, column]

    def groups(self, target: str) -> Mapping[str, str]:
        """Image → the patient or video it is from; its own name where the run did not record one."""
        rows = self.scores[self.scores["dataset"] == target]
        own = rows["image"] if "group" not in rows else rows["group"].astype(str)
        return dict(zip(rows["image"], own, strict=True))

    @property
    def epochs(self) -> int:
        """Epochs that were trained, 0 where none were."""
        return self._count("epoch")

    @property
    def outer_steps(self) -> int:
        """Outer steps that were trained, 0 where none were."""
        return self._count("step")

    def _count(self, column: str) -> int:
        if self.metrics is None or column not in self.metrics or self.metrics[column].dropna().empty:
            return 0
        return int(self.metrics[column].max()) + 1


@dataclass(frozen=True)
class Found:
    """What lies below a folder: finished runs in the order of their names; (name, reason) of those that are broken; and
    the names of directories with a config.yaml but no result.json, which were interrupted or are still running."""

    runs: list[Run]
    unreadable: list[tuple[str, str]]
    unfinished: list[str]


def read_runs(folder: Path) -> Found:
    """Read all runs below `folder`, its report left out.

    Raises:
        MetasegError: `folder` is no folder.
    """
    if not folder.is_dir():
        raise MetasegError(f"expected a folder of run directories, found no folder at {folder}: give that of your runs")
    runs, unreadable = [], []
    for path in _directories(folder, "result.json"):
        name = path.relative_to(folder).as_posix()
        try:
            runs.append(read_run(path, folder.resolve().name if name == "." else name))
        except MetasegError as error:
            unreadable.append((name, str(error)))
    finished = set(_directories(folder, "result.json"))
    unfinished = [path for path in _directories(folder, "config.yaml") if path not in finished]
    return Found(runs, unreadable, [path.relative_to(folder).as_posix() for path in unfinished])


def read_run(path: Path, name: str) -> Run:
    """Read one finished run.

    Raises:
        MetasegError: its result or its scores are missing or are not what a run writes.
    """
    directory = RunDirectory(path)
    result = directory.read_result()
    scores = _read_scores(directory)
    lacking = [target for target in result.targets if target not in set(scores["dataset"])]
    if lacking:
        raise MetasegError(
            f"{directory.result} names the target {', '.join(lacking)}, but the scores beside it hold no image of it: "
            "run the evaluation again"
        )
    metrics = None
    if directory.metrics.is_file():
        try:
            metrics = pd.read_csv(directory.metrics)
        except (OSError, ValueError) as error:
            raise MetasegError(f"{directory.metrics} should be a table but cannot be read ({error})") from error
    return Run(name, directory, result, scores, metrics)


def _directories(folder: Path, file: str) -> Iterable[Path]:
    found = sorted(path.parent for path in folder.rglob(file))
    # Hydra keeps a config.yaml of its own in .hydra.
    return [
        path
        for path in found
        if path.relative_to(folder).parts[:1] != (REPORT,)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def _read_scores(directory: RunDirectory) -> pd.DataFrame:
    path = directory.per_image
    if not path.is_file():
        raise MetasegError(f"expected the scores {path} (or .csv.gz), found none: run the evaluation again")
    try:
        table = pd.read_csv(path, dtype={"image": str, "dataset": str})
    except (OSError, ValueError, EOFError) as error:  # gzip's BadGzipFile is an OSError
        raise MetasegError(f"{path} should be a table of scores but cannot be read ({error})") from error
    lacking = [column for column in _COLUMNS if column not in table]
    if lacking:
        raise MetasegError(f"{path} should have the columns {', '.join(_COLUMNS)}, but {', '.join(lacking)} is missing")
    values = pd.to_numeric(table["dsc_after"], errors="coerce").to_numpy(np.float64)
    known = values[~np.isnan(values)]
    if not len(known) or known.min() < 0 or known.max() > 1:
        raise MetasegError(f"{path} should hold Dice values from 0 to 1 under dsc_after, but does not: score again")
    table["dsc_after"] = values
    table = table[~np.isnan(values)]
    if table.duplicated(["dataset", "image", "draw"]).any():
        raise MetasegError(f"{path} should hold each image once per draw, but some are there twice: score again")
    return table

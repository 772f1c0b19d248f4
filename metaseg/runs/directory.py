"""The files of a run directory: their names, defined only here, and atomic writes."""

from __future__ import annotations

import csv
import gzip
import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from pydantic_core import to_json

from metaseg.documents import read_json, read_yaml
from metaseg.errors import MetasegError
from metaseg.runs.result import Cost, PretrainingResult, Result, checked, plain, read
from metaseg.runs.settings import without_retired
from metaseg.system import os_errors_explained, replacing

PREVIOUS = "previous.ckpt"
"""Name of the checkpoint before the last."""
PER_IMAGE_COLUMNS = (
    *("dataset", "image", "draw", "dsc_before", "iou_before", "dsc_after", "iou_after", "dsc_inner", "dsc_alone"),
    "group",
)


@dataclass(frozen=True)
class RunDirectory:
    """One run's directory; properties are paths, and only methods touch the disk."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """Training and validation metrics, one row per logged step."""
        return self.path / "metrics.csv"

    @property
    def per_image(self) -> Path:
        """Scores of every target image in every draw, possibly compressed; columns: `PER_IMAGE_COLUMNS`."""
        packed = self.path / "per_image.csv.gz"
        return packed if packed.is_file() else self.path / "per_image.csv"

    @property
    def result(self) -> Path:
        """The run's result; see `metaseg.runs.result`."""
        return self.path / "result.json"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        """The weights of the epoch with the best validation."""
        return self.checkpoints / "best.ckpt"

    @property
    def last(self) -> Path:
        """The checkpoint to continue from; the one before is `PREVIOUS` beside it."""
        return self.checkpoints / "last.ckpt"

    @property
    def trained(self) -> Path:
        """Marks the end of training and its stopping rule: a run killed during its tests is not trained further."""
        return self.checkpoints / "trained"

    @property
    def images(self) -> Path:
        """The keys of the images that a shared start was trained on, by dataset."""
        return self.path / "images.json"

    @property
    def is_finished_start(self) -> bool:
        """Whether this is a shared start that has been trained, which has no result."""
        return self.images.is_file() and self.trained.is_file()

    @property
    def compute(self) -> Path:
        """The cost of training, once it has ended."""
        return self.path / "compute.json"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the directory against other processes; the lock ends with the process, which `holder` names.

        Raises:
            MetasegError: another process holds the lock, or the directory is not writable.
        """
        with os_errors_explained(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self._lock)
            try:
                lock.acquire(blocking=False)
            except Timeout:
                raise MetasegError(
                    f"{self.path} is in use by another process: wait for it to finish, or choose another hydra.run.dir"
                ) from None
            self._lock.write_text(f"{socket.gethostname()} {os.getpid()}", encoding="utf-8")
        try:
            yield
        finally:
            with suppress(OSError):  # disk full or folder gone: readers check the process
                self._lock.write_text("", encoding="utf-8")
            lock.release()

    @property
    def in_use(self) -> bool:
        """Whether a process holds the directory's lock."""
        return bool(locked(self._lock))

    @property
    def start_lock(self) -> Path:
        """Locked while a shared start is trained in the directory."""
        return self.path / ".start.lock"

    def holder(self) -> tuple[str, int] | None:
        """Host and process number of the process that locked the directory last and did not unlock it, or None."""
        try:
            host, process = self._lock.read_text(encoding="utf-8").split()
            return host, int(process)
        except (OSError, ValueError):
            return None

    @property
    def _lock(self) -> Path:
        return self.path / ".lock"

    @property
    def figures(self) -> Path:
        """The folder of pictures."""
        return self.path / "figures"

    @property
    def learning_curves(self) -> Path:
        """Loss and Dice over epochs."""
        return self.figures / "learning_curves.png"

    def adaptation_curve(self, target: str) -> Path:
        """Dice over adaptation steps on one target."""
        return self.figures / f"adaptation_{target}.png"

    def overlays(self, target: str) -> Path:
        """Images of one target with truth and prediction outlined."""
        return self.figures / f"overlays_{target}.png"

    @property
    def wandb_id(self) -> Path:
        """The run's Weights & Biases id, kept so that a resumed run continues the same curves."""
        return self.path / "wandb" / "run_id.txt"

    def create(self) -> RunDirectory:
        """Create the directory and its two folders if they are missing."""
        for folder in (self.checkpoints, self.figures):
            with os_errors_explained(folder):
                folder.mkdir(parents=True, exist_ok=True)
        return self

    def write_config(self, settings: Mapping[str, Any]) -> None:
        """Write config.yaml: the resolved settings."""
        with replacing(self.config) as path:
            OmegaConf.save(OmegaConf.create(dict(settings)), path)

    def read_config(self) -> dict[str, Any]:
        """Read config.yaml, without retired settings (see `without_retired`).

        Raises:
            MetasegError: it is missing, damaged, something else, or of a run that only an earlier version can make.
        """
        try:
            found = read_yaml(self.config)
        except (OSError, ValueError) as error:
            raise MetasegError(f"Expected the settings of a run, but {self.config} cannot be read: {error}.") from error
        if not isinstance(found, dict):
            raise MetasegError(f"Expected the settings of a run in {self.config}, found none.")
        return without_retired(found, self.config)

    def write_compute(self, found: Cost) -> None:
        """Write compute.json."""
        write_json(self.compute, plain(found))

    def read_compute(self) -> Cost | None:
        """Read compute.json; None if nothing was trained, or by an earlier version.

        Raises:
            MetasegError: it is damaged.
        """
        if not self.compute.is_file():
            return None
        try:
            found = read_json(self.compute)
        except (OSError, ValueError) as error:
            raise MetasegError(f"Expected the cost of training, but {self.compute} cannot be read: {error}.") from error
        return checked(Cost, found, self.compute)

    def write_result(self, result: Result | PretrainingResult) -> None:
        """Write result.json."""
        write_json(self.result, plain(result))

    def read_result(self) -> Result:
        """Read result.json, as `metaseg.runs.result.read`."""
        return read(self.result)

    def write_per_image(self, rows: Iterable[Mapping[str, Any]], compress: bool = False) -> None:
        """Write per_image.csv, or per_image.csv.gz; `rows` need all `PER_IMAGE_COLUMNS`, scores as fractions in [0, 1].

        Scores are written to four decimals, a hundredth of a per cent.
        """
        path, earlier = self.path / "per_image.csv", self.path / "per_image.csv.gz"
        if compress:
            path, earlier = earlier, path
        rounded = ({key: round(x, 4) if isinstance(x, float) else x for key, x in row.items()} for row in rows)
        write_csv(path, rounded, PER_IMAGE_COLUMNS)
        earlier.unlink(missing_ok=True)  # of an earlier test of this run


def holding(folder: Path, file: str) -> list[Path]:
    """The directories in a folder that hold a file of this name, sorted; none of Hydra or W&B inside a run."""
    found = (path.parent.relative_to(folder).parts for path in folder.rglob(file))
    return [folder.joinpath(*parts) for parts in sorted(found) if not any(p == "wandb" or p[0] == "." for p in parts)]


def locked(lock: Path) -> bool | None:
    """Whether a process, on this machine or another, holds a lock; None: the file is missing or somebody else's."""
    if not lock.is_file():
        return None
    try:
        with FileLock(lock, blocking=False):
            return False
    except Timeout:
        return True
    except OSError:
        return None


def write_json(path: Path, value: Any) -> None:
    """Write `value` atomically as JSON; keys keep their order, NaN and infinities become null.

    numpy and torch scalars and arrays are written as numbers and lists, paths as text.

    Raises:
        MetasegError: the file cannot be written.
        PydanticSerializationError: `value` contains something that JSON cannot express.
    """
    # numpy and torch, without importing either.
    content = to_json(value, indent=2, inf_nan_mode="null", fallback=lambda other: other.tolist())
    with replacing(path) as temporary:
        temporary.write_bytes(content + b"\n")


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write `rows` atomically under a header of `columns`; None becomes an empty cell; *.gz is compressed.

    Raises:
        MetasegError: the file cannot be written.
        ValueError: a row lacks a column or has an extra one.
    """
    wanted = set(columns)
    opened = gzip.open if path.suffix == ".gz" else open
    with replacing(path) as temporary, opened(temporary, "wt", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=columns)
        writer.writeheader()
        for number, row in enumerate(rows):
            if set(row) != wanted:
                raise ValueError(f"row {number} of {path.name}: expected {sorted(wanted)}, found {sorted(row)}")
            writer.writerow(row)

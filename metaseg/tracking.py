"""Loggers of a run: metrics.csv always, Weights & Biases where it is asked for.

Both write on rank zero only and touch the disk at the first value they get, so building them changes nothing.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from metaseg.errors import MetasegError
from metaseg.rundir import RunDirectory, replacing

_MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}


def build_loggers(
    logger_config: Mapping[str, Any],
    run_dir: Path | RunDirectory,
    config: Mapping[str, Any],
    group: str | None = None,
    tags: Sequence[str] = (),
    *,
    name: str | None = None,
    job_type: str = "train",
    resume: bool = False,
) -> list[Logger]:
    """Build the loggers that conf/logger describes.

    Args:
        logger_config: the keys of conf/logger/*.yaml.
        run_dir: the run's directory; every file of the loggers lies in it.
        config: the run's resolved settings as plain containers, stored with the W&B run.
        group: W&B group, used where `logger_config` has none.
        tags: W&B tags, joined with those of `logger_config`.
        name: W&B display name; default: the run directory's name.
        job_type: W&B job type.
        resume: continue metrics.csv and the W&B run that lie in `run_dir`; otherwise metrics.csv starts anew.

    Raises:
        MetasegError: an unknown mode, or mode `online` without an API key.
    """
    run = run_dir if isinstance(run_dir, RunDirectory) else RunDirectory(run_dir)
    loggers: list[Logger] = [CsvLogger(run.metrics, resume=resume)]
    if not logger_config["wandb"]:
        return loggers
    mode = wandb_mode(logger_config["mode"])
    if mode != "disabled":
        loggers.append(
            WandbRunLogger(
                run,
                resume=resume,
                mode=mode,
                config=dict(config),
                name=name or run.path.name,
                project=logger_config["project"],
                entity=logger_config["entity"],
                group=logger_config["group"] or group,
                tags=list(dict.fromkeys([*tags, *logger_config["tags"]])),
                job_type=job_type,
            )
        )
    return loggers


class CsvLogger(Logger):
    """Appends each logged step to one CSV file: columns `step`, `epoch` (by Lightning) and the metrics' names.

    Lightning's CSVLogger deletes the file when a run is resumed, and reads it back whole at every new column. Here a
    row is appended and flushed at once; the file is copied only when a column is new, which happens a few times in
    the first epoch. A resumed run drops what the interrupted one logged beyond the checkpoint: the first row that
    shares a metric with the first new row and has the same or a later step, and everything after it.

    Raises (when logging):
        MetasegError: the file cannot be written.
    """

    def __init__(self, path: Path, resume: bool = False) -> None:
        super().__init__()
        self.path = path
        self.resume = resume
        self._columns: list[str] = []
        self._file: IO[str] | None = None

    @property
    def name(self) -> str:
        """Empty, so that Lightning builds no folders of its own below the run directory."""
        return ""

    @property
    def version(self) -> str:
        """Empty, as `name`."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run directory."""
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: config.yaml holds the settings."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Append one row; tensors must hold one element."""
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
            raise MetasegError(f"{self.path} could not be written ({error.strerror}): free space and resume") from error

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the file; a later row opens it again and goes on."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _start(self, row: Mapping[str, Any]) -> None:
        if self._columns:  # closed by finalize in this process: nothing to drop
            self._file = self.path.open("a", newline="", encoding="utf-8")
            return
        kept: list[dict[str, str]] = []
        if self.resume and self.path.exists():
            self._columns = self._header()
            kept = list(_before(self._read(), row))
        self._rewrite(kept, self._columns or list(row))

    def _header(self) -> list[str]:
        with self.path.open(newline="", encoding="utf-8") as file:
            return next(csv.reader(file), [])

    def _read(self) -> Iterator[dict[str, str]]:
        """The rows that are whole: a process that was killed may have left half a line."""
        with self.path.open(newline="", encoding="utf-8") as file:
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


def _before(rows: Iterable[dict[str, str]], first: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    metrics = set(first) - {"step", "epoch"}
    for row in rows:
        known = any(row.get(metric) for metric in metrics)
        if known and row["step"] and first["step"] is not None and int(row["step"]) >= first["step"]:
            return
        yield row


class WandbRunLogger(WandbLogger):
    """Lightning's WandbLogger, except that a run never prompts, never joins another one and writes no noise.

    Lightning's re-uses whatever run is open, so the jobs of a sweep merge, and sets WANDB_MODE for the whole process.
    `settings` are the arguments of wandb.init, `mode` among them ("online" or "offline").

    Raises (at the first logged value):
        MetasegError: W&B refuses the key or cannot be reached.
    """

    def __init__(self, run: RunDirectory, resume: bool = False, **settings: Any) -> None:
        super().__init__(save_dir=str(run.path), **settings)
        self._wandb_init.pop("anonymous", None)  # deprecated by W&B, still set by Lightning
        self._run_directory = run
        self._resumed = resume

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, started at the first call."""
        if self._experiment is None:
            self._experiment = self._start()
        return self._experiment

    def _start(self) -> Any:
        import wandb

        stored = self._run_directory.wandb_id
        earlier = stored.read_text().strip() if self._resumed and stored.exists() else None
        offline = self._wandb_init["mode"] == "offline"
        settings = self._wandb_init | {
            "id": earlier,
            # W&B ignores `resume` offline; two parts with one id are joined when they are synced.
            "resume": "allow" if earlier and not offline else None,
            "reinit": "finish_previous",
            "settings": wandb.Settings(silent=True, console="off"),
        }
        self._run_directory.path.mkdir(parents=True, exist_ok=True)  # W&B would use the temporary folder instead
        try:
            run = wandb.init(**settings)
        except (wandb.errors.Error, TimeoutError) as error:
            raise MetasegError(
                f"W&B did not start a run ({error}): check WANDB_API_KEY and the network, "
                "or use logger.mode=offline or logger=csv"
            ) from error
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        with replacing(stored) as temporary:
            temporary.write_text(run.id + "\n")
        if offline:
            parts = sorted(stored.parent.glob(f"offline-run-*-{run.id}"))
            print(f"W&B is offline; to upload this run: wandb sync {' '.join(map(str, parts))}")
        else:
            print(f"W&B: {run.url}")
        return run

    def log_media(self, values: dict[str, Any]) -> None:
        """Log images or tables. Tables are staged under the run directory: `wandb sync` reads them from there."""
        with _staged_in(self._run_directory.path / "wandb" / "data"):
            self.experiment.log(values)

    def finish(self, exit_code: int = 0) -> None:
        """End the W&B run; any exit code but 0 shows it as failed. Without a run there is nothing to end."""
        if self._experiment is not None:
            self._experiment.finish(exit_code=exit_code)
            self._experiment = None


@contextmanager
def _staged_in(folder: Path) -> Iterator[None]:
    # W&B knows no setting for this, only the variable, and its default lies in the home directory, where a copy of
    # the run directory would leave the tables behind.
    if "WANDB_DATA_DIR" in os.environ:
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(folder)
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]


def wandb_mode(requested: str | None) -> str:
    """`online`, `offline` or `disabled`: the configured mode, else WANDB_MODE, else online if there is an API key.

    Raises:
        MetasegError: an unknown mode, or `online` without a key (W&B would stop and ask for one).
    """
    wanted = requested or os.environ.get("WANDB_MODE")
    if wanted and wanted not in _MODES:
        raise MetasegError(f"logger.mode or WANDB_MODE should be online, offline or disabled, found {wanted!r}")
    if not wanted:
        return "online" if has_api_key() else "offline"
    if _MODES[wanted] == "online" and not has_api_key():
        raise MetasegError(
            "W&B mode online needs an API key, found none: run `wandb login`, set WANDB_API_KEY, "
            "or use logger.mode=offline or logger=csv"
        )
    return _MODES[wanted]


def has_api_key() -> bool:
    """Whether W&B can log in without asking: by WANDB_API_KEY, WANDB_IDENTITY_TOKEN_FILE or `wandb login`'s netrc."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    import wandb

    host = urlsplit(os.environ.get("WANDB_BASE_URL") or wandb.setup().settings.base_url).netloc
    # W&B's own service has had several addresses, and a key stored under the first one serves them all.
    hosted = host.endswith((".wandb.ai", ".coreweave.com"))
    named = os.environ.get("NETRC")
    paths = [Path(named).expanduser()] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]
    return any(_in_netrc(name, path) for name in {host, "api.wandb.ai" if hosted else host} for path in paths)


def _in_netrc(host: str, path: Path) -> bool:
    try:
        entry = netrc(str(path)).authenticators(host)
    except (OSError, NetrcParseError):
        return False
    return bool(entry and entry[2])


def _wandb_loggers(loggers: Iterable[Logger]) -> list[WandbRunLogger]:
    return [logger for logger in loggers if isinstance(logger, WandbRunLogger)]


@rank_zero_only
def log_images(loggers: Iterable[Logger], key: str, images: Sequence[Any], captions: Sequence[str]) -> None:
    """Send pictures to W&B: uint8 arrays (H, W, 3) or paths of PNG files. Outlines must be drawn into them.

    W&B's own mask overlays can be lost when an offline run is synced, so they are not used.
    """
    for logger in _wandb_loggers(loggers):
        import wandb

        pictures = [
            wandb.Image(str(image) if isinstance(image, Path) else image, caption=caption, file_type="png")
            for image, caption in zip(images, captions, strict=True)
        ]
        logger.log_media({key: pictures})


@rank_zero_only
def log_table(loggers: Iterable[Logger], key: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Send a table to W&B, for example the per-image scores; each row holds one value a column; NaN becomes empty."""
    for logger in _wandb_loggers(loggers):
        import wandb

        # W&B would write NaN as it is, which is no JSON.
        data = [[None if isinstance(cell, float) and not math.isfinite(cell) else cell for cell in row] for row in rows]
        table = wandb.Table(columns=list(columns), data=data, allow_mixed_types=True)
        logger.log_media({key: table})


@rank_zero_only
def log_summary(loggers: Iterable[Logger], values: Mapping[str, Any]) -> None:
    """Set final values of the W&B run, those that its table of runs shows."""
    for logger in _wandb_loggers(loggers):
        logger.experiment.summary.update(dict(values))


@rank_zero_only
def finish(loggers: Iterable[Logger], exit_code: int = 0) -> None:
    """End all loggers; call it after each job, in `finally`, or the jobs of a sweep merge and crashes look finished."""
    for logger in loggers:
        if isinstance(logger, WandbRunLogger):
            logger.finish(exit_code)
        else:
            logger.finalize("success" if exit_code == 0 else "failed")

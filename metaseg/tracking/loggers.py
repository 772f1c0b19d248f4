"""Builds the loggers of a configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from metaseg.runs import schema
from metaseg.runs.directory import RunDirectory
from metaseg.tracking.csv_logger import CsvLogger
from metaseg.tracking.wandb_run import WandbRunLogger, wandb_mode


def build_loggers(
    logger_config: schema.Logger,
    run_dir: Path | RunDirectory,
    config: Mapping[str, Any],
    group: str | None = None,
    tags: Sequence[str] = (),
    *,
    name: str | None = None,
    job_type: str = "train",
    resume: bool = False,
) -> list[Logger]:
    """Build the loggers described by conf/logger.

    Args:
        logger_config: the group ``logger`` of the settings.
        run_dir: the run's directory, which receives all log files.
        config: the run's resolved settings as plain containers, stored with the W&B run.
        group: W&B group, if `logger_config` has none.
        tags: W&B tags, added to those of `logger_config`.
        name: W&B display name; default: the run directory's name.
        job_type: W&B job type.
        resume: continue the metrics.csv and W&B run in `run_dir`; otherwise start a new metrics.csv.

    Raises:
        MetasegError: on an unknown mode, or mode `online` without an API key.
    """
    run = run_dir if isinstance(run_dir, RunDirectory) else RunDirectory(run_dir)
    loggers: list[Logger] = [CsvLogger(run.metrics, resume=resume)]
    if not logger_config.wandb:
        return loggers
    mode = wandb_mode(logger_config.mode)
    if mode != "disabled":
        loggers.append(
            WandbRunLogger(
                run,
                resume=resume,
                mode=mode,
                config=dict(config),
                name=name or run.path.name,
                project=logger_config.project,
                entity=logger_config.entity,
                group=logger_config.group or group,
                tags=list(dict.fromkeys([*tags, *logger_config.tags])),
                job_type=job_type,
            )
        )
    return loggers

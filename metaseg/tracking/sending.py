"""Sends pictures, tables, final numbers and the checkpoint to W&B; does nothing without W&B."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from metaseg.runs.directory import RunDirectory
from metaseg.tracking.wandb_run import WandbRunLogger


def _wandb_loggers(loggers: Iterable[Logger]) -> list[WandbRunLogger]:
    return [logger for logger in loggers if isinstance(logger, WandbRunLogger)]


def draws(loggers: Iterable[Logger]) -> bool:
    """Whether any logger accepts pictures."""
    return bool(_wandb_loggers(loggers))


@rank_zero_only
def log_images(
    loggers: Iterable[Logger],
    key: str,
    images: Sequence[np.ndarray],
    captions: Sequence[str],
    beside: Mapping[str, float] | None = None,
    file_type: str = "png",
) -> None:
    """Send pictures to W&B, with outlines already drawn into them.

    W&B's own mask overlays can be lost when an offline run is synced, so they are not used.

    Args:
        loggers: those of the run.
        key: the pictures' name; the part before the slash is the dashboard's section.
        images: uint8 arrays (H, W, 3).
        captions: one per picture.
        beside: numbers logged with them, including the one that orders the pictures.
        file_type: "png", or "jpg" for many pictures.
    """
    for logger in _wandb_loggers(loggers):
        import wandb

        pictures = [
            wandb.Image(image, caption=caption, file_type=file_type)
            for image, caption in zip(images, captions, strict=True)
        ]
        logger.log_media({key: pictures, **(beside or {})})


@rank_zero_only
def log_rows(loggers: Iterable[Logger], rows: Iterable[Mapping[str, float]]) -> None:
    """Send points of curves not drawn over outer steps; each point maps names, including the axis, to numbers."""
    for logger in _wandb_loggers(loggers):
        for row in rows:
            logger.experiment.log(dict(row))


@rank_zero_only
def log_table(loggers: Iterable[Logger], key: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Send a table to W&B, e.g. the per-image scores; one value per column in each row; NaN becomes empty."""
    for logger in _wandb_loggers(loggers):
        import wandb

        # W&B would write NaN literally, which is not valid JSON.
        data = [[None if isinstance(cell, float) and not math.isfinite(cell) else cell for cell in row] for row in rows]
        table = wandb.Table(columns=list(columns), data=data, allow_mixed_types=True)
        logger.log_media({key: table})


@rank_zero_only
def log_summary(loggers: Iterable[Logger], values: Mapping[str, Any]) -> None:
    """Set the summary values of the W&B run, shown in its table of runs."""
    for logger in _wandb_loggers(loggers):
        logger.experiment.summary.update(dict(values))


@rank_zero_only
def log_checkpoint(loggers: Iterable[Logger], name: str, directory: RunDirectory, metadata: Mapping[str, Any]) -> None:
    """Send best.ckpt with config.yaml and result.json to W&B as one artifact; its size is added to `metadata`."""
    best = directory.best
    if not best.is_file():
        return
    for logger in _wandb_loggers(loggers):
        size = {"mib": round(best.stat().st_size / 2**20, 2)}
        logger.log_model(name, best, [directory.config, directory.result], {**metadata, **size})


@rank_zero_only
def finish(loggers: Iterable[Logger], exit_code: int = 0) -> None:
    """End all loggers. Call in `finally` after each job; otherwise jobs of a sweep merge and crashes look finished."""
    for logger in loggers:
        if isinstance(logger, WandbRunLogger):
            logger.finish(exit_code)
        else:
            logger.finalize("success" if exit_code == 0 else "failed")

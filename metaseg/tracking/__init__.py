"""Loggers of a run: metrics.csv always, Weights & Biases if configured.

Both write on rank zero only, and not before the first logged value."""

from metaseg.tracking.csv_logger import CsvLogger
from metaseg.tracking.labels import Labels, labels_of
from metaseg.tracking.loggers import build_loggers
from metaseg.tracking.sending import (
    draws,
    finish,
    log_checkpoint,
    log_images,
    log_rows,
    log_summary,
    log_table,
)
from metaseg.tracking.summary_values import about_model, adaptation_points, summary_of
from metaseg.tracking.wandb_run import WandbRunLogger, has_api_key, wandb_mode

__all__ = [
    "CsvLogger",
    "Labels",
    "WandbRunLogger",
    "about_model",
    "adaptation_points",
    "build_loggers",
    "draws",
    "finish",
    "has_api_key",
    "labels_of",
    "log_checkpoint",
    "log_images",
    "log_rows",
    "log_summary",
    "log_table",
    "summary_of",
    "wandb_mode",
]

"""Loggers of a run: metrics.csv always, Weights & Biases where it is asked for.

Both write on rank zero only and touch the disk at the first value they get, so building them changes nothing.
"""

from metaseg.tracking.csv_logger import CsvLogger
from metaseg.tracking.loggers import build_loggers
from metaseg.tracking.numbers import about_model, adaptation_points, final_numbers
from metaseg.tracking.placing import Place, place
from metaseg.tracking.sending import (
    draws,
    finish,
    log_checkpoint,
    log_images,
    log_rows,
    log_summary,
    log_table,
)
from metaseg.tracking.wandb_run import WandbRunLogger, has_api_key, wandb_mode

__all__ = [
    "CsvLogger",
    "Place",
    "WandbRunLogger",
    "about_model",
    "adaptation_points",
    "build_loggers",
    "draws",
    "final_numbers",
    "finish",
    "has_api_key",
    "log_checkpoint",
    "log_images",
    "log_rows",
    "log_summary",
    "log_table",
    "place",
    "wandb_mode",
]

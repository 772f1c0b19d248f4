"""What watches a training run: checkpoints of the best and the last state, and the paper's stopping rule."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint

from metaseg.rundir import RunDirectory

MONITOR = "validation/query_loss_after"


def callbacks(trainer: Mapping[str, Any], directory: RunDirectory) -> list[Callback]:
    """The callbacks of a run.

    Args:
        trainer: the group ``trainer`` of the configuration.
        directory: where checkpoints go.
    """
    best = ModelCheckpoint(
        dirpath=directory.checkpoints,
        filename="best",
        monitor=MONITOR,
        save_weights_only=True,
        enable_version_counter=False,
    )
    # [P] the loss has to move by min_delta within so many epochs
    stop = EarlyStopping(MONITOR, min_delta=trainer["min_delta"], patience=trainer["patience"], check_finite=True)
    return [best, stop, LastCheckpoint(directory.checkpoints / "last.ckpt", trainer["save_every"])]


class LastCheckpoint(Callback):
    """Writes the whole training state every so many outer steps and at the end of each epoch.

    The file is replaced in one move, so a process that is killed while writing leaves the previous one.

    Args:
        path: the checkpoint.
        every: outer steps between writes.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Save within an epoch."""
        # After the last batch of an epoch its validation is still to come, and would be skipped on resuming from here.
        if trainer.global_step % self.every == 0 and not trainer.is_last_batch:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Save after validation, when early stopping and the best checkpoint know of it."""
        self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        new = self.path.with_suffix(".new")
        trainer.save_checkpoint(new)
        if trainer.is_global_zero:
            new.replace(self.path)

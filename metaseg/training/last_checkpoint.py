"""The checkpoint from which an interrupted run continues, and the one before it."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from metaseg.errors import MetasegError
from metaseg.interruption import Interruption
from metaseg.learners.checkpoints import read_checkpoint
from metaseg.runs.directory import PREVIOUS, RunDirectory

log = logging.getLogger(__name__)


class LastCheckpoint(Callback):
    """Writes the full training state every ``every`` outer steps and at the end of each epoch.

    The file is replaced atomically, so a process killed while writing leaves the one before. That one is kept beside it
    as previous.ckpt, in case a disk loses the end of the last. On a request to end, the file is written after the
    current step, and training ends with a KeyboardInterrupt before the next one.

    Args:
        path: the checkpoint.
        every: outer steps between writes.
        interruption: a request to end.
    """

    def __init__(self, path: Path, every: int, interruption: Interruption) -> None:
        self.path, self.every, self.interruption = path, every, interruption
        self._ends = False

    def on_train_start(self, *_: Any) -> None:
        """Have SIGTERM noted like the other signals."""
        self.interruption.note_sigterm()

    def on_train_batch_start(self, *_: Any) -> None:
        """End here, and not after the last step, whose metrics are logged only after its other callbacks."""
        if self._ends:
            raise KeyboardInterrupt

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Save within an epoch."""
        # Not after an epoch's last batch: resuming from there would skip the epoch's validation.
        if trainer.is_last_batch:
            return
        self._ends = self._to_end(trainer)
        if self._ends or trainer.global_step % self.every == 0:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Save after validation, once early stopping and the best checkpoint have been updated."""
        self._save(trainer)
        self._ends = self._to_end(trainer)

    def _to_end(self, trainer: L.Trainer) -> bool:
        """Whether any rank was asked to end; the same answer on all, as saving is a common effort."""
        requested = self.interruption.requested
        return trainer.strategy.reduce_boolean_decision(requested, all=False) if trainer.world_size > 1 else requested

    def _save(self, trainer: L.Trainer) -> None:
        new = self.path.with_suffix(".new")
        try:
            trainer.save_checkpoint(new)
        except OSError:  # most likely a full disk, which half a file would only fill
            new.unlink(missing_ok=True)
            raise
        if trainer.is_global_zero:
            if self.path.is_file():
                _keep(self.path, self.path.with_name(PREVIOUS))
            new.replace(self.path)


def _keep(path: Path, copy: Path) -> None:
    copy.unlink(missing_ok=True)
    try:
        os.link(path, copy)
    except OSError:  # a file system without links
        shutil.copyfile(path, copy)


def latest(directory: RunDirectory) -> Path | None:
    """The checkpoint to continue a run from: the last one, or the one before if that is damaged; None: neither exists.

    Raises:
        MetasegError: if none can be read.
    """
    problems: list[tuple[Path, MetasegError]] = []
    for path in (directory.last, directory.last.with_name(PREVIOUS)):
        if not path.is_file():
            continue
        try:
            read_checkpoint(path)
        except MetasegError as error:
            problems.append((path, error))
            continue
        if problems:
            log.warning("%s is damaged; continuing from %s.", directory.last, path)
        return path
    if problems:
        path, problem = problems[0]
        raise MetasegError(
            f"Expected a checkpoint to continue from, but {path} cannot be read: restore it, or delete "
            f"{directory.path} to begin again."
        ) from problem
    return None

"""Training callbacks: their list, the stopping rules, progress."""

import math
import sys
from statistics import fmean
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, EarlyStopping

from metaseg.interruption import Interruption
from metaseg.progress import Progress
from metaseg.runs import schema
from metaseg.runs.directory import RunDirectory
from metaseg.training.best_checkpoint import BestCheckpoint
from metaseg.training.last_checkpoint import LastCheckpoint

MONITOR = "validation/query_loss_after"


def callbacks(
    trainer: schema.AnyTrainer,
    directory: RunDirectory,
    interruption: Interruption,
    monitor: str = MONITOR,
    mode: str = "min",
) -> list[Callback]:
    """The callbacks of a run.

    Args:
        trainer: the group ``trainer`` of the configuration.
        directory: where checkpoints go.
        interruption: a request to end.
        monitor: the logged metric that chooses the best epoch.
        mode: "min" or "max": which is best.
    """
    best = BestCheckpoint(directory.checkpoints, monitor, mode)
    own = trainer if isinstance(trainer, schema.Trainer) else None
    budget = own is not None and own.max_passes is not None  # which is spent whole
    patience = sys.maxsize if budget or trainer.patience is None else trainer.patience
    stop: Callback = (
        Unchanging(trainer.min_delta, patience)
        if own is not None and own.stop_by == "training"
        # At the end of validation: at the end of the epoch, Lightning would call it after `LastCheckpoint`.
        else Patient(monitor, trainer.min_delta, patience, mode=mode, check_on_train_epoch_end=False)
    )
    last = LastCheckpoint(directory.last, trainer.save_every, interruption)
    return [best, stop, last, TrainingProgress(trainer.progress)]


class Patient(EarlyStopping):
    """Lightning's early stopping, but a resumed run has the patience of its settings, not that of its checkpoint."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore from a checkpoint."""
        super().load_state_dict(state_dict | {"patience": self.patience})


class Unchanging(Callback):
    """Stops training once its loss no longer changes [P, section 4, as published].

    The loss of an epoch is the mean over its outer steps of the query loss after the inner loop. It counts as unchanged
    if ``patience`` consecutive epochs lie within ``min_delta`` of the epoch before them.
    """

    def __init__(self, min_delta: float, patience: int) -> None:
        self.min_delta, self.patience = min_delta, patience
        self._steps: list[float] = []
        self._epochs: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Record the loss of an outer step, unless it was skipped."""
        module: Any = trainer.lightning_module
        if not module.skipping.in_a_row:
            self._steps.append(float(trainer.callback_metrics["train/query_loss_after"]))

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Stop or continue."""
        if not self._steps:
            return
        self._epochs.append(fmean(self._steps))
        self._steps.clear()
        if len(self._epochs) > self.patience:
            first, *later = self._epochs[-self.patience - 1 :]
            trainer.should_stop |= all(abs(loss - first) < self.min_delta for loss in later)

    def state_dict(self) -> dict[str, Any]:
        """State for checkpoints, so that a resumed run stops where the uninterrupted one would."""
        return {"steps": self._steps, "epochs": self._epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore from a checkpoint."""
        self._steps, self._epochs = list(state_dict["steps"]), list(state_dict["epochs"])


class TrainingProgress(Callback):
    """Shows progress in outer steps, the latest loss and the latest validation Dice.

    A resumed run counts from the step it resumes at. The display says when validation runs. The module logs "loss" and
    "dice" (a fraction) with ``prog_bar=True``. Only rank zero shows anything.

    Args:
        shown: False shows nothing.
    """

    def __init__(self, shown: bool = True) -> None:
        self.shown = shown
        self._progress: Progress | None = None
        self._validated = 0

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Start at the current step."""
        if self.shown and trainer.is_global_zero:
            # Infinite if the run has no last epoch.
            steps = trainer.estimated_stepping_batches
            total = steps if math.isfinite(steps) else None
            self._progress = Progress("training", total, "steps", done=trainer.global_step)
            self._progress.start()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Count an outer step."""
        if self._progress is not None:
            self._progress.update(trainer.global_step, values=_logged(trainer))

    def on_validation_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Show that validation has begun."""
        self._validated = 0
        self._note_validation(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Count an episode or a volume."""
        self._validated += 1
        self._note_validation(trainer)

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Show the new Dice."""
        if self._progress is not None:
            self._progress.note("")
            self._progress.update(trainer.global_step, values=_logged(trainer))

    def on_train_end(self, *_: Any) -> None:
        """Close the display."""
        if self._progress is not None:
            self._progress.stop()

    def on_exception(self, *_: Any) -> None:
        """Close the display where training was interrupted."""
        if self._progress is not None:
            self._progress.stop(failed=True)

    def _note_validation(self, trainer: L.Trainer) -> None:
        if self._progress is not None:
            self._progress.note(f"validating {self._validated}/{sum(trainer.num_val_batches)}")


def _logged(trainer: L.Trainer) -> dict[str, str]:
    logged = trainer.progress_bar_metrics
    values = {"loss": f"{float(logged['loss']):.3f}"} if "loss" in logged else {}
    return values | ({"Dice": f"{100 * float(logged['dice']):.1f} %"} if "dice" in logged else {})  # type: ignore[arg-type]

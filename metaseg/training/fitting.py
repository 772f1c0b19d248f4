"""Training a learner on the episodes of its pools."""

import json
from pathlib import Path

import torch
from lightning.pytorch.loggers import Logger

from metaseg import tracking
from metaseg.data.module import EpisodicData
from metaseg.errors import MetasegError
from metaseg.interruption import Interruption
from metaseg.learners.base import Learner
from metaseg.learners.checkpoints import load_weights
from metaseg.runs import schema
from metaseg.runs.directory import RunDirectory
from metaseg.system import replacing
from metaseg.training.best_checkpoint import BestCheckpoint
from metaseg.training.callbacks import callbacks
from metaseg.training.compute import Compute
from metaseg.training.followed_images import FollowedImages
from metaseg.training.outer import MetaTraining
from metaseg.training.process import local_rank, trainer_of
from metaseg.training.skipping import FROM_THE_FIRST, Skipping


def fit(
    settings: schema.Run,
    learner: Learner,
    data: EpisodicData,
    loggers: list[Logger],
    directory: RunDirectory,
    checkpoint: Path | None,
) -> int:
    """Train, and load the weights with the best validation loss; returns this process's rank on its machine."""
    if not (settings.train and learner.trains):
        return local_rank()
    chosen, shown = settings.trainer, settings.logger
    end = [chosen.max_epochs, chosen.max_passes, chosen.patience, chosen.min_delta, chosen.stop_by]
    if settings.ckpt_path == "last" and directory.trained.is_file():
        known = json.loads(directory.trained.read_text())  # without stop_by in earlier versions
        if known == end[: len(known)]:
            load_weights(learner, directory.best)  # already stopped by the same rule, then killed while testing
            return local_rank()
    compute, interruption = Compute(learner, settings.data.size, directory, chosen.max_passes), Interruption()
    called = [compute, *callbacks(chosen, directory, interruption)]
    if shown.overlay_every and tracking.draws(loggers):
        called.append(FollowedImages(data, loggers, shown.overlay_every, shown.overlay_images))
    trainer = trainer_of(chosen, loggers, called)
    data.require_even_shares(trainer.world_size)
    with interruption.heeded():
        spent = None if chosen.max_passes is None else lambda: compute.spent
        module = MetaTraining(learner, settings.plain, spent, Skipping(chosen.max_skips, chosen.skip_norm))
        try:
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        except SystemExit:  # of an interruption, which ended the other ranks
            # Lightning's observer would take that for a failure and kill this one before it has said how to resume.
            getattr(trainer.strategy.launcher, "procs", []).clear()
            raise
    learner.network.float()  # trainer.precision=64-true is that of training
    score = next(one.best_model_score for one in called if isinstance(one, BestCheckpoint))
    if score is None or not torch.isfinite(score):  # the first is saved even so
        if not trainer.global_step:
            raise MetasegError(f"All outer steps were skipped; {FROM_THE_FIRST}")
        raise MetasegError(
            f"Training diverged: no epoch of {trainer.current_epoch} ended with a finite validation loss; lower "
            "learner.optimizer.lr or learner.inner.lr."
        )
    load_weights(learner, directory.best)
    if trainer.is_global_zero:
        with replacing(directory.trained) as path:
            path.write_text(json.dumps(end))
    return trainer.local_rank

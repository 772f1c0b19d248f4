"""Pictures of a few fixed validation images over epochs, before and after the inner loop, for the dashboard."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.seed import isolate_rng

from metaseg import tracking
from metaseg.data.batches import Episode, EpisodeDataset, RawEpisode
from metaseg.data.module import EpisodicData
from metaseg.evaluation.scores import dice
from metaseg.learners.base import Learner
from metaseg.plots.overlays import overlay
from metaseg.training.outer import MetaTraining

_GAP = 8  # pixels between before and after


@dataclass(frozen=True)
class FollowedEpisode:
    """Query images of one validation episode: their positions in it and their ids, by pool."""

    episode: RawEpisode
    places: dict[str, list[tuple[int, str]]]


def followed(data: EpisodicData, images: int) -> list[FollowedEpisode]:
    """The first query images of each pool, in the validation plan's first episode of that pool.

    They depend on data, tasks, shots and seed only: the same for every learner and epoch.

    Args:
        data: with source pools.
        images: maximum number per pool.
    """
    plan = data.validation_plan
    episodes = EpisodeDataset(data.pools, plan, "none")
    found = []
    for index in range(plan.group):
        places: dict[str, list[tuple[int, str]]] = {}
        first = 0
        for part in plan.episode(0, index):
            pool = data.pools[part.pool]
            places[pool.name] = [
                (first + position, pool.ids[image]) for position, image in enumerate(part.query[:images])
            ]
            first += len(part.query)
        found.append(FollowedEpisode(cast(RawEpisode, episodes[0, index]), places))
    return found


class FollowedImages(Callback):
    """Sends pictures of fixed validation images to W&B after validation, with truth and prediction outlined.

    Left: before the inner loop, right: after it; learners without an inner loop have one half. Runs on rank zero only
    and costs one validation episode per pool. Training is unaffected: random states are restored.

    Args:
        data: source of the validation episodes.
        loggers: those of the run.
        every: epochs between pictures, from the first epoch on; ≥ 1.
        images: per pool; ≥ 1.
    """

    def __init__(self, data: EpisodicData, loggers: Sequence[Logger], every: int, images: int) -> None:
        self.data, self.loggers, self.every, self.images = data, loggers, every, images
        self._followed: list[FollowedEpisode] | None = None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw in every ``every``-th epoch."""
        if trainer.sanity_checking or not trainer.is_global_zero or trainer.current_epoch % self.every:
            return
        if self._followed is None:
            self._followed = followed(self.data, self.images)
        beside = {"epoch": trainer.current_epoch, "trainer/global_step": trainer.global_step - 1}
        assert isinstance(pl_module, MetaTraining)
        for one in self._followed:
            with isolate_rng(), trainer.precision_plugin.val_step_context():
                drawn = list(_pictures(pl_module.learner, one))
            for pool, pictures, captions in drawn:
                # PNGs would be ten times the size, and offline runs keep them all.
                tracking.log_images(self.loggers, f"progress/{pool}", pictures, captions, beside, file_type="jpg")


def _pictures(learner: Learner, followed: FollowedEpisode) -> Iterator[tuple[str, list[np.ndarray], list[str]]]:
    """Pool, pictures (H, W', 3) and captions."""
    raw = RawEpisode(*(None if part is None else part.to(learner.device) for part in followed.episode))  # type: ignore[arg-type]
    episode: Episode = raw.normalised(next(learner.network.parameters()).dtype)
    with torch.enable_grad():
        (_, before), (_, after) = learner.trial(episode)
    predicted = [(logits > 0).squeeze(1).cpu().numpy() for logits in (before, after)]
    if not learner.inner.steps:
        predicted = predicted[1:]
    truth = followed.episode.query_masks.numpy()
    scores = [dice(masks, truth) for masks in predicted]
    for pool, places in followed.places.items():
        pictures, captions = [], []
        for position, name in places:
            image = followed.episode.query_images[position].numpy()
            pictures.append(_beside([overlay(image, truth[position], masks[position]) for masks in predicted]))
            captions.append(f"{name}: Dice " + " → ".join(f"{100 * of_image[position]:.0f} %" for of_image in scores))
        yield pool, pictures, captions


def _beside(pictures: Sequence[np.ndarray]) -> np.ndarray:
    gap = np.full((len(pictures[0]), _GAP, 3), 255, np.uint8)
    parts: list[Any] = [pictures[0]]
    for picture in pictures[1:]:
        parts += [gap, picture]
    return np.concatenate(parts, axis=1)

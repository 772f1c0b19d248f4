"""The Lightning data module: training and validation episodes from pools, target sets for the meta-test."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import lightning as L
import numpy as np
import torch

from metaseg.data import catalogue
from metaseg.data.batches import (
    Episode,
    EpisodeDataset,
    OuterSteps,
    RawEpisode,
    ResumableLoader,
    SupportSet,
    step_loader,
)
from metaseg.data.episodes import EpisodePlan, Stream, target_support
from metaseg.data.layouts import scan
from metaseg.data.pools import Pool, prepare, prepare_arrays, split_by_group
from metaseg.errors import MetasegError
from metaseg.runs.result import DatasetRecord
from metaseg.runs.schema import Run
from metaseg.system import cores

TARGET_TEST_SHARE = 0.2
"""Share of the target that is scored when a learner trains on the target: the paper's 80/20 split."""
MOST_WORKERS = 2
"""Maximum number of workers under `data.workers=auto`: one augments 80 images of 256×256 in a quarter of a second."""


def worker_count(setting: int | str, augmentation: str, on_cpu: bool, ranks: int = 1) -> int:
    """Number of worker processes per rank that prefetch episodes.

    Args:
        setting: `data.workers`: a number, or "auto": none without augmentation, as reading an episode takes
            milliseconds; none when training on the CPU, which has no core to spare and augments in far less time than
            it trains; else as many as this rank has cores, up to `MOST_WORKERS`.
        augmentation: `data.augment`.
        on_cpu: training runs on the CPU.
        ranks: ranks that share the cores of this machine.
    """
    if setting == "auto":
        return 0 if augmentation == "none" or on_cpu else min(MOST_WORKERS, max(1, cores() // ranks))
    return int(setting)


def batches_so_far(trainer: L.Trainer) -> int:
    """Batches of the whole run up to now, which Lightning restores with a checkpoint.

    Skipped outer steps count. `global_step` omits them: after an epoch with skipped steps it would still point into
    that epoch, and the next one would only be its rest.
    """
    return trainer.fit_loop.total_batch_idx + 1


def load_pool(name: str, *, source: str, root: str, size: int) -> Pool:
    """The prepared images of dataset ``name`` at size×size, or those of its synthetic twin.

    Args:
        name: a dataset of the catalogue, or one described under ``root``.
        source: "real" (files under ``root``) or "synthetic".
        root: folder that holds the datasets.
        size: side of the square images, pixels.

    Raises:
        MetasegError: if the name is unknown, or files are missing or faulty.
    """
    dataset = catalogue.get(name, root)
    if source == "real":
        return prepare(dataset, root, size)
    return _twin_pool(name, _twin_count(name), size)


def image_count(name: str, source: str, root: str) -> int:
    """Number of images in `load_pool`'s pool, as published if known; nothing is decoded.

    Raises:
        MetasegError: if the name is unknown, or the files of a dataset without a published count are missing.
    """
    dataset = catalogue.get(name, root)
    if source == "synthetic":
        return _twin_count(name)
    return len(scan(dataset, root).pairs) if dataset.count is None else dataset.count


def _twin_count(name: str) -> int:
    from metaseg.data.synthetic.twins import DEFAULT_COUNTS

    if name not in DEFAULT_COUNTS:
        raise MetasegError(
            f"data=synthetic only has twins of {', '.join(DEFAULT_COUNTS)}, found {name!r}; use data=real."
        )
    return DEFAULT_COUNTS[name]


@lru_cache(maxsize=8)  # shared by cells of a sweep that run in one process
def _twin_pool(name: str, count: int, size: int) -> Pool:
    from metaseg.data.synthetic.twins import TWIN_SEED, twin

    images, masks, ids, groups = twin(name, count, size, TWIN_SEED)
    return prepare_arrays(name, images, masks, ids, groups, blocks=catalogue.get(name).blocks > 0)


@dataclass(frozen=True)
class Target:
    """A target dataset in the meta-test.

    Attributes:
        pool: its images.
        candidates: indices from which support sets are drawn.
        scored: indices to score, except those of a draw's support set and their near-duplicates.
        unlabelled: indices of images that a learner may train on without their masks; they are never scored.
    """

    pool: Pool
    candidates: np.ndarray
    scored: np.ndarray
    unlabelled: np.ndarray

    @classmethod
    def of(cls, pool: Pool, unlabelled: float, seed: int) -> "Target":
        """The target with all images as support candidates, and all scored except the unlabelled share."""
        everything = np.arange(len(pool))
        if not unlabelled:
            return cls(pool, everything, everything, np.arange(0))
        if pool.blocks:
            # Blocks of one video: a whole block would be a fifth of it and no more informative than a few frames.
            generator = np.random.default_rng([seed, Stream.UNLABELLED])
            chosen = np.sort(generator.choice(len(pool), max(1, round(unlabelled * len(pool))), replace=False))
        else:
            chosen = split_by_group(pool, unlabelled, seed)[1]
        return cls(pool, everything, np.setdiff1d(everything, chosen), chosen)

    def draw(self, shots: int, seed: int, draw: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the support set of one draw, and of the images scored with it.

        Images that share a group with a support image (near-duplicates) are not scored, unless the groups are mere
        blocks of one video (KvasirCapsule-SEG), where nothing would be left to score.

        Raises:
            MetasegError: if there are fewer than K + 1 images.
        """
        if len(self.candidates) < shots or len(np.union1d(self.candidates, self.scored)) <= shots:
            raise MetasegError(
                f"{self.pool.name} needs shots={shots} support images and at least one to score, but has "
                f"{len(self.candidates)} images; lower shots."
            )
        support = self.candidates[target_support(len(self.candidates), shots, seed, draw)]
        taken = np.isin(self.scored, support)
        if not self.pool.blocks:
            taken |= np.isin(self.pool.groups[self.scored], self.pool.groups[support])
        if taken.all():
            raise MetasegError(f"shots={shots} leaves no image of {self.pool.name} to score; lower shots.")
        return support, self.scored[~taken]

    def support_set(self, indices: np.ndarray, augmentation: str, seed: int) -> SupportSet:
        """The images of ``indices`` as a support set."""
        images, masks = self.pool.take(indices)
        return SupportSet(images, masks, augmentation, seed)


class EpisodicData(L.LightningDataModule):
    """Episodes of the source pools for training and validation; target sets for the meta-test.

    Target images are never used for training or model selection, except under ``train_on="target"`` (one reading of the
    paper's naive baseline), where the 20 % to be scored are held out first.

    Args:
        settings: the run's settings.

    Raises:
        MetasegError: if a target is also a source, or settings are incompatible.
    """

    def __init__(self, settings: Run) -> None:
        super().__init__()
        self.settings = settings
        pools, targets, learner = settings.pair.pools, settings.target, settings.learner
        if learner.train_on == "target" and len(targets) != 1:
            raise MetasegError(f"learner.train_on=target needs exactly one target, found {', '.join(targets)}.")
        if learner.train_on == "target" and learner.unlabelled:
            raise MetasegError(
                f"learner.unlabelled={learner.unlabelled} sets target images aside without masks, but learner.train_on="
                "target trains on the target's masks; set learner.unlabelled=0 or learner.train_on=source."
            )
        both = set(pools) & set(targets)
        if both and learner.train_on == "source":
            raise MetasegError(
                f"A target must not be a source dataset, but {', '.join(sorted(both))} is in both pair and target; "
                "choose another target or pair."
            )
        self.names = list(dict.fromkeys([*pools, *targets])) if learner.train_on == "source" else list(targets)
        self.pools: list[Pool] = []
        self.targets: dict[str, Target] = {}
        self._loaded: dict[str, Pool] = {}
        self._is_set_up = False

    def under(self, settings: Run) -> "EpisodicData":
        """The same images under other settings of tasks, shots and learner, without opening them again."""
        other = EpisodicData(settings)
        other._loaded = self._load()
        return other

    def prepare_data(self) -> None:
        """Decode the datasets into the cache unless they are there already.

        Raises:
            MetasegError: if files are missing or faulty.
        """
        self._load()

    def _load(self) -> dict[str, Pool]:
        data = self.settings.data
        if not self._loaded:  # the Trainer prepares as well
            for name in self.names:  # before any is decoded
                catalogue.get(name, data.root)
            self._loaded = {
                name: load_pool(name, source=data.source, root=data.root, size=data.size) for name in self.names
            }
        return self._loaded

    def setup(self, stage: str | None = None) -> None:
        """Open the prepared datasets and plan the episodes; a second call does nothing.

        Raises:
            MetasegError: as `prepare_data`, or if a setting does not fit the data.
        """
        if self._is_set_up:
            return
        self._is_set_up = True
        learner, seed, targets = self.settings.learner, self.settings.seed, self.settings.target
        loaded, unlabelled = self._load(), learner.unlabelled
        if learner.train_on == "source":
            self.pools = [loaded[name] for name in self.settings.pair.pools]
            allowed = [np.arange(len(pool)) for pool in self.pools]
            self.targets = {name: Target.of(loaded[name], unlabelled, seed) for name in targets}
        else:
            pool = loaded[targets[0]]
            # A different seed from the validation split's below, or both would hold out the same images.
            train, test = split_by_group(pool, TARGET_TEST_SHARE, seed + 1)
            self.pools, allowed = [pool], [train]
            self.targets = {pool.name: Target(pool, train, test, np.arange(0))}
        self.unlabelled = [(target.pool, target.unlabelled) for target in self.targets.values()] if unlabelled else []
        if self.pools and self.settings.train:
            self.train_plan, self.validation_plan = self._plans(allowed, learner.train_images)
            if self.train_plan.count % self.per_step:
                raise MetasegError(
                    f"tasks.count must be a multiple of the {self.per_step} tasks of an outer step (tasks.per_step "
                    f"times the pools of an exclusive plan), found {self.train_plan.count}."
                )

    def provenance(self) -> dict[str, DatasetRecord]:
        """For each dataset, source or target: the number of images and groups, and the key of its source files."""
        pools = {pool.name: pool for pool in [*self.pools, *(target.pool for target in self.targets.values())]}
        return {
            name: DatasetRecord(images=len(pool), groups=len(np.unique(pool.groups)), key=pool.key)
            for name, pool in pools.items()
        }

    def state_dict(self) -> dict[str, str]:
        """For a checkpoint: dataset → key of its images, of the pools."""
        return {pool.name: pool.key for pool in self.pools}

    def load_state_dict(self, state_dict: Mapping[str, str]) -> None:
        """Refuse a checkpoint of training on other images.

        Raises:
            MetasegError: if it is one.
        """
        if changed := sorted(pool.name for pool in self.pools if state_dict.get(pool.name) != pool.key):
            raise MetasegError(
                f"Training began on other images of {', '.join(changed)} than those in data.root now; restore them to "
                "resume it, or begin a new run in another hydra.run.dir."
            )

    def require_training_data(self) -> None:
        """Refuse to train without source pools.

        Raises:
            MetasegError: if there are none (``pair=none``).
        """
        if not self.pools:
            raise MetasegError(
                "This learner trains on a pair, but pair=none; choose a pair, or learner.train_on=target."
            )

    def _plans(self, allowed: list[np.ndarray], most: int | None) -> tuple[EpisodePlan, EpisodePlan]:
        train, held_out = [], []
        for pool, indices in zip(self.pools, allowed, strict=True):
            first, second = split_by_group(pool, self.settings.data.validation, self.settings.seed)
            train.append((pool.name, np.intersect1d(first, indices)))
            held_out.append((pool.name, np.intersect1d(second, indices)))
        train = _subset(train, most, self.settings.seed)
        tasks = self.settings.tasks
        shared: dict[str, Any] = {
            "shots": self.settings.shots,
            "query": tasks.query,
            "mixing": tasks.mixing,
            "seed": self.settings.seed,
        }
        return (
            EpisodePlan(
                pools=tuple(train),
                order=tasks.order,
                count=tasks.in_epoch(len(train)),
                resample=tasks.resample,
                stream=Stream.TRAIN,
                **shared,
            ),
            EpisodePlan(
                pools=tuple(held_out),
                order="interleaved",
                count=tasks.validation * (len(held_out) if tasks.mixing == "exclusive" else 1),
                resample=False,
                stream=Stream.VALIDATION,
                **shared,
            ),
        )

    @property
    def per_step(self) -> int:
        """Tasks in one outer step over all ranks."""
        return self.settings.tasks.per_step * self.train_plan.group

    def require_even_shares(self, world: int) -> None:
        """Refuse a number of ranks that would change the composition of an outer step.

        Raises:
            MetasegError: if tasks do not divide evenly over the ranks.
        """
        if self.per_step % world or self.validation_plan.count < world:
            raise MetasegError(
                f"The {self.per_step} tasks of an outer step must divide evenly over the ranks, and each rank needs "
                f"one of the {self.validation_plan.count} validation tasks, but there are {world} ranks; change "
                "tasks.per_step, tasks.validation or trainer.devices."
            )

    def train_dataloader(self) -> ResumableLoader:
        """This rank's share of each outer step, from the current position of training."""
        trainer = self.trainer
        assert trainer is not None
        data = self.settings.data
        episodes = EpisodeDataset(
            self.pools, self.train_plan, data.augment, self.unlabelled, self.settings.tasks.recolour
        )
        steps = OuterSteps(episodes, self.per_step, trainer.global_rank, trainer.world_size)
        device = trainer.strategy.root_device.type
        workers = worker_count(data.workers, data.augment, device == "cpu", trainer.num_devices)
        return step_loader(steps, lambda: batches_so_far(trainer), workers, pin_memory=device == "cuda")

    def val_dataloader(self) -> ResumableLoader:
        """This rank's share of the validation episodes, the same every epoch and never augmented."""
        trainer = self.trainer
        assert trainer is not None
        share = range(trainer.global_rank, self.validation_plan.count, trainer.world_size)
        keys = [(0, index) for index in share]
        episodes = EpisodeDataset(self.pools, self.validation_plan, "none")
        return ResumableLoader(episodes, batch_size=None, sampler=keys)

    def on_after_batch_transfer(
        self, batch: RawEpisode | list[RawEpisode], dataloader_idx: int
    ) -> Episode | list[Episode]:
        """Convert episodes to the network's floats on the device: free on a GPU, some milliseconds on a CPU."""
        dtype = torch.float32 if self.trainer is None else next(self.trainer.lightning_module.parameters()).dtype
        return batch.normalised(dtype) if isinstance(batch, RawEpisode) else [one.normalised(dtype) for one in batch]


def _subset(pools: list[tuple[str, np.ndarray]], most: int | None, seed: int) -> list[tuple[str, np.ndarray]]:
    """At most `most` images, drawn at random from all pools together."""
    total = sum(len(indices) for _, indices in pools)
    if most is None or total <= most:
        return pools
    kept = np.zeros(total, bool)
    kept[np.random.default_rng([seed, Stream.SUBSET]).permutation(total)[:most]] = True
    parts = np.split(kept, np.cumsum([len(indices) for _, indices in pools])[:-1])
    return [(name, indices[part]) for (name, indices), part in zip(pools, parts, strict=True)]

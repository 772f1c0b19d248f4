"""The Lightning data module: pools → episodes for training and validation, target sets for the meta-test."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import lightning as L
import numpy as np

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
from metaseg.data.check import cores
from metaseg.data.episodes import Plan, Stream, target_support
from metaseg.data.layouts import scan
from metaseg.data.pools import Pool, prepare, prepare_arrays, split_by_group
from metaseg.errors import MetasegError
from metaseg.runs.result import Dataset
from metaseg.runs.schema import Run

TRAIN_ON = ("source", "target")
TARGET_TEST_SHARE = 0.2
"""Share of the target that is scored when a learner trains on the target: the paper's 80/20 split."""
MOST_WORKERS = 2
"""Workers that `data.workers=auto` asks for: one augments 80 images of 256×256 in a quarter of a second."""


def worker_count(setting: int | str, augmentation: str, on_cpu: bool, ranks: int = 1) -> int:
    """Processes that prepare episodes ahead, for each rank.

    Args:
        setting: `data.workers`: a number, or "auto". That means none where nothing is augmented, since reading an
            episode takes milliseconds; none where training itself runs on the CPU, which augments in far less time
            than it trains and has no core to spare; else up to `MOST_WORKERS`, as many as this rank has cores.
        augmentation: `data.augment`.
        on_cpu: training runs on the CPU.
        ranks: ranks on this machine, which share its cores.

    Raises:
        MetasegError: on any other setting.
    """
    if setting == "auto":
        return 0 if augmentation == "none" or on_cpu else min(MOST_WORKERS, max(1, cores() // ranks))
    return int(setting)


def load_pool(name: str, *, source: str, root: str, size: int) -> Pool:
    """The prepared images of dataset ``name`` at size×size, or those of its synthetic twin.

    Args:
        name: a name of the catalogue, or of a dataset that is described under ``root``.
        source: "real" (files under ``root``) or "synthetic".
        root: folder that holds the datasets.
        size: side of the square images, pixels.

    Raises:
        MetasegError: if the name or source is unknown, or files are missing or faulty.
    """
    dataset = catalogue.get(name, root)
    if source == "real":
        return prepare(dataset, root, size)
    return _twin_pool(name, _twin_count(name), size)


def image_count(name: str, source: str, root: str) -> int:
    """Images that `load_pool` would give, as published where that is known: nothing is decoded.

    Raises:
        MetasegError: if the name is unknown, or the files of a dataset of unknown count are missing.
    """
    dataset = catalogue.get(name, root)
    if source == "synthetic":
        return _twin_count(name)
    return len(scan(dataset, root).pairs) if dataset.count is None else dataset.count


def _twin_count(name: str) -> int:
    from metaseg.data.synthetic.twins import DEFAULT_COUNTS

    if name not in DEFAULT_COUNTS:
        raise MetasegError(
            f"data=synthetic has twins of {', '.join(DEFAULT_COUNTS)} only, found {name!r}; use data=real."
        )
    return DEFAULT_COUNTS[name]


@lru_cache(maxsize=8)  # cells of a sweep that share a process share the twins
def _twin_pool(name: str, count: int, size: int) -> Pool:
    from metaseg.data.synthetic.twins import TWIN_SEED, twin

    images, masks, ids, groups = twin(name, count, size, TWIN_SEED)
    return prepare_arrays(name, images, masks, ids, groups, blocks=catalogue.get(name).blocks > 0)


@dataclass(frozen=True)
class Target:
    """A target dataset as the meta-test uses it.

    Attributes:
        pool: its images.
        candidates: indices that support sets are drawn from.
        scored: indices that are scored, less those of the draw's support set and their twins.
        unlabelled: indices whose images, without masks, a learner may train on; none of them is scored.
    """

    pool: Pool
    candidates: np.ndarray
    scored: np.ndarray
    unlabelled: np.ndarray

    @classmethod
    def of(cls, pool: Pool, unlabelled: float, seed: int) -> "Target":
        """The target whose images are all candidates for support, and all scored but the share without labels.

        Raises:
            MetasegError: if the share is not from 0 to below 1.
        """
        everything = np.arange(len(pool))
        if not 0 <= unlabelled < 1:
            raise MetasegError(f"learner.unlabelled must be a share from 0 to below 1, found {unlabelled}.")
        if not unlabelled:
            return cls(pool, everything, everything, np.arange(0))
        if pool.blocks:
            # Blocks of one video: a whole block would be a fifth of it, and says no more than some of its frames.
            generator = np.random.default_rng([seed, Stream.UNLABELLED])
            chosen = np.sort(generator.choice(len(pool), max(1, round(unlabelled * len(pool))), replace=False))
        else:
            chosen = split_by_group(pool, unlabelled, seed)[1]
        return cls(pool, everything, np.setdiff1d(everything, chosen), chosen)

    def draw(self, shots: int, seed: int, draw: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the support set of one draw, and of the images scored with it.

        Near-duplicates of support images are not scored: they share a group with them. Groups that are mere blocks of
        one video (KvasirCapsule-SEG) are left together, since nothing would remain.

        Raises:
            MetasegError: if fewer than K + 1 images are there.
        """
        if len(self.candidates) < shots or len(np.union1d(self.candidates, self.scored)) <= shots:
            raise MetasegError(
                f"shots={shots} support images and at least one to score are needed of {self.pool.name}, but it has "
                f"{len(self.candidates)}; lower shots."
            )
        support = self.candidates[target_support(len(self.candidates), shots, seed, draw)]
        taken = np.isin(self.scored, support)
        if not self.pool.blocks:
            taken |= np.isin(self.pool.groups[self.scored], self.pool.groups[support])
        if taken.all():
            raise MetasegError(f"No image of {self.pool.name} is left to score beside shots={shots}; lower shots.")
        return support, self.scored[~taken]

    def support_set(self, indices: np.ndarray, augmentation: str, seed: int) -> SupportSet:
        """The images of ``indices`` as a support set."""
        images, masks = self.pool.take(indices)
        return SupportSet(images, masks, augmentation, seed)


class EpisodicData(L.LightningDataModule):
    """Episodes of the source pools for training and validation; target sets for the meta-test.

    Target images are never part of training or selection, except under ``train_on="target"`` (one reading of the
    paper's naive baseline), where the 20 % that are scored are held out first.

    Args:
        settings: of the run.

    Raises:
        MetasegError: if a target is also a source, or settings do not go together.
    """

    def __init__(self, settings: Run) -> None:
        super().__init__()
        self.settings = settings
        pools, targets, learner = settings.pair.pools, settings.target, settings.learner
        if learner.train_on == "target" and len(targets) != 1:
            raise MetasegError(f"learner.train_on=target needs exactly one target, found {', '.join(targets)}.")
        if learner.train_on == "target" and learner.unlabelled:
            raise MetasegError(
                f"learner.unlabelled={learner.unlabelled} sets images of the target aside, on which learner.train_on="
                "target trains with their masks; set one of them back: learner.unlabelled=0 or learner.train_on=source."
            )
        both = set(pools) & set(targets)
        if both and learner.train_on == "source":
            raise MetasegError(
                f"A target must not be trained on, but {', '.join(sorted(both))} is in the pair and in target; "
                "choose another target or pair."
            )
        self.names = list(dict.fromkeys([*pools, *targets])) if learner.train_on == "source" else list(targets)
        self.pools: list[Pool] = []
        self.targets: dict[str, Target] = {}
        self._is_set_up = False

    def prepare_data(self) -> None:
        """Decode the datasets into the cache, where it does not hold them yet.

        Raises:
            MetasegError: if files are missing or faulty.
        """
        self._load()

    def _load(self) -> dict[str, Pool]:
        data = self.settings.data
        return {name: load_pool(name, source=data.source, root=data.root, size=data.size) for name in self.names}

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
            # Another seed than that of the validation split below, or the two would hold out the same images.
            train, test = split_by_group(pool, TARGET_TEST_SHARE, seed + 1)
            self.pools, allowed = [pool], [train]
            self.targets = {pool.name: Target(pool, train, test, np.arange(0))}
        self.unlabelled = [(target.pool, target.unlabelled) for target in self.targets.values()] if unlabelled else []
        if self.pools:
            self.train_plan, self.validation_plan = self._plans(allowed, learner.train_images)
            self._validate_split()

    def provenance(self) -> dict[str, Dataset]:
        """Of each dataset, source or target: how many images and groups, and the key of what they were made from."""
        pools = {pool.name: pool for pool in [*self.pools, *(target.pool for target in self.targets.values())]}
        return {
            name: Dataset(images=len(pool), groups=len(np.unique(pool.groups)), key=pool.key)
            for name, pool in pools.items()
        }

    def require_training_data(self) -> None:
        """Refuse to train without source pools.

        Raises:
            MetasegError: if there are none (``pair=none``).
        """
        if not self.pools:
            raise MetasegError(
                "A learner that trains on a pair needs one, but pair=none; choose a pair, or learner.train_on=target."
            )

    def _plans(self, allowed: list[np.ndarray], most: int | None) -> tuple[Plan, Plan]:
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
            Plan(
                pools=tuple(train),
                order=tasks.order,
                count=tasks.in_epoch(len(train)),
                resample=tasks.resample,
                stream=Stream.TRAIN,
                **shared,
            ),
            Plan(
                pools=tuple(held_out),
                order="interleaved",
                count=tasks.validation * (len(held_out) if tasks.mixing == "exclusive" else 1),
                resample=False,
                stream=Stream.VALIDATION,
                **shared,
            ),
        )

    def _validate_split(self) -> None:
        per_step = self.per_step
        if self.train_plan.count % per_step:
            raise MetasegError(
                f"tasks.count must be a multiple of the {per_step} tasks of an outer step (tasks.per_step times the "
                f"pools of an exclusive plan), found {self.train_plan.count}."
            )

    @property
    def per_step(self) -> int:
        """Tasks in one outer step over all ranks."""
        return self.settings.tasks.per_step * self.train_plan.group

    @property
    def steps_per_epoch(self) -> int:
        """Outer steps in one epoch."""
        return self.train_plan.count // self.per_step

    def require_even_shares(self, world: int) -> None:
        """Refuse a number of ranks that would change what an outer step is.

        Raises:
            MetasegError: if tasks do not divide evenly over the ranks.
        """
        if self.per_step % world or self.validation_plan.count < world:
            raise MetasegError(
                f"The {self.per_step} tasks of an outer step must divide evenly over the ranks, and each rank needs a "
                f"validation task of the {self.validation_plan.count}, but there are {world} ranks; set "
                "tasks.per_step, tasks.validation or trainer.devices so that they do."
            )

    def train_dataloader(self) -> ResumableLoader:
        """This rank's share of each outer step, from wherever training stands."""
        trainer = self.trainer
        assert trainer is not None
        steps = OuterSteps(
            self.pools,
            self.train_plan,
            self.settings.data.augment,
            self.per_step,
            trainer.global_rank,
            trainer.world_size,
            self.unlabelled,
            self.settings.tasks.recolour,
        )
        device = trainer.strategy.root_device.type
        workers = worker_count(self.settings.data.workers, steps.augmentation, device == "cpu", trainer.num_devices)
        return step_loader(steps, lambda: trainer.global_step, workers, pin_memory=device == "cuda")

    def val_dataloader(self) -> ResumableLoader:
        """This rank's share of the validation episodes; the same ones every epoch, never augmented."""
        trainer = self.trainer
        assert trainer is not None
        share = range(trainer.global_rank, self.validation_plan.count, trainer.world_size)
        keys = [(0, index) for index in share]
        episodes = EpisodeDataset(self.pools, self.validation_plan, "none")
        return ResumableLoader(_Keyed(episodes, keys), batch_size=None, num_workers=0)

    def on_after_batch_transfer(
        self, batch: RawEpisode | list[RawEpisode], dataloader_idx: int
    ) -> Episode | list[Episode]:
        """Episodes become floats where they are used: on a GPU that costs nothing, on a CPU some milliseconds."""
        return batch.normalised() if isinstance(batch, RawEpisode) else [episode.normalised() for episode in batch]


def _subset(pools: list[tuple[str, np.ndarray]], most: int | None, seed: int) -> list[tuple[str, np.ndarray]]:
    """At most so many of all pools' images, drawn at random over the pools together."""
    total = sum(len(indices) for _, indices in pools)
    if most is None or total <= most:
        return pools
    kept = np.zeros(total, bool)
    kept[np.random.default_rng([seed, Stream.SUBSET]).permutation(total)[:most]] = True
    parts = np.split(kept, np.cumsum([len(indices) for _, indices in pools])[:-1])
    return [(name, indices[part]) for (name, indices), part in zip(pools, parts, strict=True)]


class _Keyed(EpisodeDataset):
    """Episodes under fixed keys, counted from 0."""

    def __init__(self, episodes: EpisodeDataset, keys: list[tuple[int, int]]) -> None:
        super().__init__(episodes.pools, episodes.plan, episodes.augmentation)
        self.keys = keys

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, position: int) -> RawEpisode:  # type: ignore[override]
        return super().__getitem__(self.keys[position])

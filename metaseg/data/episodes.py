"""The image indices of an episode, a pure function of the plan and (seed, stream, epoch, index).

No image is read here. Because an episode depends only on these, runs can be resumed, episodes sharded over ranks, and
every learner gets the same ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from metaseg.errors import MetasegError


class Stream(IntEnum):
    """Independent random streams under one seed."""

    TRAIN = 0
    VALIDATION = 1
    TARGET = 2
    AUGMENT = 3
    LIMIT = 4
    UNLABELLED = 5
    SUBSET = 6
    BATCHES = 7
    CROP = 8


@dataclass(frozen=True)
class Part:
    """One pool's images in an episode: indices into the pool, support and query disjoint."""

    pool: int
    support: np.ndarray
    query: np.ndarray


@dataclass(frozen=True)
class EpisodePlan:
    """How episodes are composed.

    Attributes:
        pools: for each pool, its name and the indices that may be drawn.
        shots: K, support images per pool in an episode.
        query: Q, query images per pool in an episode.
        mixing: "exclusive" (an episode draws from one pool) or "mixed" (K + Q images from each pool) [method, set-ups].
        order: "interleaved" (consecutive episodes alternate between the pools) or "sequential" (within each epoch, all
            episodes of the first pool, then all of the next); no effect on mixed episodes.
        count: episodes in an epoch.
        resample: draw new episodes every epoch; otherwise reuse those of epoch 0.
        seed: the run's seed.
        stream: random stream.

    Raises:
        MetasegError: if a pool has fewer than K + Q images, or episodes do not divide evenly over exclusive pools.
    """

    pools: tuple[tuple[str, np.ndarray], ...]
    shots: int
    query: int
    mixing: str
    order: str
    count: int
    resample: bool
    seed: int
    stream: Stream = Stream.TRAIN

    def __post_init__(self) -> None:
        short = [(name, len(indices)) for name, indices in self.pools if len(indices) < self.shots + self.query]
        if short:
            found = ", ".join(f"{name} has {size}" for name, size in short)
            larger = ", or raise data.validation" if self.stream is Stream.VALIDATION else ""
            raise MetasegError(
                f"An episode needs {self.shots} support + {self.query} query = {self.shots + self.query} images per "
                f"pool for {self.stream.name.lower()}, but {found}; lower shots or the query images{larger}."
            )
        if self.mixing == "exclusive" and self.count % len(self.pools):
            raise MetasegError(
                f"tasks.count must be a multiple of the {len(self.pools)} pools when tasks.mixing=exclusive, "
                f"found {self.count}."
            )

    @property
    def group(self) -> int:
        """Smallest number of episodes in an outer step: one per pool if exclusive, one if mixed [our decision]."""
        return len(self.pools) if self.mixing == "exclusive" else 1

    def episode(self, epoch: int, index: int) -> tuple[Part, ...]:
        """The images of episode ``index`` (0 ≤ index < count) of ``epoch``."""
        if not 0 <= index < self.count:
            raise IndexError(f"episode {index} of {self.count}")
        generator = np.random.default_rng([self.seed, self.stream, epoch if self.resample else 0, index])
        if self.mixing == "mixed":
            chosen: Sequence[int] = range(len(self.pools))
        elif self.order == "interleaved":
            chosen = [index % len(self.pools)]
        else:
            chosen = [index * len(self.pools) // self.count]
        return tuple(self._part(pool, generator) for pool in chosen)

    def _part(self, pool: int, generator: np.random.Generator) -> Part:
        drawn = generator.choice(self.pools[pool][1], self.shots + self.query, replace=False)
        return Part(pool, drawn[: self.shots], drawn[self.shots :])


def target_support(size: int, shots: int, seed: int, draw: int) -> np.ndarray:
    """Sorted indices of the K support images of meta-test draw ``draw`` among ``size`` candidates.

    The same for every learner: they depend only on (size, K, seed, draw).
    """
    generator = np.random.default_rng([seed, Stream.TARGET, draw])
    return np.sort(generator.choice(size, shots, replace=False))

"""A test shared by several processes, so that none waits for another: by support draws, then by batches of images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Share:
    """What one of several processes does of a test.

    Draws are dealt to the processes in turn. If there are more processes than draws, several adapt to the same draw and
    take its batches of images in turn. Batches stay whole, so that an image's batch is the same as with one process.

    Attributes:
        rank: of this process, from 0.
        of: number of processes.
    """

    rank: int = 0
    of: int = 1

    @classmethod
    def here(cls) -> "Share":
        """That of this process among those that train together."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return cls()
        return cls(torch.distributed.get_rank(), torch.distributed.get_world_size())

    def draws(self, count: int) -> list[int]:
        """The draws, of ``count``, that this process adapts to."""
        several = self.of > count
        return [
            draw for draw in range(count) if (self.rank % count == draw if several else draw % self.of == self.rank)
        ]

    def images(self, wanted: np.ndarray, draw: int, count: int, batch: int) -> np.ndarray:
        """The images, of those ``wanted`` in a draw, that this process segments, in batches of ``batch``."""
        if self.of <= count:
            return wanted
        ranks, turn = len(range(draw, self.of, count)), self.rank // count
        return wanted[np.arange(len(wanted)) // batch % ranks == turn]

    def gathered(self, own: Any) -> list[Any]:
        """What every process has computed, by rank, on all of them."""
        if self.of == 1:
            return [own]
        found: list[Any] = [None] * self.of
        torch.distributed.all_gather_object(found, own)
        return found


ALONE = Share()
"""All of a test."""


def filled(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Merge arrays of the same shape: at each place, the first value that is not NaN."""
    whole = parts[0]
    for part in parts[1:]:
        whole = np.where(np.isnan(whole), part, whole)
    return whole

"""Several independent computations at a time, each on a share of the CPU's threads."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")


class SideBySide:
    """Calls functions at once, where there are several threads to call them on.

    Convolutions of a few small images gain little from a second thread. Two networks, each on a thread of its own, take
    0.7 of the time that they take one after the other on both (five images of 128x128, two cores; the row "members side
    by side" of ``python -m benchmarks adaptation``).

    Args:
        count: how many functions there will be at a time.
        device: where they compute; off the CPU they are called one after the other.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self._threads = torch.get_num_threads()
        self._workers = max(1, min(count, self._threads)) if device.type == "cpu" else 1
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> "SideBySide":
        if self._workers > 1:
            share = self._threads // self._workers
            self._pool = ThreadPoolExecutor(self._workers, initializer=torch.set_num_threads, initargs=(share,))
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            torch.set_num_threads(self._threads)  # what a worker sets is also where threads begin that come later

    def __call__(self, functions: Sequence[Callable[[], Result]]) -> list[Result]:
        """What the functions return, in their order; the first exception among them is raised."""
        if self._pool is None:
            return [function() for function in functions]
        return list(self._pool.map(lambda function: function(), functions))

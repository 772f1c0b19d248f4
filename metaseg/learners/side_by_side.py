"""Independent computations in parallel, each on a share of the CPU's threads."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")


class SideBySide:
    """Calls functions in parallel if there are several threads.

    Convolutions of a few small images gain little from a second thread, so the threads are better shared by several
    networks at once.

    Args:
        count: number of functions per call.
        device: where they compute; on any device but the CPU they run sequentially.
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
            torch.set_num_threads(self._threads)  # a worker's setting is also the default of later threads

    def __call__(self, functions: Sequence[Callable[[], Result]]) -> list[Result]:
        """The functions' results in order; raises the first exception among them."""
        if self._pool is None:
            return [function() for function in functions]
        return list(self._pool.map(lambda function: function(), functions))

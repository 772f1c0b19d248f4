"""Timing by ratios: in each round all runs are timed in turn and divided by a base run of the same round.

A shared machine, or one with a varying clock, is slower for seconds at a time. Runs timed in the same round are
affected equally, unlike runs timed one after the other.
"""

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median, quantiles

from rich.console import Console
from rich.progress import Progress

from metaseg.memory import finish_on


@dataclass
class Timing:
    """Times of one run.

    Attributes:
        seconds: seconds in each round.
        ratios: seconds divided by those of the base run in the same round.
    """

    seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Median ratio."""
        return median(self.ratios)

    @property
    def spread(self) -> tuple[float, float]:
        """The interquartile range of the ratios; with fewer than four, their full range."""
        if len(self.ratios) < 4:
            return min(self.ratios), max(self.ratios)
        low, _, high = quantiles(self.ratios, n=4, method="inclusive")
        return low, high


def round_robin(
    runs: Mapping[str, Callable[[], object]], base: Callable[[], object], rounds: int, device: str
) -> tuple[Timing, dict[str, Timing]]:
    """Time every run once per round; runs must have been called before, so that set-up is not timed.

    The base run is timed at the start and end of each round and averaged. The order of the others is rotated by one
    between rounds. Garbage is collected before each run, but not during it.

    Returns:
        Times of the base run, and of each run.
    """
    of_base, timings = Timing(), {name: Timing() for name in runs}
    names = list(runs)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("timing", total=rounds * (len(runs) + 2))

        def measure(run: Callable[[], object]) -> float:
            seconds = timed_without_garbage(run, device)
            progress.advance(bar)
            return seconds

        for count in range(rounds):
            start = measure(base)
            turned = names[count % len(names) :] + names[: count % len(names)] if names else []
            seconds = {name: measure(runs[name]) for name in turned}
            unit = (start + measure(base)) / 2
            of_base.seconds.append(unit)
            of_base.ratios.append(1.0)
            for name, value in seconds.items():
                timings[name].seconds.append(value)
                timings[name].ratios.append(value / unit)
    return of_base, timings


def timed(run: Callable[[], object], device: str) -> float:
    """Seconds of one call, including all its kernels."""
    finish_on(device)
    start = time.perf_counter()
    run()
    finish_on(device)
    return time.perf_counter() - start


def timed_without_garbage(run: Callable[[], object], device: str) -> float:
    """The same, with garbage collected before but not during the call."""
    gc.collect()
    gc.disable()
    try:
        return timed(run, device)
    finally:
        gc.enable()

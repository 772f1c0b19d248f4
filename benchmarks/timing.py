"""Time as ratios: all runs in turn, round after round, each divided by the base run measured in the same round.

A machine that others use as well, or whose clock changes, is slower for seconds at a time. Runs measured one after the
other would each meet another machine; runs measured in the same round meet the same one.
"""

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median, quantiles

import torch
from rich.console import Console
from rich.progress import Progress


@dataclass
class Timing:
    """Times of one run.

    Attributes:
        seconds: of each round.
        ratios: the same over the seconds of the base run in the same round.
    """

    seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Median ratio."""
        return median(self.ratios)

    @property
    def spread(self) -> tuple[float, float]:
        """The middle half of the ratios; of fewer than four, all of them."""
        if len(self.ratios) < 4:
            return min(self.ratios), max(self.ratios)
        low, _, high = quantiles(self.ratios, n=4, method="inclusive")
        return low, high


def round_robin(
    runs: Mapping[str, Callable[[], object]], base: Callable[[], object], rounds: int, device: str
) -> tuple[Timing, dict[str, Timing]]:
    """Time every run once a round; runs must have been called before, so that nothing is set up here.

    The base run is measured at the start and at the end of each round, and counts with the mean. The order of the
    others is turned by one from round to round. Garbage is collected before each run and not while it is timed.

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
    """Seconds of one call, with all its kernels finished."""
    _synchronise(device)
    start = time.perf_counter()
    run()
    _synchronise(device)
    return time.perf_counter() - start


def timed_without_garbage(run: Callable[[], object], device: str) -> float:
    """The same, with garbage collected before and not meanwhile."""
    gc.collect()
    gc.disable()
    try:
        return timed(run, device)
    finally:
        gc.enable()


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()

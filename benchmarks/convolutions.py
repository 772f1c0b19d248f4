"""The share of a run's time spent in convolutions, according to torch.profiler."""

import re
from collections.abc import Callable, Iterable
from typing import Any

from torch.profiler import ProfilerActivity, profile

from benchmarks.timing import timed

CONVOLUTION = re.compile(r"aten::.*conv(olution|_transpose|_depthwise|\dd)")
MATRIX = re.compile(r"aten::(bmm|baddbmm|mm|addmm|matmul|linear)$")
_CRITERION = (
    "is an aten convolution, forward or backward (with its copies), and as matrix product if it is aten::bmm or similar"
)
HOW = {
    "cuda": "kernels by torch.profiler; a kernel counts as convolution if the operation that launched it, or an "
    f"enclosing one, {_CRITERION}",
    "cpu": "self time of operations by torch.profiler, which overstates small ones; an operation counts as "
    f"convolution if it, or an enclosing one, {_CRITERION}",
}
"""How operations were classified, for the report."""


def shares(run: Callable[[], object], device: str) -> dict[str, float] | None:
    """Profile one call after a warm-up; see ``classify``."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as found:
        timed(run, device)
    return classify(found.events() or (), device)


def classify(events: Iterable[Any], device: str) -> dict[str, float] | None:
    """Sum up the profiler's events.

    Args:
        events: as returned by ``torch.profiler.profile.events()``.
        device: "cuda" counts the kernels launched by an event, "cpu" an event's self time.

    Returns:
        ``convolution``, ``matrix`` and ``other`` as shares of 1, and their total ``seconds``; None if the profiler
        recorded nothing, for instance without access to the GPU's counters.
    """
    found = {"convolution": 0.0, "matrix": 0.0, "other": 0.0}
    for event in events:
        own = sum(kernel.duration for kernel in event.kernels) if device == "cuda" else event.self_cpu_time_total
        found[_kind(event)] += own
    total = sum(found.values())
    if not total:
        return None
    return {kind: value / total for kind, value in found.items()} | {"seconds": total / 1e6}


def _kind(event: Any) -> str:
    while event is not None:
        if CONVOLUTION.match(event.name):
            return "convolution"
        if MATRIX.match(event.name):
            return "matrix"
        event = event.cpu_parent
    return "other"

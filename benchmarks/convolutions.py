"""What share of a run's time goes into convolutions, as torch.profiler sees it."""

import re
from collections.abc import Callable, Iterable
from typing import Any

from torch.profiler import ProfilerActivity, profile

from benchmarks.timing import timed

CONVOLUTION = re.compile(r"aten::.*conv(olution|_transpose|_depthwise|\dd)")
MATRIX = re.compile(r"aten::(bmm|baddbmm|mm|addmm|matmul|linear)$")
_TOLD = (
    "is an aten convolution, forward or backward (with the copies that it makes); as matrix product where it is "
    "aten::bmm or the like"
)
HOW = {
    "cuda": "kernels by torch.profiler; a kernel counts as convolution where the operation that launched it, or one "
    f"that this stands within, {_TOLD}",
    "cpu": "self time of operations by torch.profiler, which makes small ones look dearer than they are; one counts as "
    f"convolution where it, or one that it stands within, {_TOLD}",
}
"""How the operations were told apart, in words for the report."""


def shares(run: Callable[[], object], device: str) -> dict[str, float] | None:
    """Profile one call of what has been called before; see ``classify``."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as found:
        timed(run, device)
    return classify(found.events() or (), device)


def classify(events: Iterable[Any], device: str) -> dict[str, float] | None:
    """Sum the profiler's events up.

    Args:
        events: as ``torch.profiler.profile.events()`` returns them.
        device: "cuda" counts the kernels that an event launched, "cpu" an event's own time.

    Returns:
        ``convolution``, ``matrix`` and ``other`` as shares of 1, and their ``seconds`` together; None if the profiler
        saw nothing, as where it may not read the GPU's counters.
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

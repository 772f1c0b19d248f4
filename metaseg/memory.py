"""Peak memory of a call: what torch allocated on a GPU, resident memory on a CPU."""

import ctypes
import gc
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from metaseg.system import resident

MIB = 2**20
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")

HOW = {
    "cuda": "torch.cuda.max_memory_allocated",
    "watermark": "the kernel's high watermark of resident memory (VmHWM), reset through /proc/self/clear_refs",
    "sampling": "resident memory (VmRSS) sampled every millisecond by a thread",
    "rusage": "growth of ru_maxrss",
}
"""Methods of measurement, as described in reports; the first that works is used."""


def tidy(device: str) -> None:
    """Collect garbage, and return freed memory to the system if possible."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def finish_on(device: str | torch.device) -> None:
    """Wait until a GPU has done what it was given, so that the clock counts it; nothing on a CPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def of_call(run: Callable[[], object], device: str) -> tuple[float, str]:
    """Peak MiB of a call above the memory in use before it, and the method of measurement."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / MIB, "cuda"
    if not _STATUS.exists():
        start = resident("VmHWM")
        run()
        return resident("VmHWM") - start, "rusage"
    before_mib = resident()
    try:
        _CLEAR.write_text("5", encoding="ascii")
    except OSError:
        return _sampled(run) - before_mib, "sampling"
    run()
    return resident("VmHWM") - before_mib, "watermark"


def _sampled(run: Callable[[], object]) -> float:
    highest, finished = resident(), threading.Event()

    def sample() -> None:
        nonlocal highest
        while not finished.is_set():
            highest = max(highest, resident())
            time.sleep(0.001)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        run()
    finally:
        finished.set()
        thread.join()
    return highest

"""Run cells as local processes: one slot per GPU or share of the CPU's cores, one log file per cell.

Separate processes isolate the cells' memory, threads, W&B state and crashes.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn

from metaseg.errors import MetasegError
from metaseg.sweeps.jobs import Job, end, job_of, returned, run
from metaseg.system import cores

if TYPE_CHECKING:
    from hydra_plugins.metaseg_plugins import SlotLauncher


def launch(launcher: SlotLauncher, job_overrides: Sequence[Sequence[str]]) -> list[JobReturn]:
    """Run jobs, one per slot at a time.

    Args:
        launcher: the launcher, with the settings of conf/hydra/launcher/slots.yaml.
        job_overrides: each job's overrides, including ``hydra.sweep.subdir``.

    Returns:
        For each job COMPLETED, or FAILED with the last line of its log as the error.

    Raises:
        MetasegError: a setting is out of range.
        KeyboardInterrupt: re-raised once all cells have ended.
    """
    devices = _devices()
    slots = _number("slots", launcher.settings["slots"], max(1, len(devices)))
    threads = _number("threads", launcher.settings["threads"], max(1, cores() // slots))
    root = Path(launcher.config.hydra.sweep.dir)
    jobs = [job_of(root, list(overrides)) for overrides in job_overrides]
    waiting: queue.SimpleQueue[tuple[int, Job]] = queue.SimpleQueue()
    for index, job in enumerate(jobs):
        waiting.put((index, job))
    stop = threading.Event()
    flags = launcher.flags()

    def work(slot: int) -> None:
        device = devices[slot % len(devices)] if devices else None
        while not stop.is_set():
            try:
                index, job = waiting.get_nowait()
            except queue.Empty:
                return
            run(job, f"[{index + 1}/{len(jobs)}]", launcher.program, flags, threads, device)

    with ThreadPoolExecutor(slots) as pool:
        # Not threads: before Python 3.13 one whose `join` Ctrl+C has interrupted counts as ended, though it runs.
        workers = [pool.submit(work, slot) for slot in range(slots)]
        try:
            wait(workers)
        except KeyboardInterrupt:
            stop.set()
            while not all(worker.done() for worker in workers):  # one may be about to start its cell
                end(jobs)
                time.sleep(0.1)
            raise
    for worker in workers:
        worker.result()
    return [returned(job) for job in jobs]


def _devices() -> list[str]:
    """The GPUs available to cells, in the notation of CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device for device in visible.split(",") if device.strip()]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def _number(name: str, value: int | str, automatic: int) -> int:
    if value == "auto":
        return automatic
    if not isinstance(value, int) or value < 1:
        raise MetasegError(f"hydra.launcher.{name} must be auto or a whole number of at least 1, found {value!r}.")
    return value

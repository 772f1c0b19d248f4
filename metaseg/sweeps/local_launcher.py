"""Run cells as local processes: one slot per GPU or share of the CPU's cores, one log file per cell.

Separate processes isolate the cells' memory, threads, W&B state and crashes.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn, JobStatus

from metaseg.data.check import cores
from metaseg.errors import MetasegError
from metaseg.runs.directory import RunDirectory

if TYPE_CHECKING:
    from hydra_plugins.metaseg_plugins import SlotLauncher

LOG = "log.txt"
_HERE = str(Path(__file__).parents[2])
_END = 4096  # bytes of a log in which its last line is looked for
_PATIENCE = 30  # seconds for an interrupted cell to finish its W&B run and files


@dataclass
class _Job:
    name: str
    directory: Path
    overrides: list[str]
    status: int | None = None
    problem: str | None = None
    process: subprocess.Popen | None = field(default=None, repr=False)


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
    slots = _number("slots", launcher.slots, max(1, len(devices)))
    threads = _number("threads", launcher.threads, max(1, cores() // slots))
    root = Path(launcher.config.hydra.sweep.dir)
    jobs = [_job(root, list(overrides)) for overrides in job_overrides]
    waiting: queue.SimpleQueue[tuple[int, _Job]] = queue.SimpleQueue()
    for index, job in enumerate(jobs):
        waiting.put((index, job))
    stop = threading.Event()

    def work(slot: int) -> None:
        device = devices[slot % len(devices)] if devices else None
        while not stop.is_set():
            try:
                index, job = waiting.get_nowait()
            except queue.Empty:
                return
            _run(job, f"[{index + 1}/{len(jobs)}]", launcher.program, flags, threads, device)

    flags = _flags(launcher)
    workers = [threading.Thread(target=work, args=(slot,)) for slot in range(slots)]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            worker.join()
    except KeyboardInterrupt:
        stop.set()
        _interrupt(jobs)
        for worker in workers:
            worker.join()
        raise
    return [_returned(job) for job in jobs]


def _job(root: Path, overrides: list[str]) -> _Job:
    marker = "hydra.sweep.subdir="
    name = next(override for override in overrides if override.startswith(marker)).removeprefix(marker).strip("'")
    # `experiment` defines the sweep; the cell itself is a single run.
    kept = [override for override in overrides if not override.startswith((marker, "experiment="))]
    return _Job(name, root / name, kept)


def _run(job: _Job, count: str, program: Sequence[str], flags: Sequence[str], threads: int, device: str | None) -> None:
    if RunDirectory(job.directory).result.is_file():  # there was none when the sweep began
        job.status = 0
        print(f"{count} {job.name}: already finished by another sweep", flush=True)
        return
    environment = {"OMP_NUM_THREADS": str(threads)} | os.environ
    # Lets the cell import metaseg from a checkout that is not installed.
    environment["PYTHONPATH"] = os.pathsep.join([_HERE, *filter(None, [os.environ.get("PYTHONPATH")])])
    if device is not None:
        environment |= {"CUDA_VISIBLE_DEVICES": device}
    command = [
        sys.executable,
        *program,
        *flags,
        *job.overrides,
        f"hydra.run.dir='{job.directory}'",
        "hydra.mode=RUN",
    ]
    print(f"{count} {job.name}", flush=True)
    began = time.monotonic()
    try:
        job.directory.mkdir(parents=True, exist_ok=True)
        with (job.directory / LOG).open("ab") as log:
            # A separate process group, so that Ctrl+C reaches the cell only once, through `_interrupt`.
            job.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
            job.status = job.process.wait()
    except OSError as error:
        job.problem = f"{job.directory} is not writable ({error.strerror})"
    if job.status != 0 and job.problem is None:
        job.problem = f"{last_line(job.directory / LOG) or 'no output'}; see {job.directory / LOG}"
    said = "finished" if job.status == 0 else f"FAILED ({job.problem})"
    print(f"{count} {job.name}: {said} after {time.monotonic() - began:.0f} s", flush=True)


def _flags(launcher: SlotLauncher) -> list[str]:
    """Command-line options that cells need in addition to overrides: extra configuration folders."""
    sources = launcher.config.hydra.runtime.config_sources
    return [part for one in sources if one.provider == "command-line" for part in ("--config-dir", one.path)]


def _interrupt(jobs: Sequence[_Job]) -> None:
    running = [job.process for job in jobs if job.process is not None and job.process.poll() is None]
    for process in running:
        process.send_signal(signal.SIGINT)
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end and any(process.poll() is None for process in running):
        time.sleep(0.1)
    for process in running:
        process.kill()  # no effect if it has ended


def _returned(job: _Job) -> JobReturn:
    status = JobStatus.COMPLETED if job.status == 0 else JobStatus.FAILED
    error = None if job.status == 0 else MetasegError(f"{job.name}: {job.problem}")
    returned = JobReturn(overrides=job.overrides, status=status)
    returned.return_value = error
    return returned


def last_line(log: Path) -> str:
    """The last line of a log that is not blank; empty if there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _END))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


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

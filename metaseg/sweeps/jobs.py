"""A cell as a process of its own, with its log in its directory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout
from hydra.core.utils import JobReturn, JobStatus

from metaseg.configuration import literally
from metaseg.errors import MetasegError
from metaseg.interruption import INTERRUPTED
from metaseg.runs.directory import RunDirectory, locked

LOG = "log.txt"
_CLAIM = ".claim"  # locked while a sweep runs the cell
_A_LOOK = 1  # seconds to wait for it: `claimed` locks it for a moment
_HERE = str(Path(__file__).parents[2])
_END = 4096  # bytes of a log in which its last line is looked for
_PATIENCE = 30  # seconds for an interrupted cell to finish its W&B run and files


@dataclass
class Job:
    """A cell to run.

    Attributes:
        name: of the cell.
        directory: its directory.
        overrides: of its settings.
        status: exit status; None: it has not ended.
        problem: why it failed.
        process: while it runs.
    """

    name: str
    directory: Path
    overrides: list[str]
    status: int | None = None
    problem: str | None = None
    process: subprocess.Popen | None = field(default=None, repr=False)

    def last_log_line(self) -> str:
        """The last line of its log, and where that is."""
        return f"{last_line(self.directory / LOG) or 'no output'}; see {self.directory / LOG}"


def job_of(root: Path, overrides: list[str]) -> Job:
    """The job with these overrides, which include ``hydra.sweep.subdir``."""
    marker = "hydra.sweep.subdir="
    name = next(override for override in overrides if override.startswith(marker)).removeprefix(marker).strip("'")
    return Job(name, root / name, [override for override in overrides if not override.startswith(marker)])


def run(job: Job, count: str, program: Sequence[str], flags: Sequence[str], threads: int, device: str | None) -> None:
    """Run a job in a process, wait for it and record a failure in it; skip a job that another sweep is running.

    Args:
        job: the job.
        count: its number among all, for messages.
        program: interpreter arguments that start the program.
        flags: command-line options needed in addition to overrides.
        threads: CPU threads.
        device: the GPU to use; None: whichever there are.
    """
    print(f"{count} {job.name}", flush=True)
    began = time.monotonic()
    try:
        job.directory.mkdir(parents=True, exist_ok=True)
        with FileLock(job.directory / _CLAIM, timeout=_A_LOOK):
            if RunDirectory(job.directory).result.is_file():  # there was none when the sweep began
                job.status = 0
                print(f"{count} {job.name}: already finished by another sweep", flush=True)
                return
            command = [sys.executable, *program, *flags, *job.overrides]
            command += [literally("hydra.run.dir", job.directory), "hydra.mode=RUN"]
            with (job.directory / LOG).open("ab") as log:
                # A separate process group, so that Ctrl+C reaches the cell only once, through `end`.
                job.process = subprocess.Popen(
                    command,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=_environment(threads, device),
                    start_new_session=True,
                )
                job.status = job.process.wait()
    except Timeout:
        job.status = 0
        print(f"{count} {job.name}: left to another sweep, which is running it", flush=True)
        return
    except OSError as error:
        job.problem = f"{job.directory} is not writable ({error.strerror})"
    if job.status != 0 and job.problem is None:
        job.problem = job.last_log_line()
    failed = "interrupted" if job.status == INTERRUPTED else f"FAILED ({job.problem})"
    said = "finished" if job.status == 0 else failed
    print(f"{count} {job.name}: {said} after {time.monotonic() - began:.0f} s", flush=True)


def claimed(directory: Path) -> bool | None:
    """Whether a sweep runs the cell in a directory, on this machine or another; None: no sweep ever has."""
    return locked(directory / _CLAIM)


def _environment(threads: int, device: str | None) -> dict[str, str]:
    # Lightning would take Slurm's variables for a request to train on all of a job's tasks.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    # Lets the cell import metaseg from a checkout that is not installed.
    environment["PYTHONPATH"] = os.pathsep.join([_HERE, *filter(None, [os.environ.get("PYTHONPATH")])])
    return (
        {"OMP_NUM_THREADS": str(threads)} | environment | ({} if device is None else {"CUDA_VISIBLE_DEVICES": device})
    )


def end(jobs: Sequence[Job], number: signal.Signals = signal.SIGINT) -> None:
    """Send the jobs that run a signal, and kill those that have not ended after half a minute."""
    running = [job.process for job in jobs if job.process is not None and job.process.poll() is None]
    for process in running:
        process.send_signal(number)
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until and any(process.poll() is None for process in running):
        time.sleep(0.1)
    for process in running:
        process.kill()  # no effect if it has ended


def returned(job: Job) -> JobReturn:
    """How a job ended, as Hydra expects it."""
    status = JobStatus.COMPLETED if job.status == 0 else JobStatus.FAILED
    error = None if job.status == 0 else MetasegError(f"{job.name}: {job.problem}")
    found = JobReturn(overrides=job.overrides, status=status)
    found.return_value = error
    return found


def last_line(log: Path) -> str:
    """The last line of a log that is not blank; empty if there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _END))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")

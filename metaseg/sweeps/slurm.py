"""Run cells as jobs of a Slurm array, through submitit: on one GPU each, requeued at the time limit until done."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn

from metaseg.errors import MetasegError, needs
from metaseg.runs.directory import RunDirectory
from metaseg.sweeps.jobs import Job, end, job_of, returned, run

if TYPE_CHECKING:
    from hydra_plugins.metaseg_plugins import SlurmLauncher

FOLDER = ".slurm"
"""Folder of the sweep for the scheduler's own files, by job."""
_EVERY = 5.0  # seconds between looks at the queue
_SIGNAL = "USR1"  # Slurm's notice before the time limit; a cell takes it for a request to end

log = logging.getLogger(__name__)


class ArrayJob:
    """A cell of a sweep as submitit runs it: called in the job, and again after each time limit.

    Args:
        job: the cell.
        count: its number, for the log.
        program: interpreter arguments that start the program.
        flags: command-line options needed in addition to overrides.
        threads: CPU threads.
    """

    def __init__(self, job: Job, count: str, program: Sequence[str], flags: Sequence[str], threads: int) -> None:
        self.job, self.count, self.program, self.flags, self.threads = job, count, program, flags, threads
        self.running = job  # Slurm's notice may come before the call

    def __call__(self) -> int | None:
        """Run the cell, from its last checkpoint if it has one; returns its exit status."""
        resumed = RunDirectory(self.job.directory).last.is_file()
        fresh = [one for one in self.job.overrides if not one.startswith("ckpt_path=")]
        job = Job(self.job.name, self.job.directory, [*fresh, "ckpt_path=last"] if resumed else self.job.overrides)
        self.running = job
        # In a thread: submitit calls `checkpoint` in this one, which could not see the process end if it waited for it.
        worker = threading.Thread(target=run, args=(job, self.count, self.program, self.flags, self.threads, None))
        worker.start()
        worker.join()
        return job.status

    def checkpoint(self) -> Any:
        """End the cell, which saves its current step, and submit it again; called by submitit on Slurm's notice."""
        from submitit.helpers import DelayedSubmission

        end([self.running], signal.SIGUSR1)
        return DelayedSubmission(ArrayJob(self.job, self.count, self.program, self.flags, self.threads))


def launch(launcher: SlurmLauncher, job_overrides: Sequence[Sequence[str]]) -> list[JobReturn]:
    """Submit jobs as one array and wait until they have left the queue.

    Args:
        launcher: the launcher, with the settings of conf/hydra/launcher/slurm.yaml.
        job_overrides: each job's overrides, including ``hydra.sweep.subdir``.

    Returns:
        For each job COMPLETED, or FAILED with the last line of its log as the error.

    Raises:
        MetasegError: submitit or Slurm is missing, or Slurm refuses the jobs.
        KeyboardInterrupt: re-raised; the jobs stay in the queue.
    """
    root = Path(launcher.config.hydra.sweep.dir).absolute()
    executor = _executor(launcher, root / FOLDER)
    jobs = [job_of(root, list(overrides)) for overrides in job_overrides]
    cells = [
        ArrayJob(job, f"[{number}/{len(jobs)}]", launcher.program, launcher.flags(), launcher.settings["cpus"])
        for number, job in enumerate(jobs, 1)
    ]
    try:
        with executor.batch():
            submitted = [executor.submit(cell) for cell in cells]
    except (subprocess.CalledProcessError, RuntimeError) as error:
        said = getattr(error, "stderr", None) or str(error)
        said = " ".join((said.decode() if isinstance(said, bytes) else said).split())
        raise MetasegError(
            f"Slurm refused the jobs ({said.rstrip('.')}); see hydra.launcher in conf/hydra/launcher/slurm.yaml."
        ) from error
    ids = [one.job_id for one in submitted]
    print(f"{len(jobs)} jobs submitted as {ids[0].partition('_')[0]}; `metaseg status {root}` shows them", flush=True)
    try:
        _wait(jobs, ids)
    except KeyboardInterrupt:
        print(f"The jobs stay in the queue; `scancel {ids[0].partition('_')[0]}` removes them.", file=sys.stderr)
        raise
    return [returned(job) for job in jobs]


def _executor(launcher: SlurmLauncher, folder: Path) -> Any:
    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = _SIGNAL  # read when submitit is imported, here and in the jobs
    try:
        import submitit
    except ImportError as error:
        raise MetasegError(needs("hydra/launcher=slurm", "submitit", "cluster")) from error
    if shutil.which("sbatch") is None:
        raise MetasegError(
            "hydra/launcher=slurm needs the command sbatch of Slurm, found none: start the sweep on a login node, or "
            "leave hydra/launcher out to run the cells here."
        )
    chosen = launcher.settings
    # The jobs find metaseg in a checkout that is not installed.
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    logging.getLogger("submitit").setLevel(logging.ERROR)
    executor = submitit.SlurmExecutor(folder / "%j", max_num_timeout=chosen["requeues"])
    further = dict(chosen["further"] or {})
    if chosen["gpus"]:
        further.setdefault("gpus-per-node", chosen["gpus"])
    if chosen["memory"] is not None:
        further.setdefault("mem", f"{chosen['memory']}G")
    executor.update_parameters(
        job_name="metaseg",
        partition=chosen["partition"],
        time=chosen["minutes"],
        signal_delay_s=chosen["notice"],
        cpus_per_task=chosen["cpus"],
        ntasks_per_node=1,
        array_parallelism=chosen["parallel"],
        stderr_to_stdout=True,
        srun_args=[f"--cpus-per-task={chosen['cpus']}"],  # srun of Slurm 22.05 to 23.02 does not inherit it
        additional_parameters={"requeue": True, **further},
    )
    return executor


def _wait(jobs: Sequence[Job], ids: Sequence[str]) -> None:
    """Wait until every job has left the queue; prints each one that has."""
    waiting = dict(zip(ids, jobs, strict=True))
    began = time.monotonic()
    while waiting:
        time.sleep(_EVERY)
        queued = _queued(ids[0].partition("_")[0])
        for name in [] if queued is None else [name for name in waiting if name not in queued]:
            job = waiting.pop(name)
            result = RunDirectory(job.directory).result.is_file()
            job.status = 0 if result else 1
            job.problem = None if result else job.last_log_line()
            said = "finished" if result else f"FAILED ({job.problem})"
            print(f"{job.name}: {said} after {time.monotonic() - began:.0f} s", flush=True)


def _queued(array: str) -> set[str] | None:
    """The ids ARRAY_TASK of an array's jobs that wait or run; None if Slurm does not answer.

    Asked of the queue and not of submitit, which needs an accounting database to know that a job has ended.
    """
    command = ["squeue", "--noheader", "--array", "--format=%F_%K", f"--jobs={array}"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if answer.returncode and "Invalid job id" not in answer.stderr:  # a job that left long ago is forgotten
        return None
    lines = answer.stdout.split()
    return {line.removesuffix("_N/A") for line in lines}

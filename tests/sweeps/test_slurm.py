"""Cells as jobs of a real Slurm: scripts/slurm_here.sh starts one for these tests, see `make slurm`."""

import importlib.util
import json
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY, Forked

from metaseg.errors import MetasegError
from metaseg.runs.directory import RunDirectory
from metaseg.sweeps import slurm
from metaseg.sweeps.jobs import Job

SETTINGS = {
    "partition": None,
    "gpus": 1,
    "cpus": 4,
    "memory": 24,
    "minutes": 240,
    "notice": 60,
    "requeues": 10,
    "parallel": 64,
    "further": {"account": "lab", "mem": "9G"},
}
LAUNCHER = [
    "hydra/launcher=slurm",
    "hydra.launcher.cpus=1",
    "hydra.launcher.gpus=0",
    "hydra.launcher.memory=null",
    "hydra.launcher.minutes=20",
]

# Looked for, not imported: it reads SUBMITIT_PREEMPT_SIGNAL on import, which the launcher sets before.
with_submitit = pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="the extra cluster is missing")


def running():
    """Whether there is a cluster."""
    return bool(shutil.which("sinfo")) and subprocess.run(["sinfo"], capture_output=True, check=False).returncode == 0


def ask(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def on_path(monkeypatch, folder, *programs):
    """Only these programs, which do nothing, can be found."""
    for name in programs:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_without_a_cluster_or_submitit_the_sweep_says_what_is_missing(train, tmp_path, monkeypatch):
    on_path(monkeypatch, tmp_path)
    settings = ["learner=scratch", f"hydra.sweep.dir={tmp_path / 'sweep'}", *LAUNCHER, "-m"]
    refused = train(*settings)
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: hydra/launcher=slurm needs ")
    assert "Traceback" not in refused.stderr
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert "[cluster]" in train(*settings).stderr


@with_submitit
def test_the_settings_become_options_of_sbatch(tmp_path, monkeypatch):
    on_path(monkeypatch, tmp_path, "sbatch", "srun")
    executor = slurm._executor(SimpleNamespace(settings=SETTINGS), tmp_path / "%j")
    text = executor._make_submission_file_text("command", "1")
    for option in (
        "time=240",
        "signal=USR1@60",
        "cpus-per-task=4",
        "gpus-per-node=1",
        "account=lab",
        "requeue",
        "mem=9G",
    ):
        assert f"#SBATCH --{option}\n" in text
    assert "partition" not in text


def test_a_requeued_cell_resumes_from_its_checkpoint(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(slurm, "run", lambda job, *_, **__: seen.append(job.overrides))
    cell = slurm.ArrayJob(Job("cell", tmp_path, ["shots=5"]), "[1/1]", ["train.py"], [], 1)
    cell()
    last = RunDirectory(tmp_path).checkpoints / "last.ckpt"
    last.parent.mkdir()
    last.touch()
    cell()
    assert seen == [["shots=5"], ["shots=5", "ckpt_path=last"]]


def test_jobs_are_waited_for_until_slurms_queue_has_none_of_them(tmp_path, monkeypatch, capsys):
    answers = iter(
        [
            (0, "7_0\n7_1\n", ""),
            (1, "", "slurm_load_jobs error: Unable to contact slurm controller"),
            (0, "7_1\n", ""),
            (1, "", "slurm_load_jobs error: Invalid job id specified"),
        ]
    )
    monkeypatch.setattr(slurm, "_EVERY", 0)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, *next(answers)))
    several = [Job(name, tmp_path / name, []) for name in ("finished", "failed")]
    RunDirectory(several[0].directory).create().result.touch()
    slurm._wait(several, ["7_0", "7_1"])
    assert [job.status for job in several] == [0, 1]
    assert [line.partition(" ")[0] for line in capsys.readouterr().out.splitlines()] == ["finished:", "failed:"]
    assert next(answers, None) is None
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, "7_N/A\n", ""))
    assert slurm._queued("7") == {"7"}, "a sweep of one cell is no array"


@with_submitit
def test_a_notice_before_the_cell_has_begun_submits_it_again(tmp_path):
    job = Job("cell", tmp_path / "cell", [])
    assert slurm.ArrayJob(job, "[1/1]", [], [], 1).checkpoint().function.job is job


@with_submitit
@pytest.mark.long
def test_a_cell_is_ended_and_submitted_again_when_the_time_is_up(tmp_path):
    ready = tmp_path / "ready"
    program = "import pathlib, signal, sys, time; signal.signal(signal.SIGUSR1, lambda *_: sys.exit(130)); "
    program += f"pathlib.Path('{ready}').touch(); time.sleep(60)"
    cell = slurm.ArrayJob(Job("cell", tmp_path / "cell", []), "[1/1]", ["-c", program], [], 1)
    before, again = signal.getsignal(signal.SIGALRM), []

    def notice(*_):  # as submitit does on Slurm's: in the thread that runs the cell
        if ready.exists():
            again.append(cell.checkpoint())
        else:
            signal.setitimer(signal.ITIMER_REAL, 0.1)

    try:
        signal.signal(signal.SIGALRM, notice)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        assert cell() == 130
    finally:
        signal.signal(signal.SIGALRM, before)
    assert again[0].function.job == Job("cell", tmp_path / "cell", [])


@with_submitit
def test_a_refusal_of_slurm_is_a_sentence(tmp_path, monkeypatch):
    on_path(monkeypatch, tmp_path, "srun")
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho 'invalid partition specified: p' >&2\nexit 1\n")
    (tmp_path / "sbatch").chmod(0o755)
    launcher = SimpleNamespace(
        settings=SETTINGS,
        config=SimpleNamespace(hydra=SimpleNamespace(sweep=SimpleNamespace(dir=str(tmp_path / "sweep")))),
        program=["train.py"],
        flags=list,
    )
    with pytest.raises(MetasegError, match="invalid partition"):
        slurm.launch(launcher, [["learner=scratch", "hydra.sweep.subdir='cell'"]])


@pytest.mark.slow
@pytest.mark.skipif(not running(), reason="no Slurm answers: `make slurm` starts one")
def test_disturbed_jobs_end_with_the_results_of_undisturbed_ones(tmp_path):
    """One cell is told that its time is up, one is cancelled, and one loses its node."""
    cells = ["learner=fomaml", "seed=0,1,2", "tasks.count=60", "trainer.save_every=5", "shots=3"]
    here, there = tmp_path / "here", tmp_path / "there"
    alone = Forked(tmp_path, "train.py", "-m", *TINY, *cells, f"hydra.sweep.dir={here}").finished(600)
    assert alone.returncode == 0, alone.stderr

    def sweep():
        return Forked(tmp_path, "train.py", "-m", *TINY, *cells, *LAUNCHER, f"hydra.sweep.dir={there}")

    process, disturbed = sweep(), []
    try:
        for disturb in (time_is_up, cancel, lose_node):
            job, name = begun(there, disturbed, process)
            disturb(job)
            disturbed.append(name)
        ended = process.finished(900)
        assert ended.returncode == 1  # the cancelled one
        assert "1 of 3 cells failed" in ended.stderr
        assert ended.stdout.count(": finished after") == 2
        again = sweep().finished(900)
    finally:
        subprocess.run(["scontrol", "update", "nodename=a,b", "state=resume"], check=False)
    assert again.returncode == 0, again.stderr
    assert "2 finished, 1 to continue" in again.stdout
    for result in here.rglob("result.json"):
        cell = result.parent.relative_to(here)
        ours = json.loads((there / cell / "result.json").read_text())["targets"]
        theirs = json.loads(result.read_text())["targets"]
        for target in theirs:
            ours[target].pop("seconds")
            theirs[target].pop("seconds")
        assert ours == theirs
        one, other = (
            torch.load(root / cell / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
            for root in (here, there)
        )
        assert all(torch.equal(one[name], other[name]) for name in other)


def begun(root, known, process):
    """A job in the middle of its training that was not disturbed yet: its id, and the cell's name."""
    until = time.monotonic() + 300
    while time.monotonic() < until and process.runs:
        for line in ask("squeue", "--noheader", "--array", "--states=RUNNING", "--format=%F_%K"):
            log = root / ".slurm" / line / f"{line}_0_log.out"
            said = log.read_text() if log.is_file() else ""
            name = said.partition("] ")[2].partition("\n")[0]
            last = root / name / "checkpoints" / "last.ckpt"
            if name and name not in known and last.is_file() and not (root / name / "result.json").exists():
                return line, name
        time.sleep(0.2)
    pytest.fail(f"no job began: {process.finished()}")


def time_is_up(job):
    ask("scancel", f"--signal={slurm._SIGNAL}", job)


def cancel(job):
    ask("scancel", job)


def lose_node(job):
    (node,) = ask("squeue", "--noheader", f"--jobs={job}", "--format=%N")
    ask("scontrol", "update", f"nodename={node}", "state=down", "reason=test")

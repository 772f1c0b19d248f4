"""How far a sweep's cells are, seen from their directories."""

import json
import os
import shutil
import socket
import sys

import pytest
from conftest import command
from filelock import FileLock

from metaseg.cli import status
from metaseg.errors import MetasegError
from metaseg.runs.directory import RunDirectory
from metaseg.sweeps.overview import CELLS, CellState, Phase, read_cells, remember, seconds_left


def begun(path, holder="", log=""):
    (path / "checkpoints").mkdir(parents=True)
    (path / "config.yaml").write_text("shots: 5\n")
    (path / ".lock").write_text(holder)
    (path / "log.txt").write_text(log)


def test_every_state_is_seen(trained, tmp_path, capsys):
    remember(tmp_path, ["waits", "done"])
    remember(tmp_path, ["done", "runs"])
    assert json.loads((tmp_path / CELLS).read_text()) == ["waits", "done", "runs"]
    shutil.copytree(trained, tmp_path / "done")
    for other in (".hydra", "wandb/run-1/files"):  # which have a config.yaml too
        (tmp_path / "done" / other).mkdir(parents=True, exist_ok=True)
        (tmp_path / "done" / other / "config.yaml").write_text("a: 1")
    (tmp_path / "stored").mkdir()
    shutil.copy(trained / "result.json", tmp_path / "stored")
    begun(tmp_path / "runs", f"{socket.gethostname()} {os.getpid()}", "training 3/9\n\n")
    begun(tmp_path / "killed", f"{socket.gethostname()} {2**22 + 1}", "training 4/9\n")
    begun(tmp_path / "elsewhere", "another-host 1", "training 5/9\n")
    begun(tmp_path / "failed", log="one line\nerror: shots must be positive\n")
    found = {one.name: one for one in read_cells(tmp_path)}
    assert {name: one.phase for name, one in found.items()} == {
        "waits": Phase.WAITING,
        "done": Phase.FINISHED,
        "runs": Phase.RUNNING,
        "killed": Phase.INTERRUPTED,
        "elsewhere": Phase.RUNNING,
        "failed": Phase.FAILED,
        "stored": Phase.FINISHED,
    }
    assert found["failed"].detail == "shots must be positive"
    assert "training 3/9" in found["runs"].detail
    assert found["done"].seconds > 0

    assert command("status")([str(tmp_path)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 8
    assert printed[-1].startswith("7 cells: 2 finished, 2 running, 1 failed, 1 interrupted, 1 waiting; about")


def test_a_cell_runs_if_a_sweep_has_claimed_it(tmp_path):
    for name in ("preparing", "dead", "raised", "another-host"):
        begun(tmp_path / name, "another-host 1" if name == "another-host" else "", log="prepared PH2\n")
        (tmp_path / name / ".claim").touch()
    (tmp_path / "raised" / "log.txt").write_text("Traceback\ntorch.OutOfMemoryError: CUDA out of memory\n")
    with FileLock(tmp_path / "preparing" / ".claim"):
        found = {one.name: one.phase for one in read_cells(tmp_path)}
    assert found == {
        "preparing": Phase.RUNNING,
        "dead": Phase.INTERRUPTED,
        "raised": Phase.FAILED,
        "another-host": Phase.INTERRUPTED,
    }


def test_how_to_continue_depends_on_who_started_the_run(tmp_path):
    """A single run refuses to begin again where it has been, while a sweep and a run with a shared start go on."""
    for name in ("single", "cell", "start"):
        begun(tmp_path / name)
    (tmp_path / "cell" / ".claim").touch()
    (tmp_path / "cell" / "log.txt").write_text("error: Interrupted; resume a run with ckpt_path=last\n")
    RunDirectory(tmp_path / "start").start_lock.touch()
    said = {one.name: one.detail.partition(";")[0] for one in read_cells(tmp_path)}
    again = "repeat the command to continue"
    assert said == {"single": "ckpt_path=last continues it", "cell": again, "start": again}


def test_a_shared_start_in_training_runs(tmp_path):
    start = RunDirectory(tmp_path / "ph2_kvasir-seed0-1234567890")
    begun(start.path)
    with FileLock(start.start_lock):
        assert [one.phase for one in read_cells(tmp_path)] == [Phase.RUNNING]
    assert [one.phase for one in read_cells(tmp_path)] == [Phase.INTERRUPTED]


def test_the_overview_shows_what_a_cell_waits_for(tmp_path):
    remember(tmp_path, ["waits"])
    assert read_cells(tmp_path)[0].detail == "for a slot"
    (tmp_path / ".slurm").mkdir()
    assert read_cells(tmp_path)[0].detail == "for its Slurm job"


def test_a_directory_names_its_holder_while_it_is_held(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    assert directory.holder() is None
    with directory.held():
        assert directory.holder() == (socket.gethostname(), os.getpid())
    assert directory.holder() is None


def test_time_left_is_that_of_finished_cells():
    done = [CellState("a", Phase.FINISHED, "", 100), CellState("b", Phase.FINISHED, "", 300)]
    assert seconds_left(done) is None
    running = [CellState("c", Phase.RUNNING, ""), CellState("d", Phase.RUNNING, "")]
    waiting = [CellState(name, Phase.WAITING, "") for name in "efg"]
    assert seconds_left(running + waiting) is None
    assert seconds_left(done + running + waiting) == 200 * (3 + 1) / 2


@pytest.mark.parametrize("name", ["gone", "empty"])
def test_folders_without_runs_are_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MetasegError, match=name):
        read_cells(tmp_path / name)


@pytest.mark.parametrize("arguments", [["gone"], [".", "--every", "0"]])
def test_mistakes_are_one_sentence(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command("status")(arguments) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_in_a_terminal_the_table_is_renewed_until_nothing_runs(tmp_path, monkeypatch, capsys):
    phases = iter([Phase.WAITING, Phase.RUNNING, Phase.FINISHED])
    monkeypatch.setattr(status, "read_cells", lambda folder: [CellState("one", next(phases), "later")])
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert command("status")([str(tmp_path), "--every", "0.01"]) == 0
    assert next(phases, None) is None
    assert "1 cells: 1 finished" in capsys.readouterr().out


def test_a_shared_start_that_is_trained_is_finished(tmp_path, capsys):
    start = RunDirectory(tmp_path / "starts" / "a").create()
    start.write_config({"seed": 0})
    start.images.write_text("{}")
    assert not start.is_finished_start
    start.trained.touch()
    assert command("status")([str(tmp_path)]) == 0
    assert "a start that learners share" in capsys.readouterr().out

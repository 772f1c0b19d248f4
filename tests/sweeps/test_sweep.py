"""`train.py -m` as its users run it: skipping, resuming, failures, listing."""

import json
import os
import signal
import threading
import time
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import TINY, Forked
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobStatus

from metaseg.errors import MetasegError
from metaseg.runs.directory import RunDirectory, write_json
from metaseg.runs.settings import WITHOUT_EFFECT, changed
from metaseg.sweeps import jobs, local_launcher
from metaseg.sweeps.overview import CELLS
from metaseg.sweeps.status import State, Status, status_of
from metaseg.training import run


@pytest.fixture
def sweep(train, tmp_path):
    """train.py -m in this process."""

    def call(*overrides):
        return train("hydra/launcher=basic", *overrides, f"hydra.sweep.dir={tmp_path / 'sweep'}", "-m")

    return call


def test_finished_cells_are_skipped_failed_ones_tried_again_and_other_settings_left_alone(sweep, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    # 150000 support images are more than there are.
    first = sweep("learner=scratch", "shots=150000,3")
    assert first.returncode == 1
    assert "2 cells" in first.stdout
    assert "1 of 2 cells failed" in first.stderr
    assert "150000 support" in first.stderr
    assert "Traceback" not in first.stderr
    (path,) = (tmp_path / "sweep").rglob("result.json")
    finished = json.loads(path.read_text())
    assert finished["settings"]["shots"] == 3
    written = path.stat().st_mtime_ns
    again = sweep("learner=scratch", "shots=150000,3")
    assert again.returncode == 1
    assert "1 finished, 0 to continue, 1 to run" in again.stdout
    assert path.stat().st_mtime_ns == written
    assert "95 % interval" in again.stdout, "a narrow terminal cuts nothing off"
    finished["settings"]["learner"]["adapt"]["lr"] = 0.5
    write_json(path, finished)
    content = path.read_bytes()
    other = sweep("learner=scratch", "shots=3")
    assert other.returncode == 1
    assert "learner.adapt.lr=0.001 (was 0.5)" in other.stderr
    assert path.read_bytes() == content


def test_a_sweep_with_an_invalid_setting_runs_nothing(sweep, tmp_path):
    refused = sweep("learner=scratch", "evaluation.draws=1,0")
    assert refused.returncode == 1
    assert "would be refused: evaluation.draws must be a whole number from 1 upwards, found 0" in refused.stderr
    assert not list((tmp_path / "sweep").rglob("config.yaml"))


def test_a_cell_with_a_damaged_result_runs_again(sweep, tmp_path):
    assert sweep("learner=scratch", "shots=3").returncode == 0
    (path,) = (tmp_path / "sweep").rglob("result.json")
    whole = json.loads(path.read_text())["targets"]
    path.write_bytes(path.read_bytes()[:500])
    again = sweep("learner=scratch", "shots=3")
    assert again.returncode == 0, again.stderr
    assert json.loads(path.read_text())["targets"].keys() == whole.keys()
    assert path.with_name("result.damaged.json").stat().st_size == 500


def test_the_listing_runs_nothing(sweep, tmp_path):
    listed = sweep("learner=fomaml", "shots=3,4", "--dry-run")
    assert listed.returncode == 0, listed.stderr
    assert "2 of 2 cells to run" in listed.stdout
    assert "hours" in listed.stdout
    assert not list((tmp_path / "sweep").rglob("config.yaml"))


@pytest.mark.slow  # a step of each of its systems
def test_every_system_of_a_table_can_be_estimated(program, tmp_path):
    settings = ["experiment=table2", "scale=toy", "shots=5", "seed=0", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    listed = program("train.py", *settings, "--dry-run", "-m", directory=tmp_path / "run")
    assert listed.returncode == 0, listed.stderr
    assert "14 of 14 cells to run" in listed.stdout
    # Whole, however narrow the terminal.
    assert "alone/naive_5shot_resample=true_train_on=target_target=isic_seed0" in listed.stdout
    assert "would be refused" not in listed.stdout
    assert "measuring one step of each kind" in listed.stderr  # progress, in a pipe too


def start(directory, *overrides):
    return Forked(directory.parent, "train.py", "-m", *TINY, f"hydra.sweep.dir={directory}", *overrides)


def test_cells_that_have_begun_are_resumed_and_finished_ones_are_not_run(sweep, tmp_path, monkeypatch):
    states, ran = [State.FINISHED, State.BEGUN, State.NEW, State.OTHER], []
    monkeypatch.setattr(
        "metaseg.sweeps.sweep.status_of", lambda _, settings: Status(states[settings["seed"]], differences=("lr=1",))
    )
    monkeypatch.setattr(run, "run", lambda config: ran.append((config.seed, config.ckpt_path, config.logger.cell)))
    ended = sweep("learner=scratch", "logger.cell=mine", "seed=0,1,2,3")
    assert ran == [(1, "last", "mine"), (2, None, "mine")]
    assert "1 of 4 cells have existing results with different settings, which were kept (" in ended.stderr
    assert len(json.loads((tmp_path / "sweep" / CELLS).read_text())) == 4


def test_a_cell_is_continued_with_its_own_settings_alone(tmp_path):
    directory, settings = RunDirectory(tmp_path).create(), {"shots": 5, "ckpt_path": None, "logger": {"cell": "a"}}
    directory.write_config(settings)
    assert status_of(directory, settings).state is State.NEW, "it has no checkpoint"
    torch.save({"global_step": 7}, directory.last)
    assert status_of(directory, settings | {"logger": {"cell": "b"}}) == Status(State.BEGUN, steps=7)
    directory.write_config(settings | {"ckpt_path": "last"})  # it was resumed before
    assert status_of(directory, settings).state is State.BEGUN
    assert status_of(directory, settings | {"shots": 6}) == Status(State.OTHER, differences=("shots=6 (was 5)",))
    directory.last.write_bytes(b"half")
    assert status_of(directory, settings) == Status(State.BEGUN, steps=0)


@pytest.mark.slow
def test_a_cell_of_an_interrupted_sweep_has_begun(tmp_path):
    settings = ["learner=fomaml", "tasks.query=3", "tasks.count=400", "trainer.save_every=1", "shots=3"]
    directory = tmp_path / "sweep"
    process = start(directory, *settings)
    metrics = None
    end = time.monotonic() + 600
    while time.monotonic() < end and process.runs:
        metrics = next(directory.rglob("metrics.csv"), None)
        if metrics is not None and len(metrics.read_text().splitlines()) > 5:
            break
        time.sleep(0.2)
    assert metrics is not None, process.finished()
    process.interrupt()
    ended = process.finished()
    assert ended.returncode == 130
    assert "Interrupted" in ended.stderr
    assert not list(directory.rglob("result.json"))
    begun = status_of(RunDirectory(metrics.parent), yaml.safe_load((metrics.parent / "config.yaml").read_text()))
    assert begun.state is State.BEGUN
    assert begun.steps > 2


def test_cells_are_processes_of_their_own_with_the_experiments_settings_and_log_to_their_directory(train, tmp_path):
    directory = tmp_path / "sweep"
    ended = train("experiment=recipes", "model=attention_unet", "shots=3", f"hydra.sweep.dir={directory}", "-m")
    assert ended.returncode == 0, ended.stderr
    assert "finished after" in ended.stdout
    (finished,) = directory.rglob("result.json")
    assert "after adaptation" in (finished.parent / "log.txt").read_text()
    result = json.loads(finished.read_text())
    assert (result["settings"]["learner"]["name"], sorted(result["targets"])) == ("scratch", ["cvc", "ph2"])


@pytest.mark.long
def test_a_cell_that_fails_says_so_with_the_last_line_of_its_log(tmp_path, capsys):
    job = jobs.job_of(tmp_path, ["learner=scratch", "hydra.sweep.subdir='cell'"])
    program = ["-c", "import sys; print('one line'); sys.exit('error: the last')"]
    job.directory.mkdir()
    (job.directory / jobs.LOG).write_text("an earlier attempt\n")
    jobs.run(job, "[1/1]", program, [], 1, None)
    assert "cell: FAILED (error: the last" in capsys.readouterr().out
    assert (job.directory / jobs.LOG).read_text().splitlines() == ["an earlier attempt", "one line", "error: the last"]
    assert jobs.returned(job).status is JobStatus.FAILED
    jobs.run(job, "[1/1]", ["-c", "import sys; sys.exit(130)"], [], 1, None)
    assert "cell: interrupted after" in capsys.readouterr().out


@pytest.mark.long
def test_two_sweeps_share_their_cells(tmp_path, capsys):
    """Each cell is run by the one that comes first."""
    begun, program = tmp_path / "begun", "import pathlib, sys, time; pathlib.Path('{}').touch(); time.sleep(60)"
    first, second = (jobs.job_of(tmp_path, ["learner=scratch", "hydra.sweep.subdir='cell'"]) for _ in range(2))
    worker = threading.Thread(target=jobs.run, args=(first, "", ["-c", program.format(begun)], [], 1, None))
    worker.start()
    while worker.is_alive() and not begun.exists():
        time.sleep(0.05)
    jobs.run(second, "[1/1]", ["-c", "raise SystemExit('error: run twice')"], [], 1, None)
    assert "left to another sweep" in capsys.readouterr().out
    assert jobs.returned(second).status is JobStatus.COMPLETED
    jobs.end([first])
    worker.join()


def test_a_cell_that_another_sweep_has_finished_meanwhile_is_not_run(tmp_path, capsys):
    job = jobs.job_of(tmp_path, ["learner=scratch", "hydra.sweep.subdir='cell'"])
    RunDirectory(job.directory).create().result.touch()
    jobs.run(job, "[1/1]", ["-c", "raise SystemExit('error: run twice')"], [], 1, None)
    assert "already finished by another sweep" in capsys.readouterr().out
    assert jobs.returned(job).status is JobStatus.COMPLETED
    assert not (job.directory / jobs.LOG).exists()


def test_a_cell_has_its_gpu_and_threads_and_nothing_of_slurms(monkeypatch):
    for name, value in (("SLURM_NTASKS", "4"), ("CUDA_VISIBLE_DEVICES", "0,1"), ("PYTHONPATH", "mine")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = jobs._environment(3, "1")
    assert (found["OMP_NUM_THREADS"], found["CUDA_VISIBLE_DEVICES"]) == ("3", "1")
    assert found["PYTHONPATH"].split(os.pathsep)[1:] == ["mine"]
    assert not any(name.startswith("SLURM_") for name in found)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # the user's
    found = jobs._environment(3, None)
    assert (found["OMP_NUM_THREADS"], found["CUDA_VISIBLE_DEVICES"]) == ("2", "0,1")


def test_every_cell_is_run_once_and_each_slot_has_its_gpu_and_share_of_the_cores(tmp_path, monkeypatch):
    both_run, ran = threading.Barrier(2, timeout=10), []

    def run_cell(job, count, program, flags, threads, device):
        both_run.wait()
        ran.append((job.name, count, device, threads))
        job.status = int(job.name == "b")

    monkeypatch.setattr(local_launcher, "run", run_cell)
    monkeypatch.setattr(local_launcher, "cores", lambda: 6)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    launcher = SimpleNamespace(
        settings={"slots": "auto", "threads": "auto"},
        config=SimpleNamespace(hydra=SimpleNamespace(sweep=SimpleNamespace(dir=str(tmp_path)))),
        program=["train.py"],
        flags=list,
    )
    returned = local_launcher.launch(launcher, [[f"hydra.sweep.subdir='{name}'"] for name in "abcd"])
    assert sorted(one[:2] for one in ran) == [(name, f"[{number}/4]") for number, name in enumerate("abcd", 1)]
    assert sorted(one[2:] for one in ran) == [("4", 3)] * 2 + [("7", 3)] * 2
    failed = JobStatus.FAILED
    assert [one.status is failed for one in returned] == [False, True, False, False]


def test_ctrl_c_ends_the_cells_that_run(tmp_path, monkeypatch):
    begun, ended = threading.Event(), threading.Event()

    def interrupt():
        begun.wait(30)
        time.sleep(0.5)  # by then the main thread waits
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    monkeypatch.setattr(local_launcher, "run", lambda *_: (begun.set(), ended.wait(30)))
    monkeypatch.setattr(local_launcher, "end", lambda jobs: ended.set())
    launcher = SimpleNamespace(
        settings={"slots": 1, "threads": 1},
        config=SimpleNamespace(hydra=SimpleNamespace(sweep=SimpleNamespace(dir=str(tmp_path)))),
        program=["train.py"],
        flags=list,
    )
    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        local_launcher.launch(launcher, [["hydra.sweep.subdir='cell'"]])
    assert ended.is_set()


@pytest.mark.long
def test_jobs_that_run_are_told_to_end_and_killed_if_they_do_not(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "_PATIENCE", 1)
    several = [jobs.Job(name, tmp_path / name, []) for name in ("heeding", "deaf")]
    begun = [tmp_path / f"{job.name}.begun" for job in several]
    workers = []
    for job, path, heed in zip(several, begun, ("pass", "signal.signal(signal.SIGINT, signal.SIG_IGN)"), strict=True):
        program = f"import pathlib, signal, time; {heed}; pathlib.Path('{path}').touch(); time.sleep(60)"
        workers.append(threading.Thread(target=jobs.run, args=(job, "", ["-c", program], [], 1, None)))
        workers[-1].start()
    while not all(path.exists() for path in begun):
        assert all(worker.is_alive() for worker in workers)
        time.sleep(0.05)
    jobs.end(several)
    for worker in workers:
        worker.join()
    assert [job.status for job in several] == [-signal.SIGINT, -signal.SIGKILL]


def test_settings_that_change_nothing_do_not_count(tmp_path):
    old = {"data": {"root": "/a", "size": 64}, "logger": {"wandb": True}, "shots": 5, "gone": 1}
    new = {"data": {"root": "/b", "size": 64}, "logger": {"wandb": False}, "shots": 5, "added": 2}
    assert changed(old, new, WITHOUT_EFFECT) == ()
    assert changed(old, new | {"shots": 10}, WITHOUT_EFFECT) == ("shots=10 (was 5)",)
    group = {"shots": {"support": 5}}
    assert changed(old, new | group, WITHOUT_EFFECT) == ("shots=a group (was 5)",)
    assert changed(old | group, new, WITHOUT_EFFECT) == ("shots=5 (was a group)",)
    assert status_of(RunDirectory(tmp_path), new).state is State.NEW


@pytest.mark.parametrize("value", [0, "many", 1.5])
def test_settings_of_the_launcher_out_of_range_are_refused(value):
    assert [local_launcher._number("threads", given, 7) for given in ("auto", 3)] == [7, 3]
    with pytest.raises(MetasegError, match=r"hydra\.launcher\.threads"):
        local_launcher._number("threads", value, 7)


def test_table_one_lists_the_datasets(sweep, tmp_path):
    assert "KvasirCapsule-SEG" in sweep("experiment=table1", "--dry-run").stdout
    assert not (tmp_path / "sweep").exists()
    finished = sweep("experiment=table1")
    assert finished.returncode == 0, finished.stderr
    assert "KvasirCapsule-SEG" in finished.stdout
    assert set(json.loads((tmp_path / "sweep" / "table1.json").read_text())) >= {"ph2", "isic"}


def test_table_one_without_data_is_an_error(sweep, tmp_path):
    (tmp_path / "empty").mkdir()
    finished = sweep("experiment=table1", "data=real", f"data.root={tmp_path / 'empty'}")
    assert finished.returncode == 1
    assert "Table 1 needs" in finished.stderr


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["--dry-run"], ["--dry-run", "-m"]),
        (["experiment=table2"], ["experiment=table2 is a sweep", "-m"]),
        (["-m", "experiment=table9"], ["experiment must be one of", "table2"]),
        (["-m", "experiment=table2", "learner=scratch", "shots=7"], ["No cell of the table", "shots=7"]),
    ],
)
def test_half_a_sweep_is_refused_in_words(program, tmp_path, overrides, words):
    finished = program("train.py", *overrides[1:], *overrides[:1], directory=tmp_path / "run")
    assert finished.returncode == 1
    for word in words:
        assert word in finished.stderr
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_file_is_no_folder_for_cells(program, tmp_path):
    (tmp_path / "sweep").touch()
    settings = ["experiment=table2", "scale=toy", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    finished = program("train.py", *settings, "--dry-run", "-m", directory=tmp_path / "run")
    assert finished.returncode == 1
    assert "Expected a folder" in finished.stderr


def test_two_processes_do_not_share_a_directory(train, tmp_path):
    """Nor does the refused one take away what the other has written so far."""
    directory = RunDirectory(tmp_path / "run")
    with directory.held():
        directory.checkpoints.mkdir()
        directory.config.write_text("shots: 5\n")
        finished = train("learner=scratch")
        assert directory.config.read_text() == "shots: 5\n"
        assert directory.checkpoints.is_dir()
    assert finished.returncode == 1
    assert "in use by another process" in finished.stderr


@pytest.mark.long
def test_a_cell_may_be_in_a_folder_of_any_name(tmp_path):
    directory = tmp_path / "o'brien, 2 = (café)"
    job = jobs.Job("cell", directory, ["learner=scratch"])
    jobs.run(job, "[1/1]", ["-c", "import sys; print(sys.argv[-2])"], [], 1, None)
    said = OverridesParser.create().parse_override((directory / "log.txt").read_text().strip())
    assert (said.key_or_group, said.value()) == ("hydra.run.dir", str(directory))


@pytest.mark.slow
def test_a_closed_terminal_ends_the_cells_too(tmp_path):
    directory = tmp_path / "sweep"
    process = start(directory, "learner=fomaml", "tasks.query=3", "tasks.count=400")
    end = time.monotonic() + 120
    while time.monotonic() < end and next(directory.rglob("metrics.csv"), None) is None:
        time.sleep(0.2)
    process.interrupt(signal.SIGHUP)
    process.finished()
    (cell,) = {path.parent for path in directory.rglob("config.yaml") if path.parent.name != ".hydra"}
    with RunDirectory(cell).held():  # nobody works there any more
        pass


def test_a_cell_that_cannot_be_written_is_a_failed_cell(tmp_path, capsys):
    (tmp_path / "cell").write_text("in the way")
    job = jobs.job_of(tmp_path, ["learner=scratch", "hydra.sweep.subdir='cell'"])
    jobs.run(job, "[1/1]", ["train.py"], [], 1, None)
    assert "cell: FAILED" in capsys.readouterr().out
    returned = jobs.returned(job)
    assert returned.status is JobStatus.FAILED
    with pytest.raises(MetasegError, match="not writable"):
        _ = returned.return_value

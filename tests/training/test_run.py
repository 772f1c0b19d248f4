"""train.py as its users run it: results, resuming, several processes, wrong input."""

import errno
import functools
import importlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import ROOT, TINY, assert_fails_in_words, settings_of
from offline_runs import as_dict, of_kind, offline_records
from PIL import Image

from metaseg.data.module import EpisodicData
from metaseg.errors import MetasegError
from metaseg.evaluation.metatest import Scores
from metaseg.interruption import Interruption
from metaseg.learners.build import build_learner
from metaseg.runs.directory import RunDirectory
from metaseg.training.callbacks import Patient, TrainingProgress, Unchanging, callbacks
from metaseg.training.last_checkpoint import LastCheckpoint, latest
from metaseg.training.run import begin, draw_figures, refuse_another, require_resumable, scratch_settings

REAL_DATA = os.environ.get("METASEG_DATA")  # read here: the runs themselves get an environment without it
DIRECTORY = "metaseg.runs.directory.RunDirectory."
COMPARES = "feyjie"  # nothing is fitted at the target
ON_SUPPORT_ALONE = "pretrained"


def weights(directory, name="last"):
    return torch.load(directory / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]


@pytest.fixture
def resumable(trained, tmp_path):
    """A copy of the trained run, where `train` puts its own."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.mark.parametrize("learner", ["imaml", COMPARES, pytest.param(ON_SUPPORT_ALONE, marks=pytest.mark.slow)])
def test_every_kind_of_learner_leaves_a_whole_run_directory(train, trained, tmp_path, learner, vgg16_weights):
    steps = ["learner.adapt.steps=0"] if learner == COMPARES else []
    finished = train(f"learner={learner}", *steps, METASEG_VGG16=str(vgg16_weights))
    assert finished.returncode == 0, finished.stderr
    directory = tmp_path / "run"
    result = json.loads((directory / "result.json").read_text())
    scores = result["targets"]["isic"]
    assert scores["draws"] == 2
    assert scores["images"] >= 8
    assert scores["dsc"]["low"] <= scores["dsc"]["mean"] <= scores["dsc"]["high"]
    assert set(scores["trivial"]) == {"all_foreground", "centred_disc", "mean_support_mask", "otsu"}
    assert scores["curve"]["steps"] == ([0] if learner == COMPARES else [0, 1])
    assert result["settings"]["learner"]["name"] == learner
    assert (result["weights"] or {}).get("source") == (vgg16_weights.name if learner == ON_SUPPORT_ALONE else None)
    assert result["versions"]["torch"] == torch.__version__.partition("+")[0]
    rows = pd.read_csv(directory / "per_image.csv")
    assert len(rows) == 16
    for column, score in (("dsc_after", "dsc"), ("dsc_inner", "dsc_inner"), ("dsc_alone", "dsc_alone")):
        mean = scores[score]["mean"] if score in scores else math.nan
        assert rows[column].mean() == pytest.approx(mean, abs=1e-4, nan_ok=True)
    assert rows["dsc_before"].isna().all() == ("dsc_before" not in scores) == (learner == COMPARES)
    assert ("before adaptation" in finished.stdout) == (learner != COMPARES)
    if learner != "feyjie":  # that sets images aside without their masks, which are never scored
        assert rows[["image", "draw"]].equals(pd.read_csv(trained / "per_image.csv")[["image", "draw"]])
    assert yaml.safe_load((directory / "config.yaml").read_text())["learner"]["name"] == learner
    assert (directory / "figures" / "overlays_isic.png").stat().st_size > 0
    assert (directory / "figures" / "adaptation_isic.png").stat().st_size > 0
    if learner != ON_SUPPORT_ALONE:
        metrics = pd.read_csv(directory / "metrics.csv")
        assert metrics["train/query_loss_after"].notna().sum() == 2
        assert metrics["validation/query_loss_after"].notna().sum() == 1
        assert (directory / "checkpoints" / "best.ckpt").is_file()
    if learner == "imaml":
        assert metrics["train/cg_residual"].notna().sum() == 2
    assert "after adaptation" in finished.stdout
    assert str(directory / "per_image.csv") in finished.stdout


@pytest.mark.parametrize("name", ["overlays_isic", "adaptation_isic", "learning_curves"])
def test_figures_are_drawn(trained, name):
    with Image.open(trained / "figures" / f"{name}.png") as figure:
        assert len(figure.convert("L").getcolors()) > 10


def test_the_adaptation_figure_names_its_baselines_as_the_summary_and_the_images_of_its_curve(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("metaseg.training.run.adaptation_curve", lambda *given: drawn.append(given))
    monkeypatch.setattr("metaseg.training.run.overlay_sheet", lambda *_: None)
    pool = SimpleNamespace(ids=list("abcd"), take=lambda which: (np.zeros((1, 8, 8, 3), np.uint8), np.ones((1, 8, 8))))
    data = SimpleNamespace(targets={"isic": SimpleNamespace(pool=pool)})
    summary = SimpleNamespace(curve=SimpleNamespace(steps=[0]), trivial={"otsu": 0.5})
    for limit in (2, 4):
        scores = Scores.empty(1, 4)
        scores.after[:], scores.curve[0] = 0.5, np.where(np.arange(4) < limit, 0.5, np.nan)[None]
        scores.pictures = {when: dict.fromkeys(range(4), np.zeros((8, 1), np.uint8)) for when in ("before", "after")}
        draw_figures("isic", data, scores, summary, None, RunDirectory(tmp_path), [])
    titles = [title for _, _, baselines, title in drawn if baselines == {"Otsu": 0.5}]
    assert titles == ["isic: curves of 2 images, grey lines of 4", "isic"]


@pytest.mark.parametrize("chosen", [[], ["model=pretrained"], ["protocol=paper"]], ids=str)
def test_scratch_beside_a_learner_is_that_of_its_own_run(chosen):
    own = settings_of("learner=scratch", *chosen).learner.model_dump()
    assert own | scratch_settings(settings_of(*chosen)).model_dump() == own


def test_one_model_is_tested_on_several_targets_and_against_scratch(train, tmp_path):
    beside = ["evaluation.scratch.compare=true", "protocol.adapt.steps=2", "protocol.adapt.folds=2"]
    finished = train("learner=fomaml", "pair=isic_ph2", "tasks.mixing=mixed", *beside)
    assert finished.returncode == 0, finished.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert set(result["targets"]) == set(result["scratch"]) == {"kvasir", "kvasir_capsule"}
    assert finished.stdout.count("trained from scratch on the support") == 2


def kill_at_the_sixth_step(self, trainer, *_):
    if trainer.global_step == 6:
        os.kill(os.getpid(), signal.SIGKILL)


def end_at_the_fifth_step(self, trainer, *_):
    if trainer.global_step == 5:
        os.kill(os.getpid(), signal.SIGTERM)


def kill():
    """Kill this process without warning when it has taken six outer steps."""
    LastCheckpoint.on_train_batch_start = kill_at_the_sixth_step


def end():
    """Ask this process to end within its sixth outer step."""
    TrainingProgress.on_train_batch_start = end_at_the_fifth_step


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory):
    """Where runs go that nothing has ended."""
    return tmp_path_factory.mktemp("whole")


@pytest.mark.parametrize(
    ("learner", "how", "status"),
    [
        (["learner=fomaml", "trainer.save_every=1"], kill, -signal.SIGKILL),
        (["learner=fomaml", "trainer.save_every=100"], end, 130),
        pytest.param(
            ["learner=feyjie", "learner.adapt.steps=0", "trainer.save_every=1"],
            kill,
            -signal.SIGKILL,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_run_that_ends_within_an_epoch_goes_on_bitwise_as_the_uninterrupted_one(
    train, train_process, tmp_path, whole_runs, learner, how, status
):
    settings = [
        *learner,
        "tasks.count=8",
        "trainer.max_epochs=2",
        "data.augment=standard",
    ]
    broken, whole = tmp_path / "broken", whole_runs / learner[0].partition("=")[2]
    if not whole.exists():
        assert train(*settings, directory=whole).returncode == 0
    # At the sixth outer step: the second of the second epoch.
    ended = train_process(*settings, directory=broken, before=how)
    assert ended.returncode == status, ended.stderr
    stopped = torch.load(broken / "checkpoints" / "last.ckpt", weights_only=True)
    assert stopped["global_step"] == 6
    assert not all(torch.equal(value, weights(whole)[key]) for key, value in stopped["state_dict"].items())
    resumed = train(*settings, "ckpt_path=last", directory=broken)
    assert resumed.returncode == 0, resumed.stderr
    ours, theirs = weights(broken), weights(whole)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    losses = [
        pd.read_csv(directory / "metrics.csv")["train/query_loss_after"].dropna().tolist()
        for directory in (broken, whole)
    ]
    assert losses[0] == losses[1]
    starts = [json.loads((directory / "result.json").read_text())["start"] for directory in (broken, whole)]
    assert starts[0] == starts[1]


def test_the_last_checkpoint_knows_the_best_one(trained):
    """Else a run that goes on from an epoch's end would take a worse one for its best."""
    state = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    (best,) = (one for name, one in state.items() if name.startswith("ModelCheckpoint"))
    lowest = pd.read_csv(trained / "metrics.csv")["validation/query_loss_after"].min()
    assert float(best["best_model_score"]) == pytest.approx(lowest)
    assert best["best_model_path"].endswith("best.ckpt")


def test_a_checkpoint_that_was_cut_short_gives_way_to_the_one_before(train, resumable):
    settings = ["learner=fomaml", "ckpt_path=last", "trainer.max_epochs=2"]
    assert train(*settings).returncode == 0
    directory = RunDirectory(resumable)
    whole = weights(resumable)
    content = directory.last.read_bytes()
    directory.last.write_bytes(content[: len(content) // 2])
    before = latest(directory)
    assert before.name == "previous.ckpt"
    directory.trained.unlink()
    resumed = train(*settings)
    assert resumed.returncode == 0, resumed.stderr
    assert "last.ckpt is damaged" in resumed.stdout
    assert all(torch.equal(value, whole[key]) for key, value in weights(resumable).items())
    for path in (directory.last, before):
        path.write_bytes(b"PK")
    assert_fails_in_words(train(*settings), "last.ckpt")


@pytest.mark.parametrize(
    ("place", "number"),
    [
        ("metaseg.data.module.EpisodicData.setup", errno.EACCES),
        (DIRECTORY + "write_result", errno.ENOSPC),
    ],
)
def test_write_errors_are_one_sentence_and_keep_what_was_saved(train, tmp_path, monkeypatch, place, number):
    with monkeypatch.context() as patch:
        error = OSError(number, os.strerror(number), "a file")
        patch.setattr(place, lambda *_, **__: (_ for _ in ()).throw(error))
        assert_fails_in_words(train("learner=fomaml"), "a file", os.strerror(number))
    directory = RunDirectory(tmp_path / "run")
    assert not directory.result.exists()
    assert directory.last.exists() == place.endswith("result")
    if directory.last.exists():
        assert train("learner=fomaml", "ckpt_path=last").returncode == 0


def becomes_read_only(place):
    """Let the folder `run` refuse to be written to from the first call of a function on: root may write anywhere."""
    changes = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link"}
    here, (module, _, path) = str(Path("run").absolute()), place.partition(":")
    *outer, name = path.split(".")
    owner = functools.reduce(getattr, outer, importlib.import_module(module))
    usual = getattr(owner, name)

    def refuse(event, given):
        writes = event in changes or (event == "open" and given[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if writes and str(given[0]).startswith(here):
            raise OSError(errno.EROFS, "Read-only file system", str(given[0]))

    def around(*arguments, **named):
        setattr(owner, name, usual)
        sys.addaudithook(refuse)
        return usual(*arguments, **named)

    setattr(owner, name, around)


@pytest.mark.parametrize(
    ("place", "saved"),
    [
        pytest.param("metaseg.data.module:EpisodicData.prepare_data", False, marks=pytest.mark.slow),
        pytest.param("metaseg.training.outer:MetaTraining.training_step", False, marks=pytest.mark.slow),
        ("metaseg.training.outer:MetaTraining.validation_step", True),
        ("metaseg.training.last_checkpoint:LastCheckpoint._save", False),
        ("metaseg.training.run:score", True),
    ],
)
def test_a_read_only_folder_is_one_sentence_and_keeps_what_was_saved(train, train_process, tmp_path, place, saved):
    settings = ["learner=fomaml", "trainer.save_every=1"]
    ended = train_process(*settings, before=functools.partial(becomes_read_only, place))
    assert_fails_in_words(ended, "run", "Read-only file system")
    directory = RunDirectory(tmp_path / "run")
    assert not directory.result.exists()
    assert directory.last.exists() == saved
    if saved:
        assert latest(directory) == directory.last
        again = train(*settings, "ckpt_path=last")
        assert again.returncode == 0, again.stderr


def test_two_processes_learn_and_score_what_one_does_and_one_of_them_logs(train, train_process, tmp_path):
    # Both with one thread a process: Adam's first steps follow the sign of a gradient, so that the rounding of another
    # number of threads would show.
    settings = ["learner=imaml", "tasks.count=8", "model.norm=running", "trainer.save_every=3"]
    assert train(*settings, directory=tmp_path / "one").returncode == 0
    ddp = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "logger=wandb"]
    two = train_process(*settings, *ddp, directory=tmp_path / "two", HOME=str(tmp_path))
    assert two.returncode == 0, two.stderr
    (records,) = offline_records(tmp_path / "two")
    rows = [as_dict(row.item) for row in of_kind(records, "history")]
    assert sum("progress/ph2.filenames" in row for row in rows) == 1
    assert sum(one.type == "model" for one in of_kind(records, "artifact")) == 1
    resumed = RunDirectory(tmp_path / "resumed").create()  # one process goes on after the third step of two
    shutil.copy(tmp_path / "two" / "checkpoints" / "previous.ckpt", resumed.last)
    assert train(*settings, "ckpt_path=last", directory=resumed.path).returncode == 0
    one = weights(tmp_path / "one")
    for other in (tmp_path / "two", resumed.path):
        torch.testing.assert_close(weights(other), one, rtol=1e-5, atol=1e-6)
    operations = [RunDirectory(tmp_path / name).read_compute().operations for name in ("one", "two", "resumed")]
    assert operations == [pytest.approx(operations[0], rel=0.2)] * 3  # ranks count the first step, of different tasks
    scores = [pd.read_csv(tmp_path / name / "per_image.csv") for name in ("one", "two")]
    pd.testing.assert_frame_equal(*scores, atol=1e-3)


def test_a_finished_run_is_not_written_over(train, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    assert_fails_in_words(train("learner=fomaml"), "ckpt_path=last", "hydra.run.dir")
    assert (tmp_path / "run" / "result.json").read_bytes() == (trained / "result.json").read_bytes()


def test_training_can_be_skipped_for_a_checkpoint(train, trained, tmp_path):
    checkpoint = f"ckpt_path={trained / 'checkpoints' / 'best.ckpt'}"
    again = train("learner=fomaml", "train=false", checkpoint, "evaluation.compress=true")
    assert again.returncode == 0, again.stderr
    first, second = map(pd.read_csv, (trained / "per_image.csv", tmp_path / "run" / "per_image.csv.gz"))
    assert first.equals(second)


def test_resuming_prints_changed_settings(tmp_path, capsys):
    directory = RunDirectory(tmp_path)
    begin(directory, settings_of(*TINY), resumed=False)
    begin(directory, settings_of(*TINY, "trainer.max_epochs=2"), resumed=True)
    assert "trainer.max_epochs=2 (was 1)" in capsys.readouterr().out
    assert yaml.safe_load(directory.config.read_text())["trainer"]["max_epochs"] == 2


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["learner=proto"], ["learner must be one of", "imaml", "'proto'"]),
        # Enough images to train, not to test.
        (["shots=55", "target=kvasir_capsule", "data.validation=0.5"], ["shots=55", "kvasir_capsule"]),
        (["trainer.devices=3", "trainer.strategy=ddp"], ["divide evenly"]),
        (["ckpt_path=last"], ["last.ckpt", "hydra.run.dir"]),
        (["protocol=paper", "adapt.recipe=quick"], ["adapt.recipe=quick", "protocol=tuned"]),
        (["learner=maml,imaml"], ["learner=maml,imaml names several values: add -m"]),
        (["data.size=${nowhere}"], ["data.size: Interpolation key 'nowhere' not found; see"]),
    ],
)
def test_wrong_settings_are_refused_in_one_sentence(train, overrides, words, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert_fails_in_words(train(*overrides), *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_run_directory_that_cannot_be_made_is_refused(train, tmp_path, place):
    (tmp_path / "file").touch()
    assert_fails_in_words(train(directory=tmp_path / place), "hydra.run.dir", place)


@pytest.mark.parametrize("left", ["result.json", "checkpoints/last.ckpt", "checkpoints/best.ckpt"])
def test_the_directory_of_another_run_is_refused_unless_it_is_continued(tmp_path, left):
    run, other = RunDirectory(tmp_path / "run").create(), RunDirectory(tmp_path / "other").create()
    refuse_another(run, None)
    (run.path / left).touch()
    way = "delete that file" if left.endswith("best.ckpt") else "ckpt_path=last"
    for checkpoint in (None, other.checkpoints / "last.ckpt"):
        with pytest.raises(MetasegError, match=rf"run \(.*{way}.*hydra\.run\.dir"):
            refuse_another(run, checkpoint)
    for name in ("last.ckpt", "best.ckpt"):
        refuse_another(run, run.path / "figures" / ".." / "checkpoints" / name)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["shots=150"], "150 support"),
        (["target=ph2"], "ph2"),
        (["target=mars"], "mars"),
        (["tasks.count=5"], "tasks.count"),
        (["learner.curvature=gauss_newton", "loss=lovasz"], "loss=lovasz"),
        (["learner=pmg"], "learner.adapt.steps=0"),  # the tests' own setting is 2
        (["learner=feyjie", "learner.adapt.steps=0", "learner.train_on=target"], "learner.unlabelled"),
        (["learner=pretrained", "learner.network.encoder_weights=none.pth"], "none.pth"),
    ],
)
def test_settings_that_do_not_fit_each_other_or_the_data_are_refused(overrides, named):
    settings = settings_of(*TINY, *overrides)
    with pytest.raises(MetasegError, match=re.escape(named)):
        prepared(settings)


def prepared(settings):
    """What a run does with its settings before it writes anything."""
    data = EpisodicData(settings)
    data.prepare_data()
    data.setup()
    return build_learner(settings)


def test_a_checkpoint_of_another_architecture_is_refused_and_left_alone(train, resumable):
    checkpoint = resumable / "checkpoints" / "last.ckpt"
    content = checkpoint.read_bytes()
    result = (resumable / "result.json").read_bytes()
    assert_fails_in_words(train("learner=fomaml", "ckpt_path=last", "model.features=3"), "features")
    assert checkpoint.read_bytes() == content
    assert (resumable / "result.json").read_bytes() == result


def test_a_file_that_is_no_checkpoint_is_refused(train, tmp_path):
    (tmp_path / "notes.ckpt").write_text("hello")
    assert_fails_in_words(train("train=false", f"ckpt_path={tmp_path / 'notes.ckpt'}"), "notes.ckpt", "checkpoint")


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
def test_training_does_not_resume_from_another_run_or_the_best_weights(train, trained, name):
    of_another = trained / "checkpoints" / name
    assert_fails_in_words(train("learner=fomaml", f"ckpt_path={of_another}"), "must be last", f"start={of_another}")
    with pytest.raises(MetasegError, match="must be last"):
        require_resumable(RunDirectory(trained), trained / "checkpoints" / "best.ckpt", settings_of(*TINY))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ("learner.optimizer.lr=0.5", "learner.optimizer.lr=0.5 (was "),
        ("learner.optimizer.rates.encoder=0.1", "learner.optimizer.rates.encoder=0.1 (was "),
        ("seed=1", "seed=1 (was 0)"),
        ("start=model", None),
        ("trainer.patience=7", None),
        ("learner.adapt.lr=0.5", None),
        ("evaluation.draws=7", None),
    ],
)
def test_a_run_resumes_only_with_its_own_settings(tmp_path, changed, said):
    directory = RunDirectory(tmp_path)
    begin(directory, settings_of(*TINY, "learner=fomaml", "start=model"), resumed=False)
    again = settings_of(*TINY, "learner=fomaml", "start=model", changed)
    if said is None:
        require_resumable(directory, directory.last, again)
        return
    with pytest.raises(MetasegError, match=re.escape(said)):
        require_resumable(directory, directory.last, again)


def test_a_resumed_run_has_the_patience_of_its_settings():
    longer = Patient("loss", patience=5)
    longer.load_state_dict(Patient("loss", patience=1).state_dict() | {"wait_count": 1})
    assert (longer.patience, longer.wait_count) == (5, 1)


@pytest.mark.skipif(not REAL_DATA, reason="needs the real datasets in METASEG_DATA")
@pytest.mark.slow
def test_the_main_job_runs_on_the_real_images(train, tmp_path):
    finished = train("data=real", f"data.root={REAL_DATA}", "data.size=32", METASEG_CACHE=str(tmp_path / "cache"))
    assert finished.returncode == 0, finished.stderr
    rows = pd.read_csv(tmp_path / "run" / "per_image.csv")
    assert rows["image"].str.startswith("ISIC").all()


@pytest.mark.long
def test_help_works_without_heavy_libraries(tmp_path):
    code = (
        "import sys; sys.argv = ['train.py', '--cfg', 'job']\n"
        "import runpy; runpy.run_path(r'%s', run_name='__main__')\n"
        "heavy = {'torch', 'lightning', 'numpy', 'pandas', 'matplotlib', 'wandb'} & set(sys.modules)\n"
        "assert not heavy, heavy" % (ROOT / "train.py")
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "learner:" in finished.stdout


def test_a_run_killed_in_its_tests_is_not_trained_further(train, tmp_path):
    settings = ["learner=fomaml", "trainer.patience=1", "trainer.min_delta=100", "trainer.max_epochs=3"]
    assert train(*settings).returncode == 0
    directory = tmp_path / "run"
    before = weights(directory, "best")
    epochs = pd.read_csv(directory / "metrics.csv")["validation/query_loss_after"].notna().sum()
    assert epochs < 3
    (directory / "result.json").unlink()
    again = train(*settings, "ckpt_path=last")
    assert again.returncode == 0, again.stderr
    assert (directory / "result.json").is_file()
    after = weights(directory, "best")
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert pd.read_csv(directory / "metrics.csv")["validation/query_loss_after"].notna().sum() == epochs


@pytest.mark.parametrize(("rule", "kind"), [("training", Unchanging), ("validation", Patient)])
def test_training_stops_by_the_rule_of_the_settings(tmp_path, rule, kind):
    trainer = settings_of(*TINY, f"trainer.stop_by={rule}").trainer
    assert type(callbacks(trainer, RunDirectory(tmp_path), Interruption())[1]) is kind


def test_the_papers_rule_ends_training_once_its_loss_does_not_change():
    def epochs(losses, callback):
        for number, loss in enumerate(losses, 1):
            module = SimpleNamespace(skipping=SimpleNamespace(in_a_row=0))
            trainer = SimpleNamespace(callback_metrics={}, should_stop=False, lightning_module=module)
            for offset, skipped in ((-0.5, 0), (math.nan, 1), (0.5, 0)):  # the mean over the outer steps taken counts
                module.skipping.in_a_row = skipped
                trainer.callback_metrics["train/query_loss_after"] = loss + offset
                callback.on_train_batch_end(trainer)
            callback.on_train_epoch_end(trainer)
            if trainer.should_stop:
                return number
        return None

    assert epochs([3, 2, 1.0, 1.0005, 0.9995, 7], Unchanging(0.001, 2)) == 5
    assert epochs([3, 2, 1.0, 1.0005, 1.002, 1.003, 1.004], Unchanging(0.001, 2)) is None  # rising is changing
    begun, goes_on = Unchanging(0.001, 2), Unchanging(0.001, 2)
    assert epochs([1.0, 1.0], begun) is None
    goes_on.load_state_dict(begun.state_dict())
    assert epochs([1.0], goes_on) == 1


def test_a_request_to_end_is_heeded_once_the_step_or_the_epoch_is_saved():
    for last_of_epoch in (False, True):
        request, saved = Interruption(), []
        callback = LastCheckpoint(Path("last.ckpt"), 100, request)
        callback._save = saved.append
        trainer = SimpleNamespace(global_step=1, is_last_batch=last_of_epoch, world_size=1)
        callback.on_train_batch_start(trainer)
        request.requested = True
        callback.on_train_batch_end(trainer)
        if last_of_epoch:
            assert not saved
            callback.on_train_epoch_end(trainer)
        assert saved == [trainer]
        with pytest.raises(KeyboardInterrupt):
            callback.on_train_batch_start(trainer)


def test_the_checkpoint_before_the_last_is_kept_and_half_a_file_is_not(tmp_path, monkeypatch):
    directory = RunDirectory(tmp_path).create()
    callback, contents = LastCheckpoint(directory.last, 1, Interruption()), iter("123")
    trainer = SimpleNamespace(is_global_zero=True, save_checkpoint=lambda path: path.write_text(next(contents)))

    def found():
        return {path.name: path.read_text() for path in directory.checkpoints.iterdir()}

    callback._save(trainer)
    callback._save(trainer)
    assert found() == {"last.ckpt": "2", "previous.ckpt": "1"}
    monkeypatch.setattr(os, "link", mock.Mock(side_effect=OSError))  # as on a file system without links
    callback._save(trainer)
    assert found() == {"last.ckpt": "3", "previous.ckpt": "2"}

    def full(path):
        path.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    trainer.save_checkpoint = full
    with pytest.raises(OSError, match="No space"):
        callback._save(trainer)
    assert found() == {"last.ckpt": "3", "previous.ckpt": "2"}


def test_no_checkpoint_stands_between_an_epoch_and_its_validation():
    saved = []
    callback = LastCheckpoint(Path("last.ckpt"), 2, Interruption())
    callback._save = lambda trainer: saved.append(trainer.global_step)
    for step in range(1, 9):
        callback.on_train_batch_end(SimpleNamespace(global_step=step, is_last_batch=step % 4 == 0, world_size=1))
    assert saved == [2, 6]

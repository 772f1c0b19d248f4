"""pretrain.py as its users run it: weights that train.py starts from, resuming, wrong input."""

import json
import os
import shlex
import shutil
import time

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import TINY_PRETRAINING, Forked, assert_fails_in_words, composed, run_here
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from metaseg.data.mri.slices import BrainMRI
from metaseg.networks.attention_unet import AttentionUNet, UNet
from metaseg.networks.brain_mri import load_brain_mri
from metaseg.networks.build import build
from metaseg.runs.directory import RunDirectory
from metaseg.runs.result import PretrainingResult, plain
from metaseg.runs.result import checked as checked_result
from metaseg.runs.schema import Slices
from metaseg.runs.validation import checked
from metaseg.tracking import dashboard
from metaseg.training.pretraining import Pretraining, evaluate, largest_component, next_command, score_volume

REAL_DATA = os.environ.get("METASEG_DATA")  # read here: the runs themselves get an environment without it


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """The directory of three steps."""
    directory = tmp_path_factory.mktemp("three") / "steps"
    assert run_here("pretrain.py", *TINY_PRETRAINING, "data.steps=3", f"hydra.run.dir={directory}") == 0
    return directory


def weights_in(directory):
    (path,) = directory.glob("unet-*.pt")
    return path


def test_the_file_holds_the_best_epoch_and_train_starts_from_it(pretrain, train, tmp_path):
    finished = pretrain("trainer.max_epochs=8")
    assert finished.returncode == 0, finished.stderr
    directory = tmp_path / "pretrained"
    path = weights_in(directory)
    settings = yaml.safe_load((directory / "config.yaml").read_text())
    result = json.loads((directory / "result.json").read_text())
    assert result == plain(checked_result(PretrainingResult, result, directory))
    assert result["weights"] == path.name
    assert result["settings"] == settings
    assert result["versions"]["torch"] == torch.__version__.partition("+")[0]

    metrics = pd.read_csv(directory / "metrics.csv")
    dice = metrics["validation/dice"].dropna().tolist()
    assert len(dice) == 8
    found = result["validation"]
    assert (found["dice"], found["epoch"]) == (pytest.approx(max(dice), abs=1e-6), int(np.argmax(dice)))
    assert found["dice_slices"] == pytest.approx(metrics["validation/dice_slices"].dropna().iloc[found["epoch"]])
    assert len(found["patients"]) == 1
    shown = {key for section in dashboard.sections() for panel in section.panels for key in panel.keys}
    assert {name for name in metrics if "/" in name} <= shown

    # What was learned is in the file, with the running statistics that validation used.
    data = BrainMRI(checked(Slices, settings["data"]), settings["seed"])
    untrained = evaluate(Pretraining(build(name="unet", features=2, seed=0), 1e-2), data.validation)
    loaded = UNet(2)
    load_brain_mri(loaded, path)
    assert evaluate(Pretraining(loaded, 1e-2), data.validation)["dice"] == pytest.approx(found["dice"])
    assert found["dice"] > untrained["dice"] + 0.2
    assert load_brain_mri(AttentionUNet(2), path).unused == ()

    (command,) = [line for line in finished.stdout.splitlines() if line.startswith("next: ")]
    overrides = shlex.split(command)[3:]
    assert overrides == ["model.init=brain_mri", f"model.init_path={path}", "model.features=2"]
    followed = train("learner=fomaml", "learner.optimizer.lr=1e-30", *overrides)
    assert followed.returncode == 0, followed.stderr
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for name, value in torch.load(path, weights_only=True).items():
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(state[f"network.{name}"], value), name


def test_the_saved_running_statistics_are_those_of_plain_batch_norm_in_evaluation(pretrained):
    tensors = torch.load(weights_in(pretrained), weights_only=True)
    assert tensors["encoder1.enc1norm1.num_batches_tracked"] == 3
    assert not torch.equal(tensors["bottleneck.bottlenecknorm1.running_mean"], torch.zeros(32))
    assert not torch.equal(tensors["bottleneck.bottlenecknorm1.running_var"], torch.ones(32))


@pytest.mark.slow
def test_an_interrupted_run_writes_no_weights_and_ends_as_the_uninterrupted_one(pretrain, tmp_path):
    settings = ["trainer.max_epochs=2", "trainer.save_every=1", "data.batch=2", "data.steps=20"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert pretrain(*settings, directory=whole).returncode == 0
    process = Forked(tmp_path, "pretrain.py", *TINY_PRETRAINING, f"hydra.run.dir={broken}", *settings)
    last = broken / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 240
    while not last.exists() and process.runs and time.monotonic() < deadline:
        time.sleep(0.01)
    process.interrupt()
    ended = process.finished()
    assert ended.returncode == 130, ended.stderr
    assert "ckpt_path=last" in ended.stderr
    assert not [path for path in broken.iterdir() if path.suffix in (".pt", ".partial") or path.name == "result.json"]
    step = torch.load(last, weights_only=True)["global_step"]
    assert 0 < step < 40
    resumed = pretrain(*settings, "ckpt_path=last", directory=broken)
    assert resumed.returncode == 0, resumed.stderr
    # The name is a hash of the content.
    assert weights_in(broken).name == weights_in(whole).name
    first, second = (pd.read_csv(folder / "metrics.csv") for folder in (whole, broken))
    assert first["validation/dice"].dropna().tolist() == second["validation/dice"].dropna().tolist()
    assert len(first["train/loss"].dropna()) == 40
    assert first["train/loss"].dropna().tolist() == second["train/loss"].dropna().tolist()


def test_two_processes_do_not_share_a_directory(pretrain, tmp_path):
    directory = RunDirectory(tmp_path / "pretrained")
    with directory.held():
        assert_fails_in_words(pretrain(), "in use by another process")
    assert not directory.result.exists()


def test_equal_seeds_give_the_same_file_and_others_another(pretrain, pretrained, tmp_path):
    names = [weights_in(pretrained).name]
    for seed in (0, 1):
        assert pretrain("data.steps=3", f"seed={seed}", directory=tmp_path / str(seed)).returncode == 0
        names.append(weights_in(tmp_path / str(seed)).name)
    assert names[0] == names[1] != names[2]


def test_training_stops_when_validation_no_longer_improves(pretrain, tmp_path):
    precise = "trainer.precision=64-true"  # which ends with training
    stopped = pretrain("trainer.patience=1", "trainer.min_delta=1", "trainer.max_epochs=9", "data.steps=1", precise)
    assert stopped.returncode == 0, stopped.stderr
    assert pd.read_csv(tmp_path / "pretrained" / "metrics.csv")["validation/dice"].notna().sum() == 2


def test_a_batch_larger_than_the_data_is_refused_in_one_sentence(pretrain, tmp_path):
    assert_fails_in_words(pretrain("data.batch=1000"), "data.batch", "1000")
    assert not (tmp_path / "pretrained" / "config.yaml").exists()


def test_a_checkpoint_of_another_width_is_refused_and_left_alone(pretrain, pretrained, tmp_path):
    shutil.copytree(pretrained, tmp_path / "pretrained")
    last = tmp_path / "pretrained" / "checkpoints" / "last.ckpt"
    content = last.read_bytes()
    assert_fails_in_words(pretrain("ckpt_path=last", "model.features=3"), "model.features")
    assert last.read_bytes() == content


@pytest.mark.parametrize(("data", "size"), [("real", 256), ("synthetic", 64)])
def test_every_configuration_composes_with_the_published_settings(data, size):
    settings = OmegaConf.to_container(composed(f"data={data}", command="pretrain"), resolve=True)
    assert (settings["data"]["source"], settings["data"]["size"]) == (data, size)
    assert (settings["data"]["batch"], settings["optimizer"]["lr"], settings["trainer"]["max_epochs"]) == (
        16,
        1e-4,
        100,
    )
    assert settings["data"]["augment"] == {"scale": 0.05, "rotation": 15, "flip": 0.5}
    assert settings["model"]["features"] == 32
    assert settings["trainer"]["patience"] is None


def test_volumes_are_scored_by_their_largest_component():
    truth = np.zeros((4, 1, 8, 8), bool)
    truth[1:3, 0, 2:6, 2:6] = True
    assert score_volume(truth, truth) == {"dice": 1, "dice_unfiltered": 1, "dice_slices": 1}
    found = truth.copy()
    found[0, 0, 7, :] = True  # 8 voxels that touch nothing of the 32
    assert score_volume(found, truth) == {"dice": 1, "dice_unfiltered": pytest.approx(64 / 72), "dice_slices": 1}
    found = truth.copy()
    found[2] = False
    assert score_volume(found, truth) == {
        "dice": pytest.approx(32 / 48),
        "dice_unfiltered": pytest.approx(32 / 48),
        "dice_slices": 0.5,
    }
    empty = score_volume(truth & False, truth & False)
    assert empty["dice"] == 1
    assert np.isnan(empty["dice_slices"])
    apart = np.zeros((3, 4, 4), bool)
    apart[0, 0, 0] = apart[1, 1, 1] = apart[2, 1, 1] = True  # a corner is no connection
    assert largest_component(apart).sum() == 2


def test_the_next_command_survives_the_shell_and_hydra(tmp_path):
    for path in (tmp_path / "a" / "unet-1.pt", tmp_path / "seed=1,x=2 b" / "unet-1.pt"):
        arguments = shlex.split(next_command(path, 8))[2:]
        values = {one.key_or_group: one.value() for one in OverridesParser.create().parse_overrides(arguments)}
        assert str(values["model.init_path"]) == str(path)
        assert values["model.features"] == 8


@pytest.mark.skipif(not REAL_DATA, reason="needs the real datasets in METASEG_DATA")
@pytest.mark.slow
def test_the_real_scans_train(pretrain, tmp_path):
    finished = pretrain("data=real", f"data.root={REAL_DATA}", "data.size=32", "data.steps=2")
    assert finished.returncode == 0, finished.stderr
    assert len(json.loads((tmp_path / "pretrained" / "result.json").read_text())["validation"]["patients"]) == 5

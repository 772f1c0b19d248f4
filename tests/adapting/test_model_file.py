"""A trained model as one file: what `metaseg models build` writes and `metaseg.load` reads."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import TINY, command, composed, run_here
from hydra.core.override_parser.overrides_parser import OverridesParser
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import metaseg
from metaseg.adapting import model_file
from metaseg.adapting.loading import load
from metaseg.cli import models, pairs
from metaseg.data import catalogue
from metaseg.errors import MetasegError
from metaseg.reporting.runs import Found, read_runs
from metaseg.runs.directory import RunDirectory

main = command("models")


@pytest.fixture(scope="module")
def file(trained, tmp_path_factory):
    return model_file.write(RunDirectory(trained), tmp_path_factory.mktemp("model") / "mine.safetensors")


def test_the_file_holds_the_runs_meta_parameters(file, trained):
    run, model = load(trained, "cpu"), load(file, "cpu")
    for (name, one), other in zip(
        run.learner.network.state_dict().items(), model.learner.network.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-6, msg=name)
    assert file.stat().st_size < 0.6 * (trained / "checkpoints" / "best.ckpt").stat().st_size


def test_it_adapts_at_a_size_that_follows_the_masks(file, lesions, tmp_path):
    images, masks = lesions
    segmenter = load(file, "cpu").adapt(images, masks, steps=1, folds=0)
    assert min(segmenter.plan.shape) >= 96  # the run's images have 32 pixels
    assert segmenter.segment(images[:1])[0].shape == images[0].shape[:2]
    kept = metaseg.load_segmenter(metaseg.save(segmenter, tmp_path / "kept.safetensors"), "cpu")
    found, expected = kept.probabilities(images[:1])[0], segmenter.probabilities(images[:1])[0]
    np.testing.assert_allclose(found, expected, atol=0.02)
    with pytest.raises(MetasegError):
        kept.with_more(images[:1], masks[:1])
    with pytest.raises(MetasegError, match="load_segmenter"):
        load(tmp_path / "kept.safetensors", "cpu")


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"no model", lambda data: b""])
def test_damaged_files_are_refused(file, tmp_path, damage):
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(damage(file.read_bytes()))
    with pytest.raises(MetasegError, match="damaged"):
        load(path, "cpu")


@pytest.mark.parametrize("changes", [{"settings": None}, {"card": {"datasets": 1}}, {"card": None}, {"version": None}])
def test_another_description_is_refused(file, tmp_path, changes):
    with safe_open(file, framework="pt") as opened:
        description = json.loads(opened.metadata()["metaseg-model"]) | changes
    path = tmp_path / "other.safetensors"
    save_file(
        load_file(file), path, {"metaseg-model": json.dumps({k: v for k, v in description.items() if v is not None})}
    )
    with pytest.raises(MetasegError, match=r"other\.safetensors"):
        model_file.lines(path)


@pytest.mark.parametrize("pair", [[], ["pair=[cvc,isic,ph2]"], ["pair=isic_ph2"]])
def test_build_settings_fit_the_published_datasets(tmp_path, monkeypatch, pair):
    asked = []
    monkeypatch.setattr(models, "train", lambda: asked.extend(sys.argv[1:-1]))
    assert main(["build", str(tmp_path / "mine.safetensors"), *pair]) == 1  # there is no run, as nothing was trained
    settings = composed(*pairs.chosen(asked))
    assert settings.tasks.count == 25 * len(settings.pair.pools)
    needed = max(settings.shots + settings.tasks.query, settings.starts.shots + settings.starts.query)
    for name in settings.pair.pools:
        assert catalogue.get(name).count * settings.data.validation >= needed


def test_build_trains_on_the_published_datasets_and_writes_the_file(trained, tmp_path, monkeypatch, capsys):
    asked = []

    def instead():
        asked.append(sys.argv[1:])
        directory = OverridesParser.create().parse_override(sys.argv[-1])
        assert directory.key_or_group == "hydra.run.dir"
        shutil.copytree(trained, directory.value())

    monkeypatch.setattr(models, "train", instead)
    path = tmp_path / "müller's, (2)" / "mine.safetensors"
    path.parent.mkdir()
    path.write_text("mine")
    assert main(["build", str(path)]) == 1
    assert "found another file" in capsys.readouterr().err
    path.unlink()
    assert main(["build", str(path), "shots=7", "learner=maml"]) == 0
    assert main(["build", str(path)]) == 0  # the run is there
    assert main(["build", str(path), "shots=3"]) == 1
    assert "finished run" in capsys.readouterr().err
    (arguments,) = asked
    settings = composed(*pairs.chosen(arguments[:-1]))
    assert (settings.shots, settings.learner.name, settings.target) == (7, "maml", [])
    assert settings.pair.pools == ["cvc", "isic", "kvasir", "ph2"]
    assert load(path, "cpu").origin == "file"

    capsys.readouterr()
    assert main([str(tmp_path)]) == 0
    listed = capsys.readouterr().out
    assert str(path) in listed
    for name in ("ph2", "kvasir"):
        assert f"{catalogue.get(name).title}, synthetic twin" in listed


def test_an_unfinished_run_makes_no_model(tmp_path):
    with pytest.raises(MetasegError, match="finished run"):
        model_file.write(RunDirectory(tmp_path), tmp_path / "mine.safetensors")


def test_build_from_beginning_to_end(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "train", lambda: run_here("train.py", *sys.argv[1:]))
    assert main(["build", "mine.safetensors", *TINY, "model=attention_unet", "pair=ph2_kvasir"]) == 0
    assert load(tmp_path / "mine.safetensors", "cpu").origin == "file"
    assert read_runs(tmp_path) == Found([], [], [])  # nothing for a table


@pytest.mark.parametrize("arguments", [["build"], ["build", "shots=3"], ["build", "model.ckpt"]])
def test_build_refuses_other_names(arguments, capsys):
    assert main(arguments) == 1
    assert capsys.readouterr().err.startswith("error: Expected the name of a .safetensors file")


def test_the_command_adapts_a_model_file(file, folders, program):
    arguments = [f"checkpoint={file}", f"support={folders / 'support'}", f"images={folders / 'new'}"]
    finished = program(
        "adapt.py", *arguments, f"out={folders / 'out'}", "steps=1", "folds=0", directory=folders / "log"
    )
    assert finished.returncode == 0, finished.stderr
    assert len(list((folders / "out" / "masks").glob("*.png"))) == 3

"""What an offline run of train.py leaves for the dashboard, read back from W&B's own file."""

import base64
import hashlib
import io
import json
import os
import re
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest
import torch
import yaml
from conftest import TINY, Finished, run_here
from offline_runs import as_dict, of_kind, offline_records
from PIL import Image

from metaseg.tracking import dashboard

EPOCHS = 2
AXES = {"epoch", "trainer/global_step", "adaptation/step"}
OF_OTHERS = {"train/skipped", "train/surrogate_loss", "train/reversed_loss"}
"""Logged by other learners, or where a step goes wrong."""


pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    """The directory of an iMAML run of two epochs, and how it ended."""
    directory = tmp_path_factory.mktemp("dashboard") / "run"
    settings = [
        *("learner=imaml", "seed=1", f"trainer.max_epochs={EPOCHS}", "logger=wandb", "logger.overlay_images=3"),
        *("trainer.progress=true", "learner.inner.tolerance=0.01"),
        *("evaluation.scratch.compare=true", "protocol.adapt.steps=2", "learner.strengths.by=part"),
    ]
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for key in [key for key in os.environ if key.startswith(("WANDB_", "HYDRA_", "METASEG_"))]:
            patch.delenv(key)
        # Where another test has loaded gradio, wandb advertises Weave.
        patch.delitem(sys.modules, "huggingface_hub.inference", raising=False)
        patch.chdir(directory.parent)
        status = run_here("train.py", *TINY, *settings, f"hydra.run.dir={directory}")
    finished = Finished(status, out.getvalue(), err.getvalue())
    assert finished.returncode == 0, finished.stderr
    return directory, finished


@pytest.fixture(scope="module")
def run(process):
    """Its directory."""
    return process[0]


@pytest.fixture(scope="module")
def records(run):
    (found,) = offline_records(run)
    return found


@pytest.fixture(scope="module")
def history(records):
    return [as_dict(record.item) for record in of_kind(records, "history")]


def test_the_same_images_are_shown_in_every_epoch(run, history):
    (files,) = (run / "wandb").glob("offline-run-*/files")
    validated = [row for row in history if "validation/dice_after" in row]
    for pool in ("ph2", "kvasir"):
        shown = [row for row in history if f"progress/{pool}.filenames" in row]
        for axis in ("epoch", "trainer/global_step"):
            assert [row[axis] for row in shown] == [row[axis] for row in validated]
        captions = [row[f"progress/{pool}.captions"] for row in shown]
        names = [[caption.partition(":")[0] for caption in of_epoch] for of_epoch in captions]
        assert len(captions) == EPOCHS
        assert len(set(names[0])) == 3
        assert names[0] == names[1]
        assert all(caption.count(" → ") == 1 for of_epoch in captions for caption in of_epoch)
        for name in shown[0][f"progress/{pool}.filenames"]:
            with Image.open(files / name) as picture:
                assert (picture.format, picture.size) == ("JPEG", (2 * 256 + 8, 256))


def test_curves_have_their_axes_and_summaries(records):
    metrics = of_kind(records, "metric")
    axes = {one.glob_name or one.name: one.step_metric for one in metrics if one.step_metric}
    assert axes["train/*"] == axes["train/cg_residual"] == "trainer/global_step"
    assert axes["validation/*"] == axes["validation/dice_after"] == axes["progress/*"] == "epoch"
    assert axes["adaptation/*"] == "adaptation/step"
    summaries = {
        one.name: {name for name in ("min", "max", "mean", "last") if getattr(one.summary, name)} for one in metrics
    }
    assert summaries["validation/query_loss_after"] == {"min", "last"}
    assert summaries["validation/dice_after"] == {"max", "last"}
    assert summaries["train/cg_residual"] == {"mean", "max", "last"}
    assert summaries["train/smallest_curvature"] == {"min", "last"}


def test_imaml_logs_its_diagnostics_in_every_step(history):
    steps = [row["trainer/global_step"] for row in history if "train/cg_residual" in row]
    everywhere = [row["trainer/global_step"] for row in history if "train/gradient_norm" in row]
    assert everywhere == list(range(2 * EPOCHS))
    assert steps == everywhere


def test_the_checkpoint_is_an_artifact_with_its_settings(run, records):
    (artifact,) = [one for one in of_kind(records, "artifact") if one.type == "model"]
    assert artifact.name == of_kind(records, "run")[0].display_name
    assert re.fullmatch(r"imaml-ph2_kvasir_exclusive-3shot-[0-9a-f]{8}-seed1", artifact.name)
    assert set(artifact.aliases) == {"best", "latest"}
    contents = {entry.path: entry for entry in artifact.manifest.contents}
    assert set(contents) == {"best.ckpt", "config.yaml", "result.json"}
    best = run / "checkpoints" / "best.ckpt"
    assert contents["best.ckpt"].local_path == str(best)  # not a second copy of a large file
    assert contents["best.ckpt"].digest == base64.b64encode(hashlib.md5(best.read_bytes()).digest()).decode()
    config = yaml.safe_load((run / "wandb" / "data").joinpath(contents["config.yaml"].local_path).read_text())
    assert config == torch.load(best, weights_only=True)["settings"]
    result = json.loads((run / "result.json").read_text())
    about = json.loads(artifact.metadata)
    assert about["dsc/isic"] == result["targets"]["isic"]["dsc"]["mean"]
    assert about["mib"] == pytest.approx(best.stat().st_size / 2**20, abs=0.01)
    assert (about["learner"], about["shots"], about["seed"]) == ("imaml", 3, 1)


def test_in_a_pipe_progress_is_lines_and_the_sync_command_appears_once(process):
    _, finished = process
    assert "\x1b" not in finished.stderr
    lines = finished.stderr.splitlines()
    said = [line for line in lines if line.startswith("training") and f"{2 * EPOCHS}/{2 * EPOCHS} steps" in line]
    assert "loss" in said[-1]
    assert "Dice" in said[-1]
    assert any(line.startswith("testing") and "100 %" in line for line in lines)
    (said,) = [line for line in (finished.stdout + finished.stderr).splitlines() if "W&B" in line or "wandb:" in line]
    assert "wandb sync" in said


def test_the_run_ended_well(records):
    assert of_kind(records, "exit")[0].exit_code == 0


def test_the_run_is_placed(records):
    opened = of_kind(records, "run")[0]
    assert (opened.run_group, opened.job_type) == ("ph2_kvasir exclusive", "imaml")
    cell = json.loads(next(item.value_json for item in opened.config.update if item.key == "cell"))
    assert cell.startswith("full-tuned/ph2_kvasir_exclusive/imaml_3shot-")
    assert {"imaml", "ph2_kvasir", "3 shots", cell} <= set(opened.tags)
    assert not any(tag.startswith("table") for tag in opened.tags)  # no table has three shots


def test_final_numbers_are_those_of_the_result(run, records, history):
    target = json.loads((run / "result.json").read_text())["targets"]["isic"]
    summary = {}
    for record in of_kind(records, "summary"):
        summary |= as_dict(record.update)
    assert summary["test/isic/dsc"] == target["dsc"]["mean"]
    assert summary["test/isic/dsc_trivial"] == max(target["trivial"].values())
    points = [row for row in history if "adaptation/isic/dsc" in row]
    assert [row["adaptation/step"] for row in points] == target["curve"]["steps"]
    assert [row["adaptation/isic/dsc"] for row in points] == target["curve"]["dsc"]


def test_the_panels_show_all_that_is_logged_and_nothing_else(records, history):
    rows = [*history, *(as_dict(record.update) for record in of_kind(records, "summary"))]
    logged = {name.partition(".")[0] for row in rows for name in row}
    unseen = {name for name in logged if not name.startswith("_")} - AXES
    for section in dashboard.sections(targets=["isic"], pools=["ph2", "kvasir"]):
        for panel in section.panels:
            assert not panel.x or panel.x in logged
            for key in panel.keys:
                shown = {name for name in logged if re.fullmatch(key, name)}
                unseen -= shown
                assert bool(shown) != (key in OF_OTHERS or section.title == "Pre-training"), key
    assert not unseen


def test_disabled_parts_are_not_logged(train, tmp_path):
    finished = train("learner=fomaml", "logger=wandb", "logger.artifacts=false", "logger.overlay_every=0")
    assert finished.returncode == 0, finished.stderr
    (records,) = offline_records(tmp_path / "run")
    assert {one.type for one in of_kind(records, "artifact")} == {"run_table"}
    assert not any("progress" in name for row in of_kind(records, "history") for name in as_dict(row.item))

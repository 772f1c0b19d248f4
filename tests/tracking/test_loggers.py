import json
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import composed
from lightning.pytorch.utilities import rank_zero_only
from offline_runs import as_dict, of_kind, offline_records
from omegaconf import OmegaConf
from run_directories import TRIVIAL, write_run

from metaseg import tracking
from metaseg.errors import MetasegError
from metaseg.runs.directory import RunDirectory
from metaseg.runs.schema import Logger
from metaseg.runs.validation import checked
from metaseg.tracking import CsvLogger, build_loggers

pytestmark = pytest.mark.usefixtures("no_account")


def logger_config(name):
    return checked(Logger, OmegaConf.to_container(composed(command=f"logger/{name}"))["logger"])


# -- CSV ---------------------------------------------------------------------------------------------------------------


def test_rows_are_on_disk_at_once_and_columns_may_grow(tmp_path):
    logger = CsvLogger(tmp_path / "run" / "metrics.csv")
    assert logger.save_dir == str(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    logger.log_metrics({"train/loss": torch.tensor(0.5), "epoch": 0}, step=0)
    assert (tmp_path / "run" / "metrics.csv").read_text().split() == ["step,train/loss,epoch", "0,0.5,0"]
    logger.log_metrics({"validation/dice": np.float32(0.25), "epoch": 0}, step=0)
    logger.log_metrics({"train/loss": float("nan"), "epoch": 1}, step=1)
    logger.finalize("success")
    logger.log_metrics({"train/loss": 0.125, "epoch": 2}, step=2)  # a second fit of the same trainer
    logger.finalize("success")
    assert (tmp_path / "run" / "metrics.csv").read_text().split() == [
        "step,train/loss,epoch,validation/dice",
        "0,0.5,0,",
        "0,,0,0.25",
        "1,nan,1,",
        "2,0.125,2,",
    ]


def test_a_long_run_appends(tmp_path, monkeypatch):
    rewritten = []
    rewrite = CsvLogger._rewrite
    monkeypatch.setattr(CsvLogger, "_rewrite", lambda *given: (rewritten.append(1), rewrite(*given)))
    logger = CsvLogger(tmp_path / "metrics.csv")
    for step in range(2000):
        logger.log_metrics({"a": step / 8}, step=step)
        if step % 100 == 0:
            logger.log_metrics({"b": step}, step=step)
    logger.finalize("success")
    assert len(rewritten) == 2  # the header, and the column b
    assert pd.read_csv(tmp_path / "metrics.csv")["a"].sum() == sum(range(2000)) / 8


@pytest.mark.parametrize("first", [{"a": 30.0, "new": 1.5}, {"new": 1.5}])  # as of a step that is skipped
def test_resumed_run_drops_rows_after_the_checkpoint(tmp_path, first):
    path = tmp_path / "metrics.csv"
    path.write_text(
        "step,epoch,a,validation\n0,0,1.0,\n1,0,2.0,\n1,0,,9.0\n2,1,3.0,\n3,1,4.0,\n3,1,,8.0\n4,2,5."  # killed here
    )
    logger = CsvLogger(path, resume=True)
    logger.log_metrics(first | {"epoch": 1}, step=2)
    logger.finalize("success")
    assert path.read_text().split() == [
        "step,epoch,a,validation,new",
        "0,0,1.0,,",
        "1,0,2.0,,",
        "1,0,,9.0,",
        f"2,1,{first.get('a', '')},,1.5",
    ]


@pytest.mark.parametrize("content", [b"\xff\xfe\n\xff\n", b"step,a\nfirst,1\n0,2\n", b"step,a\n0,2\n0,1"])
def test_what_is_damaged_of_a_resumed_runs_metrics_is_left_out(tmp_path, content):
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    logger = CsvLogger(path, resume=True)
    logger.log_metrics({"a": 3}, step=1)
    logger.finalize("success")
    kept = ["0,2"] if b"0,2" in content else []
    assert path.read_text().split() == ["step,a", *kept, "1,3"]


def test_a_full_disk_is_reported_once(tmp_path):
    logger = CsvLogger(tmp_path / "metrics.csv")
    logger.log_metrics({"a": 1}, step=0)
    logger._file.close()
    logger._file = Path("/dev/full").open("w")  # noqa: SIM115
    with pytest.raises(MetasegError, match=r"No space left on device.*free space and resume"):
        logger.log_metrics({"a": 2}, step=1)
    logger.finalize("failed")  # raises nothing, although what is left in the buffer cannot be written either


def test_run_that_does_not_resume_starts_a_new_file(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,old\n0,1\n")
    logger = CsvLogger(path)
    assert path.read_text() == "step,old\n0,1\n"
    logger.log_metrics({"a": 1}, step=9)
    logger.finalize("success")
    assert path.read_text().split() == ["step,a", "9,1"]


# -- configuration -----------------------------------------------------------------------------------------------------


def test_configs_have_equal_keys_and_csv_imports_no_wandb(tmp_path, monkeypatch):
    csv, wandb = (logger_config(name) for name in ("csv", "wandb"))
    assert wandb.model_dump() == csv.model_dump() | {"wandb": True}
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import would fail
    loggers = build_loggers(csv, tmp_path, {}) + build_loggers(
        wandb.model_copy(update={"mode": "disabled"}), tmp_path, {}
    )
    assert [type(logger) for logger in loggers] == [CsvLogger, CsvLogger]


def test_mode_follows_setting_then_environment_then_key(monkeypatch, tmp_path):
    assert tracking.wandb_mode(None) == "offline"
    with pytest.raises(MetasegError, match="needs an API key"):
        tracking.wandb_mode("online")
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password " + "0" * 40 + "\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert tracking.wandb_mode(None) == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://api.wandb.ai")
    assert tracking.wandb_mode(None) == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert tracking.wandb_mode(None) == "offline"  # the key is another server's
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert tracking.wandb_mode(None) == "online"
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    assert tracking.wandb_mode(None) == "offline"
    assert tracking.wandb_mode("online") == "online"
    monkeypatch.setenv("WANDB_MODE", "ofline")
    with pytest.raises(MetasegError, match="'ofline'"):
        tracking.wandb_mode(None)


# -- Weights & Biases --------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_offline_run_is_complete_and_prints_one_line(tmp_path, capfd, monkeypatch):
    # Where another test has loaded gradio, wandb advertises Weave.
    monkeypatch.delitem(sys.modules, "huggingface_hub.inference", raising=False)
    config = logger_config("wandb").model_copy(update={"tags": ["mine", "imaml"]})
    settings = {"learner": {"name": "imaml", "lam": 100.0}, "shots": 20}
    loggers = build_loggers(config, tmp_path / "first", settings, "ph2_kvasir", ["imaml", "20 shots"])
    assert not (tmp_path / "first").exists()
    for logger in loggers:
        for step in range(3):
            logger.log_metrics({"train/query_loss_after": 1.0 / 2**step, "epoch": 0}, step=step)
    picture = np.zeros((8, 8, 3), np.uint8)
    tracking.log_images(loggers, "overlays/isic", [picture, picture], ["best", "worst"])
    rows = [["isic", "ISIC_1", 0, 0.25], ["isic", "ISIC_2", 0, float("nan")]]
    tracking.log_table(loggers, "per_image", ["dataset", "image", "draw", "dsc_after"], rows)
    tracking.log_summary(loggers, {"isic/dsc": 0.625})
    tracking.finish(loggers, exit_code=1)

    # The next job of a sweep, and the first one's resumption: neither may land in the run above.
    others = build_loggers(config, tmp_path / "second", settings)
    others[1].log_metrics({"train/query_loss_after": 8.0}, step=0)
    resumed = build_loggers(config, tmp_path / "first", settings, resume=True)
    resumed[1].log_metrics({"train/query_loss_after": 0.125}, step=3)  # `others` was forgotten: W&B ends it
    tracking.finish(resumed)

    said = capfd.readouterr()
    folders = [sorted((tmp_path / name / "wandb").glob("offline-run-*")) for name in ("first", "second")]
    assert said.err == ""
    assert said.out.splitlines() == [
        f"W&B is offline; to upload this run: wandb sync {folders[0][0]}",
        f"W&B is offline; to upload this run: wandb sync {folders[1][0]}",
        f"W&B is offline; to upload this run: wandb sync {folders[0][0]} {folders[0][1]}",
    ]
    assert "WANDB_DATA_DIR" not in os.environ

    records, continued = offline_records(tmp_path / "first")
    (run,) = of_kind(records, "run")[:1]
    assert as_dict(run.config.update)["learner"] == {"name": "imaml", "lam": 100.0}
    assert as_dict(run.config.update)["shots"] == 20
    assert (run.project, run.run_group, run.job_type, run.display_name) == ("metaseg", "ph2_kvasir", "train", "first")
    assert list(run.tags) == ["imaml", "20 shots", "mine"]

    history = [as_dict(record.item) for record in of_kind(records, "history")]
    curve = [(row["trainer/global_step"], row["train/query_loss_after"]) for row in history if "epoch" in row]
    assert curve == [(0, 1.0), (1, 0.5), (2, 0.25)]
    summary = {}
    for record in of_kind(records, "summary"):
        summary |= as_dict(record.update)
    assert summary["isic/dsc"] == 0.625
    assert summary["train/query_loss_after"] == 0.25

    files = folders[0][0] / "files"
    (images,) = [row for row in history if "overlays/isic.filenames" in row]
    assert images["overlays/isic.captions"] == ["best", "worst"]
    assert all((files / name).read_bytes().startswith(b"\x89PNG") for name in images["overlays/isic.filenames"])
    (table,) = [row for row in history if "per_image.path" in row]
    content = json.loads((files / table["per_image.path"]).read_text())
    assert content["columns"] == ["dataset", "image", "draw", "dsc_after"]
    assert content["data"] == [rows[0], [*rows[1][:3], None]]
    (artifact,) = of_kind(records, "artifact")
    staged = Path(artifact.manifest.contents[0].local_path)
    assert staged.is_file()
    assert tmp_path / "first" in staged.parents  # else a copy of the run directory could not be synced

    assert [record.exit_code for record in of_kind(records, "exit")] == [1]
    assert [record.exit_code for record in of_kind(continued, "exit")] == [0]
    assert of_kind(continued, "run")[0].run_id == run.run_id
    (other,) = offline_records(tmp_path / "second")
    assert of_kind(other, "run")[0].run_id != run.run_id
    assert [as_dict(record.item)["train/query_loss_after"] for record in of_kind(other, "history")] == [8.0]


def test_the_numbers_of_a_result_have_names_of_their_own(tmp_path):
    result = RunDirectory(write_run(tmp_path / "run", scratch=0.25)).read_result()
    scores, scratch = result.targets["isic"], result.scratch["isic"]
    assert tracking.summary_of(result) == {
        "test/isic/dsc": scores.dsc.mean,
        "test/isic/dsc_low": scores.dsc.low,
        "test/isic/dsc_high": scores.dsc.high,
        "test/isic/dsc_before": scores.dsc_before.mean,
        "test/isic/dsc_scratch": 0.25,
        "test/isic/dsc_trivial": max(value for value in TRIVIAL.values() if value is not None),
        "test/isic/iou": scores.iou,
    }
    scratch.curve.dsc[:] = [value / 2 for value in scratch.curve.dsc]
    points = tracking.adaptation_points(result)
    assert [point["adaptation/step"] for point in points] == scores.curve.steps
    assert [point["adaptation/isic/dsc"] for point in points] == scores.curve.dsc
    assert [point["adaptation/isic/dsc_scratch"] for point in points] == scratch.curve.dsc


def test_only_rank_zero_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    loggers = build_loggers(logger_config("wandb"), tmp_path / "run", {})
    for logger in loggers:
        logger.log_metrics({"a": 1.0}, step=0)
    tracking.log_images(loggers, "x", [np.zeros((4, 4, 3), np.uint8)], [""])
    tracking.log_table(loggers, "y", ["a"], [[1]])
    tracking.log_summary(loggers, {"z": 1})
    tracking.finish(loggers)
    assert not (tmp_path / "run").exists()


def test_refused_key_gives_a_one_sentence_error(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "too short")
    _, logger = build_loggers(logger_config("wandb"), tmp_path, {})
    with pytest.raises(MetasegError, match="W&B did not start a run"):
        logger.log_metrics({"a": 1.0}, step=0)

"""Training with outer steps that are skipped, a run that goes on after one, and a budget of passes."""

import json
import math

import pandas as pd
import pytest
import torch
from conftest import TINY, settings_of

from metaseg import tracking
from metaseg.data.module import EpisodicData
from metaseg.errors import MetasegError
from metaseg.learners.build import build_learner
from metaseg.runs.directory import RunDirectory
from metaseg.training.fitting import fit
from metaseg.training.outer import MetaTraining

EPOCHS, STEPS, LR = 3, 4, 1e-3
SKIPPED = (0, 2)
"""Epoch and step of the outer step whose gradient is not finite."""


class Killed(Exception):
    pass


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Train with one skipped step, until an error where ``killed`` says: its directory, tasks and step sizes."""

    def call(name, *overrides, killed=None, checkpoint=None):
        settings = settings_of(
            *TINY,
            "learner=fomaml",
            f"learner.optimizer.lr={LR}",
            "learner.optimizer.schedule=cosine",
            f"tasks.count={2 * STEPS}",
            f"trainer.max_epochs={EPOCHS}",
            "trainer.save_every=1",
            *overrides,
        )
        seen, rates = [], []
        usual_step, usual_update = MetaTraining.training_step, MetaTraining._step

        def step(module, batch, index):
            here = (module.current_epoch, index)
            if here == killed:
                raise Killed
            seen.append(float(batch[0].query_images.sum()))
            if here == SKIPPED:
                batch[0].query_images[:] = math.nan
            usual_step(module, batch, index)

        def update(module, *gradients):
            usual_update(module, *gradients)
            rates.append(module.optimizers().param_groups[0]["lr"])

        directory = RunDirectory(tmp_path / name).create()
        torch.manual_seed(0)
        data, learner = EpisodicData(settings), build_learner(settings)
        data.setup()
        loggers = tracking.build_loggers(settings.logger, directory, settings.plain, resume=checkpoint is not None)
        with monkeypatch.context() as patch:
            patch.setattr(MetaTraining, "training_step", step)
            patch.setattr(MetaTraining, "_step", update)
            fit(settings, learner, data, loggers, directory, checkpoint)
        return directory, seen, rates

    return call


@pytest.mark.long
def test_a_skipped_step_costs_itself_alone_and_a_run_killed_after_it_goes_on_bitwise(run):
    directory, seen, rates = run("whole")
    total = EPOCHS * STEPS
    assert len(seen) == len(set(seen)) == total
    skipped = SKIPPED[0] * STEPS + SKIPPED[1]
    taken = [step for step in range(total) if step != skipped]
    assert rates == pytest.approx([LR * (1 + math.cos(math.pi * step / total)) / 2 for step in taken])
    with pytest.raises(Killed):
        run("broken", killed=(1, 2))
    broken = RunDirectory(directory.path.with_name("broken"))
    state = torch.load(broken.last, weights_only=True)
    other = broken.last.with_name("other.ckpt")
    torch.save(state | {"EpisodicData": state["EpisodicData"] | {"kvasir": "others"}}, other)
    with pytest.raises(MetasegError, match="Training began on other images of kvasir than"):
        run("broken", checkpoint=other)
    _, rest, _ = run("broken", checkpoint=broken.last)
    assert rest == seen[STEPS + 2 :]
    whole, gone_on = (torch.load(one.last, weights_only=True)["state_dict"] for one in (directory, broken))
    assert all(torch.equal(gone_on[name], value) for name, value in whole.items())
    curves = [pd.read_csv(one.metrics) for one in (directory, broken)]
    pd.testing.assert_frame_equal(*curves)
    costs = [one.read_compute() for one in (directory, broken)]
    assert [(one.outer_steps, one.inner_problems) for one in costs] == [(total - 1, 2 * (total - 1))] * 2


def test_one_task_of_validation_without_a_finite_loss_is_not_left_out(run, monkeypatch):
    """Its mean would hold only the others."""
    usual, lost = MetaTraining.validation_step, []

    def step(module, episode, index):
        if not lost:
            lost.append(index)
            episode.query_images[:] = math.nan
        usual(module, episode, index)

    monkeypatch.setattr(MetaTraining, "validation_step", step)
    with pytest.raises(MetasegError, match="Training diverged: no epoch of 1 ended with a finite validation loss"):
        run("diverged", "tasks.validation=2")


def test_as_many_skips_in_a_row_as_the_settings_say_end_a_run(run):
    with pytest.raises(MetasegError, match="1 time in a row"):
        run("ends", "trainer.max_skips=1")


def test_a_run_without_any_step_is_not_said_to_lack_a_finite_validation_loss(run):
    with pytest.raises(MetasegError, match="All outer steps were skipped; no step was ever taken"):
        run("none", "trainer.max_epochs=1", "trainer.skip_norm=1e-9", "trainer.max_skips=99")


def test_epochs_that_end_before_the_passes_are_an_error(run):
    with pytest.raises(
        MetasegError, match=r"after \d % of trainer.max_passes=1e\+06, in epoch 3 of trainer.max_epochs=3"
    ):  # early stopping would end it after the second
        run("short", "trainer.max_epochs=3", "trainer.max_passes=1e6", "trainer.patience=1", "trainer.min_delta=100")


@pytest.mark.long
def test_a_run_that_has_stopped_trains_on_only_by_another_rule(run):
    rule = ["trainer.patience=1", "trainer.min_delta=100"]  # ends it after the second epoch
    directory, seen, _ = run("stopped", *rule)
    assert len(seen) == 2 * STEPS

    def again(*overrides):
        return len(run("stopped", *rule, "ckpt_path=last", *overrides, checkpoint=directory.last)[1])

    assert again() == 0
    directory.trained.write_text(json.dumps(json.loads(directory.trained.read_text())[:4]))  # an earlier version's
    assert again() == 0
    directory, _, _ = run("rule", *rule)
    assert len(run("rule", *rule, "ckpt_path=last", "trainer.stop_by=training", checkpoint=directory.last)[1]) == STEPS

"""Estimates of cells, from steps whose cost is given."""

import pytest
import torch
from conftest import TINY, settings_of

from metaseg.runs.directory import RunDirectory
from metaseg.sweeps import estimate, listing
from metaseg.sweeps.estimate import IMAGES, LinearCost, StepCosts, of_cell
from metaseg.training.start import directory_of


def settings(*overrides):
    given = ["data=synthetic", "learner=fomaml", "shots=5", "tasks.query=4", "tasks.count=20", "tasks.validation=3"]
    given += ["trainer.max_epochs=2", "learner.inner.steps=0", "learner.adapt.steps=10", "learner.adapt.folds=0"]
    given += ["learner.adapt.flips=false", "learner.adapt.schedule=constant", "evaluation.curve=[0,5]"]
    given += ["evaluation.curve_limit=6", "evaluation.draws=2", "evaluation.limit=50", "evaluation.batch=20"]
    return settings_of(*given, "evaluation.scratch.compare=false", *overrides)


NO_MEMORY = {"outer_mib": LinearCost(), "adaptation_mib": LinearCost(), "prediction_mib": LinearCost()}
TASKS = 2 * 20
"""Two epochs of tasks, one of each of the two pools in an outer step."""


def seconds(*overrides, steps_done=0, **cost):
    kinds = dict.fromkeys(("outer", "validation", "adaptation", "prediction"), LinearCost())
    step = StepCosts(**{**kinds, "outer": LinearCost(1e-9), **cost}, **NO_MEMORY)
    return of_cell(settings(*overrides), step, steps_done)[0]


def test_the_seconds_of_a_cell_are_the_sum_of_its_steps():
    assert seconds(outer=LinearCost(1, 10, 100)) == pytest.approx(TASKS * (1 + 50 + 400))
    assert seconds(validation=LinearCost(1, 10)) == pytest.approx(2 * 3 * 2 * (1 + 90), rel=1e-6)
    assert seconds(adaptation=LinearCost(1, 10)) == pytest.approx(2 * 10 * (1 + 50), rel=1e-6)
    # Before and after adaptation 50 images in batches of 20, on the way 6.
    assert seconds(prediction=LinearCost(1, 10)) == pytest.approx(2 * (3 + 3 + 1 + 1060), rel=1e-6)


def test_training_from_scratch_beside_a_learner_is_counted():
    beside = ["evaluation.scratch.compare=true", "protocol.adapt.steps=7", "protocol.adapt.folds=0"]
    assert seconds(*beside, adaptation=LinearCost(1, 10)) == pytest.approx(2 * (10 + 7) * (1 + 50), rel=1e-6)


WHOLE, POINT = 3 + 500, 1 + 60
"""Seconds of predicting 50 and 6 images in batches of 20."""


@pytest.mark.parametrize(
    ("overrides", "whole", "point"),
    [
        # Before the first step there is one network only; after the last, it is scored alone as well.
        (["folds=2"], 1 + 3 + 1, 3),
        (["flips=true"], 1 + 4 + 1, 4),
        (["folds=2", "flips=true"], 1 + 12 + 1, 12),
        (["folds=9"], 1 + 6 + 1, 6),  # no more parts than images
        (["steps=0"], 1, 0),
        (["schedule=cosine", "steps=4"], 2, 0),  # which ends before the curve's point
    ],
)
def test_every_prediction_of_the_test_is_counted(overrides, whole, point):
    found = seconds(*(f"learner.adapt.{one}" for one in overrides), prediction=LinearCost(1, 10))
    assert found == pytest.approx(2 * (whole * WHOLE + point * POINT), rel=1e-6)


def test_the_inner_problem_alone_is_counted():
    inner = "learner.inner.steps=7"
    assert seconds(inner, prediction=LinearCost(1, 10)) == pytest.approx(2 * (3 * WHOLE + POINT), rel=1e-6)
    assert seconds(inner, adaptation=LinearCost(1, 10)) == pytest.approx(2 * (10 + 7) * (1 + 50), rel=1e-6)


def test_each_descent_of_an_ensemble_is_counted():
    def found(folds):
        return seconds(f"learner.adapt.folds={folds}", adaptation=LinearCost(1, 10))

    # On all five images, and on four of them five times: there are no more parts than images.
    assert found(9) == pytest.approx(2 * 10 * (1 + 50 + 5 * (1 + 40)), rel=1e-6)
    assert found(2) == pytest.approx(2 * 10 * (1 + 50 + 2 * (1 + 25)), rel=1e-6)


def test_steps_are_of_batches_of_the_support_set():
    def found(*overrides):
        return seconds("learner.adapt.batch=3", *overrides, adaptation=LinearCost(1, 10))

    # Five images take turns in batches of three and two; those of two folds, three and two images, fit into one.
    assert found() == pytest.approx(2 * 10 * (1 + 25), rel=1e-6)
    assert found("learner.adapt.folds=2") == pytest.approx(2 * 10 * (1 + 25 + 1 + 30 + 1 + 20), rel=1e-6)
    costs = StepCosts(*[LinearCost(1e-9)] * 4, **NO_MEMORY | {"adaptation_mib": LinearCost(100, 10)})
    assert of_cell(settings("learner.adapt.batch=3"), costs)[1] == 100 + 10 * 3


@pytest.mark.long
def test_memory_is_that_of_the_step_that_needs_most():
    def mib(folds=0, **memory):
        costs = StepCosts(*[LinearCost(1e-9)] * 4, **NO_MEMORY | memory)
        return of_cell(settings(f"learner.adapt.folds={folds}"), costs)[1]

    assert mib(outer_mib=LinearCost(100, 10)) == 100 + 10 * (5 + 4)
    assert mib(prediction_mib=LinearCost(100, 10)) == 100 + 10 * 20
    assert mib(adaptation_mib=LinearCost(100, 10)) == 100 + 10 * 5
    # The parameters of three more descents, and the images of one at a time.
    assert mib(3, adaptation_mib=LinearCost(100, 10)) == 4 * 100 + 10 * 5
    assert mib(outer_mib=LinearCost(100), adaptation_mib=LinearCost(300), prediction_mib=LinearCost(200)) == 300


@pytest.mark.long
def test_memory_is_measured_on_few_and_on_more_images():
    mib = 2**20 // 4  # of float32
    found = estimate._cost(
        lambda images: torch.ones((20 + 10 * images) * mib).sum(), (IMAGES, 2 * IMAGES), "cpu", estimate._mib
    )
    assert found.fixed == pytest.approx(20, abs=3)
    assert found.image == pytest.approx(10, abs=1.5)


def test_networks_that_do_not_train_cost_no_training():
    outer = LinearCost(1)
    assert seconds(outer=outer, steps_done=15) == pytest.approx(TASKS / 4)
    assert seconds("train=false", outer=outer) == 0


def test_a_budget_of_passes_ends_training():
    budget = {"outer": LinearCost(1), "validation": LinearCost(1), "passing": LinearCost(0, 0.1)}
    whole = seconds(**budget)
    assert seconds("trainer.max_passes=100", **budget) == pytest.approx(whole * 100 * 0.1 / TASKS)
    assert seconds("trainer.max_passes=1e6", **budget) == whole
    assert seconds("trainer.max_passes=100", steps_done=2, **budget) == pytest.approx(whole * (10 / TASKS - 2 / 20))


@pytest.mark.parametrize(
    ("overrides", "epochs"),
    [([], 3), (["learner=joint"], 3), (["start=model"], None), (["learner=scratch"], None), (["train=false"], None)],
)
def test_a_shared_start_is_counted_until_it_is_there(tmp_path, overrides, epochs):
    chosen = settings_of(*TINY[:-1], "learner=fomaml", f"starts.dir={tmp_path}", "starts.epochs=3", *overrides)
    start = listing._start(chosen)
    assert (start and start.trainer.max_epochs) == epochs
    if start is not None:
        costs = StepCosts(LinearCost(1), *[LinearCost()] * 3, **NO_MEMORY)
        assert of_cell(start, costs)[0] == 3 * 4  # epochs of tasks, and no target
        directory = RunDirectory(directory_of(start)).create()
        directory.trained.touch()
        assert listing._start(chosen) is None


@pytest.mark.parametrize(
    ("small", "large", "expected"),
    [(3.0, 5.0, LinearCost(1, 1)), (3.0, 2.0, LinearCost(3, 0)), (3.0, 9.0, LinearCost(0, 1.5))],
)
def test_no_part_of_a_line_through_two_times_is_negative(small, large, expected):
    assert estimate._line(small, large) == expected


@pytest.mark.parametrize(("slow", "size", "measured"), [(0.0, 256, 64), (0.0, 96, 96), (60.0, 256, 256)])
def test_slow_networks_are_measured_on_smaller_images(monkeypatch, slow, size, measured):
    monkeypatch.setattr(estimate, "SLOW", slow)
    monkeypatch.setattr(estimate, "_line", lambda small, large, **of: LinearCost(1, 1))
    found = estimate.measure(settings("train=false", "model.features=2", f"data.size={size}"))
    assert found.prediction == LinearCost(1, (size / measured) ** 2)


@pytest.mark.parametrize(("long", "calls"), [(60.0, 2), (0.0, 1)])
def test_only_short_steps_are_repeated_to_warm_up(monkeypatch, long, calls):
    monkeypatch.setattr(estimate, "LONG", long)
    made = []
    estimate._seconds(lambda: made.append(1), "cpu")
    assert len(made) == calls

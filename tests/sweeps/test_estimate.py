"""Estimates of cells, from steps whose cost is given."""

import pytest
import torch
from conftest import settings_of

from metaseg.sweeps import estimate
from metaseg.sweeps.estimate import IMAGES, LinearCost, StepCosts, of_cell


def settings(folds=0):
    given = ["data=synthetic", "shots=5", "tasks.query=4", "tasks.count=20", "tasks.validation=3"]
    given += ["trainer.max_epochs=2", "learner.adapt.steps=10", f"learner.adapt.folds={folds}"]
    given += ["evaluation.curve=[0,5]", "evaluation.curve_limit=6", "evaluation.draws=2", "evaluation.limit=50"]
    given += ["evaluation.batch=20", "evaluation.scratch.compare=false"]
    return settings_of(*given)


SETTINGS = settings()
NO_MEMORY = {"outer_mib": LinearCost(), "adaptation_mib": LinearCost(), "prediction_mib": LinearCost()}


def test_the_seconds_of_a_cell_are_the_sum_of_its_steps():
    nothing = LinearCost()
    steps = 2 * 20 / 2  # outer steps: two epochs, a task of each pool a step
    tasks = 2 * steps

    def seconds(**cost):
        kinds = {"outer": LinearCost(1e-9), "validation": nothing, "adaptation": nothing}
        return of_cell(SETTINGS, StepCosts(**{**kinds, "prediction": nothing, **cost}, **NO_MEMORY)).seconds

    assert seconds(outer=LinearCost(1, 10, 100)) == pytest.approx(tasks * (1 + 50 + 400))
    assert seconds(validation=LinearCost(1, 10)) == pytest.approx(2 * 3 * 2 * (1 + 90), rel=1e-6)
    assert seconds(adaptation=LinearCost(1, 10)) == pytest.approx(2 * 10 * (1 + 50), rel=1e-6)
    # Before and after adaptation 50 images in batches of 20, on the way 6.
    assert seconds(prediction=LinearCost(1, 10)) == pytest.approx(2 * (3 + 3 + 1 + 1060), rel=1e-6)


def test_each_member_of_an_ensemble_is_counted():
    def seconds(folds, **cost):
        kinds = {
            "outer": LinearCost(1e-9),
            "validation": LinearCost(),
            "adaptation": LinearCost(),
            "prediction": LinearCost(),
        }
        return of_cell(settings(folds), StepCosts(**{**kinds, **cost}, **NO_MEMORY)).seconds

    # On all five images, and on four of them five times: there are no more parts than images.
    assert seconds(9, adaptation=LinearCost(1, 10)) == pytest.approx(2 * 10 * (1 + 50 + 5 * (1 + 40)), rel=1e-6)
    assert seconds(2, adaptation=LinearCost(1, 10)) == pytest.approx(2 * 10 * (1 + 50 + 2 * (1 + 25)), rel=1e-6)
    # Before the first step there is one network only.
    assert seconds(2, prediction=LinearCost(1, 10)) == pytest.approx(2 * ((3 + 500) + 3 * (3 + 500 + 1 + 60)), rel=1e-6)


@pytest.mark.long
def test_memory_is_that_of_the_step_that_needs_most():
    def mib(folds=0, **memory):
        return of_cell(settings(folds), StepCosts(*[LinearCost(1e-9)] * 4, **NO_MEMORY | memory)).mib

    assert mib(outer_mib=LinearCost(100, 10)) == 100 + 10 * (5 + 4)
    assert mib(prediction_mib=LinearCost(100, 10)) == 100 + 10 * 20
    assert mib(adaptation_mib=LinearCost(100, 10)) == 100 + 10 * 5
    # The parameters of three more descents, and the images of one at a time.
    assert mib(3, adaptation_mib=LinearCost(100, 10)) == 4 * 100 + 10 * 5
    assert mib(outer_mib=LinearCost(100), adaptation_mib=LinearCost(300), prediction_mib=LinearCost(200)) == 300


@pytest.mark.long
def test_memory_is_measured_on_few_and_on_more_images():
    mib = 2**20 // 4  # of float32
    found = estimate._peak(lambda images: torch.ones((20 + 10 * images) * mib).sum(), IMAGES, 2 * IMAGES, "cpu")
    assert found.fixed == pytest.approx(20, abs=3)
    assert found.image == pytest.approx(10, abs=1.5)


def test_what_was_trained_is_not_counted_again():
    step = StepCosts(LinearCost(1), LinearCost(), LinearCost(), LinearCost(), **NO_MEMORY)
    assert of_cell(SETTINGS, step, steps_done=15).seconds == pytest.approx(of_cell(SETTINGS, step).seconds / 4)


@pytest.mark.parametrize(
    ("small", "large", "expected"),
    [(3.0, 5.0, LinearCost(1, 1)), (3.0, 2.0, LinearCost(3, 0)), (3.0, 9.0, LinearCost(0, 1.5))],
)
def test_no_part_of_a_line_through_two_times_is_negative(small, large, expected):
    assert estimate._line(small, large) == expected

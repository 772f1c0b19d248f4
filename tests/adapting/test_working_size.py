"""The size at which a network sees a user's images."""

import itertools

import numpy as np
import pytest

from metaseg.adapting.plan import FEWEST_STEPS, Plan, within
from metaseg.adapting.working_size import KEPT, SIDES, kept, shape_of


def discs(radius, size=(400, 400), count=12):
    """Discs on a grid over the whole image."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    step = max(4 * radius, min(size) // count)
    return ((rows % step - step // 2) ** 2 + (columns % step - step // 2) ** 2) <= radius**2


@pytest.mark.parametrize(
    ("side", "size", "shape"),
    [
        (128, (500, 500), (128, 128)),
        (128, (400, 800), (96, 160)),
        (128, (800, 400), (192, 96)),
        (256, (720, 1280), (192, 352)),
        (128, (100, 1000), (32, 512)),
    ],
)
def test_the_shape_has_the_images_proportions_and_the_squares_area(side, size, shape):
    assert shape_of(side, [size], 32) == shape
    assert abs(shape[0] * shape[1] / side**2 - 1) < 0.15


def test_the_median_proportion_counts():
    assert shape_of(128, [(100, 100), (100, 100), (100, 900)], 32) == (128, 128)


def test_large_objects_keep_their_dice_and_small_ones_lose_it():
    assert kept([discs(90)], (128, 128)) > 0.98
    assert kept([discs(3)], (128, 128)) < 0.9 < kept([discs(3)], (384, 384))
    assert kept([np.zeros((50, 50), bool)], (32, 32)) == 1


def test_the_smallest_sufficient_shape_is_chosen():
    assert Plan.keeping([discs(90)], 10, 0).shape == (SIDES[0], SIDES[0])
    finer = Plan.keeping([discs(8)], 10, 0)
    assert finer.shape[0] > SIDES[0]
    assert finer.kept >= KEPT
    coarser = SIDES[SIDES.index(finer.shape[0]) - 1]
    assert kept([discs(8)], (coarser, coarser)) < KEPT


def test_the_best_shape_is_chosen_if_none_suffices():
    plan = Plan.keeping([discs(1, (1500, 1500), 200)], 10, 0)
    assert plan.shape == (SIDES[-1], SIDES[-1])
    assert plan.kept < KEPT


def test_a_given_shape_is_kept():
    assert Plan.keeping([discs(3)], 10, 0, (64, 96)).shape == (64, 96)


PER_PIXEL = 3e-6  # seconds: 50 ms for an image of 128x128


def test_a_generous_budget_changes_nothing():
    plan = Plan((128, 128), steps=160, folds=3)
    assert within(plan, 1e6, 5, PER_PIXEL) == plan


def test_a_plan_keeps_its_budget():
    for budget, side, images in itertools.product((20, 60, 300), (128, 256, 384), (2, 5, 20)):
        plan = Plan((side, side), steps=160, folds=min(3, images))
        found = within(plan, budget, images, PER_PIXEL)
        assert FEWEST_STEPS <= found.steps <= 160
        assert found.shape == plan.shape
        fewest = Plan(plan.shape, FEWEST_STEPS, 0, min(128, side) if side > 128 else None)
        assert found.seconds(images, PER_PIXEL) <= max(budget, fewest.seconds(images, PER_PIXEL))


def test_steps_go_first_then_whole_images_then_folds():
    plan = Plan((256, 256), steps=160, folds=3)
    found = [within(plan, budget, 5, PER_PIXEL) for budget in (600, 300, 80, 12)]
    assert [(one.crop, one.folds) for one in found] == [(None, 3), (None, 3), (found[2].crop, 3), (128, 0)]
    assert found[1].steps < found[0].steps == 160
    assert found[2].crop is not None


def test_a_given_crop_is_kept():
    assert within(Plan((256, 256), 160, 3, crop=160), 1, 5, PER_PIXEL).crop == 160


def test_a_roomier_plan_is_never_smaller():
    large = [discs(90)]
    assert Plan.keeping(large, 160, 3).roomier(large).shape == (192, 192)
    assert Plan((256, 256), 160, 3).roomier(large).shape == (256, 256)


def test_a_plan_prints_the_settings_that_reproduce_it():
    masks = [discs(90, (400, 800))]
    plan = Plan.at(128, masks, 80, 3)
    assert plan.shape == (96, 160)
    said = dict(one.split("=") for one in within(plan, 20, 5, PER_PIXEL).settings().split())
    assert said.pop("size") == "128"
    assert said == {"per_step": "3", "steps": said["steps"], "folds": said["folds"]}


def test_a_single_image_is_seen_once_a_step():
    assert Plan((128, 128), 160, 0).images_a_step(1) == 1
    assert Plan((128, 128), 160, 3).images_a_step(5) == 5 + 3 * 4
    assert Plan((128, 128), 160, 3, batch=3).images_a_step(5) == 3 + 3 * 3


def test_twenty_images_keep_their_folds_within_a_minute():
    plan = within(Plan((128, 128), 160, 3, batch=10), 60, 20, per_pixel=1.7e-6)  # two cores
    assert (plan.folds, plan.batch) == (3, 5)
    assert FEWEST_STEPS <= plan.steps < 160
    assert plan.seconds(20, 1.7e-6) <= 60

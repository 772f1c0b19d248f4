"""The expected Dice, from the annotated images that each fold network has not seen."""

from dataclasses import replace

import numpy as np
import pytest

import metaseg
from metaseg.adapting.arrays import resized_mask
from metaseg.adapting.estimate import AHEAD, GOOD, POOR, Estimate, estimated
from metaseg.evaluation.scores import dice


def of(dsc, trivial=0.1, folds=3):
    baselines = {"mean mask": np.full(len(dsc), trivial), "Otsu": np.zeros(len(dsc)), "nothing": np.zeros(len(dsc))}
    return Estimate(np.array(dsc), baselines, folds)


def test_each_image_is_scored_by_a_fold_network_that_has_not_seen_it(lesions):
    masks = lesions[1]
    masks = [masks[0]] * 5
    small = np.stack([np.repeat(255 * resized_mask(mask, (24, 32))[..., None], 3, axis=-1) for mask in masks])
    parts = [np.array([0, 3]), np.array([1, 2, 4])]
    predicted = [mask if index in parts[0] else ~mask for index, mask in enumerate(masks)]

    found = estimated(predicted, parts, masks, small, small[..., 0] // 255)

    assert found.dsc.tolist() == [1, 0, 0, 1, 0]
    # At the size of the images, as the networks' masks.
    enlarged = resized_mask(small[0, ..., 0] // 255, masks[0].shape)
    assert dice(enlarged[None], masks[0][None])[0] < 1
    for name in ("mean mask", "Otsu"):
        assert found.trivial[name].tolist() == [dice(enlarged[None], masks[0][None])[0]] * 5
    assert found.trivial["nothing"].tolist() == [0] * 5
    assert found.folds == 2


def test_fold_networks_of_the_ensemble_give_the_estimate(trained, lesions):
    images, masks = lesions
    adapted = metaseg.load(trained).adapt(images, masks, steps=5, lr=3e-3)

    assert len(adapted.members) == 3
    for member, part in zip(adapted.members, ([0, 1], [2, 3], [4]), strict=True):
        predicted = replace(adapted, segmenter=member).segment([images[index] for index in part])
        for index, prediction in zip(part, predicted, strict=True):
            assert adapted.estimate.dsc[index] == dice(prediction[None], masks[index][None])[0]


@pytest.mark.long
def test_learners_without_an_ensemble_are_adapted_to_each_part(run_of, lesions):
    images, masks = lesions
    model = metaseg.load(run_of("learner=prototypes", "learner.adapt.steps=0"))

    adapted = model.adapt(images, masks)

    expected = model.adapt(images[2:], masks[2:], folds=0).segment(images[:2])
    found = [dice(one[None], mask[None])[0] for one, mask in zip(expected, masks, strict=False)]
    assert adapted.estimate.dsc[:2].tolist() == found
    assert adapted.estimate.folds == 3


def test_one_image_cannot_be_held_out(trained, lesions):
    assert metaseg.load(trained).adapt(lesions[0][:1], lesions[1][:1], steps=1).estimate is None


@pytest.mark.parametrize(
    ("dsc", "trivial", "verdict"),
    [(GOOD + 0.1, 0.1, "Use"), (GOOD - 0.1, 0.1, "Look"), (POOR - 0.2, 0.1, "Do not"), (0.9, 0.95, "Do not")],
)
def test_the_verdict_follows_the_estimate_and_the_baselines(dsc, trivial, verdict):
    assert of([dsc] * 5, trivial).verdict().startswith(verdict)


def test_few_images_do_not_vouch_for_masks():
    assert of([0.95] * 4).verdict().startswith("Look")
    assert "76 %; such figures are unreliable with fewer than 5 images (4 annotated" in of([0.7] * 4).sentence()


def test_images_without_foreground_do_not_hide_that_it_is_not_found():
    empty = np.array([1.0] * 9 + [0.0])
    blind = Estimate(empty, {"mean mask": np.zeros(10), "nothing": empty}, 3)  # it marks nothing anywhere
    assert "from 0.0 to 100.0, 0.0 on the 1 with foreground; marking nothing: 90.0)" in blind.sentence()
    assert blind.verdict().startswith("Do not")
    seeing = replace(blind, dsc=np.ones(10))
    assert seeing.verdict().startswith("Look")  # one image with foreground tells little
    several = replace(seeing, trivial={"nothing": np.array([1.0] * 5 + [0.0] * 5)})
    assert several.verdict().startswith("Use")


def test_a_network_level_with_a_baseline_is_of_no_use():
    level = of([0.9] * 3)
    assert replace(level, trivial={"Otsu": level.dsc - AHEAD / 2}).verdict().startswith("Do not")


def test_the_sentence_names_how_the_estimate_was_made():
    assert "leave-one-out" in of([0.5, 0.7, 0.9]).sentence()
    assert "2-fold" in of([0.5, 0.7, 0.9], folds=2).sentence()
    assert "76 %; such figures are 7 points off on average, at worst 30 too high (19 ann" in of([0.7] * 19).sentence()
    assert "76 %; such figures are 5 points off on average, at worst 18 too high (20 ann" in of([0.7] * 20).sentence()


def test_the_baselines_have_not_seen_the_image_that_they_are_scored_on():
    masks = np.zeros((2, 8, 8), bool)
    masks[0, :4] = masks[1, 4:] = True
    parts = [np.array([0]), np.array([1])]
    found = estimated([*masks], parts, [*masks], np.zeros((2, 8, 8, 3), np.uint8), masks.astype(np.uint8))
    assert found.trivial["mean mask"].tolist() == [0, 0]


def test_four_missed_objects_are_not_hidden_by_many_empty_images():
    empty, marked = [1.0] * 16, [0.2] * 4
    trivial = {"nothing": np.array([1.0] * 16 + [0.0] * 4), "mean mask": np.array([0.0] * 16 + [0.1] * 4)}
    assert Estimate(np.array(empty + marked), trivial, 3).verdict().startswith("Do not use these masks")

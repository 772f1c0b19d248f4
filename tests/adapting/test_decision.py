"""Where a segmenter decides, and what moves there."""

import numpy as np
import pytest
import torch

import metaseg
from metaseg.adapting.decision import LOWEST, ONE_IMAGE, UNKNOWN, has_output_bias, threshold_for, with_threshold
from metaseg.networks.build import build
from metaseg.networks.segmenter import AdaptedNetwork, Ensemble, Followed


def network(seed=0):
    made = build(name="attention_unet", features=2, seed=seed)
    return AdaptedNetwork(made, {name: value.detach() for name, value in made.named_parameters()}, {})


IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_threshold_is_half_of_the_dice():
    assert threshold_for(1.0) == 0.5
    assert threshold_for(0.6) == 0.3
    assert threshold_for(0.0) == LOWEST


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5])
def test_a_moved_network_marks_at_one_half_what_it_marked_at_the_threshold(threshold):
    plain = network()
    before = plain(IMAGES)
    cut = float(before.median())
    moved = with_threshold(plain, cut)
    torch.testing.assert_close(torch.logit(moved(IMAGES)), torch.logit(before) - np.log(cut / (1 - cut)))
    assert torch.equal(with_threshold(plain, threshold)(IMAGES) > 0.5, before > threshold)


def test_all_networks_of_an_ensemble_move():
    one, other = network(0), network(1)
    ensemble = Ensemble((one, other), False, one, Followed(1.0))
    moved = with_threshold(ensemble, 0.2)
    torch.testing.assert_close(
        moved(IMAGES), (with_threshold(one, 0.2)(IMAGES) + with_threshold(other, 0.2)(IMAGES)) / 2
    )
    torch.testing.assert_close(moved.alone(IMAGES), with_threshold(one, 0.2)(IMAGES))
    assert has_output_bias(ensemble)
    assert not has_output_bias(lambda images: images)


def test_an_adapted_segmenter_keeps_its_threshold_in_a_file(trained, lesions, tmp_path, monkeypatch):
    monkeypatch.setattr("metaseg.adapting.model.threshold_for", lambda *_: 0.2)
    adapted = metaseg.load(trained).adapt(*lesions, steps=3)
    monkeypatch.undo()
    assert adapted.threshold == 0.2
    assert metaseg.load_segmenter(metaseg.save(adapted, tmp_path / "one.safetensors")).threshold == 0.2


def test_scribbles_choose_no_threshold(trained, lesions, monkeypatch):
    monkeypatch.setattr("metaseg.adapting.model.threshold_for", lambda *_: pytest.fail("chosen"))
    images, masks = lesions
    strokes = [np.where(mask, 1, 0).astype(np.int16) for mask in masks]
    strokes[0][:4] = -1
    assert metaseg.load(trained).adapt(images, strokes, steps=1).threshold == 0.5


def test_the_built_in_model_is_less_cautious_without_held_out_images(lesions, trained):
    images, masks = lesions
    assert metaseg.load().adapt(images[:1], masks[:1], steps=1, size=32).threshold == ONE_IMAGE
    assert metaseg.load().adapt(images[:2], masks[:2], steps=1, size=32, folds=0).threshold == UNKNOWN
    assert metaseg.load(trained).adapt(images[:1], masks[:1], steps=1).threshold == 0.5

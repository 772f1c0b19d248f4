"""A segmenter in one file: used again, extended, refused."""

import copy
import errno
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import metaseg
from metaseg.adapting.arrays import resized_mask
from metaseg.adapting.checks import ALIKE, SIDE
from metaseg.errors import MetasegError


@pytest.fixture(scope="module")
def adapted(trained):
    from conftest import lesion

    pairs = [lesion(number) for number in range(4)]
    return metaseg.load(trained).adapt(*map(list, zip(*pairs, strict=True)), steps=20, lr=3e-3)


@pytest.fixture(scope="module")
def saved(adapted, tmp_path_factory):
    return metaseg.save(adapted, tmp_path_factory.mktemp("saved") / "lesions.safetensors")


def changed(path, tmp_path, **changes):
    """A copy of a file with other entries of its description."""
    with safe_open(path, framework="pt") as file:
        description = json.loads(file.metadata()["metaseg"])
    other = tmp_path / "changed.safetensors"
    save_file(load_file(path), other, {"metaseg": json.dumps(description | changes)})
    return other


def test_a_segmenter_is_the_same_after_saving(adapted, saved, lesions):
    again = metaseg.load_segmenter(saved)
    assert again.plan == adapted.plan
    assert again.estimate.sentence() == adapted.estimate.sentence()
    for one, other in zip(again.predict(lesions[0]), adapted.predict(lesions[0]), strict=True):
        assert np.abs(one.probabilities - other.probabilities).max() < 0.01  # half precision
        assert one.confidence == pytest.approx(other.confidence, abs=0.02)


def test_the_file_is_small_and_needs_no_run(saved, trained):
    parameters = sum(value.numel() for value in metaseg.load(trained).learner.network.parameters())
    # Four networks in half precision, and four thumbnails.
    assert saved.stat().st_size < 4 * (2.5 * parameters + 3 * SIDE**2) + 200_000


def test_saving_again_changes_nothing(saved, tmp_path):
    again = metaseg.save(metaseg.load_segmenter(saved), tmp_path / "again.safetensors")
    first, second = load_file(saved), load_file(again)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_more_images_mean_adapting_to_all_of_them(adapted, trained, lesions):
    images, masks = lesions
    few = metaseg.load(trained).adapt(images[:2], masks[:2], steps=3, folds=0)
    more = few.with_more(images[2:3], masks[2:3], steps=3, folds=0)
    assert len(more.support.images) == 3
    small = list(few.support.images)
    again = metaseg.load(trained).adapt(
        [*small, images[2]], [*(mask > 0 for mask in few.support.masks), masks[2]], steps=3, folds=0
    )
    assert np.array_equal(more.probabilities(images[:1])[0], again.probabilities(images[:1])[0])


def test_an_image_that_was_learnt_from_is_replaced(trained, lesions):
    images, masks = lesions
    few = metaseg.load(trained).adapt(images[:2], masks[:2], steps=1, folds=0)
    other = np.zeros_like(masks[0])
    other[5:20, 5:20] = True
    more = few.with_more([images[3], images[0]], [masks[3], other], steps=1, folds=0)
    assert len(more.support.images) == 3
    (place,) = [n for n, image in enumerate(more.support.images) if np.array_equal(image, few.support.images[0])]
    assert np.array_equal(more.support.masks[place] > 0, resized_mask(other, few.plan.shape) > 0)


def test_a_segmenter_keeps_its_label(trained, lesions, tmp_path):
    images, masks = lesions
    labels = [mask * np.uint8(2) for mask in masks]
    for label in labels:
        label[:4] = 1
    model = metaseg.load(trained)
    few = model.adapt(images[:1], labels[:1], label=np.uint8(2), steps=np.int64(1), folds=0)  # as np.unique gives it
    # That of a run's file cannot be extended.
    assert metaseg.load_segmenter(metaseg.save(few, tmp_path / "few.safetensors")).label == 2
    more = few.with_more(images[1:2], labels[1:2], steps=1, folds=0)
    alike = model.adapt(images[1:2], labels[1:2], label=2, steps=1, folds=0)
    assert np.array_equal(more.support.masks[-1], alike.support.masks[0])
    assert more.label == 2
    without = few.with_more(images[1:2], [np.where(labels[1] == 1, 1, 3)], steps=1, folds=0)
    assert not without.support.masks[-1].any()
    with pytest.raises(MetasegError, match="Expected label=2, of the masks"):
        few.with_more(images[1:2], labels[1:2], label=1)


def test_an_image_is_recognised_at_another_working_size(trained, tmp_path):
    fine = np.kron(np.random.default_rng(0).integers(0, 255, (3, 32, 48, 3)), np.ones((1, 3, 3, 1))).astype(np.uint8)
    mask = np.zeros(fine.shape[1:3], bool)
    mask[20:60, 30:90] = True
    few = metaseg.load(trained).adapt(fine[:2], [mask, mask], steps=1, folds=0, size=32)
    more = few.with_more([fine[2], fine[0]], [mask, ~mask], steps=1, folds=0, size=64)
    again = metaseg.load_segmenter(metaseg.save(more, tmp_path / "more.safetensors"))
    for one in (more, again):
        assert [one.place_of(image) for image in fine] == [2, 0, 1]  # the first, annotated again, has moved
        assert one.place_of(255 - fine[0]) is None


def test_images_that_are_alike_at_the_working_size_alone_can_be_added_to(trained):
    mask = np.zeros((96, 96), bool)
    mask[20:60, 30:90] = True
    noise = np.random.default_rng(0).integers(0, 5, (3, 96, 96, 3), dtype=np.uint8)
    fine = 100 + noise + np.uint8(40) * mask[..., None]
    few = metaseg.load(trained).adapt(fine[:2], [mask, mask], steps=1, folds=0, size=32)
    assert np.abs(few.support.images[0].astype(int) - few.support.images[1]).mean() < ALIKE
    assert len(few.with_more(fine[2:], [mask], steps=1, folds=0, size=32).support.images) == 3


def test_files_without_colours_and_thumbnails_are_still_read(saved, lesions, tmp_path):
    tensors = load_file(saved)
    del tensors["thumbnails"]
    with safe_open(saved, framework="pt") as file:
        description = json.loads(file.metadata()["metaseg"])
    del description["colours"]
    old = tmp_path / "old.safetensors"
    save_file(tensors, old, {"metaseg": json.dumps(description | {"format": 1})})
    again = metaseg.load_segmenter(old)
    image, mask = lesions[0][0], lesions[1][0]
    assert again.place_of(image) == 0  # at the working size
    assert (again.colours, again.thumbnails) == ({}, None)
    more = replace(again, model=replace(again.model, complete=True)).with_more([image], [mask], steps=1, folds=0)
    assert len(more.support.images) == len(again.support.images)
    assert more.place_of(image) == len(more.support.images) - 1


def test_colours_keep_their_labels_when_annotations_are_added(trained, lesions, tmp_path):
    images, masks = lesions
    green, red, blue = (0, 200, 0), (255, 0, 0), (0, 0, 255)

    def painted(mask, *stripes):
        """The mask in green, and stripes at the top."""
        pixels = mask[..., None] * np.array(green, np.uint8)
        for place, colour in enumerate(stripes):
            pixels[3 * place : 3 * place + 3] = colour
        return pixels

    model = metaseg.load(trained)
    few = model.adapt(images[:1], [painted(masks[0], red)], label=1, steps=1, folds=0)  # green
    again = metaseg.load_segmenter(metaseg.save(few, tmp_path / "few.safetensors"))
    assert again.colours == {0: 0, 0x00C800: 1, 0xFF0000: 2}
    again = replace(again, model=model)  # which the file of a run's segmenter does not hold
    more = again.with_more(images[1:2], [painted(masks[1], blue, red)], steps=1, folds=0)
    alike = model.adapt(images[1:2], masks[1:2], steps=1, folds=0)
    assert np.array_equal(more.support.masks[-1][12:], alike.support.masks[0][12:])
    assert not more.support.masks[-1][:4].any()
    assert more.colours == {0: 0, 0x00C800: 1, 0xFF0000: 2, 0x0000FF: 3}
    with pytest.raises(MetasegError, match="all labels as one, found label=2"):
        replace(more, label=None).require_label(2)


def test_the_file_of_a_runs_segmenter_cannot_be_extended(saved, lesions):
    with pytest.raises(MetasegError, match="adapt your model or run"):
        metaseg.load_segmenter(saved).with_more(*lesions)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 99},
        {"settings": {"learner": {"_target_": "os.system"}}},
        {"plan": {"shape": [64, 64], "steps": 1, "folds": 0}},
        {"plan": {"nothing": 1}},
        {"networks": 0},
        {"threshold": 0},
        {"threshold": float("nan")},
        {"threshold": 10**400},
        {"label": "red"},
        {"colours": {"red": 1}},
        {"colours": {"255": None}},
        {"augmentation": "violent"},
        {"estimate": {"dsc": [], "trivial": {"Otsu": []}, "folds": 3, "scribbled": 0}},
        {"estimate": {"dsc": [0.5] * 4, "trivial": {}, "folds": 3, "scribbled": 0}},
        {
            "estimate": {
                "dsc": [0.5, 0.5, 0.5, float("nan")],
                "trivial": {"Otsu": [0.1] * 4},
                "folds": 3,
                "scribbled": 0,
            }
        },
    ],
)
def test_files_with_another_description_are_refused(saved, tmp_path, changes):
    with pytest.raises(MetasegError):
        metaseg.load_segmenter(changed(saved, tmp_path, **changes))


def test_other_files_are_refused(saved, tmp_path):
    (tmp_path / "text.safetensors").write_text("nothing")
    (tmp_path / "cut.safetensors").write_bytes(saved.read_bytes()[:-1000])
    tensors = load_file(saved)
    save_file(tensors, tmp_path / "bare.safetensors")
    for name in ("gone", "text", "cut", "bare"):
        with pytest.raises(MetasegError, match=name):
            metaseg.load_segmenter(tmp_path / f"{name}.safetensors")


@pytest.mark.long
def test_learners_that_compare_images_cannot_be_saved(run_of, lesions, tmp_path):
    adapted = metaseg.load(run_of("learner=prototypes", "learner.adapt.steps=0")).adapt(*lesions, folds=0)
    with pytest.raises(MetasegError, match="compares images"):
        metaseg.save(adapted, tmp_path / "file.safetensors")


@pytest.mark.long
def test_the_built_in_model_can_be_extended_from_its_file(lesions, tmp_path):
    images, masks = lesions
    few = metaseg.load().adapt(images[:1], masks[:1], steps=1, size=64)
    more = metaseg.load_segmenter(metaseg.save(few, tmp_path / "one.safetensors")).with_more(
        images[1:2], masks[1:2], steps=1, size=64
    )
    assert len(more.support.images) == 2
    assert len(more.members) == 2


def test_a_full_disk_is_a_sentence_and_leaves_the_old_file(adapted, tmp_path, monkeypatch):
    path = metaseg.save(adapted, tmp_path / "kept.safetensors")
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(MetasegError, match="No space left"):
        metaseg.save(adapted, path)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_a_variance_beyond_half_precision_is_the_largest_one(adapted, tmp_path):
    wide = copy.deepcopy(adapted)
    network = wide.segmenter.members[0]
    layer, (mean, variance) = next(iter(network.statistics.items()))
    network.statistics[layer] = (mean, torch.full_like(variance, 1e5))
    again = metaseg.load_segmenter(metaseg.save(wide, tmp_path / "wide.safetensors"))
    assert (again.segmenter.members[0].statistics[layer][1] == 65504).all()

"""Learning from a few strokes: masks whose unmarked pixels are -1."""

import numpy as np
import pytest

import metaseg
from metaseg.adapting.arrays import resized_mask
from metaseg.adapting.estimate import estimated
from metaseg.data.batches import SupportSet
from metaseg.errors import MetasegError
from metaseg.meta.losses import UNMARKED


def disc(number, size=(64, 96)):
    """A bright disc on a dark ground with noise: uint8 (H, W, 3), its mask, bool (H, W), and its centre."""
    rng = np.random.default_rng(number)
    centre, radius = rng.uniform([24, 24], [40, 72]), rng.uniform(12, 18)
    inside = np.hypot(*(np.indices(size) - centre[:, None, None])) < radius
    pixels = np.where(inside, 190, 60)[..., None] + rng.normal(0, 12, (*size, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8), inside, centre.astype(int)


def scribble(inside, centre):
    """One stroke through the centre of the disc, and two along the image's edges."""
    strokes = np.full(inside.shape, -1)
    row, column = centre
    strokes[row - 1 : row + 2, column - 8 : column + 9] = 1
    strokes[3:6, 5:-5] = strokes[-6:-3, 5:-5] = 0
    return strokes


def dices(found, truths):
    return [2 * (one & truth).sum() / (one.sum() + truth.sum()) for one, truth in zip(found, truths, strict=True)]


def test_a_few_strokes_find_discs(trained):
    images, truths, centres = zip(*(disc(number) for number in range(8)), strict=True)
    strokes = [scribble(*pair) for pair in zip(truths[:4], centres[:4], strict=True)]
    assert all(np.array_equal(one[one >= 0], truth[one >= 0]) for one, truth in zip(strokes, truths, strict=False))
    assert all((one >= 0).mean() < 0.12 for one in strokes)
    segmenter = metaseg.load(trained).adapt(images[:4], strokes, steps=60, lr=3e-3, folds=0)
    assert np.mean(dices(segmenter.segment(images[4:]), truths[4:])) > 0.8


def test_a_file_keeps_scribbles_for_further_ones(trained, tmp_path):
    images, truths, centres = zip(*(disc(number) for number in range(3)), strict=True)
    strokes = [scribble(*pair) for pair in zip(truths, centres, strict=True)]
    model = metaseg.load(trained)
    few = model.adapt(images[:1], strokes[:1], steps=2, folds=0)
    assert set(np.unique(few.support.masks)) == {0, 1, UNMARKED}
    more = few.with_more(images[1:], [strokes[1], truths[2]], steps=2)
    assert [(mask == UNMARKED).any() for mask in more.support.masks] == [True, True, False]
    assert more.estimate.scribbled == 2
    assert more.estimate.sentence()
    assert more.estimate.verdict()
    path = metaseg.save(more, tmp_path / "more.safetensors")
    read = metaseg.load_segmenter(path)
    assert read.estimate.scribbled == 2
    assert np.array_equal(read.support.masks, more.support.masks)


def test_held_out_scribbles_are_scored_where_they_are_marked():
    truth = np.full((8, 8), UNMARKED, np.uint8)
    truth[0], truth[1] = 1, 0
    wrong_elsewhere = np.zeros((8, 8), bool)
    wrong_elsewhere[0], wrong_elsewhere[4:] = True, True
    image = np.zeros((8, 8, 3), np.uint8)
    for found, expected in ((wrong_elsewhere, 1), (~wrong_elsewhere, 0)):
        estimate = estimated([found] * 2, [np.arange(2)], [truth] * 2, np.stack([image] * 2), np.stack([truth] * 2))
        assert estimate.dsc.tolist() == [expected] * 2
        assert estimate.scribbled == 2


def test_thin_strokes_are_kept_when_shrunk():
    strokes = np.full((400, 400), UNMARKED, np.uint8)
    strokes[200], strokes[:, 17] = 1, 0
    small = resized_mask(strokes, (32, 32))
    assert small.dtype == np.uint8
    assert set(np.unique(small)) == {0, 1, UNMARKED}
    assert (small[16] == 1).sum() == 31
    assert (small[:, 1] != UNMARKED).all()
    assert (small != UNMARKED).sum() == 63


def test_augmentation_invents_no_marks():
    image, inside, centre = disc(0)
    masks = np.where(scribble(inside, centre) < 0, UNMARKED, inside).astype(np.uint8)[None]
    support = SupportSet(image[None], masks, "standard", 0)
    assert support.scribbled
    for step in range(5):
        assert set(np.unique(support.augmented(step)[1].numpy())) <= {0, 1, UNMARKED}
    assert not SupportSet(image[None], inside.astype(np.uint8)[None], "standard", 0).scribbled


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (np.full((64, 96), -1), "foreground"),
        (np.where(np.eye(64, 96, dtype=bool), 0, -1), "foreground"),
        (np.where(np.eye(64, 96, dtype=bool), 1, -1), "outside"),
        (np.full((64, 96), -2), "from 0 up"),
    ],
)
def test_refuses_scribbles_that_say_nothing(trained, mask, expected):
    with pytest.raises(MetasegError, match=expected):
        metaseg.load(trained).adapt([disc(0)[0]], [mask])


def test_learners_that_compare_images_refuse_scribbles(run_of):
    image, inside, centre = disc(0)
    model = metaseg.load(run_of("learner=prototypes", "learner.adapt.steps=0"))
    with pytest.raises(MetasegError, match="whole masks"):
        model.adapt([image], [scribble(inside, centre)])


def test_scribbles_may_have_a_last_axis_of_length_one(trained):
    image, inside, centre = disc(0)
    strokes = scribble(inside, centre)
    flat, deep = (
        metaseg.load(trained).adapt([image], [one], steps=1, folds=0) for one in (strokes, strokes[..., None])
    )
    assert np.array_equal(flat.support.masks, deep.support.masks)


def test_masks_that_are_all_foreground_are_no_scribbles(trained):
    image, inside, _ = disc(0)
    with pytest.raises(MetasegError, match="found nothing but foreground"):
        metaseg.load(trained).adapt([image], [np.ones_like(inside)])

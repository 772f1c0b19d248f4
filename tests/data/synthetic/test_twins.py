import hashlib
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest

from metaseg.data.synthetic.endoscopy import CAPSULE_BLOCK, CVC_FRAMES
from metaseg.data.synthetic.painting import Outline, generator, grid, strokes
from metaseg.data.synthetic.twins import DEFAULT_COUNTS, SMALLEST, TWIN_SEED, twin
from metaseg.errors import MetasegError
from metaseg.evaluation.scores import dice
from metaseg.evaluation.trivial import trivial_scores

NAMES = tuple(DEFAULT_COUNTS)

# Mean Dice in % on the real data at 64×64: all-foreground, best centred disc, mean mask, Otsu; and mean share.
REAL = {
    "ph2": (44.6, 63.6, 64.5, 70.5, 0.32),
    "kvasir": (24.8, 38.6, 39.7, 34.5, 0.15),
    "cvc": (16.0, 28.7, 31.3, 26.1, 0.09),
    "isic": (31.1, 53.2, 53.8, 61.0, 0.21),
    "kvasir_capsule": (75.0, 82.8, 86.4, 83.7, 0.61),
}


@pytest.fixture(scope="module")
def twins():
    return {name: twin(name, count, 64, TWIN_SEED) for name, count in DEFAULT_COUNTS.items()}


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_shapes_types_and_values(twins, name):
    images, masks, ids, groups = twins[name]
    count = DEFAULT_COUNTS[name]
    assert images.shape == (count, 64, 64, 3)
    assert images.dtype == np.uint8
    assert masks.shape == (count, 64, 64)
    assert masks.dtype == np.uint8
    assert set(np.unique(masks)) == {0, 1}
    assert len(set(ids)) == len(ids) == count
    assert groups.shape == (count,)
    assert groups.dtype == np.int64


@pytest.mark.parametrize("name", NAMES)
def test_image_depends_on_name_seed_and_index_alone(name):
    many, few = twin(name, 24, 48, 5), twin(name, 3, 48, 5)
    for more, less in zip(many, few, strict=True):
        np.testing.assert_array_equal(more[:3], less)
    assert not np.array_equal(twin(name, 3, 48, 6)[0], few[0])
    assert len(np.unique(many[0], axis=0)) == 24


def test_ph2_and_isic_are_painted_from_different_streams(twins):
    assert not np.array_equal(twins["ph2"][1], twins["isic"][1])


@pytest.mark.long
def test_thread_pools_change_nothing():
    program = (
        "import cv2, hashlib; cv2.setNumThreads(4); from metaseg.data.synthetic.twins import DEFAULT_COUNTS, twin\n"
        "arrays = [array.tobytes() for name in DEFAULT_COUNTS for array in twin(name, 2, 96, 1)[:2]]\n"
        "print(hashlib.sha256(b''.join(arrays)).hexdigest())"
    )
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "4")
    other = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **threads}, capture_output=True, text=True, check=True
    )
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        here = b"".join(array.tobytes() for name in NAMES for array in twin(name, 2, 96, 1)[:2])
    finally:
        cv2.setNumThreads(before)
    assert other.stdout.strip() == hashlib.sha256(here).hexdigest()


@pytest.mark.parametrize("name", NAMES)
def test_every_size_shows_the_same_scenes(name):
    small, large = twin(name, 12, 48, 2), twin(name, 12, 96, 2)
    halved = large[1].reshape(12, 48, 2, 48, 2).mean((2, 4)) > 0.5
    assert dice(halved, small[1]).mean() > 0.9
    colours = large[0].reshape(12, 48, 2, 48, 2, 3).mean((2, 4))
    assert np.abs(colours - small[0]).mean() < 8


@pytest.mark.parametrize("name", NAMES)
def test_no_mask_is_empty_at_the_smallest_size(name):
    masks = twin(name, 150, SMALLEST, 1)[1]
    assert masks.any((1, 2)).all()
    assert not masks.all((1, 2)).any()


@pytest.mark.parametrize("name", NAMES)
def test_predictors_without_learning_score_as_on_the_real_data(twins, name):
    images, masks, _, _ = twins[name]
    scores = {key: 100 * value.mean() for key, value in trivial_scores(images, masks, images, masks).items()}
    *expected, share = REAL[name]
    found = [scores[key] for key in ("all_foreground", "centred_disc", "mean_support_mask", "otsu")]
    np.testing.assert_allclose(found, expected, atol=6)
    assert abs(masks.mean() - share) < 0.03


def test_polarity_differs_between_the_domains(twins):
    def contrast(name):
        images, masks, _, _ = twins[name]
        green, inside = images[..., 1].astype(float), masks.astype(bool)
        return np.array([g[m].mean() - g[~m].mean() for g, m in zip(green, inside, strict=True)])

    for name in ("ph2", "isic"):
        assert np.mean(contrast(name) < 0) > 0.8
    for name in ("kvasir", "cvc", "kvasir_capsule"):
        assert np.mean(contrast(name) > 0) > 0.8


def test_isic_varies_more_than_ph2(twins):
    def skin(name):
        images, masks, _, _ = twins[name]
        middle = np.zeros((64, 64), bool)
        middle[12:52, 12:52] = True
        kept = [i for i in range(len(masks)) if (middle & (masks[i] == 0)).sum() > 50]
        return np.array([images[i][middle & (masks[i] == 0)].mean(0) for i in kept])

    assert (skin("isic").std(0) > 1.2 * skin("ph2").std(0)).all()


def test_cvc_frames_of_a_sequence_are_nearly_identical(twins):
    images, masks, _, groups = twins["cvc"]
    np.testing.assert_array_equal(groups, np.arange(len(images)) // CVC_FRAMES)
    pixels = images.reshape(len(images), -1).astype(float)
    step = np.abs(np.diff(pixels, axis=0)).mean(1)
    same = groups[1:] == groups[:-1]
    assert step[same].mean() < 0.4 * step[~same].mean()
    assert dice(masks[1:][same], masks[:-1][same]).mean() > 0.8 > 2 * dice(masks[1:][~same], masks[:-1][~same]).mean()


def test_capsule_is_one_smooth_video_of_one_large_polyp(twins):
    images, masks, _, groups = twins["kvasir_capsule"]
    np.testing.assert_array_equal(groups, np.arange(55) // CAPSULE_BLOCK)
    share = masks.mean((1, 2))
    assert share.min() > 0.34
    assert share.max() < 0.85
    assert share.max() - share.min() > 0.3
    pixels = images.reshape(55, -1).astype(float)
    assert np.abs(pixels[1:] - pixels[:-1]).mean() < 0.5 * np.abs(pixels[20:] - pixels[:-20]).mean()
    assert dice(masks[1:], masks[:-1]).min() > 0.8


def test_other_images_are_groups_of_their_own(twins):
    for name in ("ph2", "isic", "kvasir"):
        np.testing.assert_array_equal(twins[name][3], np.arange(DEFAULT_COUNTS[name]))


def test_outline_covers_the_wanted_share_of_the_frame():
    x, y = grid(80)
    outline = Outline.draw(generator("isic", 0, 3), 0.1, 0.1, 1.0)
    visible = x < 0.5
    depth = outline.depth(x, y, 0.3, visible)
    assert ((depth > 0) & visible).sum() == round(0.3 * 6400)
    assert depth.max() <= 1


def test_strokes_cover_the_same_area_at_every_size():
    line = [np.array([[-0.5, 0.0], [0.5, 0.0]])]
    areas = [strokes(line, 8, size).mean() for size in (32, 64, 256)]
    np.testing.assert_allclose(areas, areas[-1], rtol=0.01)
    assert areas[-1] == pytest.approx(0.5 * 8 / 256, rel=0.3)  # antialiasing and round ends widen it by a pixel or two


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("retina", 1, 64, 0), "no synthetic twin of 'retina'.*kvasir_capsule"),
        (("ph2", 0, 64, 0), "count=0"),
        (("ph2", 1, 16, 0), "size ≥ 32.*size=16"),
        (("ph2", 1, 64, -1), "seed=-1"),
    ],
)
def test_invalid_input_is_refused_in_one_sentence(arguments, sentence):
    with pytest.raises(MetasegError, match=sentence):
        twin(*arguments)

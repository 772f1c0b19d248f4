import os

import cv2
import numpy as np
import pytest

from metaseg.evaluation.scores import dice
from metaseg.evaluation.trivial import (
    best_centred_disc,
    lesion_is_dark,
    mean_support_mask,
    otsu_green,
    trivial_scores,
)

GENERATOR = np.random.default_rng(0)


def disc(size, radius, centre=(0, 0)):
    axis = (np.arange(size) + 0.5) * 2 / size - 1
    return np.hypot(axis[:, None] - centre[1], axis - centre[0]) < radius


def picture(mask, inside, outside):
    return np.where(mask[..., None], np.uint8(inside), np.uint8(outside)).repeat(3, -1)


def test_all_foreground_is_a_function_of_the_share():
    masks = np.stack([disc(32, r) for r in (0.3, 0.8)])
    images = np.zeros((2, 32, 32, 3), np.uint8)
    share = masks.mean((1, 2))
    np.testing.assert_allclose(trivial_scores(images, masks, images, masks)["all_foreground"], 2 * share / (1 + share))


def test_disc_finds_the_disc():
    for radius in (0.05, 0.4, 0.93, 1.5):
        mask = disc(33, radius)
        np.testing.assert_array_equal(best_centred_disc(mask[None]), mask)


def test_disc_is_the_best_of_all_radii():
    masks = np.stack([disc(24, GENERATOR.uniform(0.2, 1), GENERATOR.normal(0, 0.3, 2)) for _ in range(15)])
    distance = np.unique(np.round(np.hypot(*np.meshgrid(*[(np.arange(24) + 0.5) / 12 - 1] * 2)), 9))
    every = [dice(np.broadcast_to(disc(24, d + 1e-6), masks.shape), masks).mean() for d in distance]
    found = dice(np.broadcast_to(best_centred_disc(masks), masks.shape), masks).mean()
    assert found == pytest.approx(max(every))


def test_disc_of_an_oblong_image_is_an_ellipse():
    mask = cv2.resize(disc(64, 0.6).astype(np.uint8), (32, 64), interpolation=cv2.INTER_AREA)[None]
    assert dice(best_centred_disc(mask)[None], mask)[0] > 0.97


def test_mean_support_mask_by_hand():
    masks = np.array([[[1, 1, 0, 0]], [[1, 1, 0, 0]], [[1, 0, 1, 0]]])
    # Levels: 1 keeps pixel 0 (Dice 2/3 each), 2/3 keeps 0 and 1 (1, 1, 1/2), 1/3 adds pixel 2 (4/5 each).
    np.testing.assert_array_equal(mean_support_mask(masks), [[True, True, False, False]])


def test_mean_support_mask_of_one_image_is_its_mask():
    np.testing.assert_array_equal(mean_support_mask(disc(16, 0.5, (0.3, 0))[None]), disc(16, 0.5, (0.3, 0)))


def test_mean_support_mask_of_scattered_objects_is_not_empty():
    masks = np.stack([disc(32, 0.3, centre) for centre in ((-0.5, -0.5), (0.5, -0.5), (-0.5, 0.5), (0.5, 0.5))])
    assert masks.mean(0).max() < 0.5
    np.testing.assert_array_equal(mean_support_mask(masks), masks.any(0))


def test_otsu_agrees_with_opencv():
    images = np.stack(
        [
            np.clip(GENERATOR.normal(np.where(disc(32, 0.5), *levels)[..., None], spread, (32, 32, 3)), 0, 255)
            for levels, spread in (((90, 160), 10), ((200, 40), 30), ((100, 110), 25))
        ]
    ).astype(np.uint8)
    dark, bright = otsu_green(images, dark=True), otsu_green(images, dark=False)
    np.testing.assert_array_equal(dark, ~bright)
    for image, found in zip(images, bright, strict=True):
        expected = cv2.threshold(image[..., 1].copy(), 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[1]
        np.testing.assert_array_equal(found, expected == 1)


def test_otsu_uses_green_only():
    image = np.zeros((1, 16, 16, 3), np.uint8)
    image[0, ..., 0] = np.where(disc(16, 0.9), 255, 0)
    image[0, ..., 1] = np.where(disc(16, 0.4), 50, 200)
    np.testing.assert_array_equal(otsu_green(image, dark=True)[0], disc(16, 0.4))


def test_a_constant_image_is_all_dark():
    flat = np.full((1, 8, 8, 3), 77, np.uint8)
    assert otsu_green(flat, dark=True).all()
    assert not otsu_green(flat, dark=False).any()


@pytest.mark.parametrize(("inside", "outside"), [(60, 180), (180, 60)])
def test_polarity_comes_from_the_support(inside, outside):
    masks = np.stack([disc(24, r) for r in (0.4, 0.6)])
    images = np.stack([picture(mask, inside, outside) for mask in masks])
    assert lesion_is_dark(images, masks) == (inside < outside)
    np.testing.assert_array_equal(trivial_scores(images[:1], masks[:1], images, masks)["otsu"], 1)
    wrong = trivial_scores(255 - images[:1], masks[:1], images, masks)["otsu"]
    np.testing.assert_array_equal(wrong, 0)


def test_only_the_disc_uses_the_scored_masks():
    images = GENERATOR.integers(0, 255, (3, 16, 16, 3), np.uint8)
    support = disc(16, 0.3, (0.5, 0.5))[None]
    masks = np.stack([disc(16, r) for r in (0.4, 0.5, 0.6)])
    scores = trivial_scores(images[:1], support, images, masks)
    assert {key: value.shape for key, value in scores.items()} == dict.fromkeys(
        ("all_foreground", "centred_disc", "mean_support_mask", "otsu"), (3,)
    )
    np.testing.assert_allclose(scores["mean_support_mask"], dice(np.broadcast_to(support[0], masks.shape), masks))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("kvasir_capsule", (74.9, 82.8, 86.6, 83.9)),
        pytest.param("kvasir", (24.8, 38.6, 39.7, 34.3), marks=pytest.mark.slow),
        pytest.param("isic", (31.1, 53.2, 53.8, 60.1), marks=pytest.mark.slow),
    ],
)
@pytest.mark.skipif("METASEG_DATA" not in os.environ, reason="METASEG_DATA names no folder with the real datasets")
def test_levels_on_the_real_data(name, expected, tmp_path):
    from metaseg.data.catalogue import get
    from metaseg.data.pools import prepare

    pool = prepare(get(name), os.environ["METASEG_DATA"], 128, cache_dir=tmp_path)
    scores = trivial_scores(pool.images, pool.masks, pool.images, pool.masks)
    np.testing.assert_allclose([100 * value.mean() for value in scores.values()], expected, atol=1.0)

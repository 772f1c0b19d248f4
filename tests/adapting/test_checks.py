"""Warnings appear when justified, and only then."""

import os
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from metaseg.adapting.checks import ALIKE, distances, look, of_new, of_support, place_of, require_different
from metaseg.errors import MetasegError

NAMES = ["a", "b", "c"]
SIZES = [(30, 40)] * 3


def looks(images):
    return np.stack([look(image) for image in images])


def masks(*shares):
    return [np.arange(100).reshape(10, 10) < 100 * share for share in shares]


def test_a_good_support_set_is_not_commented():
    assert of_support(NAMES, SIZES, masks(0.1, 0.2, 0.3)) == []


def test_empty_and_full_masks_are_named():
    said = of_support(NAMES, SIZES, masks(0, 0.5, 1))
    assert "a: the mask has no foreground" in said[0]
    assert "c: the mask has nothing but foreground" in said[1]


def test_shares_and_sizes_far_apart_are_named():
    (said,) = of_support(NAMES, SIZES, masks(0.01, 0.2, 0.9))
    assert "1 % of a and 90 % of c" in said
    (said,) = of_support(NAMES, [(30, 40), (300, 400), (30, 40)], masks(0.1, 0.2, 0.3))
    assert "from 40×30 (a) to 400×300 (b)" in said
    (said,) = of_support(NAMES, [(30, 40), (40, 30), (30, 90)], masks(0.1, 0.2, 0.3))
    assert "differ in size" in said


def test_images_of_other_colours_are_named():
    generator = np.random.default_rng(0)
    pink, green = np.array([200, 120, 120]), np.array([60, 160, 60])
    support, like, unlike = (
        looks(np.clip(generator.normal(colour, 20, (count, 8, 8, 3)), 0, 255).astype(np.uint8))
        for colour, count in ((pink, 4), (pink, 3), (green, 1))
    )
    assert of_new(support, like, NAMES) == []
    (said,) = of_new(support, np.concatenate([like, unlike]), [*NAMES, "d"])
    assert said.startswith("1 image of 4 looks unlike the annotated ones in colour or contrast (d)")
    assert len(distances(support[:1], like)) == 3  # one annotated image tells nothing of their spread


@pytest.mark.skipif("METASEG_DATA" not in os.environ, reason="needs the real datasets in METASEG_DATA")
def test_of_real_images_those_of_another_kind_stand_out():
    from metaseg.data import catalogue, pools

    root = ROOT / Path(os.environ["METASEG_DATA"])
    skin, gut = (pools.prepare(catalogue.get(name), root, 32).images for name in ("ph2", "kvasir"))
    order = np.random.default_rng(0).permutation(len(skin))
    support, others = looks(skin[np.sort(order[:5])]), looks(skin[np.sort(order[5:])])
    assert (distances(support, others) > 3).mean() < 0.05
    assert (distances(support, looks(gut[:300])) > 3).mean() > 0.1


def test_dim_images_are_told_apart():
    cells = np.zeros((3, 64, 64, 3), np.uint8)
    for number, image in enumerate(cells):
        image[10 * number : 10 * number + 8, 20:28] = 12
    assert np.abs(cells[0].astype(int) - cells[1]).mean() < ALIKE
    require_different(NAMES, cells)
    assert place_of(cells[2], cells) == 2
    assert place_of(cells[0] * 0, cells[:1] * 0) == 0  # nor is a flat image another than itself


def test_an_image_that_is_there_twice_is_refused_even_if_it_was_saved_again():
    images = np.random.default_rng(0).integers(20, 230, (3, 16, 16, 3), dtype=np.uint8)
    require_different(NAMES, images)
    assert place_of(images[1], images) == 1
    assert place_of(images[0], images[1:]) is None
    again = images[1].copy()
    again[::4] += 1  # a quarter of the values by one
    with pytest.raises(MetasegError, match="found b and d alike"):
        require_different([*NAMES, "d"], np.concatenate([images, again[None]]))


def test_the_usual_distance_is_that_of_different_annotated_images():
    support = np.outer([0.0, 1.0, 2.0], np.eye(6)[0])
    new = np.outer([0.5, 5.0], np.eye(6)[0])
    assert distances(support, new) == pytest.approx([0.5, 3.0])

"""Which images to annotate."""

import numpy as np
import pytest

import metaseg
from metaseg.adapting.suggest import farthest, image_features
from metaseg.errors import MetasegError


def clusters(sizes, seed=0):
    """Points around corners of a simplex, as many as given around each, and the corner of each."""
    generator = np.random.default_rng(seed)
    of = np.repeat(np.arange(len(sizes)), sizes)
    return 10 * np.eye(len(sizes))[of] + generator.normal(0, 0.1, (len(of), len(sizes))), of


def test_the_farthest_points_go_on_from_those_chosen():
    points, of = clusters([4, 4, 4, 4])
    assert sorted(of[farthest(points, 4)]) == [0, 1, 2, 3]
    start = [0, 5]
    assert sorted(of[farthest(points, 2, start)]) == [2, 3]


def test_similar_images_have_similar_descriptions():
    generator = np.random.default_rng(0)
    grain = generator.integers(0, 60, (3, 64, 64, 3)).astype(np.uint8)
    red, green = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64, 3), np.uint8)
    red[..., 0] = green[..., 1] = 180
    first, second, other = image_features(metaseg.load(), [grain[0] + red, grain[1] + red, grain[2] + green])
    assert np.linalg.norm(first) == pytest.approx(1, abs=1e-5)
    assert first @ second > max(first @ other, second @ other)


def test_networks_without_an_encoder_cannot_compare_images(run_of, lesions):
    with pytest.raises(MetasegError, match="encoder"):
        image_features(metaseg.load(run_of("learner=feyjie", "learner.adapt.steps=0")), lesions[0])


def test_the_most_typical_image_comes_first():
    assert farthest(np.array([[0.0], [1.0], [5.0]]), 2) == [1, 2]

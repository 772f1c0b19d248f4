"""The paired test against values computed by hand."""

import numpy as np
import pytest

from metaseg.errors import MetasegError
from metaseg.evaluation.intervals import bootstrap_interval, p_value
from metaseg.evaluation.paired import paired_test

NAN = np.nan


def test_counts_are_over_images_by_their_mean_over_draws():
    # Image 0: (+0.3 - 0.1) / 2 = +0.1; image 1: -0.2; image 2: +0.3.
    gaps = np.array([[0.3, -0.2, 0.3], [-0.1, -0.2, 0.3]])
    result = paired_test(0.5 + gaps, np.full((2, 3), 0.5))
    assert (result.images, result.draws, result.ahead, result.behind) == (3, 2, 2, 1)
    assert result.difference.mean == pytest.approx(gaps.mean())


@pytest.mark.long
def test_thousands_of_images_do_not_tell_two_seeds_apart():
    """Over images, a difference of 0.1 that both seeds scatter around would have a p of next to nothing."""
    gaps = np.array([[0.15], [0.05]]) + np.random.default_rng(0).normal(0, 0.01, (2, 5000))
    result = paired_test(0.5 + gaps, np.full((2, 5000), 0.5), seeds=[0, 1])
    assert result.p > 0.2
    assert result.difference.low < 0 < result.difference.high


@pytest.mark.parametrize("seeds", [None, [0, 0, 0], [0, 0, 1]])
def test_draws_of_one_seed_give_an_interval_but_no_p(seeds):
    # The second seed of the last has no image that both scored.
    first, second = np.full((3, 4), 0.7), np.full((3, 4), 0.5)
    first[2] = NAN
    result = paired_test(first, second, seeds=seeds)
    assert (result.seeds, result.draws) == (1, 2)
    assert np.isnan(result.p)
    assert result.difference == pytest.approx((0.2, 0.2, 0.2))


def test_p_is_over_the_seeds_that_both_have():
    result = paired_test(np.full((3, 4), 0.7), np.full((3, 4), 0.5), seeds=[0, 0, 1])
    assert (result.seeds, result.p) == (2, 0)


def test_seeds_and_groups_are_the_units_of_interval_and_p():
    gaps = np.array([[0.0], [0.1], [0.2]]).repeat(2, 0) + np.array([0.0, -0.1, 0.0, 0.1]).repeat(3)
    gaps += np.random.default_rng(0).normal(0, 0.02, gaps.shape)
    gaps[:, :3] = NAN  # nothing of one group
    labels = {"seeds": [0, 0, 1, 1, 2, 2], "groups": np.arange(12) // 3}
    found = paired_test(0.5 + gaps, np.full(gaps.shape, 0.5), **labels)
    assert found.groups == 3
    assert found.difference == pytest.approx(bootstrap_interval(gaps, **labels))
    assert found.p == pytest.approx(p_value(gaps, **labels))
    for left_out in labels:
        others = {key: value for key, value in labels.items() if key != left_out}
        assert found.difference.low < bootstrap_interval(gaps, **others).low
        assert found.p > p_value(gaps, **others) + 1e-3


def test_only_cells_that_both_scored_count():
    # Both scored: draw 0 of image 0 (+0.2), draw 1 of image 1 (+0.1). Image 2 and draw 2 have no common cell.
    first = np.array([[0.7, 0.9, NAN], [NAN, 0.6, 0.1], [0.1, NAN, NAN]])
    second = np.array([[0.5, NAN, 0.2], [0.9, 0.5, NAN], [NAN, 0.3, 0.8]])
    result = paired_test(first, second)
    assert (result.images, result.draws) == (2, 2)
    assert result.difference.mean == pytest.approx(0.15)


def test_swapping_the_learners_swaps_the_sign():
    generator = np.random.default_rng(0)
    first, second = generator.uniform(size=(2, 3, 80))
    there, back = (paired_test(*pair, seeds=[0, 1, 1]) for pair in ((first, second), (second, first)))
    assert there.p == pytest.approx(back.p)
    assert there.difference.mean == pytest.approx(-back.difference.mean)
    assert (there.ahead, there.behind) == (back.behind, back.ahead)


def test_equal_scores_are_no_difference():
    scores = np.random.default_rng(1).uniform(size=(2, 10))
    result = paired_test(scores, scores, seeds=[0, 1])
    assert (result.p, result.ahead, result.behind) == (1.0, 0, 0)
    assert result.difference == (0, 0, 0)


def test_rounding_is_no_difference():
    # 0.1 + 0.2 is not 0.3 in floating point.
    result = paired_test(np.full((2, 3), 0.1 + 0.2), np.full((2, 3), 0.3), seeds=[0, 1])
    assert (result.p, result.ahead, result.behind) == (1, 0, 0)


def test_refuses_scores_without_common_cells():
    with pytest.raises(MetasegError, match="in the same draw"):
        paired_test(np.array([[0.5, NAN]]), np.array([[NAN, 0.5]]))
    with pytest.raises(MetasegError, match=r"\(1, 2\) and \(1, 3\)"):
        paired_test(np.zeros((1, 2)), np.zeros((1, 3)))


def test_a_mean_over_draws_below_rounding_is_a_tie():
    result = paired_test(np.array([[0.8], [0.2]]), np.full((2, 1), 0.5))
    assert (result.ahead, result.behind) == (0, 0)

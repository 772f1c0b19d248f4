"""The paired test against values computed by hand."""

import numpy as np
import pytest

from metaseg.errors import MetasegError
from metaseg.evaluation.paired import paired_test

NAN = np.nan


def test_ranks_effect_and_p_by_hand():
    # Differences 0.1, -0.2, 0.3, 0.4, 0.5: ranks 1 to 5, W- = 2, W+ = 13, effect 11/15. Of the 32 equally likely signs,
    # W- <= 2 for three (none, {1}, {2}), so the two-sided p is 6/32.
    second = np.full((1, 5), 0.25)
    result = paired_test(second + np.array([[0.1, -0.2, 0.3, 0.4, 0.5]]), second)
    assert result.rank_biserial == pytest.approx(11 / 15)
    assert result.p == pytest.approx(6 / 32)
    assert result.difference.mean == pytest.approx(0.22)
    assert (result.images, result.draws, result.ahead, result.behind) == (5, 1, 4, 1)


def test_equal_distances_share_their_rank():
    # Differences 0.1, -0.1, 0.1, 0.3: the three of 0.1 share rank 2, so W+ = 2 + 2 + 4 and W- = 2.
    result = paired_test(np.array([[0.6, 0.4, 0.6, 0.8]]), np.full((1, 4), 0.5))
    assert result.rank_biserial == pytest.approx(6 / 10)


def test_the_image_is_the_unit_its_mean_over_draws_is_tested():
    # Image 0: (+0.3 - 0.1) / 2 = +0.1; image 1: -0.2; image 2: +0.3. W+ = 1 + 3, W- = 2: effect 1/3; p = 6/8.
    gaps = np.array([[0.3, -0.2, 0.3], [-0.1, -0.2, 0.3]])
    result = paired_test(0.5 + gaps, np.full((2, 3), 0.5))
    assert result.rank_biserial == pytest.approx(1 / 3)
    assert result.p == pytest.approx(6 / 8)
    assert (result.images, result.draws, result.ahead, result.behind) == (3, 2, 2, 1)


def test_only_cells_that_both_scored_count():
    # Both scored: draw 0 of image 0 (+0.2), draw 1 of image 1 (+0.1). Image 2 and draw 2 have no common cell.
    first = np.array([[0.7, 0.9, NAN], [NAN, 0.6, 0.1], [0.1, NAN, NAN]])
    second = np.array([[0.5, NAN, 0.2], [0.9, 0.5, NAN], [NAN, 0.3, 0.8]])
    result = paired_test(first, second)
    assert (result.images, result.draws) == (2, 2)
    assert result.difference.mean == pytest.approx(0.15)
    assert result.rank_biserial == 1
    assert result.p == pytest.approx(2 / 4)


def test_swapping_the_learners_swaps_the_sign():
    generator = np.random.default_rng(0)
    first, second = generator.uniform(size=(2, 3, 80))
    there, back = paired_test(first, second), paired_test(second, first)
    assert there.rank_biserial == pytest.approx(-back.rank_biserial)
    assert there.p == pytest.approx(back.p)
    assert there.difference.mean == pytest.approx(-back.difference.mean)
    assert (there.ahead, there.behind) == (back.behind, back.ahead)


def test_equal_scores_are_no_difference():
    scores = np.random.default_rng(1).uniform(size=(2, 10))
    result = paired_test(scores, scores)
    assert (result.p, result.rank_biserial, result.ahead, result.behind) == (1.0, 0.0, 0, 0)
    assert result.difference == (0, 0, 0)


def test_rounding_is_no_difference():
    # 0.1 + 0.2 is not 0.3 in floating point.
    result = paired_test(np.array([[0.1 + 0.2, 0.9]]), np.array([[0.3, 0.5]]))
    assert (result.ahead, result.behind) == (1, 0)


def test_nothing_in_common_is_told():
    with pytest.raises(MetasegError, match="both scored in the same draw, but there is none"):
        paired_test(np.array([[0.5, NAN]]), np.array([[NAN, 0.5]]))
    with pytest.raises(MetasegError, match=r"\(1, 2\) and \(1, 3\)"):
        paired_test(np.zeros((1, 2)), np.zeros((1, 3)))

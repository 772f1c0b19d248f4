import numpy as np
import pytest
from scipy import stats

from benchmarks.coverage import Case, coverage, size
from metaseg.errors import MetasegError
from metaseg.evaluation.intervals import bootstrap_interval, holm, p_value


def crossed(generator, draws, images, deviations, missing=0):
    """Scores with true mean 0: draw effect + image effect + rest, some images missing in each draw."""
    of_draws, of_images, rest = deviations
    scores = generator.normal(0, of_draws, (draws, 1)) + generator.normal(0, of_images, images)
    scores = scores + generator.normal(0, rest, (draws, images))
    for row in scores:
        row[generator.permutation(images)[:missing]] = np.nan
    return scores


@pytest.mark.parametrize(
    ("draws", "deviations"),
    [(5, (0.1, 0.1, 0.1)), (3, (0.1, 0.02, 0.05))],
)
def test_coverage_with_crossed_random_effects(draws, deviations):
    generator = np.random.default_rng(1)
    hits = 0
    for replication in range(300):
        scores = crossed(generator, draws, 40, deviations, missing=10)
        _, low, high = bootstrap_interval(scores, resamples=300, seed=replication)
        hits += low <= 0 <= high
    assert 0.90 <= hits / 300 <= 0.99


def test_one_unit_fewer_is_drawn_than_there_are():
    # Two of three draws are both the highest in 1 of 9 resamples; three of three in 1 of 27, less than a tail of 5 %.
    half = 0.1 * stats.t.ppf(0.95, 2) / stats.norm.ppf(0.95)
    found = bootstrap_interval(np.array([[0.5], [0.6], [0.7]]) + np.zeros((3, 50)), 0.9)
    assert found == pytest.approx((0.6, 0.6 - half, 0.6 + half), rel=1e-6)


def test_coverage_where_seeds_differ_as_much_as_draws():
    assert 0.88 <= coverage(3, 3, Case(0.05, 0.05, 0.05, 0.05, 60), 200)[0] <= 0.99


def test_taking_draws_of_a_seed_for_independent_would_cover_too_little():
    assert coverage(3, 3, Case(0.1, 0.02, 0.02, 0.05, 60), 200)[1] < 0.75


@pytest.mark.parametrize("what", ["seeds", "groups"])
def test_equal_units_count_once(what):
    """Cells written down twice under one label say no more than once; as units of their own they would."""
    scores = crossed(np.random.default_rng(7), 4, 30, (0.1, 0.2, 0.05))
    rows = what == "seeds"
    twice = np.repeat(scores, 2, axis=0 if rows else 1)
    labels = np.repeat(np.arange(len(scores) if rows else scores.shape[1]), 2)
    np.testing.assert_allclose(bootstrap_interval(twice, **{what: labels}), bootstrap_interval(scores))
    assert p_value(twice, **{what: labels}) == pytest.approx(p_value(scores))
    narrow, right = bootstrap_interval(twice), bootstrap_interval(scores)
    assert narrow.high - narrow.low < 0.95 * (right.high - right.low)


def test_one_seed_leaves_draws_as_units():
    scores = crossed(np.random.default_rng(8), 5, 30, (0.1, 0.2, 0.05), missing=5)
    assert bootstrap_interval(scores, seeds=[3] * 5) == bootstrap_interval(scores)


def test_seeds_that_agree_by_chance_leave_draws_as_units():
    scores = np.tile([[0.1], [-0.1]], (2, 30)) + 0.5
    agree, independent = (bootstrap_interval(scores, seeds=labels) for labels in ([0, 0, 1, 1], None))
    assert agree == independent
    assert agree.high - agree.low > 0.1
    assert p_value(scores - 0.45, seeds=[0, 0, 1, 1]) == p_value(scores - 0.45) > 0.05


def test_p_is_the_largest_of_those_over_seeds_over_draws_and_over_means_of_seeds():
    scores = crossed(np.random.default_rng(8), 6, 30, (0.1, 0.2, 0.05)) + 1
    seeds = [0, 0, 1, 1, 2, 2]
    by_seed = np.stack([scores[first : first + 2].mean(0) for first in (0, 2, 4)])
    of_means = stats.ttest_1samp(by_seed.mean(1), 0).pvalue
    assert p_value(scores, seeds=seeds) == pytest.approx(max(p_value(scores), p_value(by_seed), of_means))


def test_small_p_values_are_no_more_frequent_than_they_say_where_three_seeds_dominate():
    """By Satterthwaite's degrees of freedom alone, 1.5 % would be below 0.005."""
    assert size(3, 3, Case(0.1, 0.02, 0.02, 0.05, 60), 0.005, 1500) < 0.01


def test_a_single_group_leaves_an_interval_over_seeds():
    scores = crossed(np.random.default_rng(9), 3, 30, (0.1, 0.2, 0.05))
    means = scores.mean(1)
    _, low, high = bootstrap_interval(scores, groups=["film"] * 30, resamples=10000)
    assert low <= means.min() < means.max() <= high
    assert p_value(scores, groups=["film"] * 30) == pytest.approx(stats.ttest_1samp(means, 0).pvalue)
    assert np.isnan(bootstrap_interval(scores[:1], groups=["film"] * 30).low)


def test_refuses_a_wrong_number_of_labels():
    with pytest.raises(MetasegError, match="3 labels in seeds, found 2"):
        bootstrap_interval(np.ones((3, 4)), seeds=[0, 1])


def test_p_of_one_draw_is_students():
    values = np.random.default_rng(10).normal(0.02, 0.1, 25)
    assert p_value(values[None]) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert p_value(np.zeros((2, 3))) == 1
    assert p_value(np.full((2, 3), 0.5)) == 0
    assert np.isnan(p_value(np.array([[0.3]])))


def test_p_with_missing_cells_is_that_of_a_ratio_of_sums():
    # Sums 0.4, 0.5, 0.5 of 2, 1, 4 cells: mean 1.4 / 7; sums less mean · cells: 0, 0.3, -0.3.
    scores = np.array([[0.3, 0.1, np.nan, np.nan], [0.5, np.nan, np.nan, np.nan], [0.4, -0.2, 0.1, 0.2]])
    error = np.sqrt(3 / 2 * 2 * 0.3**2) / 7
    assert p_value(scores, groups=["film"] * 4) == pytest.approx(2 * stats.t.sf(0.2 / error, 2))


def test_p_over_draws_and_images_has_satterthwaites_degrees_of_freedom():
    draws, images = np.array([-0.05, 0.0, 0.05]), np.array([-0.15, -0.05, 0.05, 0.15])
    by_draws, by_images = draws.var(ddof=1) / 3, images.var(ddof=1) / 4
    freedom = (by_draws + by_images) ** 2 / (by_draws**2 / 2 + by_images**2 / 3)
    expected = 2 * stats.t.sf(0.2 / np.sqrt(by_draws + by_images), freedom)
    assert p_value(0.2 + draws[:, None] + images) == pytest.approx(expected)


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.04: times 4, 3, 2, as the missing test counts, too.
    np.testing.assert_allclose(holm([0.04, np.nan, 0.01, 0.02]), [0.08, np.nan, 0.04, 0.06])
    np.testing.assert_allclose(holm([0.03, 0.01, 0.02]), [0.04, 0.03, 0.04])  # never below that of a smaller p
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_mean_ignores_missing_cells():
    matrix = np.array([[0.2, 0.4, np.nan, 0.9], [0.1, np.nan, 0.7, np.nan]])
    mean, low, high = bootstrap_interval(matrix)
    assert mean == pytest.approx((0.2 + 0.4 + 0.9 + 0.1 + 0.7) / 5)
    assert low < mean < high


@pytest.mark.parametrize(("axis", "level"), [(0, 0.95), (1, 0.5)])
def test_one_draw_or_one_image_is_students_interval(axis, level):
    values = np.random.default_rng(2).normal(0.6, 0.2, 30)
    mean, low, high = bootstrap_interval(np.expand_dims(values, axis), level, resamples=20000)
    expected = stats.t.interval(level, 29, values.mean(), stats.sem(values))
    assert mean == pytest.approx(values.mean())
    np.testing.assert_allclose((low, high), expected, atol=0.05 * (expected[1] - expected[0]))


def test_equal_draws_add_no_variance():
    """The same scores in every draw: the interval over images remains, however many draws."""
    values = np.random.default_rng(3).normal(0.6, 0.2, 50)
    one = bootstrap_interval(values[None], resamples=10000)
    five = bootstrap_interval(np.tile(values, (5, 1)), resamples=10000)
    assert five.mean == pytest.approx(one.mean)
    np.testing.assert_allclose(five, one, atol=0.005)


@pytest.mark.parametrize("level", [0.95, 0.8])
def test_few_draws_that_differ_widen_the_interval(level):
    # Two values: at 95 %, Student's interval is mean ± 12.7 · 0.1, and resampling gives ± 0.1.
    half = 0.1 * stats.t.ppf((1 + level) / 2, 1) / stats.norm.ppf((1 + level) / 2)
    found = bootstrap_interval(np.array([[0.5], [0.7]]) + np.zeros((2, 50)), level)
    assert found == pytest.approx((0.6, 0.6 - half, 0.6 + half), rel=1e-6)


def test_one_score_has_no_interval():
    mean, low, high = bootstrap_interval(np.array([[np.nan, 0.4], [np.nan, np.nan]]))
    assert mean == 0.4
    assert np.isnan(low)
    assert np.isnan(high)


def test_equal_scores_give_an_interval_of_no_width():
    np.testing.assert_allclose(bootstrap_interval(np.full((5, 20), 0.8)), 0.8)


def test_empty_rows_and_columns_are_left_out():
    scores = crossed(np.random.default_rng(4), 4, 12, (0.1, 0.1, 0.1))
    padded = np.full((6, 20), np.nan)
    padded[1:5, 3:15] = scores
    assert bootstrap_interval(padded, seed=1) == bootstrap_interval(scores, seed=1)


def test_the_interval_is_a_function_of_the_seed():
    scores = crossed(np.random.default_rng(5), 5, 30, (0.1, 0.2, 0.1), missing=5)
    assert bootstrap_interval(scores, seed=1) == bootstrap_interval(scores, seed=1)
    assert bootstrap_interval(scores, seed=1) != bootstrap_interval(scores, seed=2)


def test_few_images_with_many_gaps():
    """Some resamples hold no cell at all; they must not turn into NaN."""
    mean, low, high = bootstrap_interval(
        np.array([[0.2, np.nan, np.nan], [np.nan, 0.5, np.nan], [np.nan, np.nan, 0.6]])
    )
    assert np.isfinite([mean, low, high]).all()


def test_pairing_removes_the_difficulty_of_images():
    generator = np.random.default_rng(6)
    base = crossed(generator, 5, 60, (0.05, 0.25, 0.02), missing=10)
    better = base + 0.03 + generator.normal(0, 0.02, base.shape)
    mean, low, high = bootstrap_interval(better - base)
    assert mean == pytest.approx(np.nanmean(better - base))
    assert 0.01 < low < 0.03 < high < 0.05
    assert bootstrap_interval(better).low < bootstrap_interval(base).high
    np.testing.assert_allclose(bootstrap_interval(base - better), (-mean, -high, -low), atol=0.002)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"matrix": np.full((2, 3), np.nan)}, r"\(2, 3\) with 0 scores"),
        ({"matrix": np.ones(4)}, r"\(draws, images\) but found shape \(4,\)"),
        ({"matrix": np.array([[0.1, np.inf]])}, "1 of them infinite"),
        ({"matrix": np.ones((2, 2)), "level": 95}, "level between 0 and 1.*found 95"),
        ({"matrix": np.ones((2, 2)), "level": 1}, "level between 0 and 1.*found 1"),
        ({"matrix": np.ones((2, 2)), "resamples": 10}, "at least 100 resamples.*10"),
    ],
)
def test_refuses_bad_input(arguments, sentence):
    with pytest.raises(MetasegError, match=sentence):
        bootstrap_interval(**arguments)

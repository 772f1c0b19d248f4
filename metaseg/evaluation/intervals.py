"""Confidence intervals of a mean Dice over seeds, support draws and images: a crossed, clustered bootstrap.

A score belongs to a trained network (a seed), one of its support draws, and an image. All three are samples: another
user has another seed, other support images and other images to segment. Draws are nested in seeds, because each seed
draws its own support sets; images are crossed with both, and images of one patient, video or lesion are correlated. The
resampled units are therefore

- whole seeds with all their draws if there are at least two, else draws. Draws within a seed are not resampled again:
  their variance is already part of the variance between seeds (ultimate clusters in survey sampling, Kalton 1979).
  Two or three seeds can agree by chance, though: if all draws as independent units give a wider interval, they are the
  units (our decision);
- groups of images, independently of the former (Owen 2007, "The pigeonhole bootstrap", Annals of Applied Statistics
  1:386). Resampling cells as if independent would give far too narrow intervals.

Two corrections for few units (our decision; three seeds are usual, and plain percentile intervals undercover):

- n - 1 of n units are drawn, which makes the variance unbiased (Rao and Wu 1988; Hesterberg 2015, "What teachers should
  know about the bootstrap").
- The distances of the percentiles from the mean are stretched by t/z, Student's quantile over the normal one, with
  Satterthwaite's degrees of freedom: about seeds - 1 if the seeds dominate the variance, groups - 1 if the images do.

Coverage in % of 95 % intervals, simulated with normal effects (60 images in so many groups, 20 of them missing in each
draw, 400 replications; `python -m benchmarks.coverage` prints the table). The first five rows are the standard
deviations of seeds, draws, groups of images and residuals, and the number of groups (units). In brackets: coverage if
draws are treated as independent units, ignoring their seed. Last: p values below 0.05, in %, where the mean is 0; below
them those below 0.005, with 10,000 replications.

    seeds                 0.00          0.00          0.05          0.05          0.05          0.05          0.10
    draws                 0.03          0.10          0.05          0.05          0.05          0.05          0.02
    groups                0.25          0.05          0.25          0.05          0.05          0.00          0.02
    rest                  0.10          0.05          0.10          0.05          0.05          0.05          0.05
    units                   60            60            60            60            10             1            60
    1 seed × 3         96 (96)       92 (92)       85 (85)       77 (77)       78 (78)       76 (76)       31 (31)
    1 seed × 5         96 (96)       95 (95)       84 (84)       71 (71)       69 (69)       68 (68)       18 (18)
    2 seeds × 5      95 (94) 2     98 (94) 1     94 (87) 2     92 (71) 4     91 (81) 4     93 (69) 4     92 (45) 4
    p < 0.005              0.0           0.0           0.0           0.2           0.1           0.2           0.4
    3 seeds × 3      96 (95) 4     96 (92) 2     94 (90) 4     94 (82) 2     92 (84) 4     95 (81) 2     92 (63) 6
    p < 0.005              0.1           0.1           0.1           0.2           0.1           0.3           0.5
    5 seeds × 3      95 (95) 5     96 (94) 3     95 (93) 5     96 (84) 4     93 (88) 6     96 (79) 4     95 (72) 4
    p < 0.005              0.3           0.1           0.5           0.4           0.3           0.4           0.6

With one seed an interval does not account for other seeds, and undercovers if seeds differ.
If only residuals vary, coverage is near 100 %: no bootstrap of crossed effects is exact in all cases (McCullagh 2000,
"Resampling and exchangeable arrays", Bernoulli 6:285).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from metaseg.errors import MetasegError

Labels = Sequence[object] | np.ndarray
"""The unit of each row or column; equal labels mean the same unit."""

_CHUNK = 250  # resamples at a time: with 2600 images, arrays of 5 MB


class Interval(NamedTuple):
    """A mean and its confidence interval, in the unit of the scores."""

    mean: float
    low: float
    high: float


def bootstrap_interval(
    matrix: np.ndarray,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    *,
    seeds: Labels | None = None,
    groups: Labels | None = None,
) -> Interval:
    """Return the mean of all scores and its interval over seeds, support draws and images.

    Args:
        matrix: float (draws, images), NaN where an image was not scored in a draw, e.g. because it was in the support
            set. Draws and images without any score are ignored.
        level: confidence, between 0 and 1.
        resamples: number of bootstrap resamples; with 2000 the bounds vary by about 2 % of the interval's width.
        seed: of the resampling; equal calls give equal intervals.
        seeds: training seed of each draw's network. None, or all equal: draws are the units, and the interval does not
            account for other seeds.
        groups: patient or video of each image. None: images are the units.

    Returns:
        mean over all scores present, low, high. The interval may slightly exceed the range of the scores. With one draw
        it is over images only and does not account for other support sets; with one image or group it is over draws
        only and does not account for other images; with one of each, low and high are NaN.

    Raises:
        MetasegError: if the matrix is not two-dimensional, has no score or an infinite one, or level or resamples are
            out of range.
    """
    scores, there = max(_units(*_cleaned(matrix, level, resamples), seeds, groups), key=_width)
    mean = float(scores.sum() / there.sum())
    if scores.size == 1:
        return Interval(mean, float("nan"), float("nan"))
    generator = np.random.Generator(np.random.PCG64(seed))
    means = np.concatenate(
        [
            _resampled_means(generator, scores, there, min(_CHUNK, resamples - done))
            for done in range(0, resamples, _CHUNK)
        ]
    )
    tail = (1 - level) / 2
    stretch = stats.t.ppf(1 - tail, _variance(scores, there)[1]) / stats.norm.ppf(1 - tail)
    low, high = mean + stretch * (np.quantile(means, [tail, 1 - tail]) - mean)
    return Interval(mean, float(low), float(high))


def p_value(matrix: np.ndarray, *, seeds: Labels | None = None, groups: Labels | None = None) -> float:
    """Return the two-sided p value for a mean of 0, the largest of three by Student's t.

    They are over seeds and groups of images, over draws and groups, and over the means of seeds alone. The standard
    error is that of the mean as a linearised ratio of sums. The degrees of freedom over two kinds of units are
    Satterthwaite's: about two for three seeds that differ, however many images there are. They are an estimate, far too
    large if three seeds agree by chance, and alone would make small p values too frequent; therefore the third (our
    decision). With one seed the units are its draws, and p says nothing about other seeds: `metaseg.evaluation.paired`
    then leaves it out.

    Args:
        matrix: differences, (draws, images), as for `bootstrap_interval`.
        seeds: as for `bootstrap_interval`.
        groups: as for `bootstrap_interval`.

    Returns:
        p in [0, 1]; 1 if all differences are 0; NaN for a single unit.
    """
    by_draw, *by_seed = _units(*_cleaned(matrix, 0.95, 100), seeds, groups)
    of_means = [(scores.sum(1, keepdims=True), there.sum(1, keepdims=True)) for scores, there in by_seed]
    return max(_p_value(*sums) for sums in (by_draw, *by_seed, *of_means))


def _p_value(scores: np.ndarray, there: np.ndarray) -> float:
    mean = float(scores.sum() / there.sum())
    if scores.size == 1:
        return float("nan")
    variance, freedom = _variance(scores, there)
    if variance == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * stats.t.sf(abs(mean) / np.sqrt(variance), freedom))


def holm(values: Sequence[float]) -> list[float]:
    """Return p values corrected by Holm's step-down method (1979), in the given order.

    NaN, a planned test without a result yet, stays NaN and counts as if its p were 1: a result that comes later never
    makes another p larger.
    """
    found = np.array(values, np.float64)
    order = np.argsort(found)[: np.count_nonzero(~np.isnan(found))]
    factors = len(found) - np.arange(len(order))
    found[order] = np.minimum(np.maximum.accumulate(found[order] * factors), 1.0)
    return found.tolist()


def _cleaned(matrix: np.ndarray, level: float, resamples: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scores with 0 for NaN, and a mask that is 1.0 where a score is present."""
    values = np.asarray(matrix, np.float64)
    there = ~np.isnan(values)
    if values.ndim != 2 or not there.any() or np.isinf(values).any():
        raise MetasegError(
            f"Expected finite scores of shape (draws, images) but found shape {values.shape} with "
            f"{np.count_nonzero(there)} scores, {np.count_nonzero(np.isinf(values))} of them infinite."
        )
    if not 0 < level < 1 or resamples < 100:
        raise MetasegError(
            f"Expected a level between 0 and 1 and at least 100 resamples, but found {level} and {resamples}."
        )
    return np.where(there, values, 0.0), there.astype(np.float64)


def _units(
    scores: np.ndarray, there: np.ndarray, seeds: Labels | None, groups: Labels | None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return sums and counts of scores by draw and group, and by seed and group if there are seeds; no empty ones."""
    kept = there.any(1), there.any(0)
    rows, columns = (
        np.arange(count)[some] if labels is None else _numbered(labels, what, count)[some]
        for labels, what, count, some in zip((seeds, groups), ("seeds", "groups"), there.shape, kept, strict=True)
    )
    by_seed, by_group = (np.unique(labels)[:, None] == labels for labels in (rows, columns))
    by_draw = scores[np.ix_(*kept)] @ by_group.T, there[np.ix_(*kept)] @ by_group.T
    together = [(by_seed @ by_draw[0], by_seed @ by_draw[1])] if len(by_seed) > 1 else []
    return [by_draw, *together]


def _width(sums: tuple[np.ndarray, np.ndarray]) -> float:
    """Half the width of a 95 % interval by Student's t."""
    variance, freedom = _variance(*sums)
    return float(stats.t.ppf(0.975, freedom) * np.sqrt(variance))


def _numbered(labels: Labels, what: str, count: int) -> np.ndarray:
    if len(labels) != count:
        raise MetasegError(f"Expected {count} labels in {what}, found {len(labels)}.")
    return np.unique(np.asarray(labels), return_inverse=True)[1]


def _weights(generator: np.random.Generator, units: int, number: int) -> np.ndarray:
    """Return how often each unit is drawn in each resample, (number, units); a single unit is always drawn once."""
    if units == 1:
        return np.ones((number, 1))
    drawn = generator.integers(0, units, (number, units - 1)) + units * np.arange(number)[:, None]
    return np.bincount(drawn.ravel(), minlength=number * units).reshape(number, units).astype(np.float64)


def _resampled_means(generator: np.random.Generator, scores: np.ndarray, there: np.ndarray, number: int) -> np.ndarray:
    rows, columns = (_weights(generator, units, number) for units in scores.shape)
    count = ((rows @ there) * columns).sum(1)
    # A resample with only missing cells has no mean; this happens only with very few images.
    full = count > 0
    return ((rows @ scores) * columns).sum(1)[full] / count[full]


def _variance(scores: np.ndarray, there: np.ndarray) -> tuple[float, float]:
    """Return the variance of the mean due to rows and columns, and Satterthwaite's degrees of freedom."""
    influence = (scores - scores.sum() / there.sum() * there) / there.sum()
    parts, squares = 0.0, 0.0
    for axis in (1, 0):
        units = influence.shape[1 - axis]
        if units > 1:
            variance = units / (units - 1) * float((influence.sum(axis) ** 2).sum())
            parts, squares = parts + variance, squares + variance**2 / (units - 1)
    return parts, parts**2 / squares if squares > 0 else np.inf

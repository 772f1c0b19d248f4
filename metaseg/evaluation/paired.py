"""Two learners on the same images: Wilcoxon's signed-rank test, its effect size, and the mean difference."""

from typing import NamedTuple

import numpy as np
from scipy import stats

from metaseg.errors import MetasegError
from metaseg.evaluation.intervals import Interval, paired_difference


class PairedTest(NamedTuple):
    """Result of `paired_test`; first - second, so positive values speak for the first.

    Attributes:
        difference: mean paired difference over all cells with its interval over draws and images.
        p: two-sided p value of Wilcoxon's test that the images' differences are symmetric about 0.
        rank_biserial: matched-pairs rank-biserial correlation, from -1 (second is better on every image) to 1.
        images: number of images that both scored in at least one common draw.
        draws: number of draws in which both scored an image.
        ahead: number of images on which the first is better.
        behind: number of images on which the second is better; the rest are ties.
    """

    difference: Interval
    p: float
    rank_biserial: float
    images: int
    draws: int
    ahead: int
    behind: int


def paired_test(first: np.ndarray, second: np.ndarray, level: float = 0.95, seed: int = 0) -> PairedTest:
    """Compare two learners on the cells that both scored.

    The test's unit is the image: its mean over the draws in which both scored it. The effect size is
    (W+ - W-) / (W+ + W-), where W+ and W- are the sums of the ranks of the absolute differences in favour of the first
    and of the second; differences of 0 are left out (Kerby 2014, "The simple difference formula"). The test treats the
    support sets as given and images as independent, so with thousands of images the smallest difference has a tiny p;
    the interval of the difference also covers other support sets.

    Args:
        first: float (draws, images), NaN where an image was not scored; Dice in [0, 1].
        second: the same draws and images, in the same order.
        level: of the interval.
        seed: of the interval's bootstrap.

    Raises:
        MetasegError: shapes differ, or no cell was scored by both.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.shape != second.shape or first.ndim != 2:
        raise MetasegError(
            f"A paired test needs two matrices (draws, images) of the same draws and images, but found "
            f"{first.shape} and {second.shape}."
        )
    gaps = first - second
    there = ~np.isnan(gaps)
    if not there.any():
        raise MetasegError("A paired test needs an image that both scored in the same draw, but there is none.")
    scored = there.any(0)
    means = np.nansum(gaps[:, scored], 0) / there[:, scored].sum(0)
    # Dice values are ratios of counts: a difference below rounding is a tie, not a rank.
    means[np.abs(means) < 1e-12] = 0.0
    different = means[means != 0]
    p, effect = 1.0, 0.0
    if len(different):
        ranks = stats.rankdata(np.abs(different))
        effect = float((ranks * np.sign(different)).sum() / ranks.sum())
        p = float(stats.wilcoxon(different).pvalue)
    return PairedTest(
        difference=paired_difference(np.where(there, first, np.nan), np.where(there, second, np.nan), level, seed=seed),
        p=p,
        rank_biserial=effect,
        images=int(scored.sum()),
        draws=int(there.any(1).sum()),
        ahead=int((different > 0).sum()),
        behind=int((different < 0).sum()),
    )

"""Two learners on the same images: the mean difference, its interval, and the number of images each wins."""

from typing import NamedTuple

import numpy as np

from metaseg.errors import MetasegError
from metaseg.evaluation.intervals import Interval, Labels, bootstrap_interval, p_value


class PairedTest(NamedTuple):
    """Result of `paired_test`; first - second, so positive values favour the first.

    Attributes:
        difference: mean paired difference over all cells with its interval over seeds, draws and groups of images.
        p: two-sided p value for a mean difference of 0, over seeds and groups of images; NaN with fewer than two seeds.
        seeds: number of training seeds with an image scored by both.
        images: number of images scored by both in at least one common draw.
        draws: number of draws with an image scored by both.
        groups: number of groups of these images; without labels each image is one.
        ahead: number of images on which the first has the better mean over draws.
        behind: number of images on which the second is better; the rest are ties.
    """

    difference: Interval
    p: float
    seeds: int
    images: int
    draws: int
    groups: int
    ahead: int
    behind: int


def paired_test(
    first: np.ndarray,
    second: np.ndarray,
    *,
    seeds: Labels | None = None,
    groups: Labels | None = None,
) -> PairedTest:
    """Compare two learners on the cells scored by both.

    There is no test over images only, nor over draws of one seed: with thousands of images any two trained networks
    differ significantly, which does not generalise to the next two.

    Args:
        first: float (draws, images), NaN where an image was not scored; Dice in [0, 1].
        second: the same draws and images, in the same order.
        seeds: as for `bootstrap_interval`; None: one seed.
        groups: as for `bootstrap_interval`.

    Raises:
        MetasegError: if the shapes differ, or no cell was scored by both.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.shape != second.shape or first.ndim != 2:
        raise MetasegError(
            f"A paired test needs two matrices (draws, images) of the same draws and images, but found "
            f"{first.shape} and {second.shape}."
        )
    gaps = first - second
    # Dice is a ratio of counts: a difference below rounding is a tie.
    gaps[np.abs(gaps) < 1e-12] = 0.0
    there = ~np.isnan(gaps)
    if not there.any():
        raise MetasegError("A paired test needs an image scored by both in the same draw, but found none.")
    scored = there.any(0)
    means = np.nansum(gaps[:, scored], 0) / there[:, scored].sum(0)
    means[np.abs(means) < 1e-12] = 0.0
    common = 1 if seeds is None else len(np.unique(np.asarray(seeds)[there.any(1)]))
    return PairedTest(
        difference=bootstrap_interval(gaps, seeds=seeds, groups=groups),
        p=p_value(gaps, seeds=seeds, groups=groups) if common > 1 else float("nan"),
        seeds=common,
        images=int(scored.sum()),
        draws=int(there.any(1).sum()),
        groups=int(scored.sum()) if groups is None else len(np.unique(np.asarray(groups)[scored])),
        ahead=int((means > 0).sum()),
        behind=int((means < 0).sum()),
    )

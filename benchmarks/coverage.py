"""Simulated coverage of 95 % intervals and size of the test; `python -m benchmarks.coverage` prints the table in
metaseg/evaluation/intervals.py."""

from typing import NamedTuple

import numpy as np

from metaseg.errors import plural
from metaseg.evaluation.intervals import bootstrap_interval, p_value


class Case(NamedTuple):
    """Standard deviations of seeds, draws within a seed, groups of images, and the residual; number of groups."""

    seeds: float
    draws: float
    groups: float
    rest: float
    units: int


CASES = (
    Case(0.0, 0.03, 0.25, 0.10, 60),
    Case(0.0, 0.10, 0.05, 0.05, 60),
    Case(0.05, 0.05, 0.25, 0.10, 60),
    Case(0.05, 0.05, 0.05, 0.05, 60),
    Case(0.05, 0.05, 0.05, 0.05, 10),
    Case(0.05, 0.05, 0.0, 0.05, 1),
    Case(0.10, 0.02, 0.02, 0.05, 60),
)

SHAPES = ((1, 3), (1, 5), (2, 5), (3, 3), (5, 3))
"""Numbers of seeds, and of draws per seed."""

IMAGES, MISSING, REPLICATIONS, RESAMPLES = 60, 20, 400, 400
SMALL, SIZE_REPLICATIONS = 0.005, 10_000


def scores(
    generator: np.random.Generator, seeds: int, draws: int, images: int, case: Case, missing: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scores (seeds · draws, images) with true mean 0, some images missing in each draw; and groups of images."""
    groups = np.arange(images) % case.units
    found = np.repeat(generator.normal(0, case.seeds, (seeds, 1)), draws, axis=0)
    found = found + generator.normal(0, case.draws, (seeds * draws, 1))
    found = found + generator.normal(0, case.groups, case.units)[groups]
    found = found + generator.normal(0, case.rest, (seeds * draws, images))
    for row in found:
        row[generator.permutation(images)[:missing]] = np.nan
    return found, groups


def coverage(seeds: int, draws: int, case: Case, replications: int = REPLICATIONS) -> tuple[float, float, float]:
    """Shares of intervals that contain 0, with seeds and with draws as units, and of p values below 0.05."""
    generator = np.random.default_rng(1)
    hits, found = np.zeros(2), 0
    for replication in range(replications):
        matrix, groups = scores(generator, seeds, draws, IMAGES, case, MISSING)
        by_seed = np.repeat(np.arange(seeds), draws)
        for position, labels in enumerate((by_seed, None)):
            _, low, high = bootstrap_interval(
                matrix, resamples=RESAMPLES, seed=replication, seeds=labels, groups=groups
            )
            hits[position] += low <= 0 <= high
        found += p_value(matrix, seeds=by_seed, groups=groups) < 0.05
    return hits[0] / replications, hits[1] / replications, found / replications


def size(seeds: int, draws: int, case: Case, level: float, replications: int = SIZE_REPLICATIONS) -> float:
    """Share of p values below `level` where the mean is 0."""
    generator = np.random.default_rng(2)
    by_seed = np.repeat(np.arange(seeds), draws)
    found = 0
    for _ in range(replications):
        matrix, groups = scores(generator, seeds, draws, IMAGES, case, MISSING)
        found += p_value(matrix, seeds=by_seed, groups=groups) < level
    return found / replications


def main() -> None:
    """Print the table, a case in each column."""
    for name, deviations in zip(Case._fields, zip(*CASES, strict=True), strict=True):
        values = (f"{value:.2f}" if name != "units" else f"{value:.0f}" for value in deviations)
        print(f"    {name:<12}" + "".join(value.rjust(14) for value in values))
    for seeds, draws in SHAPES:
        cells = (coverage(seeds, draws, case) for case in CASES)
        row = "".join(
            f"{100 * ours:.0f} ({100 * naive:.0f}){f' {100 * p:.0f}' if seeds > 1 else ''}".rjust(14)
            for ours, naive, p in cells
        )
        print(f"    {plural(seeds, 'seed') + f' × {draws}':<12}{row}", flush=True)
        if seeds > 1:
            sizes = (f"{100 * size(seeds, draws, case, SMALL):.1f}".rjust(14) for case in CASES)
            print(f"    {f'p < {SMALL}':<12}{''.join(sizes)}", flush=True)


if __name__ == "__main__":
    main()

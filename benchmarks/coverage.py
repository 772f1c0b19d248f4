"""Simulated coverage of 95 % intervals; `python -m benchmarks.coverage` prints the table in
metaseg/evaluation/intervals.py."""

import numpy as np

from metaseg.evaluation.intervals import bootstrap_interval

CASES = ((0.0, 0.03, 0.25, 0.10), (0.05, 0.05, 0.25, 0.10), (0.05, 0.05, 0.05, 0.05), (0.10, 0.02, 0.02, 0.05))
"""Standard deviations of seeds, draws within a seed, images, and the residual."""

SHAPES = ((1, 3), (1, 5), (2, 5), (3, 3), (5, 3))
"""Numbers of seeds, and of draws per seed."""

IMAGES, MISSING, REPLICATIONS, RESAMPLES = 60, 20, 400, 400


def scores(
    generator: np.random.Generator, seeds: int, draws: int, images: int, deviations: tuple[float, ...], missing: int
) -> np.ndarray:
    """Scores (seeds · draws, images) with true mean 0, some images missing in each draw."""
    of_seeds, of_draws, of_images, rest = deviations
    found = np.repeat(generator.normal(0, of_seeds, (seeds, 1)), draws, axis=0)
    found = found + generator.normal(0, of_draws, (seeds * draws, 1)) + generator.normal(0, of_images, images)
    found = found + generator.normal(0, rest, (seeds * draws, images))
    for row in found:
        row[generator.permutation(images)[:missing]] = np.nan
    return found


def coverage(seeds: int, draws: int, deviations: tuple[float, ...], replications: int = REPLICATIONS) -> list[float]:
    """Shares of intervals that contain 0, with seeds and with draws as units."""
    generator = np.random.default_rng(1)
    hits = np.zeros(2)
    for replication in range(replications):
        matrix = scores(generator, seeds, draws, IMAGES, deviations, MISSING)
        for position, labels in enumerate((np.repeat(np.arange(seeds), draws), None)):
            _, low, high = bootstrap_interval(matrix, resamples=RESAMPLES, seed=replication, seeds=labels)
            hits[position] += low <= 0 <= high
    return (hits / replications).tolist()


def main() -> None:
    """Print the table."""
    print("    seeds  draws" + "".join(f"{', '.join(f'{d:.2f}' for d in case):>26}" for case in CASES))
    for seeds, draws in SHAPES:
        cells = (coverage(seeds, draws, case) for case in CASES)
        row = "".join(f"{100 * ours:18.0f} ({100 * naive:.0f})".rjust(26) for ours, naive in cells)
        print(f"    {seeds:5}  {draws:5}{row}", flush=True)


if __name__ == "__main__":
    main()

"""The table of experiments/recipes.md on what carries a pair's knowledge, from the runs of experiments/ablations.sh:
`python -m experiments.ablations` prints it."""

import sys
from pathlib import Path

from metaseg.evaluation.intervals import Interval
from metaseg.reporting.cells import compare
from metaseg.reporting.exports import signed, signed_interval
from metaseg.reporting.runs import Run, read_runs
from metaseg.runs.summary import percent

ROOT = Path(__file__).parent / "results" / "small-ablations"
TARGET = "cvc"
UNCHANGED = "as-it-is"
NAMES = {
    UNCHANGED: "unchanged",
    "without-own-colours": "no recoloured tasks, instead of 70 % of the tasks",
    "all-own-colours": "all tasks recoloured",
    "three-pools": "a third pool, brain MRI (LGG)",
    "painted": "painted images (data=synthetic) instead of ISIC-2018 and PH²",
    "encoder-and-strengths": "the encoder in the inner problem, a strength λ for each layer",
    "four-times": "four times as many outer steps",
    "joint": "joint training",
    "joint-equal-compute": "joint training, as many passes of images as iMAML",
}


def main() -> None:
    """Print the table."""
    runs = {run.name: run for run in read_runs(ROOT).runs}
    print("| | images | before adaptation | after the inner problem | Dice | difference |")
    print("|---|---|---|---|---|---|")
    for name, text in NAMES.items():
        for shots in (5, 1):
            run, unchanged = (runs.get(f"{one}-{shots}shot") for one in (name, UNCHANGED))
            if run is not None:
                print(row(text if shots == 5 else "", shots, run, None if name == UNCHANGED else unchanged))


def row(text: str, shots: int, run: Run, unchanged: Run | None) -> str:
    """A run's Dice at each stage, and its paired difference to the unchanged run with an interval over draws."""
    found = run.result.targets[TARGET]
    stages = [percent(one.mean) if one else "" for one in (found.dsc_before, found.dsc_inner, found.dsc)]
    test = None if unchanged is None else compare([run], [unchanged], TARGET)
    return f"| {' | '.join([text, str(shots), *stages, '' if test is None else difference(test.difference)])} |"


def difference(found: Interval) -> str:
    """Mean and interval in points."""
    mean, low, high = found
    return f"{signed(mean)} ({signed_interval(low, high)})"


if __name__ == "__main__":
    sys.exit(main())

"""Put runs on the same target beside each other: a table, the curves over adaptation steps, paired differences.

    python experiments/compare.py TARGET OUT RUN [RUN ...]

writes OUT/table.md and OUT/adaptation_TARGET.png; a run is a directory with result.json and per_image.csv (or .csv.gz).
"""

import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from metaseg.cli import fail
from metaseg.errors import MetasegError
from metaseg.evaluation.intervals import paired_difference
from metaseg.reporting.figures import adaptation_curve
from metaseg.rundir import RunDirectory


def label(directory: RunDirectory, result: dict[str, Any]) -> str:
    """The run's name in tables: its directory's, and the shots."""
    return f"{directory.path.name}, {result['settings']['shots']} shots"


def matrix(directory: RunDirectory, target: str, column: str) -> pd.DataFrame:
    """Scores of a run as draws × images."""
    path = directory.per_image if directory.per_image.exists() else directory.per_image.with_suffix(".csv.gz")
    rows = pd.read_csv(path, dtype={"image": str})
    return rows[rows["dataset"] == target].pivot_table(index="draw", columns="image", values=column)


def percent(score: dict[str, float]) -> str:
    """Mean and interval in per cent."""
    return f"{100 * score['mean']:.1f} ({100 * score['low']:.1f} to {100 * score['high']:.1f})"


def table(results: dict[str, dict[str, Any]], target: str) -> list[str]:
    """One row a run."""
    lines = [
        "| run | before adaptation | after adaptation | pooled | IoU | steps | images × draws | minutes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        scores = result["targets"][target]
        cells = [
            name,
            percent(scores["dsc_before"]),
            percent(scores["dsc"]),
            f"{100 * scores['pooled_dsc']:.1f}",
            f"{100 * scores['iou']:.1f}",
            str(result["settings"]["learner"]["adapt"]["steps"]),
            f"{scores['images']} × {scores['draws']}",
            f"{result['wall_seconds'] / 60:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    trivial = next(iter(results.values()))["targets"][target]["trivial"]
    lines += ["", "Trivial: " + ", ".join(f"{name} {100 * value:.1f}" for name, value in trivial.items()) + "."]
    return lines


def differences(directories: dict[str, RunDirectory], target: str) -> list[str]:
    """Paired differences after adaptation between all runs that share their draws, on the images both scored."""
    lines = ["", "| after adaptation, paired on (draw, image) | difference |", "|---|---|"]
    scores = {name: matrix(directory, target, "dsc_after") for name, directory in directories.items()}
    for (first, one), (second, other) in combinations(scores.items(), 2):
        if first.split(", ")[1] != second.split(", ")[1]:
            continue
        images = one.columns.intersection(other.columns)
        draws = one.index.intersection(other.index)
        pair = [frame.loc[draws, images].to_numpy(np.float64) for frame in (one, other)]
        gap = paired_difference(*pair)
        lines.append(f"| {first} - {second} | {100 * gap.mean:+.1f} ({100 * gap.low:+.1f} to {100 * gap.high:+.1f}) |")
    return lines


def main(target: str, out: Path, runs: list[Path]) -> None:
    """Write table.md and the figure."""
    directories = [RunDirectory(run) for run in runs]
    read = [directory.read_result() for directory in directories]
    names = [label(directory, result) for directory, result in zip(directories, read, strict=True)]
    results, named = dict(zip(names, read, strict=True)), dict(zip(names, directories, strict=True))
    out.mkdir(parents=True, exist_ok=True)
    lines = table(results, target) + differences(named, target)
    (out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    curves = {name: result["targets"][target]["curve"] for name, result in results.items()}
    trivial = read[0]["targets"][target]["trivial"]
    adaptation_curve(curves, out / f"adaptation_{target}.png", trivial, target)
    print("\n".join(lines))


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    try:
        main(sys.argv[1], Path(sys.argv[2]), [Path(run) for run in sys.argv[3:]])
    except MetasegError as error:
        fail(str(error))

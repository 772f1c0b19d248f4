"""The table of experiments/own_images.md on pre-trained features, from the runs of experiments/features.sh:
`python -m experiments.features` prints it."""

import sys
from pathlib import Path

from metaseg.reporting.cells import ours
from metaseg.reporting.runs import Run, read_runs
from metaseg.runs.summary import percent

ROOT = Path(__file__).parent / "results" / "features-128px"
TARGETS = {"kvasir": "Kvasir-SEG", "isic": "ISIC-2018", "kvasir_capsule": "KvasirCapsule-SEG"}
SYSTEMS = {
    "default": "pre-trained, default",
    "quick": "pre-trained, quick",
    "linear": "logistic regression on frozen features",
    "default-192px": "pre-trained, default, 192 px",
    "small": "attention U-Net, 8 features, random weights",
}


def main() -> None:
    """Print the table."""
    print(f"| shots | system | {' | '.join(TARGETS.values())} | s to adapt | s an image |")
    print("|---|---|" + "---|" * (len(TARGETS) + 2))
    runs = {run.name: run for run in read_runs(ROOT).runs}
    for shots in (5, 20):
        found = {
            system: {target: run for target in TARGETS if (run := runs.get(f"{system}-{shots}shot-{target}"))}
            for system in SYSTEMS
        }
        for system, of_target in found.items():
            if of_target:
                print(row(f"{shots} | {SYSTEMS[system]}", of_target))
        trivial = {target: best(run.result.targets[target].trivial) for target, run in found["default"].items()}
        if trivial:
            cells = [f"{100 * trivial[t][1]:.1f} ({trivial[t][0]})" if t in trivial else "–" for t in TARGETS]
            print(f"| {shots} | best trivial baseline | {' | '.join(cells)} | | |")


def row(head: str, of_target: dict[str, Run]) -> str:
    """A system's Dice with its interval over draws and groups of images on each target, and its mean seconds."""
    cells = []
    for target in TARGETS:
        found = ours([of_target[target]] if target in of_target else [], target)
        mean, low, high = map(percent, found.dice) if found else ("", "", "")
        cells.append(f"{mean} ({low} to {high})" if found else "–")
    seconds = [run.result.targets[target].seconds for target, run in of_target.items()]
    taken = [(one.adapting, one.image) for one in seconds]
    adapting, image = (sum(several) / len(several) for several in zip(*taken, strict=True))
    return f"| {head} | {' | '.join(cells)} | {adapting:.0f} | {image:.3f} |"


def best(trivial: dict[str, float]) -> tuple[str, float]:
    """Name and Dice of the best trivial baseline."""
    name = max(trivial, key=lambda one: trivial[one])
    return name.replace("_", " "), trivial[name]


if __name__ == "__main__":
    sys.exit(main())

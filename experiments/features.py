"""The table of experiments/README.md on pre-trained features, from the runs of experiments/features.sh:
`python -m experiments.features` prints it."""

import sys
from pathlib import Path

from metaseg.runs.directory import RunDirectory
from metaseg.runs.result import TargetScores

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
    for shots in (5, 20):
        found = {system: results(system, shots) for system in SYSTEMS}
        for system, of_target in found.items():
            if of_target:
                print(row(f"{shots} | {SYSTEMS[system]}", of_target))
        trivial = {target: best(scores.trivial) for target, scores in found["default"].items()}
        if trivial:
            cells = [f"{100 * trivial[t][1]:.1f} ({trivial[t][0]})" if t in trivial else "–" for t in TARGETS]
            print(f"| {shots} | best trivial baseline | {' | '.join(cells)} | | |")


def results(system: str, shots: int) -> dict[str, TargetScores]:
    """Target → its scores, of the runs that are there."""
    places = {target: RunDirectory(ROOT / f"{system}-{shots}shot-{target}") for target in TARGETS}
    return {target: run.read_result().targets[target] for target, run in places.items() if run.result.is_file()}


def row(head: str, of_target: dict[str, TargetScores]) -> str:
    """A system's Dice with its interval on each target, and its mean seconds."""
    cells = []
    for target in TARGETS:
        dice = of_target[target].dsc if target in of_target else None
        cells.append("–" if dice is None else f"{percent(dice.mean)} ({percent(dice.low)} to {percent(dice.high)})")
    taken = [(one.seconds.adapting, one.seconds.image) for one in of_target.values()]
    seconds = [sum(several) / len(several) for several in zip(*taken, strict=True)]
    return f"| {head} | {' | '.join(cells)} | {seconds[0]:.0f} | {seconds[1]:.3f} |"


def best(trivial: dict[str, float]) -> tuple[str, float]:
    """Name and Dice of the best trivial baseline."""
    name = max(trivial, key=lambda one: trivial[one])
    return name.replace("_", " "), trivial[name]


def percent(value: float) -> str:
    """Dice as a percentage."""
    return f"{100 * value:.1f}"


if __name__ == "__main__":
    sys.exit(main())

"""What meta-training for the paper's tables takes, from the seconds that a task was measured to take."""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass

EPOCHS = 50
POOLS = 2
TASKS = 50
"""Of each pool in an epoch."""
GPUS = (1, 4, 8)
TITLES = {"imaml": "iMAML", "maml": "MAML"}


@dataclass(frozen=True)
class Trained:
    """Training runs that differ by learner, shots and loss only.

    Attributes:
        serves: the tables and figures that are filled from them.
        learners: "imaml", "maml".
        shots: K.
        tasks: of each pool in an epoch.
        losses: how many are compared.
    """

    serves: str
    learners: tuple[str, ...] = ("imaml", "maml")
    shots: tuple[int, ...] = (5, 10, 20)
    tasks: int = TASKS
    losses: int = 1


# Tables 2 to 7 of Khadka et al. 2022: what differs in pair of pools, set-up, learner, shots or loss is trained apart; a
# trained model that is tested on several targets, or shown in several places, is trained once.
TRAININGS = (
    Trained("table 2: exclusive, PH2 and Kvasir-SEG, to ISIC"),
    Trained("tables 3 and 5 and figure 2: mixed, PH2 + Kvasir-SEG, to ISIC and to KvasirCapsule-SEG"),
    Trained("table 4: same class, CVC-612 and Kvasir-SEG, to ISIC"),
    Trained("table 6: same class, ISIC and PH2, to Kvasir-SEG and to KvasirCapsule-SEG"),
    Trained("table 7: exclusive, CVC-612 and PH2, to ISIC, two losses", ("imaml",), (5,), 20, 2),
)

Seconds = Mapping[str, Mapping[int, float]]
"""Learner → shots → seconds of a task."""


def count(learner: str | None = None) -> int:
    """Training runs for all tables; of one learner, or of both."""
    return sum(
        len(one.shots) * one.losses for one in TRAININGS for name in one.learners if learner is None or name == learner
    )


def hours(seconds: float, tasks: int = TASKS) -> float:
    """Of one training run, so many tasks of each pool in an epoch."""
    return seconds * tasks * EPOCHS * POOLS / 3600


def of_shots(measured: Mapping[int, float], shots: int) -> float:
    """Seconds of a task, scaled by its images from the nearest number of shots where it was not measured itself."""
    nearest = min(measured, key=lambda known: (abs(known - shots), known))
    return measured[nearest] * shots / nearest


def all_tables(measured: Seconds) -> dict[int, float]:
    """Number of GPUs → hours until the last run ends, each run on one GPU, the longest first."""
    lengths = sorted(
        (
            hours(of_shots(measured[learner], shots), one.tasks)
            for one in TRAININGS
            for learner in one.learners
            for shots in one.shots
            for _ in range(one.losses)
        ),
        reverse=True,
    )
    return {gpus: _last_end(lengths, gpus) for gpus in GPUS}


def _last_end(lengths: list[float], gpus: int) -> float:
    ends = [0.0] * gpus
    for length in lengths:
        heapq.heapreplace(ends, ends[0] + length)
    return max(ends)


def notes(measured: Seconds) -> list[str]:
    """Seconds of a task, hours of a table's cell and of all tables, in sentences."""
    if not all(measured.values()):
        return ["Hours of training: unknown, as not both learners could be timed."]
    runs = [f"{count(name)} of {title}" for name, title in TITLES.items()]
    known = sorted(set.union(*(set(of) for of in measured.values())))
    scaled = sorted({shots for one in TRAININGS for shots in one.shots} - set(known))
    lines = [
        "Seconds of an outer step of one task, that is K support and K query images of one pool: "
        + "; ".join(
            f"{title} " + ", ".join(f"{of[shots]:.3f} ({shots} shots)" for shots in sorted(of))
            for title, of in ((TITLES[name], measured[name]) for name in measured)
        )
        + ".",
        f"Hours of a table's cell, one training run of {TASKS} tasks × {EPOCHS} epochs × {POOLS} pools = "
        f"{TASKS * EPOCHS * POOLS} tasks (a mixed task of K images of each pool counts as two): "
        + "; ".join(
            f"{TITLES[name]} " + ", ".join(f"{hours(of[shots]):.2f} ({shots} shots)" for shots in sorted(of))
            for name, of in measured.items()
        )
        + ". Where the tasks of both pools together are counted, as tasks.count does of exclusive tasks, half of it. "
        "Validation, adaptation to targets and stopping early are not counted.",
    ]
    ends = ", ".join(f"{gpus}: {value:.1f} h" for gpus, value in all_tables(measured).items())
    lines.append(
        f"All tables, {count()} distinct training runs ({' and '.join(runs)}; one that serves several tables or "
        f"targets counts once), a run on one device, by the number of devices: {ends}."
        + (f" {', '.join(map(str, scaled))} shots: scaled by images from the nearest measured." if scaled else "")
    )
    return lines

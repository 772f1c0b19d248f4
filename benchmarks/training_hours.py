"""Hours of meta-training for the paper's tables, from the measured seconds per task."""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass

EPOCHS = 50
POOLS = 2
TASKS = 50
"""Tasks per pool and epoch."""
GPUS = (1, 4, 8)
TITLES = {"imaml": "iMAML", "maml": "MAML"}


@dataclass(frozen=True)
class Trained:
    """Training runs that differ only in learner, shots and loss.

    Attributes:
        serves: the tables and figures that they fill.
        learners: "imaml", "maml".
        shots: K.
        tasks: tasks per pool and epoch.
        losses: number of losses compared.
    """

    serves: str
    learners: tuple[str, ...] = ("imaml", "maml")
    shots: tuple[int, ...] = (5, 10, 20)
    tasks: int = TASKS
    losses: int = 1


# Tables 2 to 7 of Khadka et al. 2022: each pair, set-up, learner, shot count and loss is trained separately; a model
# that is tested on several targets, or shown in several places, is trained once.
TRAININGS = (
    Trained("table 2: exclusive, PH2 and Kvasir-SEG, to ISIC"),
    Trained("tables 3 and 5 and figure 2: mixed, PH2 + Kvasir-SEG, to ISIC and to KvasirCapsule-SEG"),
    Trained("table 4: same class, CVC-612 and Kvasir-SEG, to ISIC"),
    Trained("table 6: same class, ISIC and PH2, to Kvasir-SEG and to KvasirCapsule-SEG"),
    Trained("table 7: exclusive, CVC-612 and PH2, to ISIC, two losses", ("imaml",), (5,), 20, 2),
)

Seconds = Mapping[str, Mapping[int, float]]
"""Learner → shots → seconds per task."""


def count(learner: str | None = None) -> int:
    """Number of training runs for all tables, of one learner or of both."""
    return sum(
        len(one.shots) * one.losses for one in TRAININGS for name in one.learners if learner is None or name == learner
    )


def hours(seconds: float, tasks: int = TASKS) -> float:
    """Hours of one training run with this number of tasks per pool and epoch."""
    return seconds * tasks * EPOCHS * POOLS / 3600


def of_shots(measured: Mapping[int, float], shots: int) -> float:
    """Seconds per task; if not measured, scaled by images from the nearest number of shots."""
    nearest = min(measured, key=lambda known: (abs(known - shots), known))
    return measured[nearest] * shots / nearest


def all_tables(measured: Seconds) -> dict[int, float]:
    """Number of GPUs → hours until the last run ends, with one GPU per run and the longest runs first."""
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
    """Sentences on seconds per task, hours per table cell and hours for all tables."""
    if not all(measured.values()):
        return ["Hours of training: unknown, because one of the learners could not be timed."]
    runs = [f"{count(name)} of {title}" for name, title in TITLES.items()]
    known = sorted(set.union(*(set(of) for of in measured.values())))
    scaled = sorted({shots for one in TRAININGS for shots in one.shots} - set(known))
    lines = [
        "Seconds per outer step of one task with K support and K query images of one pool: "
        + "; ".join(
            f"{title} " + ", ".join(f"{of[shots]:.3f} ({shots} shots)" for shots in sorted(of))
            for title, of in ((TITLES[name], measured[name]) for name in measured)
        )
        + ".",
        f"Hours per table cell, one training run of {TASKS} tasks × {EPOCHS} epochs × {POOLS} pools = "
        f"{TASKS * EPOCHS * POOLS} tasks (a mixed task with K images of each pool counts as two): "
        + "; ".join(
            f"{TITLES[name]} " + ", ".join(f"{hours(of[shots]):.2f} ({shots} shots)" for shots in sorted(of))
            for name, of in measured.items()
        )
        + ". Half of that if tasks are counted over both pools together, as tasks.count does for exclusive tasks. "
        "Validation, adaptation to targets and early stopping are not included.",
    ]
    ends = ", ".join(f"{gpus}: {value:.1f} h" for gpus, value in all_tables(measured).items())
    lines.append(
        f"All tables, {count()} distinct training runs ({' and '.join(runs)}; a run shared by several tables or "
        f"targets counts once), one run per device, by the number of devices: {ends}."
        + (f" {', '.join(map(str, scaled))} shots: scaled by images from the nearest measured." if scaled else "")
    )
    return lines

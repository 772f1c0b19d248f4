"""Warnings at the end of training about inner problems that were not solved or did not move φ."""

from collections.abc import Iterator, Mapping
from typing import Any

from metaseg.meta.inner_loop import InnerLoop

STILL = 0.01
"""A task whose support loss falls by a smaller fraction than this in the inner loop has left φ at θ [D]."""


def still(diagnostics: Mapping[str, float]) -> dict[str, float]:
    """ "still": 1 if the inner loop left φ at θ, else 0; empty for gradients without an inner loop."""
    if "moved" not in diagnostics:
        return {}
    before, after = diagnostics["support_loss_before"], diagnostics["support_loss_after"]
    return {"still": float(abs(before - after) < STILL * abs(before))}


class Tally:
    """Counts tasks whose inner problem was not solved, and tasks whose inner loop did not move φ.

    Stationarity does not reveal the latter: it is small if λ is so large that φ stays at θ. ``unsolved`` is None for
    learners that solve no inner problem: MAML's inner loop has no proximal term, and takes all its steps.
    """

    def __init__(self) -> None:
        self.tasks, self.still = 0.0, 0.0
        self.unsolved: float | None = None

    def state(self) -> dict[str, float | None]:
        """The counts, for a checkpoint."""
        return {"tasks": self.tasks, "unsolved": self.unsolved, "still": self.still}

    def take_over(self, state: Mapping[str, Any]) -> None:
        """Restore a `state`."""
        self.tasks, self.unsolved, self.still = state["tasks"], state["unsolved"], state["still"]

    def add(self, tasks: float, means: Mapping[str, float]) -> None:
        """Count tasks by the means of their diagnostics; ignores outer steps without an inner loop."""
        if "still" in means:
            self.tasks += tasks
            self.still += tasks * means["still"]
        if "unsolved" in means:
            self.unsolved = (self.unsolved or 0.0) + tasks * means["unsolved"]

    def warnings(self, loop: InnerLoop) -> Iterator[str]:
        """The warnings to issue when training ends."""
        if self.unsolved:
            yield (
                f"The inner problem was not solved in {self.unsolved:.0f} of {self.tasks:.0f} tasks "
                f"({100 * self.unsolved / self.tasks:.0f} %): after {loop.steps} steps its gradient still exceeded "
                f"learner.inner.tolerance={loop.tolerance:g}. Raise learner.inner.steps, learner.lam or the "
                "tolerance."
            )
        if 2 * self.still > self.tasks:
            yield (
                f"The inner loop lowered the support loss by less than {100 * STILL:.0f} % in {self.still:.0f} of "
                f"{self.tasks:.0f} tasks ({100 * self.still / self.tasks:.0f} %): phi stayed at theta, so this was "
                "close to joint training. Lower learner.lam, or raise learner.inner.lr or learner.inner.steps."
            )

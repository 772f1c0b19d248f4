"""Outer steps that are skipped, because a task's meta-gradient is not finite or explodes."""

import logging
import math
from collections.abc import Sequence

from metaseg.errors import MetasegError, plural

log = logging.getLogger(__name__)

FROM_THE_FIRST = "no step was ever taken: check the loss, the images and the learner, or lower learner.inner.lr."
"""The remedy where no checkpoint or outer learning rate can help."""


class Skipping:
    """Decides which outer steps to skip, and ends a run that skips too many in a row.

    One bad task would carry infinities into θ and Adam's moments, from which no later step recovers. A skipped step
    changes neither θ nor the optimiser; its tasks and its place in the schedule are used up.

    Args:
        most: steps skipped in a row that end the run.
        largest: largest norm of a step's gradient, before clipping; None: any finite one.

    Attributes:
        total: steps skipped so far.
        in_a_row: steps skipped since the last one taken.
    """

    def __init__(self, most: int = 10, largest: float | None = None) -> None:
        self.most, self.largest = most, largest
        self.total = self.in_a_row = 0

    def skips(self, norm: float, step: int, of_tasks: Sequence[float]) -> bool:
        """Whether to skip a step.

        Args:
            norm: of the step's gradient, over the tasks of all ranks.
            step: number of the outer step.
            of_tasks: the norms of this rank's tasks, in the order of the batch.

        Raises:
            MetasegError: it would be one too many in a row.
        """
        if math.isfinite(norm) and (self.largest is None or norm <= self.largest):
            self.in_a_row = 0
            return False
        self.total += 1
        self.in_a_row += 1
        bound = "infinity" if self.largest is None else f"{self.largest:g}"
        tasks = ", ".join(f"{one:.3g}" for one in of_tasks)
        log.warning(
            "Outer step %d was skipped: its gradient has norm %.3g, expected less than %s (its tasks: %s).",
            *(step, norm, bound, tasks),
        )
        if self.in_a_row >= self.most:
            rates = "lower learner.inner.lr or learner.optimizer.lr. ckpt_path=last continues from the last checkpoint."
            raise MetasegError(
                f"Expected gradients of a norm less than {bound}, but that of outer step {step} was {norm:.3g} "
                f"{plural(self.in_a_row, 'time')} in a row; {rates if step else FROM_THE_FIRST}"
            )
        return True

"""Training on the target's support images alone, from the initial weights: the baseline a learner must beat."""

from typing import Any

import numpy as np
import torch

from metaseg.data.batches import SupportSet
from metaseg.errors import MetasegError
from metaseg.learners.base import Learner
from metaseg.meta.losses import UNMARKED
from metaseg.meta.vectors import Parameters
from metaseg.networks.stages import output_bias


class Scratch(Learner):
    """No meta-training; ``adapt`` is the whole training.

    Args:
        prior: whether the logits start at the log-odds of the support masks' foreground [Lin et al. 2017, section 4.1]
            rather than at even odds. Without it, a few dozen steps are spent on learning that most pixels of small
            objects' images are background.
        settings: as for `Learner`.

    Raises:
        MetasegError: if the network's logits have no bias, with ``prior``.
    """

    trains = False

    def __init__(self, *, prior: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        self._bias = output_bias(self.network) if prior else None
        if prior and self._bias is None:
            raise MetasegError(
                "learner.prior=true needs a network whose logits have a bias, found none: set it to false."
            )

    def start(self, support: SupportSet) -> Parameters:
        """The initial weights; with ``prior``, the logits' bias follows the support masks."""
        theta = self.theta()
        if self._bias is None:
            return theta
        inside = np.count_nonzero(support.masks == 1)
        outside = np.count_nonzero(support.masks != UNMARKED) - inside
        log_odds = float(np.log((inside + 1) / (outside + 1)))  # finite where all is foreground, or nothing
        return theta | {self._bias: torch.full_like(theta[self._bias], log_odds)}

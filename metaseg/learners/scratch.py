"""Training on the target's support images alone, from the initial weights: the baseline a learner must beat."""

from metaseg.data.batches import Episode
from metaseg.learners.base import Learner
from metaseg.meta.gradients import MetaGradient
from metaseg.meta.vectors import Parameters


class Scratch(Learner):
    """No meta-training; ``adapt`` is the whole training."""

    trains = False

    def meta_gradient(self, theta: Parameters, episode: Episode) -> MetaGradient:
        """Not supported: this learner does not train on episodes.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("this learner does not train on episodes")

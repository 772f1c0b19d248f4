"""MAML [Finn et al. 2017], the paper's main competitor: back-propagation through the inner loop."""

from metaseg.data.batches import Episode
from metaseg.learners.base import Learner
from metaseg.meta.gradients import MetaGradient, unrolled_gradient
from metaseg.meta.vectors import Parameters


class MAML(Learner):
    """Second-order MAML; arguments as ``Learner``."""

    def meta_gradient(self, theta: Parameters, episode: Episode) -> MetaGradient:
        """The gradient of the query loss through all inner steps."""
        return unrolled_gradient(self.task(episode), theta, self.inner)

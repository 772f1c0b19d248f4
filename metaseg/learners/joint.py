"""Joint training: plain supervision on both pools; with adaptation to the target, the baseline to beat."""

from metaseg.data.batches import Episode
from metaseg.learners.base import Learner
from metaseg.meta.gradients import MetaGradient
from metaseg.meta.vectors import Parameters


class Joint(Learner):
    """Plain gradient descent on the same episodes, support and query alike; arguments as ``Learner``.

    Without adaptation to the target it is the paper's naive baseline.
    """

    def meta_gradient(self, theta: Parameters, episode: Episode) -> MetaGradient:
        """The gradient of the loss over all the episode's images."""
        return self.plain_gradient(theta, episode)

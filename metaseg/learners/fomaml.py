"""First-order MAML [Finn et al. 2017, section 5.2]."""

from metaseg.data.batches import Episode
from metaseg.learners.base import Learner
from metaseg.meta.gradients import MetaGradient, first_order_gradient
from metaseg.meta.vectors import Parameters


class FirstOrderMAML(Learner):
    """First-order MAML; arguments as ``Learner``."""

    def meta_gradient(self, theta: Parameters, episode: Episode) -> MetaGradient:
        """The query gradient at the adapted parameters."""
        return self.on_task(theta, episode, first_order_gradient)

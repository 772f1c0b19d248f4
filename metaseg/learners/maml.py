"""MAML [Finn et al. 2017], the paper's main competitor: back-propagation through the inner loop."""

from functools import partial
from typing import Any

from metaseg.data.batches import Episode
from metaseg.learners.base import Learner
from metaseg.meta.gradients import MetaGradient, unrolled_gradient
from metaseg.meta.vectors import Parameters


class MAML(Learner):
    """Second-order MAML.

    Args:
        checkpoint: whether to recompute inner steps in the backward pass instead of keeping them.
        settings: see ``Learner``.
    """

    def __init__(self, *, checkpoint: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        self.checkpoint = checkpoint

    def meta_gradient(self, theta: Parameters, episode: Episode) -> MetaGradient:
        """The gradient of the query loss through all inner steps."""
        return self.with_products(
            lambda products: self.on_task(
                theta, episode, partial(unrolled_gradient, products=products, checkpoint=self.checkpoint)
            )
        )

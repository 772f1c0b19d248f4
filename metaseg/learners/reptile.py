"""Reptile [Nichol et al. 2018]: follow the displacement of the inner loop."""

import torch

from metaseg.data.batches import Episode
from metaseg.learners.base import Learner
from metaseg.meta.gradients import MetaGradient, reptile_gradient
from metaseg.meta.vectors import Parameters


class Reptile(Learner):
    """Reptile; arguments as ``Learner``.

    It does not split a task: every inner step uses all support and query images [our decision: the paper's minibatches
    would see the same images].
    """

    def meta_gradient(self, theta: Parameters, episode: Episode) -> MetaGradient:
        """The mean of the inner loop's gradients over all images of the task."""
        everything = episode._replace(
            support_images=torch.cat([episode.support_images, episode.query_images]),
            support_masks=torch.cat([episode.support_masks, episode.query_masks]),
        )
        return self.on_task(theta, everything, reptile_gradient)

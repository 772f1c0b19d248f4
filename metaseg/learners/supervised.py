"""Plain supervised training, the paper's naive baseline; adapted to the target, joint training + fine-tuning."""

import torch

from metaseg.data.batches import Episode
from metaseg.learners.base import Learner
from metaseg.meta.gradients import MetaGradient
from metaseg.meta.vectors import Parameters, detach, flatten
from metaseg.networks.functional import forward


class Supervised(Learner):
    """Ordinary gradient descent on the images of the same episodes, support and query alike.

    The score before adaptation is the naive baseline's; the score after it is that of joint training + fine-tuning.
    """

    def meta_gradient(self, theta: Parameters, episode: Episode) -> MetaGradient:
        """The gradient of the loss of all the episode's images, which normalise one another as in any batch."""
        images = torch.cat([episode.support_images, episode.query_images])
        masks = torch.cat([episode.support_masks, episode.query_masks])
        leaves = detach(theta, requires_grad=True)
        logits, found = forward(self.network, leaves, images)
        loss = self.loss(logits, masks)
        gradient = flatten(torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True))
        of_query = logits.detach()[len(episode.support_images) :]
        diagnostics = {"query_loss_after": loss.item(), "gradient_norm": gradient.norm().item()}
        found = {layer: (mean.detach(), variance.detach()) for layer, (mean, variance) in found.items()}
        return MetaGradient(gradient, detach(leaves), diagnostics, found, of_query)

"""Feyjie et al. 2020, "Semi-supervised few-shot learning for medical image segmentation" (arXiv 2003.08462).

One encoder serves two branches: one segments queries given the support set, the other (the surrogate task) denoises
images that need no masks, one of them from the target dataset. metaseg/networks/feyjie.py describes the network.

Established from the authors' public code: pixel-wise binary cross-entropy for both branches; the surrogate's batch is
the episode's support images and one unlabelled image of the target's domain; its noise s · N(0, 1), s ~ U(0.1, 0.6),
is drawn once per batch, and its target is the clean image at the features' resolution; Adam at 1e-4.

Assumed: s is in units of images in [0, 1]; the target is downsampled to the features' size by area averaging.

Different [our decision]:

- They alternate two Adams, one step each per episode. Here one Adam follows the sum of both gradients in each outer
  step. Parameters of a single branch move as under their own Adam; the encoder takes one step along the sum, where
  theirs takes two of different scale.
- They meta-train on FSS-1000; here it is the pair's pools, as for every learner. One outer step averages its tasks.
- The unlabelled images are a fraction of the target that is never scored (``learner.unlabelled``).
- They select weights on the test set; here the pair's validation loss decides, which is the run's loss.
"""

import zlib
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metaseg.data.batches import Episode
from metaseg.errors import MetasegError
from metaseg.learners.metric import MetricLearner
from metaseg.meta.losses import bce
from metaseg.meta.vectors import Parameters
from metaseg.networks.feyjie import FeyjieNetwork
from metaseg.networks.functional import Statistics
from metaseg.runs.schema import Natural, NotNegative

NOISE = (0.1, 0.6)
"""Smallest and largest standard deviation of the noise, for images in [0, 1] [the authors' code]."""


class Feyjie(MetricLearner):
    """Segmentation with a denoising surrogate task.

    Args:
        surrogate: weight ≥ 0 of the surrogate's gradient; 1 weighs it as an Adam of its own would.
        pixel_bce: train by binary cross-entropy, as published; False: by the run's loss.
        seed: of the noise.
        settings: see ``MetricLearner``.
    """

    network_class = FeyjieNetwork
    network: FeyjieNetwork

    def __init__(self, *, surrogate: NotNegative, pixel_bce: bool, seed: Natural, **settings: Any) -> None:
        super().__init__(**settings)
        self.surrogate, self.pixel_bce, self.seed = surrogate, pixel_bce, seed

    def objective(
        self, parameters: Parameters, episode: Episode
    ) -> tuple[Tensor, dict[str, Tensor], Statistics, Tensor]:
        """The segmentation loss and the weighted surrogate loss of one task; see ``MetricLearner.objective``."""
        total, losses, found, logits = super().objective(parameters, episode)
        if not self.surrogate:
            return total, losses, found, logits
        loss, of_surrogate = self.surrogate_loss(parameters, episode)
        losses = losses | {"surrogate_loss": loss.detach()}
        return total + self.surrogate * loss, losses, found | of_surrogate, logits

    def training_loss(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Binary cross-entropy, or the run's loss."""
        return bce(logits, masks) if self.pixel_bce else self.loss(logits, masks)

    def surrogate_loss(self, parameters: Parameters, episode: Episode) -> tuple[Tensor, Statistics]:
        """Binary cross-entropy of the denoised images against the clean ones, and the norm statistics of the pass.

        Raises:
            MetasegError: if the episode has no unlabelled image.
        """
        if episode.unlabelled is None:
            raise MetasegError(
                "The surrogate task needs an unlabelled target image, found none in the episode; set "
                "learner.unlabelled above 0, or learner.surrogate=0."
            )
        clean = torch.cat([episode.support_images, episode.unlabelled])
        # Noise for [0, 1] doubles for images in [-1, 1].
        noisy = clean + 2 * self.noise(episode).to(clean)
        logits, found = self.call(parameters, lambda network: network.denoise(noisy), None)
        goal = F.adaptive_avg_pool2d((clean + 1) / 2, logits.shape[-2:])
        return F.binary_cross_entropy_with_logits(logits, goal), found

    def noise(self, episode: Episode) -> Tensor:
        """The noise (K + 1, 3, H, W) of a task, for images in [0, 1]; the same on any device and number of ranks.

        A function of the seed, the outer step and the task (identified by its support masks), so a resumed run needs no
        state.
        """
        task = zlib.crc32(episode.support_masks.to("cpu", torch.uint8).numpy().tobytes())
        generator = np.random.default_rng([self.seed, self.outer_step, task])
        count, *shape = episode.support_images.shape
        strength = np.float32(generator.uniform(*NOISE))
        return torch.from_numpy(strength * generator.standard_normal((count + 1, *shape), dtype=np.float32))

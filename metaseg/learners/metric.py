"""Learners that segment a query by comparing it with the support: nothing is fitted at the target."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from metaseg.data.batches import Episode, SupportSet
from metaseg.errors import MetasegError
from metaseg.learners.base import Learner
from metaseg.meta.gradients import MetaGradient
from metaseg.meta.inner_loop import detached
from metaseg.meta.vectors import Parameters, detach, flatten
from metaseg.networks.comparing import ComparingNetwork
from metaseg.networks.functional import Statistics, forward, running_statistics
from metaseg.networks.segmenter import Segmenter
from metaseg.runs.schema import NotNegative

T = TypeVar("T")


class Met(NamedTuple):
    """A support set as the network sees it.

    Attributes:
        features: of its images.
        summary: what queries are compared with.
        found: the norm statistics of a pass in which its images are the queries themselves.
    """

    features: Any
    summary: Any
    found: Statistics


class MetricLearner(Learner):
    """A learner whose network compares queries with the support (`ComparingNetwork`).

    A prediction depends on the parameters, the support set and the query image alone: under ``model.norm=support`` the
    norm statistics are those of a pass in which the support images are compared with themselves, so other query images
    have no part in them. Under ``batch`` the queries of a call normalise one another, as the support images do; under
    ``running`` both are normalised by running statistics, which follow that same pass in training.

    Args:
        network: a `ComparingNetwork`.
        reversal: weight ≥ 0 of the loss with the roles reversed: the predicted masks of the queries, cut at p > 0.5,
            are the annotation by which the support images are segmented [PANet's alignment, Wang et al. 2019].
        settings: see ``Learner``; ``adapt.steps`` must be 0.

    Raises:
        MetasegError: on adaptation steps, or a network that does not compare.
    """

    network: ComparingNetwork

    def __init__(self, *, network: nn.Module, reversal: NotNegative = 0.0, **settings: Any) -> None:
        if not isinstance(network, ComparingNetwork):
            raise MetasegError(
                f"{type(self).__name__} needs a network that compares queries with a support set, found "
                f"{type(network).__name__}; set learner.network._target_ as in conf/learner."
            )
        super().__init__(network=network, **settings)
        if self.adapt_loop.steps:
            raise MetasegError(
                "learner.adapt.steps must be 0 for a learner that compares with the support instead of adapting, found "
                f"{self.adapt_loop.steps}."
            )
        self.reversal = reversal

    def meet(self, parameters: Parameters, images: Tensor, masks: Tensor) -> Met:
        """Take in a support set: images (K, 3, H, W) in [-1, 1], masks (K, 1, H, W) in {0, 1}."""

        def steps(network: ComparingNetwork) -> tuple[Any, Any, Tensor]:
            features = network.encode(images)
            summary = network.summarise(features, masks)
            return features, summary, network.compare(summary, features)

        (features, summary, _), found = self.call(parameters, steps, None)
        if self.norms.any("running"):
            (features, summary, _), _ = self.call(parameters, steps, self.norms.given({}, self._running()))
        return Met(features, summary, found)

    def segment(
        self,
        parameters: Parameters,
        support_images: Tensor,
        support_masks: Tensor,
        query_images: Tensor,
    ) -> Tensor:
        """Logits (B, 1, H, W) of query images (B, 3, H, W), given a support set.

        Args:
            parameters: of the network.
            support_images: (K, 3, H, W) in [-1, 1].
            support_masks: (K, 1, H, W) in {0, 1}.
            query_images: (B, 3, H, W) in [-1, 1].
        """
        met = self.meet(parameters, support_images, support_masks)
        return self.compare(parameters, met, query_images)[0]

    def compare(self, parameters: Parameters, met: Met, query_images: Tensor) -> tuple[Tensor, Any]:
        """Logits (B, 1, H, W) and features of query images (B, 3, H, W), given a support set that was met."""

        def steps(network: ComparingNetwork) -> tuple[Tensor, Any]:
            features = network.encode(query_images)
            return network.compare(met.summary, features), features

        return self.call(parameters, steps, self._statistics_of(met))[0]

    def call(
        self, parameters: Parameters, steps: Callable[[Any], T], statistics: Statistics | None
    ) -> tuple[T, Statistics]:
        """``steps(network)`` with these parameters and norm statistics; also returns the statistics that were used."""
        return forward(self.network, parameters, steps, statistics)

    def meta_gradient(self, theta: Parameters, episode: Episode) -> MetaGradient:
        """The gradient at θ of the query loss, and of the loss with the roles reversed where that has a weight."""
        episode = self.laid_out(episode)
        leaves = detach(theta, requires_grad=True)
        with torch.enable_grad():
            total, diagnostics, found, logits = self.objective(leaves, episode)
            gradient = flatten(torch.autograd.grad(total, list(leaves.values()), materialize_grads=True))
        diagnostics["gradient_norm"] = gradient.norm()
        values = {name: value.item() for name, value in diagnostics.items()}
        return MetaGradient(gradient, detach(leaves), values, detached(found), logits.detach())

    def objective(
        self, parameters: Parameters, episode: Episode
    ) -> tuple[Tensor, dict[str, Tensor], Statistics, Tensor]:
        """What training minimises on one task.

        Returns:
            The scalar, the losses it is made of by name (``query_loss_after`` among them), the norm statistics that
            were found on the way, and the query logits.
        """
        met = self.meet(parameters, episode.support_images, episode.support_masks)
        logits, features = self.compare(parameters, met, episode.query_images)
        total = self.training_loss(logits, episode.query_masks)
        losses = {"query_loss_after": total.detach()}
        if self.reversal:
            back = self.reversed_roles(parameters, met, features, logits)
            losses["reversed_loss"] = self.training_loss(back, episode.support_masks)
            total = total + self.reversal * losses["reversed_loss"]
        return total, losses, met.found, logits

    def training_loss(self, logits: Tensor, masks: Tensor) -> Tensor:
        """The loss that training minimises; here the run's."""
        return self.loss(logits, masks)

    def reversed_roles(self, parameters: Parameters, met: Met, features: Any, logits: Tensor) -> Tensor:
        """Logits (K, 1, H, W) of the support images, the queries being annotated with their predicted masks."""
        predicted = (logits.detach() > 0).to(logits)

        def steps(network: ComparingNetwork) -> Tensor:
            return network.compare(network.summarise(features, predicted), met.features)

        return self.call(parameters, steps, self._statistics_of(met))[0]

    def trial(self, episode: Episode) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Query loss and logits (B, 1, H, W), twice the same: there is no inner loop."""
        episode = self.laid_out(episode)
        with torch.no_grad():
            logits = self.segment(self.theta(), episode.support_images, episode.support_masks, episode.query_images)
            loss = self.loss(logits, episode.query_masks)
        return (loss, logits), (loss, logits)

    def adaptation(
        self,
        support: SupportSet,
        steps: Sequence[int],
        progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> Iterator[tuple[int, Segmenter]]:
        """Meet the support set, once; yields (0, segmenter) whatever ``steps`` says, as there are no steps."""
        theta = self.theta()
        images, masks = (part.to(self.device, memory_format=self.memory_format) for part in support.clean())
        with torch.no_grad():
            met = self.meet(theta, images, masks)
        # Copies: training may go on while the segmenter lives.
        yield 0, ComparingSegmenter(self, {name: value.clone() for name, value in theta.items()}, met)

    def _statistics_of(self, met: Met) -> Statistics:
        return self.norms.given(met.found, self._running())

    def _running(self) -> Statistics:
        return running_statistics(self.network) if self.norms.any("running") else {}


@dataclass(frozen=True)
class ComparingSegmenter:
    """A support set that was met, with the parameters it was met with; a `Segmenter`."""

    learner: MetricLearner
    parameters: Parameters
    met: Met

    def __call__(self, images: Tensor) -> Tensor:
        """Foreground probabilities (B, 1, H, W) of images (B, 3, H, W) in [-1, 1], on the parameters' device."""
        device = next(iter(self.parameters.values())).device
        with torch.no_grad():
            return torch.sigmoid(self.learner.compare(self.parameters, self.met, images.to(device))[0])

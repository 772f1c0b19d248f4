"""Learners that segment a query by comparing it with the support set, without fitting to the target."""

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


class EncodedSupport(NamedTuple):
    """An encoded support set.

    Attributes:
        features: of its images.
        summary: the summary that queries are compared with.
        found: norm statistics of a pass in which its images are also the queries.
    """

    features: Any
    summary: Any
    found: Statistics


class MetricLearner(Learner):
    """A learner whose network compares queries with the support (`ComparingNetwork`).

    With ``model.norm=support`` a prediction depends only on the parameters, the support set and the query image: the
    norm statistics come from a pass that compares the support images with themselves. With ``batch`` the queries of a
    call are normalised as a batch, and so are the support images; with ``running`` both use running statistics, updated
    from that same pass in training.

    Args:
        network: a ``network_class``.
        reversal: weight ≥ 0 of the loss with the roles reversed: the queries with their predicted masks, cut at p >
            0.5, serve as support for segmenting the support images [PANet's alignment, Wang et al. 2019].
        settings: see ``Learner``; ``adapt.steps`` must be 0.

    Raises:
        MetasegError: on adaptation steps, or a network of another class.
    """

    network_class = ComparingNetwork
    network: ComparingNetwork
    learns_from_scribbles = False

    def __init__(self, *, network: nn.Module, reversal: NotNegative = 0.0, **settings: Any) -> None:
        if not isinstance(network, self.network_class):
            raise MetasegError(
                f"{type(self).__name__} needs {self.network_class.__module__}.{self.network_class.__name__}, found "
                f"{type(network).__name__}; set learner.network._target_ as in conf/learner."
            )
        super().__init__(network=network, **settings)
        if self.adapt_loop.steps:
            raise MetasegError(
                f"{type(self).__name__} compares with the support set instead of fitting to it and needs "
                f"learner.adapt.steps=0, found {self.adapt_loop.steps}."
            )
        self.reversal = reversal

    def encode_support(self, parameters: Parameters, images: Tensor, masks: Tensor) -> EncodedSupport:
        """Encode a support set: images (K, 3, H, W) in [-1, 1], masks (K, 1, H, W) in {0, 1}."""

        def steps(network: ComparingNetwork) -> tuple[Any, Any, Tensor]:
            features = network.encode(images)
            summary = network.summarise(features, masks)
            return features, summary, network.compare(summary, features)

        (features, summary, _), found = self.call(parameters, steps, None)
        if self.norms.any("running"):
            (features, summary, _), _ = self.call(parameters, steps, self.norms.given({}, self._running()))
        return EncodedSupport(features, summary, found)

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
        encoded = self.encode_support(parameters, support_images, support_masks)
        return self.compare(parameters, encoded, query_images)[0]

    def compare(self, parameters: Parameters, encoded: EncodedSupport, query_images: Tensor) -> tuple[Tensor, Any]:
        """Logits (B, 1, H, W) and features of query images (B, 3, H, W), given an encoded support set."""

        def steps(network: ComparingNetwork) -> tuple[Tensor, Any]:
            features = network.encode(query_images)
            return network.compare(encoded.summary, features), features

        return self.call(parameters, steps, self._statistics_of(encoded))[0]

    def call(
        self, parameters: Parameters, steps: Callable[[Any], T], statistics: Statistics | None
    ) -> tuple[T, Statistics]:
        """``steps(network)`` with these parameters and norm statistics; also returns the statistics used."""
        return forward(self.network, parameters, steps, statistics)

    def meta_gradient(self, theta: Parameters, episode: Episode) -> MetaGradient:
        """The gradient at θ of the query loss plus the weighted loss with the roles reversed."""
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
        """The training objective of one task.

        Returns:
            The scalar, its component losses by name (including ``query_loss_after``), the norm statistics, and the
            query logits.
        """
        encoded = self.encode_support(parameters, episode.support_images, episode.support_masks)
        logits, features = self.compare(parameters, encoded, episode.query_images)
        total = self.training_loss(logits, episode.query_masks)
        losses = {"query_loss_after": total.detach()}
        if self.reversal:
            back = self.reversed_roles(parameters, encoded, features, logits)
            losses["reversed_loss"] = self.training_loss(back, episode.support_masks)
            total = total + self.reversal * losses["reversed_loss"]
        return total, losses, encoded.found, logits

    def training_loss(self, logits: Tensor, masks: Tensor) -> Tensor:
        """The loss minimised in training; here the run's."""
        return self.loss(logits, masks)

    def reversed_roles(self, parameters: Parameters, encoded: EncodedSupport, features: Any, logits: Tensor) -> Tensor:
        """Logits (K, 1, H, W) of the support images, with the queries and their predicted masks as support."""
        predicted = (logits.detach() > 0).to(logits)

        def steps(network: ComparingNetwork) -> Tensor:
            return network.compare(network.summarise(features, predicted), encoded.features)

        return self.call(parameters, steps, self._statistics_of(encoded))[0]

    def trial(self, episode: Episode) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Query loss and logits (B, 1, H, W), the same twice, as there is no inner loop."""
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
        """Encode the support set; yields (0, segmenter) once and ignores ``steps``."""
        theta = self.theta()
        images, masks = (part.to(self.device, memory_format=self.memory_format) for part in support.clean())
        with torch.no_grad():
            encoded = self.encode_support(theta, images, masks)
        # Copy the weights, as training may continue while the segmenter is in use.
        yield 0, ComparingSegmenter(self, {name: value.clone() for name, value in theta.items()}, encoded)

    def _statistics_of(self, encoded: EncodedSupport) -> Statistics:
        return self.norms.given(encoded.found, self._running())

    def _running(self) -> Statistics:
        return running_statistics(self.network) if self.norms.any("running") else {}


@dataclass(frozen=True)
class ComparingSegmenter:
    """An encoded support set with the parameters that encoded it; a `Segmenter`."""

    learner: MetricLearner
    parameters: Parameters
    encoded: EncodedSupport

    def __call__(self, images: Tensor) -> Tensor:
        """Foreground probabilities (B, 1, H, W) of images (B, 3, H, W) in [-1, 1], on the parameters' device."""
        device = next(iter(self.parameters.values())).device
        with torch.no_grad():
            return torch.sigmoid(self.learner.compare(self.parameters, self.encoded, images.to(device))[0])

"""An episode as a task: stages frozen in the inner loop run once, and the chain rule continues through them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from metaseg.data.batches import Episode
from metaseg.meta.gradients import MetaGradient, Task
from metaseg.meta.inner_loop import detached
from metaseg.meta.losses import Loss
from metaseg.meta.vectors import Parameters, detach, flatten, unflatten
from metaseg.networks.functional import Statistics, forward, running_statistics
from metaseg.networks.norms import Norms
from metaseg.networks.rates import HeldStages, Rates


@dataclass(frozen=True)
class Held:
    """The frozen leading stages of a network, run once.

    Attributes:
        parameters: of these stages; leaves, which require gradients if the outer step moves them.
        found: their norm statistics on the support set, attached to the graph.
        outputs: their outputs for the support and the query images, attached to the graph.
    """

    parameters: Parameters
    found: Statistics
    outputs: tuple[Any, Any]

    def tensors(self) -> list[Tensor]:
        """All output tensors attached to a graph, support set first."""
        return [one for one in pytree.tree_leaves(self.outputs) if one.requires_grad]


class EpisodeTask:
    """One episode as a task in the parameters that the inner loop can move.

    Args:
        network: the network; its own parameters are not used.
        loss: the segmentation loss.
        norms: normalisation statistics used for predictions.
        rates: of the inner loop.
        theta: all meta-parameters θ.
        episode: in the memory format the network should use.
        chained: name → whether the gradient of a frozen parameter is needed.

    Attributes:
        theta: the part of θ outside the held stages.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Loss,
        norms: Norms,
        rates: Rates,
        theta: Parameters,
        episode: Episode,
        chained: Callable[[str], bool],
    ) -> None:
        self._all, self._network, self._norms = theta, network, norms
        self._running = running_statistics(network) if norms.any("running") else {}
        held = rates.held(network)
        self.theta = {name: value for name, value in theta.items() if held is None or name not in held.names}
        self._first = None if held is None else held.next
        self._held = None if held is None else self._hold(held, episode, chained)
        support, query = episode.support_images, episode.query_images
        inputs: tuple[tuple[Tensor, ...], tuple[Tensor, ...]] = ((), ())
        if self._held is not None:
            # Leaves in place of the outputs, so that the task's graph ends here.
            support, query = (
                pytree.tree_map(lambda one: one.detach().requires_grad_(one.requires_grad), side)
                for side in self._held.outputs
            )
            inputs = tuple(  # type: ignore[assignment]
                tuple(one for one in pytree.tree_leaves(side) if one.requires_grad) for side in (support, query)
            )
        self._inputs = inputs
        self.task = self._task(loss, episode, support, query)

    def _hold(self, stages: HeldStages, episode: Episode, chained: Callable[[str], bool]) -> Held:
        parameters = {
            name: value.detach().requires_grad_(chained(name))
            for name, value in self._all.items()
            if name in stages.names
        }
        with torch.set_grad_enabled(any(value.requires_grad for value in parameters.values())):
            support, found = forward(self._network, parameters, episode.support_images, last=stages.last)
            given = self._norms.given(found, self._running)
            query, _ = forward(self._network, parameters, episode.query_images, given, last=stages.last)
        return Held(parameters, found, (support, query))

    def _task(self, loss: Loss, episode: Episode, support: Any, query: Any) -> Task:
        # The closures must not hold this object, which holds them: a cycle stays on the GPU until it is collected.
        network, norms, running, first = self._network, self._norms, self._running, self._first

        def logits_of_support(parameters: Parameters) -> tuple[Tensor, Statistics]:
            return forward(network, parameters, support, first=first)

        def support_loss(logits: Tensor) -> Tensor:
            return loss(logits, episode.support_masks)

        def query_loss(parameters: Parameters, found: Statistics) -> tuple[Tensor, Tensor]:
            given = norms.given(found, running)
            logits, _ = forward(network, parameters, query, given, first=first)
            return loss(logits, episode.query_masks), logits.detach()

        def logit_curvature(logits: Tensor, vector: Tensor) -> Tensor:
            assert loss.curvature is not None
            return loss.curvature(logits, episode.support_masks, vector)

        return Task(
            logits_of_support,
            support_loss,
            query_loss,
            logit_curvature if loss.curvature is not None else None,
            query_reads_support=norms.any("support"),
            support_inputs=self._inputs[0],
            query_inputs=self._inputs[1],
        )

    def whole(self, result: MetaGradient) -> MetaGradient:
        """Extend a meta-gradient of this task to all of θ, by the chain rule through the held stages."""
        if self._held is None:
            return result
        of_held = self._through_held(result.by_inputs)
        gradient = {**unflatten(result.gradient, self.theta), **of_held}
        vector = flatten(gradient[name] for name in self._all)
        return replace(
            result,
            gradient=vector,
            adapted={name: result.adapted.get(name, value) for name, value in detach(self._all).items()},
            diagnostics=result.diagnostics | {"gradient_norm": vector.norm().item()},
            found=detached(self._held.found) | result.found,
            by_inputs=(),
        )

    def _through_held(self, by_inputs: Sequence[Tensor]) -> Parameters:
        assert self._held is not None
        wanted = {name: value for name, value in self._held.parameters.items() if value.requires_grad}
        rows: Sequence[Tensor] = ()
        if wanted:
            rows = torch.autograd.grad(
                self._held.tensors(), list(wanted.values()), grad_outputs=list(by_inputs), materialize_grads=True
            )
        zero = {name: torch.zeros_like(value) for name, value in self._held.parameters.items()}
        return zero | dict(zip(wanted, rows, strict=True))

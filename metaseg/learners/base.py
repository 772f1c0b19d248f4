"""The base of all learners: network, inner loop, the meta-gradient of an episode, and adaptation to a target.

`metaseg.training.outer` takes the outer steps; nothing here needs a trainer.
"""

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from metaseg.data.batches import Episode, SupportSet
from metaseg.errors import MetasegError
from metaseg.learners.fine_tuning import FineTuning
from metaseg.learners.staged import EpisodeTask
from metaseg.learners.strengths import Strengths
from metaseg.meta.gradients import MetaGradient, Task, trial
from metaseg.meta.inner_loop import InnerLoop, detached
from metaseg.meta.losses import Loss
from metaseg.meta.replay import Unsupported
from metaseg.meta.step_size import largest_curvature
from metaseg.meta.vectors import Parameters, detach, flatten
from metaseg.networks.functional import forward
from metaseg.networks.norms import Norms
from metaseg.networks.rates import Rates
from metaseg.networks.segmenter import Segmenter
from metaseg.networks.weights_record import WeightsRecord
from metaseg.runs import schema, validation

Result = TypeVar("Result")
log = logging.getLogger(__name__)

_ENSEMBLE = {"folds", "flips", "batch", "share", "start_worth"}
"""Settings of fine-tuning besides its loop and rates."""


class Learner(nn.Module):
    """A few-shot learner: learns from a task (``meta_gradient``) and adapts to a target (``adapt``).

    All arguments but the first three are keys of conf/learner/*.yaml; `metaseg.learners.build` checks them against
    their types here.

    Args:
        network: the network whose parameters are the meta-parameters θ.
        loss: the segmentation loss.
        norm: normalisation statistics used for predictions (``model.norm``, see ``Norms``).
        adapt: fine-tuning on a target's support set. ``lam`` = None: the learned strengths, or 0 if none are learned;
            ``folds``: folds of the support set for the ensemble and the interpolation between θ and φ, see
            ``FineTuning``.
        optimizer: the outer Adam; weight_decay · θ is added to the gradient. None: for learners that do not train.
        inner: the inner loop of training and validation episodes. ``bound`` limits the step size to ``share``/σ, with σ
            the largest curvature of the inner problem at θ, measured every ``every`` outer steps (0: never; adam is not
            bounded). None: no steps.
        lam: λ ≥ 0, the strength of the proximal term where ``inner.proximal`` is true.
        channels_last: whether to use PyTorch's channels-last memory format.
        products: how learners that need curvature products compute them: "replay", "autograd", or "auto" for replay if
            the network supports it, else autograd.

    Each ``rates`` maps parts of the network (encoder, decoder, head) to step-size multipliers, see ``Rates``; 0 freezes
    a part. Parts frozen in the inner loop still move in the outer step, unless frozen there too, or the learner is
    Reptile.

    Raises:
        MetasegError: on incompatible settings.
    """

    trains = True
    learns_from_scribbles = True
    """Whether `adaptation` takes support masks with unmarked pixels: fine-tuning does."""
    network: nn.Module
    outer_step = 0
    """Outer steps taken so far, updated by the training loop."""
    inner_curvature = 0.0
    """The largest curvature of the inner problem at θ, as last measured; 0: never measured."""

    def __init__(
        self,
        *,
        network: nn.Module,
        loss: Loss,
        norm: str | Mapping[str, str],
        adapt: schema.Adapt,
        optimizer: schema.Optimizer | None = None,
        inner: schema.Inner | None = None,
        lam: schema.NotNegative = 0.0,
        products: Literal["auto", "replay", "autograd"] = "auto",
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.products: str = products
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.network = network
        self.loss = loss
        self.norms = Norms.of(network, norm)
        # The inner loop of training and validation episodes, without its rates and learned strengths.
        self.inner, bound = InnerLoop(steps=0), None
        if inner is not None:
            lam = lam if inner.proximal else 0.0
            self.inner = InnerLoop(inner.optimizer, inner.lr, inner.steps, lam, tolerance=inner.tolerance)
            bound = inner.bound if inner.optimizer != "adam" else None
        self.bound_every, self._bound_share = (0, 1.0) if bound is None else (bound.every, bound.share)
        self._adapt = adapt
        self.outer_rates = _rates(network, "optimizer", optimizer)
        self._inner_rates = _rates(network, "inner", inner)
        self._adapt_rates = _rates(network, "adapt", adapt)
        self.strengths: Strengths | None = None
        self._outer = optimizer

    @property
    def outer(self) -> schema.Optimizer:
        """The outer Adam of a learner that trains.

        Raises:
            MetasegError: its settings have none.
        """
        if self._outer is None:
            raise MetasegError("This learner trains, so it needs learner.optimizer, found null: set it.")
        return self._outer

    @property
    def device(self) -> torch.device:
        """The network's device."""
        return next(self.network.parameters()).device

    @property
    def weights(self) -> WeightsRecord | None:
        """The pre-trained weights the network started from; None: random initialisation."""
        return getattr(self.network, "weights", None)

    @property
    def adapt_loop(self) -> InnerLoop:
        """The fine-tuning loop on a target's support set, without its rates."""
        adapt = self._adapt
        return InnerLoop(adapt.optimizer, adapt.lr, adapt.steps, adapt.lam or 0.0, adapt.schedule)

    @property
    def folds(self) -> int:
        """Folds of a target's support set for the ensemble; 0: none."""
        return self._adapt.folds

    @property
    def batch(self) -> int | None:
        """Most support images of a fine-tuning step; None: all."""
        return self._adapt.batch

    def passes(self, images: int) -> tuple[float, int]:
        """What adaptation to so many images takes, see `FineTuning.passes`."""
        return self.fine_tuning().passes(images)

    def with_adaptation(self, **changes: Any) -> "Learner":
        """An independent copy with other values of ``adapt``, such as lr, steps, lam, folds or batch.

        Both may adapt at the same time.

        Raises:
            MetasegError: on an unknown name or a value out of range.
        """
        other = copy.deepcopy(self)
        other._adapt = validation.checked(schema.Adapt, self._adapt.model_dump() | changes)
        other._adapt_rates = _rates(other.network, "adapt", other._adapt)
        return other

    def meta_gradient(self, theta: Parameters, episode: Episode) -> MetaGradient:
        """The meta-gradient of one task, with diagnostics; of learners that train on episodes.

        Raises:
            RuntimeError: this one does not.
        """
        raise RuntimeError(f"{type(self).__name__} does not train on episodes")

    def adapt(self, support: SupportSet) -> Segmenter:
        """Adapt to a target with ``adapt.steps`` steps on its support set."""
        for _, segmenter in self.adaptation(support, [self.adapt_loop.steps]):
            adapted = segmenter
        return adapted

    def adaptation(
        self,
        support: SupportSet,
        steps: Sequence[int],
        progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> Iterator[tuple[int, Segmenter]]:
        """Adapt, and yield (step, segmenter) at each step number in ``steps`` (0: before the first step).

        Args:
            support: the target's annotated images.
            steps: step numbers.
            progress: called after each step with (steps taken, total steps).
        """
        require_gradients()
        yield from self.fine_tuning().run(self.start(support), support, steps, progress)

    def as_start(self, checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
        """Convert the checkpoint that training starts from to a checkpoint of this learner."""
        return checkpoint

    def start(self, support: SupportSet) -> Parameters:
        """Where adaptation to a target's annotated images starts: the meta-parameters θ."""
        return self.theta()

    def after_inner(self, support: SupportSet) -> Segmenter | None:
        """Adapt to a target by the inner problem of training alone; None: the learner has no inner loop."""
        if not self.inner.steps:
            return None
        require_gradients()
        tuning, support = self._inner_tuning(support)
        ((_, segmenter),) = tuning.run(self.theta(), support, [self.inner.steps])
        return segmenter

    def _inner_tuning(self, support: SupportSet) -> tuple[FineTuning, SupportSet]:
        """The inner problem of training as fine-tuning on a target: no augmentation, no fold networks, α = 1."""
        images, masks = (one.to(self.device) for one in support.clean())
        curvature = 0.0
        if self.bound_every:
            curvature = max(self.curvature_of(Episode(images, masks, images[:1], masks[:1])), self.inner_curvature)
        tuning = replace(
            self.fine_tuning(),
            loop=self._bounded(curvature),
            rates=self._inner_rates,
            folds=0,
            batch=None,
            share=1.0,
            strengths=self.strengths,
        )
        return tuning, support.plain()

    def fine_tuning(self) -> FineTuning:
        """This learner's fine-tuning procedure."""
        return FineTuning(
            network=self.network,
            loss=self.loss,
            norms=self.norms,
            loop=self.adapt_loop,
            rates=self._adapt_rates,
            device=self.device,
            memory_format=self.memory_format,
            strengths=self.strengths if self._adapt.lam is None else None,
            **self._adapt.model_dump(include=_ENSEMBLE),
        )

    def plain_gradient(self, theta: Parameters, episode: Episode) -> MetaGradient:
        """The gradient at θ of the loss over all the episode's images, normalised as one batch."""
        episode = self.laid_out(episode)
        leaves = {name: value.detach().requires_grad_(self.learns(name)) for name, value in theta.items()}
        moving = [value for value in leaves.values() if value.requires_grad]
        with torch.enable_grad():
            images = torch.cat([episode.support_images, episode.query_images])
            logits, found = forward(self.network, leaves, images)
            loss = self.loss(logits, torch.cat([episode.support_masks, episode.query_masks]))
            rows = iter(torch.autograd.grad(loss, moving, materialize_grads=True))
        gradient = flatten(next(rows) if leaf.requires_grad else torch.zeros_like(leaf) for leaf in leaves.values())
        of_query = logits.detach()[len(episode.support_images) :]
        diagnostics = {"query_loss_after": loss.item(), "gradient_norm": gradient.norm().item()}
        return MetaGradient(gradient, detach(leaves), diagnostics, detached(found), of_query)

    def theta(self) -> Parameters:
        """The meta-parameters, detached; they share memory with the network."""
        return detach(dict(self.network.named_parameters()))

    def on_task(
        self, theta: Parameters, episode: Episode, estimate: Callable[[Task, Parameters, InnerLoop], MetaGradient]
    ) -> MetaGradient:
        """Apply a function of `metaseg.meta.gradients` to an episode; returns the meta-gradient in all of θ.

        Args:
            theta: the meta-parameters.
            episode: the task's images.
            estimate: (task, θ without frozen stages, inner loop) → meta-gradient.
        """
        task = self.episode_task(theta, episode, self.learns)
        result = task.whole(estimate(task.task, task.theta, self._inner_loop(task.theta)))
        if self.strengths is None or result.by_strengths is None:
            return replace(result, by_strengths=None)
        return replace(result, by_strengths=self.strengths.by_logarithm(task.theta, result.by_strengths))

    def episode_task(
        self, theta: Parameters, episode: Episode, chained: Callable[[str], bool] = lambda name: False
    ) -> EpisodeTask:
        """The episode as functions of the parameters that the inner loop can move; `chained` as in `EpisodeTask`."""
        return EpisodeTask(
            self.network, self.loss, self.norms, self._inner_rates, theta, self.laid_out(episode), chained
        )

    def _inner_loop(self, theta: Parameters) -> InnerLoop:
        strengths = None if self.strengths is None else self.strengths.vector(theta)
        bounded = self._bounded(self.inner_curvature)
        return replace(bounded, rates=self._inner_rates.vector(theta), strengths=strengths)

    def _bounded(self, curvature: float) -> InnerLoop:
        """The inner loop with its step size limited for this largest curvature; 0: unknown, no limit."""
        if not curvature > 0:
            return self.inner
        return replace(self.inner, lr=min(self.inner.lr, self._bound_share / curvature))

    def curvature_of(self, episode: Episode) -> float:
        """The largest curvature of an episode's inner problem at θ."""
        task = self.episode_task(self.theta(), episode)
        loop = self._inner_loop(task.theta)
        return self.with_products(lambda products: largest_curvature(task.task, task.theta, loop, products=products))

    def learns(self, name: str) -> bool:
        """Whether the outer step moves a parameter."""
        return bool(self.outer_rates.by_name[name])

    def laid_out(self, episode: Episode) -> Episode:
        """The episode with its images in the configured memory format."""
        support, query = (
            images.contiguous(memory_format=self.memory_format)
            for images in (episode.support_images, episode.query_images)
        )
        return episode._replace(support_images=support, query_images=query)

    def with_products(self, compute: Callable[[str], Result]) -> Result:
        """Call `compute` with the configured curvature products; for "auto", the fastest that the network supports.

        Raises:
            MetasegError: if ``products`` is "replay" and the network uses an operation that cannot be replayed.
        """
        if self.products != "auto":
            try:
                return compute(self.products)
            except Unsupported as error:
                raise MetasegError(
                    f"learner.products=replay does not support every operation, found {error}; "
                    "set learner.products=autograd or auto."
                ) from error
        try:
            return compute("replay")
        except Unsupported as error:
            log.warning("The network uses %s, so curvature products fall back to autograd, which is slower.", error)
            self.products = "autograd"
            return compute("autograd")

    def inner_state(self) -> dict[str, Any]:
        """State of the inner problem measured or learned during training, for a checkpoint."""
        learned = {} if self.strengths is None else {"lambda": self.strengths.state()}
        return {"curvature": self.inner_curvature, **learned}

    def take_over(self, checkpoint: Mapping[str, Any]) -> None:
        """Restore `inner_state` from a checkpoint; missing entries start fresh.

        Raises:
            MetasegError: if its learned strengths belong to other parts or layers.
        """
        found = checkpoint.get("inner_problem", {})
        if self.bound_every:
            self.inner_curvature = found.get("curvature", 0.0)
        if self.strengths is not None and "lambda" in found:
            self.strengths.take_over(found["lambda"])

    def trial(self, episode: Episode) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Query loss and logits (B, 1, H, W), before and after the inner loop."""
        task = self.episode_task(self.theta(), episode)
        return trial(task.task, task.theta, self._inner_loop(task.theta))


def _rates(network: nn.Module, key: str, chosen: schema.Optimizer | schema.Inner | schema.Adapt | None) -> Rates:
    rates = None if chosen is None else chosen.rates
    return Rates.of(network, f"learner.{key}.rates", None if rates is None else rates.model_dump())


def require_gradients() -> None:
    """Raise a readable error if gradients are disabled.

    Raises:
        MetasegError: in inference mode.
    """
    if torch.is_inference_mode_enabled():
        raise MetasegError(
            "Adaptation needs gradients, but inference mode is on; use Trainer(inference_mode=False) or no_grad()."
        )

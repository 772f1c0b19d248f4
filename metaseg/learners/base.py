"""What every learner shares: its network and loops, what an episode teaches, and adaptation to a target.

`metaseg.training.outer` takes the outer steps; nothing here needs a trainer.
"""

import copy
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from metaseg.data.batches import Episode, SupportSet
from metaseg.errors import MetasegError
from metaseg.learners.fine_tuning import FineTuning
from metaseg.learners.inner import InnerEvaluation
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
from metaseg.runs import schema

Result = TypeVar("Result")


class Learner(nn.Module):
    """A learner answers two questions: what a task teaches (``meta_gradient``), and how it meets a dataset (``adapt``).

    The arguments beside the first three are the keys of conf/learner/*.yaml; `metaseg.learners.build` checks each by
    its type here.

    Args:
        network: the network whose parameters are the meta-parameters θ.
        loss: the segmentation loss.
        norm: statistics that predictions are normalised with (``model.norm``, see ``Norms``).
        adapt: the descent on the support set of a target. ``lam`` = None: the learned strengths, and 0 where none are
            learned; ``folds``: parts of the support set by which the end of the descent is weighed against θ, see
            ``FineTuning``. With ``by`` = "inner" all of these are passed over: a target is adapted to by the inner
            problem of training, without augmentation or ensemble.
        optimizer: the outer Adam; weight_decay · θ is added to the gradient. None: of learners that do not train.
        inner: the inner loop of training and validation episodes. With a ``bound`` the step size is at most
            ``share``/σ, with σ the largest curvature of the inner problem at θ, measured every so many (``every``)
            outer steps (0: never; adam is not bounded). None: no steps.
        lam: λ ≥ 0, the strength of the proximal term where ``inner.proximal`` is true.
        channels_last: whether images and activations lie in memory with the channels of a pixel side by side.
        products: how curvature products are computed, by learners that need them: "replay", "autograd", or "auto" for
            the first of these that the network allows.

    Each ``rates`` maps parts of the network (encoder, decoder, head) to multipliers of the step size, see ``Rates``; 0
    freezes a part. What the inner loop freezes still moves in the outer step, unless it is frozen there too.

    Raises:
        MetasegError: on settings that do not go together.
    """

    trains = True
    network: nn.Module
    outer_step = 0
    """Outer steps taken so far; whoever takes them counts here."""
    inner_curvature = 0.0
    """The largest curvature of the inner problem at θ, as last measured; 0: it was not."""

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
        self._inner, bound, self._inner_evaluation = InnerLoop(steps=0), None, InnerEvaluation(network, loss)
        if inner is not None:
            lam = lam if inner.proximal else 0.0
            self._inner = InnerLoop(inner.optimizer, inner.lr, inner.steps, lam, tolerance=inner.tolerance)
            bound = inner.bound if inner.optimizer != "adam" else None
            self._inner_evaluation = InnerEvaluation(network, loss, inner.precision, inner.compile)
        self.bound_every, self._bound_share = (0, 1.0) if bound is None else (bound.every, bound.share)
        self.adapts_by_inner = adapt.by == "inner"
        """Whether a target is adapted to by the inner problem of training."""
        if self.adapts_by_inner and not self._inner.steps:
            raise MetasegError("learner.adapt.by=inner needs an inner loop with steps, found none: set it to recipe.")
        recipe = InnerLoop(adapt.optimizer, adapt.lr, adapt.steps, adapt.lam or 0.0, adapt.schedule)
        self._adapt = self._inner if self.adapts_by_inner else recipe
        self._adapts_with_strengths = adapt.lam is None
        self._folds, self._flips = adapt.folds, adapt.flips
        self.outer_rates = _rates(network, "optimizer", optimizer)
        self._inner_rates = _rates(network, "inner", inner)
        self._adapt_rates = _rates(network, "adapt", adapt)
        self.strengths: Strengths | None = None
        self._outer = optimizer

    @property
    def outer(self) -> schema.Optimizer:
        """The outer Adam of a learner that trains."""
        assert self._outer is not None
        return self._outer

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return next(self.network.parameters()).device

    @property
    def weights(self) -> WeightsRecord | None:
        """The pre-trained weights that the network began from; None: random ones."""
        return getattr(self.network, "weights", None)

    @property
    def inner(self) -> InnerLoop:
        """The inner loop of training and validation episodes, without its rates and learned strengths."""
        return self._inner

    @property
    def adapt_loop(self) -> InnerLoop:
        """The descent on the support set of a target, without its rates."""
        return self._adapt

    def with_adaptation(self, **changes: Any) -> "Learner":
        """A copy with other values of ``adapt``: lr, steps, lam. It shares nothing: both may adapt at the same time.

        Raises:
            MetasegError: on a value out of range.
        """
        try:
            loop = replace(self._adapt, **changes)
        except ValueError as error:
            raise MetasegError(f"Adaptation cannot take {changes}: {error}.") from error
        other = copy.deepcopy(self)
        other._adapt = loop
        return other

    @abstractmethod
    def meta_gradient(self, theta: Parameters, episode: Episode) -> MetaGradient:
        """The gradient that one task asks θ to follow, with diagnostics."""

    def adapt(self, support: SupportSet) -> Segmenter:
        """Adapt to a target by ``adapt.steps`` steps on its support set."""
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
            progress: called after each step with (steps taken, of how many).
        """
        require_gradients()
        tuning = self.fine_tuning()
        if self.adapts_by_inner:
            tuning, support = self._inner_tuning(self._adapt, support)
        yield from tuning.run(self.theta(), support, steps, progress)

    def after_inner(self, support: SupportSet) -> Segmenter | None:
        """Adapt to a target by the inner problem of training alone; None: this learner has none."""
        if not self._inner.steps:
            return None
        require_gradients()
        tuning, support = self._inner_tuning(self._inner, support)
        ((_, segmenter),) = tuning.run(self.theta(), support, [self._inner.steps])
        return segmenter

    def _inner_tuning(self, loop: InnerLoop, support: SupportSet) -> tuple[FineTuning, SupportSet]:
        """The inner problem of a support set as a descent at a target: θ's only rival is φ, and images stay as are."""
        images, masks = (one.to(self.device) for one in support.clean())
        curvature = 0.0
        if self.bound_every:
            curvature = max(self.curvature_of(Episode(images, masks, images[:1], masks[:1])), self.inner_curvature)
        tuning = replace(
            self.fine_tuning(),
            loop=self._bounded(loop, curvature),
            rates=self._inner_rates,
            folds=0,
            strengths=self.strengths,
        )
        return tuning, support.plain()

    def fine_tuning(self) -> FineTuning:
        """How this learner is fine-tuned on a support set."""
        return FineTuning(
            self.network,
            self.loss,
            self.norms,
            self.adapt_loop,
            self._adapt_rates,
            self._folds,
            self._flips,
            self.device,
            self.memory_format,
            self.strengths if self._adapts_with_strengths else None,
        )

    def plain_gradient(self, theta: Parameters, episode: Episode) -> MetaGradient:
        """The gradient at θ of the loss of all the episode's images, which normalise one another as in any batch."""
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
        """The meta-parameters, cut from any graph; the values are shared with the network."""
        return detach(dict(self.network.named_parameters()))

    def on_task(
        self, theta: Parameters, episode: Episode, estimate: Callable[[Task, Parameters, InnerLoop], MetaGradient]
    ) -> MetaGradient:
        """What a function of `metaseg.meta.gradients` makes of an episode, as a meta-gradient in all of θ.

        Args:
            theta: the meta-parameters.
            episode: the task's images.
            estimate: (task, θ of what moves, inner loop) → meta-gradient.
        """
        task = self.episode_task(theta, episode, self.learns)
        result = task.whole(estimate(task.task, task.theta, self._inner_loop(task.theta)))
        if self.strengths is None or result.by_strengths is None:
            return result
        return replace(result, by_strengths=self.strengths.by_logarithm(task.theta, result.by_strengths))

    def episode_task(
        self, theta: Parameters, episode: Episode, chained: Callable[[str], bool] = lambda name: False
    ) -> EpisodeTask:
        """The episode as callables of the parameters that the inner loop can move; `chained` as of `EpisodeTask`."""
        return EpisodeTask(
            self.network,
            self.loss,
            self.norms,
            self._inner_rates,
            theta,
            self.laid_out(episode),
            self._inner_evaluation,
            chained,
        )

    def _inner_loop(self, theta: Parameters) -> InnerLoop:
        strengths = None if self.strengths is None else self.strengths.vector(theta)
        bounded = self._bounded(self._inner, self.inner_curvature)
        return replace(bounded, rates=self._inner_rates.vector(theta), strengths=strengths)

    def _bounded(self, loop: InnerLoop, curvature: float) -> InnerLoop:
        """The inner loop with a step size that this largest curvature allows; 0: it is not known."""
        return replace(loop, lr=min(loop.lr, self._bound_share / curvature)) if curvature > 0 else loop

    def curvature_of(self, episode: Episode) -> float:
        """The largest curvature of the inner problem of an episode at θ."""
        task = self.episode_task(self.theta(), episode)
        loop = self._inner_loop(task.theta)
        return self.with_products(lambda products: largest_curvature(task.task, task.theta, loop, products=products))

    def learns(self, name: str) -> bool:
        """Whether the outer step moves a parameter."""
        return bool(self.outer_rates.by_name[name])

    def laid_out(self, episode: Episode) -> Episode:
        """The episode with its images in the memory layout of choice."""
        support, query = (
            images.contiguous(memory_format=self.memory_format)
            for images in (episode.support_images, episode.query_images)
        )
        return episode._replace(support_images=support, query_images=query)

    def with_products(self, compute: Callable[[str], Result]) -> Result:
        """Call `compute` with the curvature products that the network allows.

        Raises:
            MetasegError: if ``products`` is "replay" and the network uses an operation that cannot be replayed.
        """
        if self.products != "auto":
            try:
                return compute(self.products)
            except Unsupported as error:
                raise MetasegError(
                    f"learner.products=replay needs networks of known operations, found {error}; "
                    "set learner.products=autograd, or auto."
                ) from error
        try:
            return compute("replay")
        except Unsupported as error:
            warnings.warn(f"The network uses {error}, so curvature products go the slower way: autograd.", stacklevel=2)
            self.products = "autograd"
            return compute("autograd")

    def inner_state(self) -> dict[str, Any]:
        """What the outer steps have found out about the inner problem, for a checkpoint."""
        learned = {} if self.strengths is None else {"lambda": self.strengths.state()}
        return {"curvature": self.inner_curvature, **learned}

    def take_over(self, checkpoint: Mapping[str, Any]) -> None:
        """Go on from `inner_state` of a checkpoint; what it does not hold begins anew.

        Raises:
            MetasegError: if its learned strengths are of other parts or layers.
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
    """Raise a readable error where gradients cannot be had.

    Raises:
        MetasegError: in inference mode.
    """
    if torch.is_inference_mode_enabled():
        raise MetasegError(
            "Adaptation needs gradients, but inference mode is on; use Trainer(inference_mode=False) or no_grad()."
        )

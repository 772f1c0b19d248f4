"""What every learner shares: the outer step, validation by episodes, and adaptation to a target."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from metaseg.data.batches import Episode, SupportSet
from metaseg.errors import MetasegError
from metaseg.evaluation.scores import dice
from metaseg.learners.fine_tuning import FineTuning
from metaseg.learners.inner import InnerEvaluation
from metaseg.learners.network_module import NetworkModule
from metaseg.learners.segmenter import Segmenter
from metaseg.learners.staged import EpisodeTask
from metaseg.learners.strengths import Strengths
from metaseg.learners.tally import Tally, still
from metaseg.meta.gradients import PRODUCTS, MetaGradient, Task, trial
from metaseg.meta.inner_loop import InnerLoop, cut
from metaseg.meta.losses import Loss
from metaseg.meta.replay import Unsupported
from metaseg.meta.step_size import largest_curvature
from metaseg.meta.vectors import Parameters, detach, flatten, unflatten
from metaseg.networks.functional import forward, update_running
from metaseg.networks.norms import Norms
from metaseg.networks.rates import Rates

SCHEDULES = ("constant", "cosine")

ADAPTATIONS = ("recipe", "inner")


BESIDE = ("inner_curvature", "strengths.logarithms")
"""What a checkpoint of a learner may hold beside the network."""

Result = TypeVar("Result")


class Learner(NetworkModule):
    """A learner answers two questions: what a task teaches (``meta_gradient``), and how it meets a dataset (``adapt``).

    The arguments beside the first three are the keys of conf/learner/*.yaml, as they stand there.

    Args:
        network: the network whose parameters are the meta-parameters θ.
        loss: the segmentation loss.
        norm: statistics that predictions are normalised with (``model.norm``, see ``Norms``).
        adapt: the descent on the support set of a target: optimizer, lr, steps, lam (None: the learned strengths, and 0
            where none are learned), and where they are given schedule ("constant" or "cosine"), ``rates``, and
            ``folds`` (0 if left out), parts of the support set by which the end of the descent is weighed against θ,
            see ``FineTuning``. With ``by`` = "inner" ("recipe" if left out) all of these are passed over: a target is
            adapted to by the inner problem of training, without augmentation or ensemble.
        optimizer: the outer Adam: lr > 0, weight_decay ≥ 0 (added to the gradient as weight_decay · θ), clip_norm (the
            longest gradient allowed; None: any), schedule ("constant", or "cosine": lr falls to 0 over the run),
            ``rates``.
        inner: the inner loop of training and validation episodes: optimizer, lr, steps, proximal, and where they are
            given ``rates``, ``tolerance`` (see ``InnerLoop``) and ``bound``: the step size is at most ``share``/σ, with
            σ the largest curvature of the inner problem at θ, measured every so many (``every``) outer steps (0: never;
            adam is not bounded). None: no steps.
        lam: λ ≥ 0, the strength of the proximal term where ``inner["proximal"]`` is true.
        warmup: share of the run's outer steps, from 0 to 1, in which no inner loop is run yet: joint training on the
            episodes' images.
        channels_last: whether images and activations lie in memory with the channels of a pixel side by side.
        products: how curvature products are computed, by learners that need them: "replay", "autograd", or "auto" for
            the first of these that the network allows.

    Each ``rates`` maps parts of the network (encoder, decoder, head) to multipliers of the step size, see ``Rates``; 0
    freezes a part. What the inner loop freezes still moves in the outer step, unless it is frozen there too.

    Raises:
        MetasegError: on a value out of range.
    """

    trains = True
    inner_curvature: Tensor
    """The largest curvature of the inner problem at θ, as last measured; 0: it was not."""

    def __init__(
        self,
        *,
        network: nn.Module,
        loss: Loss,
        norm: str | Mapping[str, str],
        adapt: Mapping[str, Any],
        optimizer: Mapping[str, Any],
        inner: Mapping[str, Any] | None = None,
        lam: float = 0.0,
        warmup: float = 0.0,
        products: str = "auto",
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        if lam < 0:
            raise MetasegError(f"learner.lam must not be negative, found {lam}.")
        if products not in ("auto", *PRODUCTS):
            raise MetasegError(f"learner.products must be one of auto, {', '.join(PRODUCTS)}, found {products!r}.")
        if optimizer and optimizer["schedule"] not in SCHEDULES:
            raise MetasegError(
                f"learner.optimizer.schedule must be one of {', '.join(SCHEDULES)}, found {optimizer['schedule']!r}."
            )
        if not 0 <= warmup <= 1:
            raise MetasegError(f"learner.warmup must be a share from 0 to 1, found {warmup}.")
        self.automatic_optimization = False
        self.products = products
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.network = network
        self.loss = loss
        self.norms = Norms.of(network, norm)
        proximal = inner is not None and inner["proximal"]
        self._inner = (
            InnerLoop(steps=0) if inner is None else _loop("inner", {**inner, "lam": lam if proximal else 0.0})
        )
        self._adapts_by = adapt.get("by", "recipe")
        if self._adapts_by not in ADAPTATIONS or (self._adapts_by == "inner" and not self._inner.steps):
            raise MetasegError(
                f"learner.adapt.by must be one of {', '.join(ADAPTATIONS)}, the latter with inner steps, found "
                f"{self._adapts_by!r} and {self._inner.steps} inner steps."
            )
        self._adapt = _loop("adapt", adapt) if self._adapts_by == "recipe" else self._inner
        self._adapts_with_strengths = adapt["lam"] is None
        self._folds = adapt.get("folds", 0)
        if self._folds < 0 or self._folds == 1:
            raise MetasegError(f"learner.adapt.folds must be 0, or 2 or more, found {self._folds}.")
        self._outer_rates = Rates.of(network, "learner.optimizer.rates", optimizer.get("rates"))
        self._inner_rates = Rates.of(network, "learner.inner.rates", (inner or {}).get("rates"))
        self._adapt_rates = Rates.of(network, "learner.adapt.rates", adapt.get("rates"))
        self.warmup = warmup
        self.strengths: Strengths | None = None
        bound = (inner or {}).get("bound") or {"every": 0, "share": 1.0}
        if bound["every"] < 0 or not bound["share"] > 0:
            raise MetasegError(
                f"learner.inner.bound.every must not be negative and learner.inner.bound.share > 0, found "
                f"{bound['every']} and {bound['share']}."
            )
        self._bound_every = bound["every"] if self._inner.optimizer != "adam" else 0
        self._bound_share = bound["share"]
        self.register_buffer("inner_curvature", torch.zeros(()), persistent=self._bound_every > 0)
        self._tally = Tally()
        self._inner_evaluation = InnerEvaluation(network, loss, inner or {})
        self.outer = optimizer
        self._validation: list[Tensor] = []

    @property
    def inner(self) -> InnerLoop:
        """The inner loop of training and validation episodes, without its rates and learned strengths."""
        return self._inner

    @property
    def adapt_loop(self) -> InnerLoop:
        """The descent on the support set of a target, without its rates."""
        return self._adapt

    @property
    def adapts_by_inner(self) -> bool:
        """Whether a target is adapted to by the inner problem of training."""
        return self._adapts_by == "inner"

    def change_adaptation(self, **changes: Any) -> None:
        """Use other values of ``adapt`` at targets from now on: lr, steps, lam.

        Raises:
            MetasegError: on a value out of range.
        """
        try:
            self._adapt = replace(self._adapt, **changes)
        except ValueError as error:
            raise MetasegError(f"Adaptation cannot take {changes}: {error}.") from error

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
        at: Sequence[int],
        progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> Iterator[tuple[int, Segmenter]]:
        """Adapt, and yield (step, segmenter) at each step number in ``at`` (0: before the first step).

        Args:
            support: the target's annotated images.
            at: step numbers.
            progress: called after each step with (steps taken, of how many).
        """
        require_gradients()
        tuning = self.fine_tuning()
        if self.adapts_by_inner:
            tuning, support = self._inner_tuning(self._adapt, support)
        yield from tuning.run(self.theta(), support, at, progress)

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
        if self._bound_every:
            curvature = max(self._curvature(Episode(images, masks, images[:1], masks[:1])), float(self.inner_curvature))
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
            self.device,
            self.memory_format,
            self.strengths if self._adapts_with_strengths else None,
        )

    def plain_gradient(self, theta: Parameters, episode: Episode) -> MetaGradient:
        """The gradient at θ of the loss of all the episode's images, which normalise one another as in any batch."""
        episode = self.laid_out(episode)
        leaves = {name: value.detach().requires_grad_(self._learns(name)) for name, value in theta.items()}
        moving = [value for value in leaves.values() if value.requires_grad]
        with torch.enable_grad():
            images = torch.cat([episode.support_images, episode.query_images])
            logits, found = forward(self.network, leaves, images)
            loss = self.loss(logits, torch.cat([episode.support_masks, episode.query_masks]))
            rows = iter(torch.autograd.grad(loss, moving, materialize_grads=True))
        gradient = flatten(next(rows) if leaf.requires_grad else torch.zeros_like(leaf) for leaf in leaves.values())
        of_query = logits.detach()[len(episode.support_images) :]
        diagnostics = {"query_loss_after": loss.item(), "gradient_norm": gradient.norm().item()}
        return MetaGradient(gradient, detach(leaves), diagnostics, cut(found), of_query)

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
        task = self.episode_task(theta, episode, self._learns)
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
        bounded = self._bounded(self._inner, float(self.inner_curvature))
        return replace(bounded, rates=self._inner_rates.vector(theta), strengths=strengths)

    def _bounded(self, loop: InnerLoop, curvature: float) -> InnerLoop:
        """The inner loop with a step size that this largest curvature allows; 0: it is not known."""
        return replace(loop, lr=min(loop.lr, self._bound_share / curvature)) if curvature > 0 else loop

    def _curvature(self, episode: Episode) -> float:
        """The largest curvature of the inner problem of an episode at θ."""
        task = self.episode_task(self.theta(), episode)
        loop = self._inner_loop(task.theta)
        return self.with_products(lambda products: largest_curvature(task.task, task.theta, loop, products=products))

    def _learns(self, name: str) -> bool:
        """Whether the outer step moves a parameter."""
        return bool(self._outer_rates.by_name[name])

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
            rank_zero_warn(f"The network uses {error}, so curvature products go the slower way: autograd.")
            self.products = "autograd"
            return compute("autograd")

    def training_step(self, batch: list[Episode], batch_idx: int) -> None:
        """One outer step: the mean of the tasks' gradients over all ranks, reduced as one flat vector."""
        theta = self.theta()
        total = torch.zeros(())
        warm = self._done() < self.warmup
        if not warm:
            self._measure_curvature(batch)
        of_task = self.plain_gradient if warm else self.meta_gradient
        for episode in batch:
            result = of_task(theta, episode)
            numbers = result.diagnostics | still(result.diagnostics)
            numbers["query_dice_after"] = _dice(result.query_after, episode.query_masks)
            by_strengths = result.gradient.new_zeros(0) if result.by_strengths is None else result.by_strengths
            like = {f"{layer} {part}": value for layer, pair in result.found.items() for part, value in enumerate(pair)}
            row = torch.tensor([1.0, *numbers.values()], device=self.device)
            # Sums are taken as they come, so that no task's graph outlives it.
            found = [value.reshape(-1) for value in like.values()]
            total = torch.cat([row, *found, by_strengths, result.gradient]) + total.to(row)
        total = self._reduce(total)
        means = total[1:] / total[0]
        count = sum(value.numel() for value in like.values())
        split = [len(numbers), count, by_strengths.numel(), result.gradient.numel()]
        logged, statistics, by_strengths, gradient = means.split(split)
        if not torch.isfinite(gradient).all():
            raise MetasegError(
                f"The gradient of outer step {self.global_step} is not finite over {int(total[0])} tasks; lower "
                "learner.inner.lr or learner.optimizer.lr."
            )
        self._step(gradient, by_strengths)
        mean = unflatten(statistics, like)
        update_running(self.network, {layer: (mean[f"{layer} 0"], mean[f"{layer} 1"]) for layer in result.found})
        told = dict(zip(numbers, logged.tolist(), strict=True))
        self._tally.add(float(total[0]), told)
        of_groups = {} if self.strengths is None else self.strengths.table()
        told |= {f"lambda/{name}": value for name, value in of_groups.items()}
        self.log_dict({f"train/{name}": value for name, value in told.items()}, batch_size=1)
        self.log("loss", told["query_loss_after"], prog_bar=True, logger=False, batch_size=1)

    def _measure_curvature(self, batch: Sequence[Episode]) -> None:
        """Every so many outer steps: the largest curvature that the inner problems of this step have at θ."""
        if not self._bound_every or (self.inner_curvature > 0 and self.global_step % self._bound_every):
            return
        largest = self.inner_curvature.new_tensor(max(self._curvature(episode) for episode in batch))
        if self._trainer is not None and self.trainer.world_size > 1:
            torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
        self.inner_curvature.copy_(largest)

    def on_train_end(self) -> None:
        """Warn, once, where inner problems were not solved or moved nothing."""
        for words in self._tally.warnings(self._inner):
            rank_zero_warn(words)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As `NetworkModule`; what this learner has beside its network begins anew where the checkpoint lacks it.

        Raises:
            MetasegError: as there, or if the checkpoint has other groups of learned strengths.
        """
        super().on_load_checkpoint(checkpoint)
        state = checkpoint.get("state_dict", {})
        own = {name: value for name, value in self.state_dict().items() if not name.startswith("network.")}
        expected = None if self.strengths is None else list(self.strengths.names)
        found = checkpoint.get("lambda")
        if expected is not None and found is not None and expected != list(found):
            raise MetasegError(
                f"The checkpoint should hold a lambda for each of {', '.join(expected)}, but holds those of "
                f"{', '.join(found)}; set learner.strengths.by and learner.inner.rates as in the run that wrote it."
            )
        for name in [name for name in state if name in BESIDE and name not in own]:
            del state[name]
        state.update({name: value for name, value in own.items() if name in BESIDE and name not in state})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As `NetworkModule`, and the learned strengths by name."""
        super().on_save_checkpoint(checkpoint)
        if self.strengths is not None:
            checkpoint["lambda"] = self.strengths.table()

    def _step(self, gradient: Tensor, by_strengths: Tensor) -> None:
        parameters: Parameters = dict(self.network.named_parameters())
        pieces = {name: piece for name, piece in unflatten(gradient, parameters).items() if self._learns(name)}
        scale = gradient.new_ones(())
        if self.outer["clip_norm"] is not None:
            scale = (self.outer["clip_norm"] / flatten(pieces.values()).norm()).clamp(max=1.0)
        for name, piece in pieces.items():
            parameters[name].grad = scale * piece
        if self.strengths is not None and by_strengths.numel():
            self.strengths.logarithms.grad = by_strengths.to(self.strengths.logarithms)
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        for group in optimizer.param_groups:
            # Optimiser states of before there were rates know none.
            group["lr"] = self.outer["lr"] * group.get("rate", 1.0) * self._schedule()
        optimizer.step()
        optimizer.zero_grad()
        if self.strengths is not None:
            self.strengths.clamp()

    def _schedule(self) -> float:
        """The share of the outer learning rate that is due: a function of the step alone, so there is no state."""
        if self.outer["schedule"] == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * self._done()))

    def _done(self) -> float:
        """The share of the run's outer steps that have been taken, were it not to stop early."""
        return self.global_step / self.trainer.estimated_stepping_batches

    def _reduce(self, vector: Tensor) -> Tensor:
        if self._trainer is not None and self.trainer.world_size > 1:
            torch.distributed.all_reduce(vector)
        return vector

    def validation_step(self, episode: Episode, batch_idx: int) -> None:
        """Adapt to the support set by the inner loop; score the query set before and after."""
        require_gradients()
        with torch.enable_grad():
            before, after = self.trial(episode)
        numbers = [
            before[0].item(),
            after[0].item(),
            _dice(before[1], episode.query_masks),
            _dice(after[1], episode.query_masks),
            1.0,
        ]
        self._validation.append(torch.tensor(numbers, device=self.device))

    def trial(self, episode: Episode) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Query loss and logits (B, 1, H, W), before and after the inner loop."""
        task = self.episode_task(self.theta(), episode)
        return trial(task.task, task.theta, self._inner_loop(task.theta))

    def on_validation_epoch_end(self) -> None:
        """Log the mean over all validation episodes of all ranks."""
        total = self._reduce(torch.stack(self._validation).sum(0))
        self._validation.clear()
        before, after, dice_before, dice_after = (total[:4] / total[4]).unbind()
        if self.inner.steps:
            self.log_dict({"validation/query_loss_before": before, "validation/dice_before": dice_before})
        self.log("validation/query_loss_after", after)
        self.log("validation/dice_after", dice_after)
        self.log("dice", dice_after, prog_bar=True, logger=False)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam over θ [paper, section 4], without what is frozen; one group of parameters for each rate.

        Learned strengths are the last group, at a rate of their own and without weight decay.
        """
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.network.named_parameters():
            if self._learns(name):
                groups.setdefault(self._outer_rates.by_name[name], []).append(parameter)
        chosen: list[dict[str, Any]] = [{"params": parameters, "rate": rate} for rate, parameters in groups.items()]
        if self.strengths is not None:
            rate = self.strengths.lr / self.outer["lr"]
            chosen.append({"params": [self.strengths.logarithms], "rate": rate, "weight_decay": 0.0})
        return torch.optim.Adam(
            chosen,
            lr=self.outer["lr"],
            weight_decay=self.outer["weight_decay"],
        )


def _loop(key: str, settings: Mapping[str, Any]) -> InnerLoop:
    try:
        return InnerLoop(
            settings["optimizer"],
            settings["lr"],
            settings["steps"],
            settings["lam"] or 0.0,
            settings.get("schedule", "constant"),
            settings.get("tolerance", 0.0),
        )
    except ValueError as error:
        raise MetasegError(f"learner.{key}: {error}.") from error


def require_gradients() -> None:
    """Raise a readable error where gradients cannot be had.

    Raises:
        MetasegError: in inference mode.
    """
    if torch.is_inference_mode_enabled():
        raise MetasegError(
            "Adaptation needs gradients, but inference mode is on; use Trainer(inference_mode=False) or no_grad()."
        )


def _dice(logits: Tensor, masks: Tensor) -> float:
    """Mean Dice per image at p > 0.5, for curves."""
    return float(dice(logits > 0, masks).mean())

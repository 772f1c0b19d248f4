"""What every learner shares: the outer step, validation by episodes, and adaptation to a target."""

import math
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_f1_score

from metaseg.data.batches import Episode, SupportSet
from metaseg.errors import MetasegError
from metaseg.learners.fine_tuning import FineTuning
from metaseg.learners.inner import InnerEvaluation
from metaseg.learners.network_module import NetworkModule
from metaseg.learners.segmenter import Segmenter
from metaseg.meta.gradients import PRODUCTS, MetaGradient, Task, trial
from metaseg.meta.inner_loop import InnerLoop, cut
from metaseg.meta.losses import Loss
from metaseg.meta.replay import Unsupported
from metaseg.meta.vectors import Parameters, detach, flatten, unflatten
from metaseg.networks.functional import Statistics, forward, running_statistics, update_running
from metaseg.networks.normalisation import NORMS

SCHEDULES = ("constant", "cosine")


class Learner(NetworkModule):
    """A learner answers two questions: what a task teaches (``meta_gradient``), and how it meets a dataset (``adapt``).

    The arguments beside the first three are the keys of conf/learner/*.yaml, as they stand there.

    Args:
        network: the network whose parameters are the meta-parameters θ.
        loss: the segmentation loss.
        norm: statistics that predictions are normalised with: "support", "batch" or "running" (``model.norm``).
        adapt: the descent on the support set of a target: optimizer, lr, steps, lam; and ``folds`` (0 if left out),
            parts of the support set by which the end of the descent is weighed against θ, see ``FineTuning``.
        optimizer: the outer Adam: lr > 0, weight_decay ≥ 0 (added to the gradient as weight_decay · θ), clip_norm (the
            longest gradient allowed; None: any), schedule ("constant", or "cosine": lr falls to 0 over the run).
        inner: the inner loop of training and validation episodes: optimizer, lr, steps, proximal; None: no steps.
        lam: λ ≥ 0, the strength of the proximal term where ``inner["proximal"]`` is true.
        adapts: regular expression; parameters whose name it matches somewhere adapt, in training and at the target, the
            others stay at θ. None: all adapt.
        warmup: share of the run's outer steps, from 0 to 1, in which no inner loop is run yet: joint training on the
            episodes' images.
        channels_last: whether images and activations lie in memory with the channels of a pixel side by side.
        products: how curvature products are computed, by learners that need them: "replay", "autograd", or "auto" for
            the first of these that the network allows.

    Raises:
        MetasegError: on a value out of range.
    """

    trains = True

    def __init__(
        self,
        *,
        network: nn.Module,
        loss: Loss,
        norm: str,
        adapt: Mapping[str, Any],
        optimizer: Mapping[str, Any],
        inner: Mapping[str, Any] | None = None,
        lam: float = 0.0,
        adapts: str | None = None,
        warmup: float = 0.0,
        products: str = "auto",
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        if norm not in NORMS:
            raise MetasegError(f"model.norm must be one of {', '.join(NORMS)}, found {norm!r}.")
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
        self.norm = norm
        proximal = inner is not None and inner["proximal"]
        self._inner = (
            InnerLoop(steps=0) if inner is None else _loop("inner", {**inner, "lam": lam if proximal else 0.0})
        )
        self._adapt = _loop("adapt", adapt)
        self._folds = adapt.get("folds", 0)
        if self._folds < 0 or self._folds == 1:
            raise MetasegError(f"learner.adapt.folds must be 0, or 2 or more, found {self._folds}.")
        # A buffer, so that it goes where the network goes; not part of checkpoints, as settings make it.
        self.register_buffer("_mask", _mask(network, adapts), persistent=False)
        self.warmup = warmup
        self._inner_evaluation = InnerEvaluation(network, loss, inner or {})
        self.outer = optimizer
        self._validation: list[Tensor] = []

    _mask: Tensor | None

    @property
    def inner(self) -> InnerLoop:
        """The inner loop of training and validation episodes."""
        return replace(self._inner, mask=self._mask)

    @property
    def adapt_loop(self) -> InnerLoop:
        """The descent on the support set of a target."""
        return replace(self._adapt, mask=self._mask)

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
        self, support: SupportSet, at: Sequence[int], progress: Callable[[int, int], None] = lambda done, of: None
    ) -> Iterator[tuple[int, Segmenter]]:
        """Adapt, and yield (step, segmenter) at each step number in ``at`` (0: before the first step).

        ``progress`` is called with (steps taken, of how many) after each step.
        """
        require_gradients()
        tuning = FineTuning(
            self.network, self.loss, self.norm, self.adapt_loop, self._folds, self.device, self.memory_format
        )
        yield from tuning.run(self.theta(), support, at)

    def plain_gradient(self, theta: Parameters, episode: Episode) -> MetaGradient:
        """The gradient at θ of the loss of all the episode's images, which normalise one another as in any batch."""
        episode = self.laid_out(episode)
        leaves = detach(theta, requires_grad=True)
        with torch.enable_grad():
            images = torch.cat([episode.support_images, episode.query_images])
            logits, found = forward(self.network, leaves, images)
            loss = self.loss(logits, torch.cat([episode.support_masks, episode.query_masks]))
            gradient = flatten(torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True))
        of_query = logits.detach()[len(episode.support_images) :]
        diagnostics = {"query_loss_after": loss.item(), "gradient_norm": gradient.norm().item()}
        return MetaGradient(gradient, detach(leaves), diagnostics, cut(found), of_query)

    def theta(self) -> Parameters:
        """The meta-parameters, cut from any graph; the values are shared with the network."""
        return detach(dict(self.network.named_parameters()))

    def task(self, episode: Episode) -> Task:
        """The episode as callables of a parameter dictionary."""
        running = running_statistics(self.network) if self.norm == "running" else {}
        episode = self.laid_out(episode)

        def support(parameters: Parameters) -> tuple[Tensor, Statistics]:
            return forward(self.network, parameters, episode.support_images)

        def support_loss(logits: Tensor) -> Tensor:
            return self.loss(logits, episode.support_masks)

        def query(parameters: Parameters, found: Statistics) -> tuple[Tensor, Tensor]:
            logits, _ = forward(self.network, parameters, episode.query_images, self._statistics(found, running))
            return self.loss(logits, episode.query_masks), logits.detach()

        def logit_curvature(logits: Tensor, vector: Tensor) -> Tensor:
            assert self.loss.curvature is not None
            return self.loss.curvature(logits, episode.support_masks, vector)

        return Task(
            support,
            support_loss,
            query,
            logit_curvature if self.loss.curvature is not None else None,
            query_reads_support=self.norm == "support",
            evaluate=self._inner_evaluation.of(episode.support_images, episode.support_masks),
        )

    def laid_out(self, episode: Episode) -> Episode:
        """The episode with its images in the memory layout of choice."""
        support, query = (
            images.contiguous(memory_format=self.memory_format)
            for images in (episode.support_images, episode.query_images)
        )
        return episode._replace(support_images=support, query_images=query)

    def with_products(self, compute: Callable[[str], MetaGradient]) -> MetaGradient:
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
        of_task = self.plain_gradient if self._done() < self.warmup else self.meta_gradient
        for episode in batch:
            result = of_task(theta, episode)
            numbers = result.diagnostics | {"query_dice_after": _dice(result.query_after, episode.query_masks)}
            like = {f"{layer} {part}": value for layer, pair in result.found.items() for part, value in enumerate(pair)}
            row = torch.tensor([1.0, *numbers.values()], device=self.device)
            # Sums are taken as they come, so that no task's graph outlives it.
            total = torch.cat([row, *(value.reshape(-1) for value in like.values()), result.gradient]) + total.to(row)
        total = self._reduce(total)
        means = total[1:] / total[0]
        split = [len(numbers), means.numel() - len(numbers) - result.gradient.numel(), result.gradient.numel()]
        logged, statistics, gradient = means.split(split)
        if not torch.isfinite(gradient).all():
            raise MetasegError(
                f"The gradient of outer step {self.global_step} is not finite over {int(total[0])} tasks; lower "
                "learner.inner.lr or learner.optimizer.lr."
            )
        self._step(gradient)
        mean = unflatten(statistics, like)
        update_running(self.network, {layer: (mean[f"{layer} 0"], mean[f"{layer} 1"]) for layer in result.found})
        self.log_dict({f"train/{name}": value for name, value in zip(numbers, logged, strict=True)}, batch_size=1)
        self.log("loss", logged[list(numbers).index("query_loss_after")], prog_bar=True, logger=False, batch_size=1)

    def _step(self, gradient: Tensor) -> None:
        if self.outer["clip_norm"] is not None:
            gradient = gradient * (self.outer["clip_norm"] / gradient.norm()).clamp(max=1.0)
        parameters: Parameters = dict(self.network.named_parameters())
        for name, piece in unflatten(gradient, parameters).items():
            parameters[name].grad = piece.clone()
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        for group in optimizer.param_groups:
            group["lr"] = self.outer["lr"] * self._schedule()
        optimizer.step()
        optimizer.zero_grad()

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
        return trial(self.task(episode), self.theta(), self.inner)

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
        """Adam over θ [paper, section 4]."""
        return torch.optim.Adam(self.network.parameters(), lr=self.outer["lr"], weight_decay=self.outer["weight_decay"])

    def _statistics(self, of_support: Statistics, running: Statistics) -> Statistics | None:
        return {"support": of_support, "batch": None, "running": running}[self.norm]


def _mask(network: nn.Module, adapts: str | None) -> Tensor | None:
    """1 for each parameter that adapts, 0 for each that does not, in the order of ``flatten``; None: all adapt."""
    if adapts is None:
        return None
    try:
        chosen = [(value, re.search(adapts, name) is not None) for name, value in network.named_parameters()]
    except re.error as error:
        raise MetasegError(f"learner.adapts must be a regular expression, found {adapts!r} ({error}).") from error
    if not any(adapting for _, adapting in chosen):
        names = dict.fromkeys(name.split(".")[0] for name, _ in network.named_parameters())
        raise MetasegError(
            f"learner.adapts must match the name of a parameter, found {adapts!r}, but the names start with "
            f"{', '.join(names)}."
        )
    return torch.cat([torch.full((value.numel(),), float(adapting)) for value, adapting in chosen])


def _loop(key: str, settings: Mapping[str, Any]) -> InnerLoop:
    try:
        return InnerLoop(settings["optimizer"], settings["lr"], settings["steps"], settings["lam"])
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
    """Mean Dice per image at p > 0.5, for curves; results are scored by metaseg.evaluation."""
    prediction = (logits > 0).int().flatten(1)
    return (
        binary_f1_score(prediction, masks.int().flatten(1), multidim_average="samplewise", validate_args=False)
        .mean()
        .item()
    )

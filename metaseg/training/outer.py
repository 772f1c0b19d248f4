"""Meta-training as a Lightning module: the outer step, and validation on episodes."""

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torchmetrics import MeanMetric

from metaseg.data.batches import Episode
from metaseg.errors import MetasegError, listed
from metaseg.evaluation.scores import dice
from metaseg.learners.base import Learner, require_gradients
from metaseg.meta.gradients import MetaGradient
from metaseg.meta.vectors import Parameters, flatten, unflatten
from metaseg.networks.functional import update_running
from metaseg.training.network_module import NetworkModule
from metaseg.training.skipping import Skipping
from metaseg.training.tally import Tally, still

log = logging.getLogger(__name__)

VALIDATION = ("query_loss_before", "query_loss_after", "dice_before", "dice_after")
"""Validation metrics, as means over episodes: before and after the inner loop."""


class Contribution(NamedTuple):
    """One task's contribution to an outer step: vectors, summed over tasks and ranks.

    Attributes:
        tasks: 1, shape (1,).
        diagnostics: shape (D,).
        statistics: the norm statistics of all layers, shape (S,).
        by_strengths: d L_query / d log λ, shape (groups,); (0,) if λ is not learned.
        gradient: d L_query / dθ, shape (N,).
    """

    tasks: Tensor
    diagnostics: Tensor
    statistics: Tensor
    by_strengths: Tensor
    gradient: Tensor


class MetaTraining(NetworkModule):
    """Trains a learner's network on episodes; checkpoints hold the network and the settings.

    Args:
        learner: the learner to train.
        settings: the resolved configuration, for the checkpoints.
        spent: the fraction of training completed, which the schedule follows; None: by outer steps, also skipped ones.
        skipping: which outer steps to skip.
    """

    def __init__(
        self,
        learner: Learner,
        settings: Mapping[str, Any] | None = None,
        spent: Callable[[], float] | None = None,
        skipping: Skipping | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network = learner.network
        self.settings = settings
        self._learner = (learner,)  # in a tuple, as a submodule would duplicate the parameters in checkpoints
        means: Any = nn.ModuleDict({name: MeanMetric(nan_strategy="disable") for name in VALIDATION})
        self._validation: Mapping[str, MeanMetric] = means
        self.tally = Tally()
        self._spent = spent
        self.skipping = Skipping() if skipping is None else skipping

    @property
    def learner(self) -> Learner:
        """The learner being trained."""
        return self._learner[0]

    def training_step(self, batch: list[Episode], batch_idx: int) -> None:
        """One outer step: the mean of the tasks' gradients over all ranks, reduced as one flat vector."""
        learner = self.learner
        learner.outer_step = self.global_step
        theta = learner.theta()
        total, norms = torch.zeros((), device=self.device), []
        self._measure_curvature(batch)
        for episode in batch:
            result = self._meta_gradient(theta, episode)
            diagnostics = result.diagnostics | still(result.diagnostics)
            diagnostics["query_dice_after"] = _dice(result.query_after, episode.query_masks)
            found = {layer: torch.stack(pair) for layer, pair in result.found.items()}
            nothing = result.gradient.new_zeros(0)
            task = Contribution(
                tasks=nothing.new_ones(1),
                diagnostics=nothing.new_tensor([*diagnostics.values()]),
                statistics=flatten([nothing, *found.values()]),
                by_strengths=nothing if result.by_strengths is None else result.by_strengths,
                gradient=result.gradient,
            )
            norms.append(float(task.gradient.norm()))
            total = torch.cat(task) + total  # summed immediately, so that no task's graph outlives it
        total = self._reduce(total)
        tasks = float(total[0])
        mean = Contribution(*(total / total[0]).split([len(vector) for vector in task]))
        norm = math.hypot(float(mean.gradient.norm()), float(mean.by_strengths.norm()))
        skips = self.skipping.skips(norm, self.global_step, norms)
        if self.skipping.total:
            self.log("train/skipped", float(self.skipping.total), batch_size=1)
        if skips:
            return
        self._step(mean.gradient, mean.by_strengths)
        learner.outer_step = self.global_step
        statistics = unflatten(mean.statistics, found)
        update_running(self.network, {layer: (pair[0], pair[1]) for layer, pair in statistics.items()})
        logged = dict(zip(diagnostics, mean.diagnostics.tolist(), strict=True))
        self.tally.add(tasks, logged)
        if learner.strengths is not None:
            logged |= {f"lambda/{name}": value for name, value in learner.strengths.table().items()}
        self.log_dict({f"train/{name}": value for name, value in logged.items()}, batch_size=1)
        self.log("loss", logged["query_loss_after"], prog_bar=True, logger=False, batch_size=1)

    def _meta_gradient(self, theta: Parameters, episode: Episode) -> MetaGradient:
        """The learner's meta-gradient of one task.

        Raises:
            MetasegError: it is not what a learner promises.
        """
        name, wanted = f"{type(self.learner).__name__}.meta_gradient", sum(value.numel() for value in theta.values())
        before = _writes(theta)
        result = self.learner.meta_gradient(theta, episode)
        if _writes(theta) != before:
            raise MetasegError(f"{name} must not change theta, found it written to in place: work on copies.")
        if not isinstance(result, MetaGradient):
            raise MetasegError(f"{name} must return a MetaGradient, found {type(result).__name__}: return one.")
        if result.gradient.shape != (wanted,):
            raise MetasegError(
                f"{name} must return a vector of the network's {wanted} parameters, found the shape "
                f"{tuple(result.gradient.shape)}: use metaseg.meta.vectors.flatten."
            )
        if "query_loss_after" not in result.diagnostics:
            raise MetasegError(
                f"{name} must report query_loss_after, found {listed([*result.diagnostics]) or 'nothing'}: add it to "
                "the diagnostics."
            )
        return result

    def _measure_curvature(self, batch: list[Episode]) -> None:
        """Measure every ``bound_every`` steps the largest curvature of this step's inner problems at θ."""
        learner = self.learner
        if not learner.bound_every or (learner.inner_curvature and self.global_step % learner.bound_every):
            return
        # Of tensors, as Python's max drops a NaN or keeps it, depending on the order.
        largest = torch.tensor([learner.curvature_of(episode) for episode in batch], device=self.device).max()
        if self._trainer is not None and self.trainer.world_size > 1:
            torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
        if torch.isfinite(largest):  # else the step will be skipped
            learner.inner_curvature = float(largest)

    def on_train_start(self) -> None:
        """Bring the optimiser's state of log λ back to the CPU; Lightning restores states to the network's device."""
        if self.learner.strengths is not None:
            logarithms = self.learner.strengths.logarithms
            state = self.optimizers().optimizer.state[logarithms]  # type: ignore[union-attr]
            state.update({name: value.to(logarithms.device) for name, value in state.items()})

    def on_train_end(self) -> None:
        """Warn once if inner problems were not solved or did not move φ."""
        if self.global_rank == 0:
            for sentence in self.tally.warnings(self.learner.inner):
                log.warning(sentence)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save as `NetworkModule` does, plus the inner problem, and counts of unsolved ones and of skipped steps."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["skipped"] = self.skipping.total
        checkpoint["inner_problem"] = self.learner.inner_state()
        checkpoint["tally"] = self.tally.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what `on_save_checkpoint` saves.

        Raises:
            MetasegError: as there, or if the checkpoint has other learned strengths.
        """
        super().on_load_checkpoint(checkpoint)
        self.learner.take_over(checkpoint)
        self.tally.take_over(checkpoint["tally"])
        self.skipping.total = checkpoint["skipped"]

    def _step(self, gradient: Tensor, by_strengths: Tensor) -> None:
        strengths = self.learner.strengths
        parameters: Parameters = dict(self.network.named_parameters())
        pieces = {name: piece for name, piece in unflatten(gradient, parameters).items() if self.learner.learns(name)}
        scale = gradient.new_ones(())
        if self.learner.outer.clip_norm is not None:
            scale = (self.learner.outer.clip_norm / flatten(pieces.values()).norm()).clamp(max=1.0)
        for name, piece in pieces.items():
            parameters[name].grad = scale * piece
        if strengths is not None:
            strengths.logarithms.grad = by_strengths.to(strengths.logarithms)
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        for group in optimizer.param_groups:
            # Older optimiser states have no rates.
            group["lr"] = self.learner.outer.lr * group.get("rate", 1.0) * self._schedule()
        optimizer.step()
        optimizer.zero_grad()
        if strengths is not None:
            strengths.clamp()

    def _schedule(self) -> float:
        """Schedule factor of the outer learning rate; a function of the batch alone, so it needs no state."""
        if self.learner.outer.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * self._done()))

    def _done(self) -> float:
        """The fraction of training completed, ignoring early stopping."""
        if self._spent is not None:
            return min(1.0, self._spent())
        return self.trainer.fit_loop.total_batch_idx / self.trainer.estimated_stepping_batches

    def _reduce(self, vector: Tensor) -> Tensor:
        if self._trainer is not None and self.trainer.world_size > 1:
            torch.distributed.all_reduce(vector)
        return vector

    def validation_step(self, episode: Episode, batch_idx: int) -> None:
        """Run the inner loop on the support set; score the query set before and after."""
        require_gradients()
        with torch.enable_grad():
            before, after = self.learner.trial(episode)
        loss_before, loss_after = before[0].item(), after[0].item()
        dice_before, dice_after = (_dice(logits, episode.query_masks) for _, logits in (before, after))
        for name, value in zip(VALIDATION, (loss_before, loss_after, dice_before, dice_after), strict=True):
            self._validation[name].update(value)

    def on_validation_epoch_end(self) -> None:
        """Log the mean over all validation episodes of all ranks."""
        means = {name: mean.compute() for name, mean in self._validation.items()}
        for mean in self._validation.values():
            mean.reset()
        without_inner = [name for name in VALIDATION if name.endswith("_before") and not self.learner.inner.steps]
        self.log_dict({f"validation/{name}": value for name, value in means.items() if name not in without_inner})
        self.log("dice", means["dice_after"], prog_bar=True, logger=False)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam over θ [paper, section 4], without frozen parameters; one parameter group per rate.

        Learned strengths are the last group, with their own learning rate and without weight decay.
        """
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.network.named_parameters():
            if self.learner.learns(name):
                groups.setdefault(self.learner.outer_rates.by_name[name], []).append(parameter)
        chosen: list[dict[str, Any]] = [{"params": parameters, "rate": rate} for rate, parameters in groups.items()]
        strengths = self.learner.strengths
        if strengths is not None:
            rate = strengths.lr / self.learner.outer.lr
            chosen.append({"params": [strengths.logarithms], "rate": rate, "weight_decay": 0.0})
        return torch.optim.Adam(
            chosen,
            lr=self.learner.outer.lr,
            weight_decay=self.learner.outer.weight_decay,
        )


def _writes(theta: Parameters) -> int:
    """How often tensors were written to in place, also through others that share their memory."""
    return sum(value._version for value in theta.values())


def _dice(logits: Tensor, masks: Tensor) -> float:
    """Mean Dice per image at p > 0.5, for curves."""
    return float(dice(logits > 0, masks).mean())

"""The cost of training in image passes, a unit independent of learner and machine.

One pass is the FLOPs of one image's forward and backward pass through the whole network. PyTorch's FLOP formulas, which
ignore elementwise operations, count an outer step including its inner loop and curvature products; its formula for the
gradients of a convolution ignores groups, so that is ours. Steps differ, because solvers stop at a tolerance, so every
`EVERY`-th is counted.
"""

import math
import time
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from metaseg.errors import MetasegError
from metaseg.learners.base import Learner
from metaseg.networks.comparing import ComparingNetwork
from metaseg.networks.functional import forward
from metaseg.runs.directory import RunDirectory
from metaseg.runs.result import Cost

EVERY = 7
"""Outer steps between counted ones; coprime to the 24 between curvature measurements, which make a step costlier."""


class Compute(Callback):
    """Counts the passes of training and its seconds without validation; resumes with the run.

    Args:
        learner: the learner being trained.
        size: of its images, in pixels.
        directory: `RunDirectory.write_compute` is called at the end of training.
        most: passes after which training ends; None: no limit.

    Raises:
        MetasegError: if ``most`` is given for a network that cannot process a single image; and at the end of training,
            if fewer passes than ``most`` were spent.
    """

    def __init__(self, learner: Learner, size: int, directory: RunDirectory, most: float | None = None) -> None:
        self._learner, self._directory, self._most = learner, directory, most
        self._of_one = of_one_image(learner, size)
        if most is not None and self._of_one is None:
            raise MetasegError(
                "trainer.max_passes counts passes of one image, but this learner's network compares images and has "
                "none; set trainer.max_epochs instead."
            )
        self._counter: FlopCounter | None = None
        self._began = 0.0
        self._state: dict[str, Any] = {"counted": [], "seconds": 0.0, "steps": 0, "spent": 0.0}

    @property
    def spent(self) -> float:
        """The fraction of ``most`` spent."""
        return float(self._state["spent"])

    def state_dict(self) -> dict[str, Any]:
        """The counts so far, for checkpoints."""
        return self._state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore from a checkpoint."""
        self._state = self._state | state_dict

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        """Start counting."""
        if self._state["steps"] % EVERY == 0:
            self._counter = FlopCounter()
            self._counter.__enter__()
        self._began = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Add the step."""
        if (counter := self._counter) is not None:
            self._stop_counting()
            # Over all ranks: a run may go on with another number of them.
            self._state["counted"].append(counter.flops * trainer.world_size)
        self._state["seconds"] += time.perf_counter() - self._began
        self._state["steps"] += 1
        if self._most is not None and self._of_one is not None:
            # Ranks count different tasks; use rank zero's value, so that their step sizes stay equal.
            self._state["spent"] = trainer.strategy.broadcast(self._operations() / self._of_one / self._most)
            trainer.should_stop |= self.spent >= 1

    def on_exception(self, trainer: L.Trainer, module: Any, exception: BaseException) -> None:
        """End the counting of a step that failed; else the process would go on counting."""
        self._stop_counting()

    def _stop_counting(self) -> None:
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
            self._counter = None

    def _operations(self) -> float:
        counted = self._state["counted"]
        return sum(counted) / len(counted) * self._state["steps"]

    def on_train_end(self, trainer: L.Trainer, module: Any) -> None:
        """Write outer steps, operations and image passes over all ranks, seconds, and unsolved inner problems."""
        if self._most is not None and self.spent < 1:
            raise MetasegError(
                f"Training ended after {100 * self.spent:.0f} % of trainer.max_passes={self._most:g}, in epoch "
                f"{trainer.current_epoch} of trainer.max_epochs={trainer.max_epochs}; raise it and resume with "
                "ckpt_path=last, unless the loss is not finite."
            )
        if not (trainer.is_global_zero and self._state["counted"]):
            return
        operations = self._operations()
        self._directory.write_compute(
            Cost(
                outer_steps=trainer.global_step,  # without skipped ones, which cost as much
                operations=operations,
                passes=None if self._of_one is None else operations / self._of_one,
                seconds=self._state["seconds"],
                inner_problems=int(module.tally.tasks),
                unsolved=None if module.tally.unsolved is None else int(module.tally.unsolved),
            )
        )


def _of_convolution_backward(
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor,
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    wanted: Sequence[bool],
    out_val: Any = None,
) -> int:
    """Each gradient, by the input and by the weight, costs as much as the convolution itself."""
    moved_over = x if transposed else grad_out
    positions = len(moved_over) * math.prod(moved_over.shape[2:])
    return 2 * positions * weight.numel() * sum(wanted[:2])


_FORMULAS = flop_registry | {torch.ops.aten.convolution_backward: _of_convolution_backward}


class FlopCounter(TorchDispatchMode):
    """Counts the FLOPs of everything called inside it.

    `torch.utils.flop_counter.FlopCounterMode` counts them for each module. Its hooks fail on module inputs that are
    leaves requiring gradients, such as outputs of held stages, and it adds three times as much time to a step.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and add its FLOPs."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = _FORMULAS.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        return out


def of_one_image(learner: Learner, size: int) -> int | None:
    """FLOPs of one image (1, 3, size, size), forward and backward through the whole network.

    None for a network that compares queries with a support set, which cannot process a single image.
    """
    if isinstance(learner.network, ComparingNetwork):
        return None
    theta = {name: value.detach().requires_grad_() for name, value in learner.network.named_parameters()}
    # Two images, as norm layers need more than one value per channel at the lowest resolution.
    images = torch.zeros(2, 3, size, size, device=next(iter(theta.values())).device)
    with FlopCounter() as counted, torch.enable_grad():
        forward(learner.network, theta, images)[0].sum().backward()
    return counted.flops // 2

"""What training costs, in passes of images: the same unit for every learner, on every machine.

One pass is the floating-point operations of one image's forward and backward pass through the whole network. What an
outer step takes, inner loop, curvature products and all, is counted by PyTorch's own counter of operations; elementwise
ones are not in it. Steps differ, because solvers stop at a tolerance, so every `EVERY`-th is counted.
"""

import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.flop_counter import FlopCounterMode

from metaseg.errors import MetasegError
from metaseg.learners.base import Learner
from metaseg.networks.comparing import ComparingNetwork
from metaseg.networks.functional import forward
from metaseg.runs.directory import RunDirectory
from metaseg.runs.result import Cost

EVERY = 25
"""Outer steps from one that is counted to the next."""


class Compute(Callback):
    """Counts the passes of training, and its seconds without validation; goes on where a run is continued.

    Args:
        learner: what trains.
        size: of its images, in pixels.
        directory: `RunDirectory.write_compute` is called at the end of training.
        most: passes after which training ends; None: any.

    Raises:
        MetasegError: ``most`` is given for a network that has no pass of one image.
    """

    def __init__(self, learner: Learner, size: int, directory: RunDirectory, most: float | None = None) -> None:
        self._learner, self._directory, self._most = learner, directory, most
        self._of_one = of_one_image(learner, size)
        if most is not None and self._of_one is None:
            raise MetasegError(
                "trainer.max_passes counts passes of one image, but this learner's network compares images and has "
                "none: set trainer.max_epochs instead."
            )
        self._counter: FlopCounterMode | None = None
        self._began = 0.0
        self._state: dict[str, Any] = {"counted": [], "seconds": 0.0, "steps": 0, "spent": 0.0}

    @property
    def spent(self) -> float:
        """The share of ``most`` that is spent."""
        return float(self._state["spent"])

    def state_dict(self) -> dict[str, Any]:
        """What has been counted so far."""
        return self._state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._state = self._state | state_dict

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        """Begin to count."""
        if self._state["steps"] % EVERY == 0:
            self._counter = counter()
            self._counter.__enter__()
        self._began = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Add the step."""
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
            self._state["counted"].append(self._counter.get_total_flops())
            self._counter = None
        self._state["seconds"] += time.perf_counter() - self._began
        self._state["steps"] += 1
        if self._most is not None and self._of_one is not None:
            # Ranks count different tasks; the first speaks for all, so that their step sizes stay equal.
            self._state["spent"] = trainer.strategy.broadcast(self._operations(trainer) / self._of_one / self._most)
            trainer.should_stop |= self.spent >= 1

    def _operations(self, trainer: L.Trainer) -> float:
        counted = self._state["counted"]
        return sum(counted) / len(counted) * self._state["steps"] * trainer.world_size

    def on_train_end(self, trainer: L.Trainer, module: Any) -> None:
        """Write down outer steps, operations and passes of images on all ranks, and seconds."""
        if not (trainer.is_global_zero and self._state["counted"]):
            return
        operations = self._operations(trainer)
        self._directory.write_compute(
            Cost(
                outer_steps=self._state["steps"],
                operations=operations,
                passes=None if self._of_one is None else operations / self._of_one,
                seconds=self._state["seconds"],
            )
        )


class _NoModules:
    """Stands for the counter's record of which module is at work.

    Its hooks refuse a gradient in the inputs of a module that are leaves, which outputs of held stages are.
    """

    parents = ("Global",)

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def counter() -> FlopCounterMode:
    """Counts the floating-point operations of what is called within it."""
    found = FlopCounterMode(display=False)
    found.mod_tracker = _NoModules()  # type: ignore[assignment]
    return found


def of_one_image(learner: Learner, size: int) -> int | None:
    """Floating-point operations of one image (1, 3, size, size), forward and backward through the whole network.

    None for a network that compares images with annotated ones: it has no pass of one image.
    """
    if isinstance(learner.network, ComparingNetwork):
        return None
    theta = {name: value.detach().requires_grad_() for name, value in learner.network.named_parameters()}
    # Two images, for norm layers that need more than one value a channel at the lowest resolution.
    images = torch.zeros(2, 3, size, size, device=next(iter(theta.values())).device)
    with counter() as counted, torch.enable_grad():
        forward(learner.network, theta, images)[0].sum().backward()
    return counted.get_total_flops() // 2

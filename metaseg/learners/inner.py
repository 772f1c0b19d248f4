"""Evaluation of the support loss in the inner loop: precision and compilation."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metaseg.meta.inner_loop import Evaluate, Evaluation, detached
from metaseg.meta.losses import Loss
from metaseg.meta.vectors import Parameters, flatten
from metaseg.networks.functional import Statistics, forward

_AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_SCALE = {"float16": 2.0**12}
"""Loss scale that keeps float16 gradients from vanishing [our decision: a power of two]."""


class InnerEvaluation:
    """Builds the function with which the inner loop evaluates an episode's support loss.

    Only inner steps run in the precision given here; curvature products, the solver and the query gradient do not
    (half precision would make the Hessian-vector products useless; a scaled loss would scale the solve).

    Args:
        network: the network.
        loss: the segmentation loss; computed in float32.
        precision: "float32", "tf32", "bfloat16" or "float16".
        compiled: whether to use torch.compile.
    """

    def __init__(self, network: nn.Module, loss: Loss, precision: str = "float32", compiled: bool = False) -> None:
        self.precision = precision

        # Compile the call alone, with parameters as its inputs; otherwise each step's parameters would trigger a
        # recompile.
        def call(network: nn.Module, parameters: Parameters, images: tuple[Any], stages: dict[str, str]) -> Tensor:
            logits: Tensor = functional_call(network, parameters, images, stages)
            return logits

        if compiled:
            call = torch.compile(call, dynamic=False, fullgraph=True)

        def objective(
            parameters: Parameters, images: Any, masks: Tensor, first: str | None
        ) -> tuple[Tensor, Statistics]:
            logits, statistics = forward(network, parameters, images, call=call, first=first)
            return loss(logits.float(), masks), statistics

        self._objective: Callable[..., tuple[Tensor, Statistics]] = objective
        self._plain = precision == "float32" and not compiled

    def of(self, images: Any, masks: Tensor, first: str | None = None) -> Evaluate | None:
        """Evaluates the loss on images (B, 3, H, W) and masks (B, 1, H, W); None: the task's own evaluation applies.

        Args:
            images: the images, or with ``first`` the output of the stages before it.
            masks: in {0, 1}.
            first: the stage to start at; None: the encoder.
        """
        if self._plain:
            return None
        scale = _SCALE.get(self.precision, 1.0)

        def evaluate(phi: Parameters) -> Evaluation:
            with torch.enable_grad(), _precision(self.precision, masks.device.type):
                loss, found = self._objective(phi, images, masks, first)
            with torch.enable_grad(), _tf32(self.precision):
                rows = torch.autograd.grad(loss * scale, list(phi.values()), materialize_grads=True)
            return Evaluation(loss.detach(), flatten(rows) / scale, detached(found))

        return evaluate


@contextmanager
def _precision(precision: str, device: str) -> Iterator[None]:
    dtype = _AUTOCAST.get(precision)
    with torch.autocast(device, dtype, enabled=dtype is not None, cache_enabled=False), _tf32(precision):
        yield


@contextmanager
def _tf32(precision: str) -> Iterator[None]:
    """Enable TF32, a process-wide flag, inside the context."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    if precision == "tf32":
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before

"""How the inner loop evaluates the support loss: in which precision, and whether compiled."""

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
"""What the loss is multiplied by, so that gradients of float16 do not vanish [our decision: a power of two]."""


class InnerEvaluation:
    """Makes the function by which the inner loop evaluates the support loss of an episode.

    Only inner steps run in the precision given here; curvature products, the solver and the query gradient do not
    (half precision would make the Hessian-vector products useless; a scaled loss would scale the solve).

    Args:
        network: the network.
        loss: the segmentation loss; computed in float32.
        precision: "float32", "tf32", "bfloat16" or "float16".
        compiled: whether by torch.compile.
    """

    def __init__(self, network: nn.Module, loss: Loss, precision: str = "float32", compiled: bool = False) -> None:
        self.precision = precision

        # The call alone, so that parameters are inputs of what is compiled: compiled around them, it would be compiled
        # anew for each step's parameters.
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
        """Evaluates the loss of these images (B, 3, H, W) and masks (B, 1, H, W); None: as the task itself does.

        Args:
            images: with ``first``, what the stages before it made of them.
            masks: in {0, 1}.
            first: the stage to begin with; None: the encoder.
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
    """TF32 is a flag of the process: set for as long as this lasts, on devices that have it."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    if precision == "tf32":
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before

"""Batch norm whose statistics are an input and output of the call, not state of the layer.

`nn.BatchNorm2d` normalises an image by its batch (`train`) or by a running average (`eval`). Episodes need a third
choice: the statistics of the support set at the current parameters, so that a prediction does not depend on the other
query images and is still differentiable in the parameters. The layer here therefore has no mode: `normalising` opens a
scope in which statistics are passed to the layers or recorded from them.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaseg.errors import MetasegError

Statistics = dict[str, tuple[Tensor, Tensor]]
"""Name of a norm layer → (mean (C,), biased variance (C,))."""


class _Scope:
    """The inputs and outputs of the norm layers in one forward pass."""

    def __init__(self, names: Mapping[Any, str], given: Statistics | None) -> None:
        self.names = names
        self.given = given or {}
        self.batches: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        """Name of a layer → its input, and the mean and inverse deviation computed by the kernel."""
        self.epsilons: list[float] = []


# A context variable rather than an attribute of the layers, so that nothing is left behind if a pass raises.
_scope: ContextVar[_Scope | None] = ContextVar("metaseg_normalisation", default=None)


@contextmanager
def normalising(names: Mapping[Any, str], given: Statistics | None = None) -> Iterator[Statistics]:
    """Within this scope, norm layers use the statistics in `given`, or those of their batch if they have none there.

    Args:
        names: norm layer → name under which its statistics are given or recorded.
        given: statistics to normalise with; layers not listed use those of their batch. Frozen layers always use their
            own.

    Yields:
        A dict that is filled on exit with the statistics that were used, except by frozen layers; those of batches stay
        in the graph.
    """
    scope = _Scope(names, given)
    token = _scope.set(scope)
    recorded: Statistics = {}
    try:
        yield recorded
    finally:
        _scope.reset(token)
    recorded |= scope.given
    if scope.batches:
        images, means, deviations = zip(*scope.batches.values(), strict=True)
        moments = _StatisticsOfKernel.apply(tuple(scope.epsilons), *images, *means, *deviations)
        split = [part.split([len(mean) for mean in means]) for part in moments]
        recorded |= zip(scope.batches, zip(*split, strict=True), strict=True)


class _StatisticsOfKernel(torch.autograd.Function):
    """Makes the means and variances computed by the fused kernels differentiable in the kernels' inputs.

    `torch.native_batch_norm` returns them as constants. Recomputing them with `torch.var_mean` costs more than the
    normalisation itself; here the forward pass costs nothing, and the backward pass runs only if they are used. All
    layers are handled in one call, because each has only a few numbers.

    Arguments: one epsilon for each of L layers, then L inputs (B, C, H, W), L means (C,), L inverse deviations (C,).
    Returns: means and variances of all channels of all layers, each of shape (ΣC,).
    """

    @staticmethod
    def forward(epsilons: tuple[float, ...], *tensors: Tensor) -> tuple[Tensor, Tensor]:
        layers = len(epsilons)
        means, deviations = tensors[layers : 2 * layers], tensors[2 * layers :]
        variance = torch.cat(deviations).pow(-2)
        if len(set(epsilons)) == 1:
            variance = variance - epsilons[0]
        else:
            parts = variance.split([len(deviation) for deviation in deviations])
            variance = torch.cat([part - epsilon for part, epsilon in zip(parts, epsilons, strict=True)])
        # Rounding can give a tiny negative value for a constant channel.
        return torch.cat(means), variance.clamp_min(0.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.layers = len(inputs[0])
        # The means are saved as an output because second derivatives also pass through them.
        ctx.save_for_backward(*inputs[1 : ctx.layers + 1], output[0])
        ctx.save_for_forward(*inputs[1 : ctx.layers + 1], output[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *images, mean = ctx.saved_tensors
        channels = [image.shape[1] for image in images]
        rows = []
        for image, centre, by_mean, by_variance in zip(
            images, mean.split(channels), *(grad.split(channels) for grad in grads), strict=True
        ):
            count = _values_per_channel(image)
            slope = 2 * by_variance[:, None, None] / count
            rows.append(by_mean[:, None, None] / count + slope * (image - centre[:, None, None]))
        return None, *rows, *[None] * (2 * ctx.layers)

    @staticmethod
    def jvp(ctx: Any, _: Any, *tangents: Tensor) -> tuple[Tensor, Tensor]:
        *images, mean = ctx.saved_tensors
        shifts, slopes = [], []
        for image, centre, tangent in zip(
            images, mean.split([image.shape[1] for image in images]), tangents, strict=False
        ):
            shift = tangent.mean((0, 2, 3))
            # Centring the tangent as well makes the mean's derivative vanish, whatever transform is nested around this.
            product = (image - centre[:, None, None]) * (tangent - shift[:, None, None])
            shifts.append(shift)
            slopes.append(2 * product.mean((0, 2, 3)))
        return torch.cat(shifts), torch.cat(slopes)


def _values_per_channel(images: Tensor) -> int:
    batch, _, height, width = images.shape
    return batch * height * width


class EpisodicBatchNorm2d(nn.Module):
    """Batch norm of (B, C, H, W) by the statistics of its batch, or by those passed through `normalising`.

    A ``frozen`` layer always normalises by its buffers, the statistics of its pre-trained weights.

    It behaves the same in `train()` and `eval()`. Parameters and buffers have the names of `nn.BatchNorm2d`, so that
    its checkpoints load; a forward pass never writes the buffers (see `functional.update_running`). Child modules, if
    any, are applied to the result in sequence.

    Args:
        num_features: C.
        eps: added to the variance; 1e-5 as in `nn.BatchNorm2d`.
        affine: add a weight and a bias.

    Raises:
        MetasegError: a batch with one value per channel (one image with a 1x1 feature map) cannot be normalised.
    """

    frozen = False
    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.register_parameter("weight", nn.Parameter(torch.ones(num_features)) if affine else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros(num_features)) if affine else None)
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def forward(self, images: Tensor) -> Tensor:
        """Normalise (B, C, H, W) over B, H and W of each channel."""
        scope = _scope.get()
        given = None if scope is None else scope.given.get(scope.names[self])
        if self.frozen:
            hidden = torch.native_batch_norm(
                images, self.weight, self.bias, self.running_mean, self.running_var, False, 0.0, self.eps
            )[0]
        elif given is not None:
            hidden = self._by_given(images, *given)
        else:
            hidden = self._by_own_batch(images, scope)
        for module in self.children():
            hidden = module(hidden)
        return hidden

    def extra_repr(self) -> str:
        """Arguments shown when the network is printed."""
        return f"{self.num_features}, eps={self.eps}"

    def _by_own_batch(self, images: Tensor, scope: _Scope | None) -> Tensor:
        if _values_per_channel(images) < 2:
            raise MetasegError(
                "Batch norm by the statistics of the batch needs more than one value per channel, found a batch of "
                f"shape {tuple(images.shape)}: use more or larger images."
            )
        normalised, mean, inverse_deviation = torch.native_batch_norm(
            images, self.weight, self.bias, None, None, True, 0.0, self.eps
        )
        if scope is not None:
            name = scope.names[self]
            if name in scope.batches:
                raise MetasegError(
                    f"Expected each norm layer to run once in a forward pass, found {name} running twice: its "
                    "statistics are then ambiguous; use a network that does not share norm layers."
                )
            scope.batches[name] = images, mean, inverse_deviation
            scope.epsilons.append(self.eps)
        return normalised

    def _by_given(self, images: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        scale = torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        shift = -mean * scale
        if self.bias is not None:
            shift = shift + self.bias
        # `F.batch_norm` is differentiable in weight and bias but not in its statistics, so the statistics are folded
        # into weight and bias; this keeps the fused kernel.
        zero, one = torch.zeros_like(scale), torch.ones_like(scale)
        return F.batch_norm(images, zero, one, scale, shift, training=False, eps=0.0)


def replace_batch_norm(network: nn.Module) -> nn.Module:
    """Replace every `nn.BatchNorm2d` in `network` by `EpisodicBatchNorm2d`, in place, keeping parameters and buffers.

    Returns:
        The network, or its replacement if it is itself a batch norm.

    Raises:
        MetasegError: an unknown subclass of `nn.BatchNorm2d`, which might behave differently.
    """
    if isinstance(network, nn.BatchNorm2d):
        return _episodic(network)
    for name, child in network.named_children():
        setattr(network, name, replace_batch_norm(child))
    return network


def _episodic(layer: nn.BatchNorm2d) -> EpisodicBatchNorm2d:
    # timm's layer is a batch norm followed by its children; compared by name to avoid importing timm.
    if type(layer) is not nn.BatchNorm2d and type(layer).__name__ != "BatchNormAct2d":
        raise MetasegError(
            f"Expected batch norm layers of type nn.BatchNorm2d, found {type(layer).__name__}: use another encoder."
        )
    replacement = EpisodicBatchNorm2d(layer.num_features, layer.eps, layer.affine)
    if layer.affine:
        replacement.weight, replacement.bias = layer.weight, layer.bias
    if layer.track_running_stats:
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            setattr(replacement, name, getattr(layer, name))
    for name, child in layer.named_children():
        replacement.add_module(name, child)
    return replacement


def plain_batch_norm(network: nn.Module, statistics: Statistics) -> nn.Module:
    """Replace every `EpisodicBatchNorm2d` by an `nn.BatchNorm2d` in evaluation mode, for export.

    Args:
        network: changed in place.
        statistics: mean and biased variance of every unfrozen norm layer, which become its running statistics.

    Returns:
        The network, or its replacement if it is itself a norm layer.
    """

    def plain(module: nn.Module, name: str) -> nn.Module:
        if isinstance(module, EpisodicBatchNorm2d):
            layer = nn.BatchNorm2d(module.num_features, module.eps, affine=module.weight is not None)
            own = dict(module.named_parameters(recurse=False))
            layer.load_state_dict({name: value.detach() for name, value in own.items()}, strict=False)
            assert layer.running_mean is not None
            assert layer.running_var is not None
            mean, variance = (module.running_mean, module.running_var) if module.frozen else statistics[name]
            layer.running_mean.copy_(mean)
            layer.running_var.copy_(variance)
            rest = list(module.children())
            return nn.Sequential(layer, *rest).eval() if rest else layer.eval()
        for key, child in module.named_children():
            setattr(module, key, plain(child, f"{name}.{key}".strip(".")))
        return module

    return plain(network, "")

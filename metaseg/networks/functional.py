"""A network as a function of its parameters and its norm statistics: the seam between networks and the mathematics."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metaseg.errors import MetasegError
from metaseg.networks.normalisation import EpisodicBatchNorm2d, Statistics, normalising

__all__ = ["Statistics", "forward", "norm_layers", "running_statistics", "update_running"]


def forward(
    network: nn.Module,
    parameters: dict[str, Tensor],
    images: Any,
    statistics: Statistics | None = None,
    call: Callable[..., Any] = functional_call,
    first: str | None = None,
    last: str | None = None,
) -> tuple[Any, Statistics]:
    """Call `network` with `parameters` in place of its own; nothing of the network changes.

    The result is a pure function of the arguments: the same in `train()` and `eval()`, differentiable any number of
    times in parameters, images and statistics, and fit for `torch.func` transforms. Several threads need a network
    each, because `functional_call` lends the parameters to the module while it runs.

    Args:
        network: a network whose norm layers are `EpisodicBatchNorm2d` (see `replace_batch_norm`); its architecture is
            looked up at the first call, and must not change after it.
        parameters: name → tensor, as of `dict(network.named_parameters())`; those left out are the network's own.
        images: (B, C, H, W) in [-1, 1]; with ``first``, what the stage before it returned;
            of a `ComparingNetwork`, what is to be done with its parts.
        statistics: mean and biased variance of norm layers; those that are not named use the statistics of `images`,
            and frozen ones always their own.
        call: what calls the network: `torch.func.functional_call`, or that compiled.
        first: of a `StagedNetwork`: the stage to begin with; None: the encoder.
        last: the stage to end with; None: the head.

    Returns:
        Logits (B, O, H, W), or what the last stage returns; and the statistics that were used: those given, and those
        of `images`, in the graph. Frozen layers have no part in them.

    Raises:
        MetasegError: a parameter of no such name; a layer that keeps a mode of its own (`nn.BatchNorm`), or that draws
            at random (dropout) while the network is in training mode.
    """
    known = _layout(network)
    unknown = parameters.keys() - known.parameters
    if unknown:
        raise MetasegError(
            f"Expected parameters of {type(network).__name__}, found {sorted(unknown)[0]!r} ({len(unknown)} unknown): "
            "pass those of the same architecture."
        )
    known.require_deterministic()
    with normalising(known.names, statistics) as used:
        stages = {name: part for name, part in (("first", first), ("last", last)) if part is not None}
        output = call(network, parameters, (images,), stages)
    return output, used


def norm_layers(network: nn.Module) -> dict[str, EpisodicBatchNorm2d]:
    """Name → norm layer, frozen ones included.

    Raises:
        MetasegError: as `forward`.
    """
    return {name: layer for layer, name in _layout(network).names.items()}


def running_statistics(network: nn.Module) -> Statistics:
    """Copies of the running mean and variance of every norm layer that is not frozen, for the kind "running"."""
    return {
        name: (layer.running_mean.clone(), layer.running_var.clone())
        for name, layer in norm_layers(network).items()
        if not layer.frozen
    }


@torch.no_grad()
def update_running(network: nn.Module, statistics: Statistics, momentum: float | None = 0.1, count: int = 1) -> None:
    """Move the running buffers towards `statistics`: new = (1 - momentum) · old + momentum · given.

    The variance stays the biased one, unlike in `nn.BatchNorm2d`: it is what the layers normalise with in training, and
    so what stands in for it later should be the same quantity (our decision; the factor is n / (n - 1)).

    Args:
        network: whose buffers are written, in place; those of frozen layers are not.
        statistics: as `forward` returns them; they are detached here.
        momentum: share of the new statistics, 0 to 1; None: the mean of all batches so far.
        count: number of batches that `statistics` are the mean of.
    """
    for name, layer in norm_layers(network).items():
        if name not in statistics or layer.frozen:
            continue
        layer.num_batches_tracked += count
        share = count / float(layer.num_batches_tracked) if momentum is None else momentum
        mean, variance = statistics[name]
        layer.running_mean.lerp_(mean.detach(), share)
        layer.running_var.lerp_(variance.detach(), share)


@dataclass(frozen=True)
class _Layout:
    """What a forward pass has to know of an architecture: finding it out takes as long as a small network's pass."""

    names: dict[EpisodicBatchNorm2d, str]
    parameters: frozenset[str]
    random: tuple[tuple[str, nn.Module], ...]
    """Layers that draw at random in training mode."""

    def require_deterministic(self) -> None:
        for name, module in self.random:
            if module.training:
                raise MetasegError(
                    f"Expected a network that gives the same output twice, found active dropout at {name}: call "
                    "network.eval()."
                )


# By weak reference: the table must not keep networks alive.
_layouts: "WeakKeyDictionary[nn.Module, _Layout]" = WeakKeyDictionary()


def _layout(network: nn.Module) -> _Layout:
    found = _layouts.get(network)
    if found is None:
        found = _layouts[network] = _look_up(network)
    return found


def _look_up(network: nn.Module) -> _Layout:
    """The layout of a network; refuses layers whose output depends on a mode."""
    names: dict[EpisodicBatchNorm2d, str] = {}
    random = []
    for name, module in network.named_modules():
        if isinstance(module, EpisodicBatchNorm2d):
            names[module] = name
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise MetasegError(
                f"Expected norm layers that take their statistics as an argument, found {type(module).__name__} at "
                f"{name}: call metaseg.networks.normalisation.replace_batch_norm(network) first."
            )
        elif getattr(module, "p", 0) and isinstance(module, nn.modules.dropout._DropoutNd):
            random.append((name, module))
    parameters = frozenset(name for name, _ in network.named_parameters(remove_duplicate=False))
    return _Layout(names, parameters, tuple(random))

"""A network as a function of its parameters and norm statistics, the interface between networks and mathematics."""

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metaseg.errors import MetasegError
from metaseg.networks.normalisation import EpisodicBatchNorm2d, Statistics, normalising

MOMENTUM = 0.1
"""Share of new statistics in running ones, as in `nn.BatchNorm2d`."""


def forward(
    network: nn.Module,
    parameters: dict[str, Tensor],
    images: Any,
    statistics: Statistics | None = None,
    first: str | None = None,
    last: str | None = None,
) -> tuple[Any, Statistics]:
    """Call `network` with `parameters` in place of its own; the network itself is unchanged.

    The result is a pure function of the arguments: the same in `train()` and `eval()`, differentiable any number of
    times in parameters, images and statistics, and compatible with `torch.func` transforms. Threads cannot share a
    network, because `functional_call` swaps the parameters of the module while it runs.

    Args:
        network: a network whose norm layers are `EpisodicBatchNorm2d` (see `replace_batch_norm`); its architecture is
            inspected in the first call and must not change afterwards.
        parameters: name → tensor, as in `dict(network.named_parameters())`; missing ones are taken from the network.
        images: (B, C, H, W) in [-1, 1]; with ``first``, the output of the preceding stage; for a `ComparingNetwork`,
            the function to call with it.
        statistics: mean and biased variance of norm layers; layers not listed use the statistics of `images`, and
            frozen ones always their own.
        first: first stage of a `StagedNetwork`; None: the encoder.
        last: last stage; None: the head.

    Returns:
        Logits (B, O, H, W), or the output of the last stage; and the statistics that were used, except by frozen
        layers: those given, and those of `images`, in the graph.

    Raises:
        MetasegError: an unknown parameter; a layer with a mode of its own (`nn.BatchNorm`), or a random one (dropout)
            while the network is in training mode.
    """
    known = _layout(network)
    unknown = parameters.keys() - known.parameters
    if unknown:
        raise MetasegError(
            f"Expected parameters of {type(network).__name__}, found {sorted(unknown)[0]!r} ({len(unknown)} unknown): "
            "pass parameters of the same architecture."
        )
    known.require_deterministic()
    with normalising(known.names, statistics) as used:
        stages = {name: part for name, part in (("first", first), ("last", last)) if part is not None}
        output = functional_call(network, parameters, (images,), stages)
    return output, used


def norm_layers(network: nn.Module) -> dict[str, EpisodicBatchNorm2d]:
    """Name → norm layer, frozen ones included.

    Raises:
        MetasegError: as `forward`.
    """
    return {name: layer for layer, name in _layout(network).names.items()}


def running_statistics(network: nn.Module) -> Statistics:
    """Copies of the running mean and variance of every unfrozen norm layer, for the kind "running"."""
    return {
        name: (layer.running_mean.clone(), layer.running_var.clone())
        for name, layer in norm_layers(network).items()
        if not layer.frozen
    }


@torch.no_grad()
def update_running(network: nn.Module, statistics: Statistics) -> None:
    """Move the running buffers towards `statistics`: new = (1 - `MOMENTUM`) · old + `MOMENTUM` · given.

    The variance remains biased, unlike in `nn.BatchNorm2d`, because the layers normalise with the biased variance in
    training (our decision; the two differ by the factor n / (n - 1)).

    Args:
        network: its buffers are updated in place, except in frozen layers.
        statistics: as returned by `forward`; detached here.
    """
    for name, layer in norm_layers(network).items():
        if name not in statistics or layer.frozen:
            continue
        layer.num_batches_tracked += 1
        mean, variance = statistics[name]
        layer.running_mean.lerp_(mean.detach(), MOMENTUM)
        layer.running_var.lerp_(variance.detach(), MOMENTUM)


@dataclass(frozen=True)
class _Layout:
    """Cached facts about an architecture; finding them takes as long as a small network's forward pass."""

    names: dict[EpisodicBatchNorm2d, str]
    parameters: frozenset[str]
    random: tuple[tuple[str, nn.Module], ...]
    """Layers that are random in training mode."""

    def require_deterministic(self) -> None:
        for name, module in self.random:
            if module.training:
                raise MetasegError(
                    f"Expected a deterministic network, found active dropout at {name}: call network.eval()."
                )


# Weak references, so that the cache does not keep networks alive.
_layouts: "WeakKeyDictionary[nn.Module, _Layout]" = WeakKeyDictionary()


def _layout(network: nn.Module) -> _Layout:
    found = _layouts.get(network)
    if found is None:
        found = _layouts[network] = _look_up(network)
    return found


def _look_up(network: nn.Module) -> _Layout:
    """Inspect a network; refuses layers whose output depends on a mode."""
    names: dict[EpisodicBatchNorm2d, str] = {}
    random = []
    for name, module in network.named_modules():
        if isinstance(module, EpisodicBatchNorm2d):
            names[module] = name
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise MetasegError(
                f"Expected norm layers of type EpisodicBatchNorm2d, found {type(module).__name__} at {name}: call "
                f"metaseg.networks.normalisation.replace_batch_norm(network) first."
            )
        elif getattr(module, "p", 0) and isinstance(module, nn.modules.dropout._DropoutNd):
            random.append((name, module))
    parameters = frozenset(name for name, _ in network.named_parameters(remove_duplicate=False))
    return _Layout(names, parameters, tuple(random))

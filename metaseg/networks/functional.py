"""A network as a function of its parameters and its norm statistics: the seam between networks and the mathematics."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metaseg.errors import MetasegError
from metaseg.networks.normalisation import EpisodicBatchNorm2d, Statistics, normalising

__all__ = ["Statistics", "forward", "running_statistics", "update_running"]


def forward(
    network: nn.Module,
    parameters: dict[str, Tensor],
    images: Tensor,
    statistics: Statistics | None = None,
    call: Callable[..., Tensor] = functional_call,
) -> tuple[Tensor, Statistics]:
    """Call `network` with `parameters` in place of its own; nothing of the network changes.

    The result is a pure function of the arguments: the same in `train()` and `eval()`, differentiable any number of
    times in parameters, images and statistics, and fit for `torch.func` transforms. Several threads need a network
    each, because `functional_call` lends the parameters to the module while it runs.

    Args:
        network: a network whose norm layers are `EpisodicBatchNorm2d` (see `replace_batch_norm`).
        parameters: name → tensor, as of `dict(network.named_parameters())`; those left out are the network's own.
        images: (B, C, H, W) in [-1, 1].
        statistics: mean and biased variance of every norm layer; None: every layer uses those of `images`.
        call: what calls the network: `torch.func.functional_call`, or that compiled.

    Returns:
        Logits (B, O, H, W), and the statistics that were used: those given, or those of `images`, in the graph.

    Raises:
        MetasegError: a parameter of no such name; a norm layer that the statistics do not name; a layer that keeps a
            mode of its own (`nn.BatchNorm`), or that draws at random (dropout) while the network is in training mode.
    """
    layers = _norm_layers(network)
    unknown = parameters.keys() - dict(network.named_parameters(remove_duplicate=False)).keys()
    if unknown:
        raise MetasegError(
            f"Expected parameters of {type(network).__name__}, found {sorted(unknown)[0]!r} ({len(unknown)} unknown): "
            "pass those of the same architecture."
        )
    with normalising({layer: name for name, layer in layers.items()}, statistics) as used:
        logits = call(network, parameters, (images,))
    return logits, used


def running_statistics(network: nn.Module) -> Statistics:
    """Copies of the running mean and variance of every norm layer, for `model.norm=running`."""
    return {
        name: (layer.running_mean.clone(), layer.running_var.clone()) for name, layer in _norm_layers(network).items()
    }


@torch.no_grad()
def update_running(network: nn.Module, statistics: Statistics, momentum: float | None = 0.1, count: int = 1) -> None:
    """Move the running buffers towards `statistics`: new = (1 - momentum) · old + momentum · given.

    The variance stays the biased one, unlike in `nn.BatchNorm2d`: it is what the layers normalise with in training, and
    so what stands in for it later should be the same quantity (our decision; the factor is n / (n - 1)).

    Args:
        network: whose buffers are written, in place.
        statistics: as `forward` returns them; they are detached here.
        momentum: share of the new statistics, 0 to 1; None: the mean of all batches so far.
        count: number of batches that `statistics` are the mean of.
    """
    for name, layer in _norm_layers(network).items():
        if name not in statistics:
            continue
        layer.num_batches_tracked += count
        share = count / float(layer.num_batches_tracked) if momentum is None else momentum
        mean, variance = statistics[name]
        layer.running_mean.lerp_(mean.detach(), share)
        layer.running_var.lerp_(variance.detach(), share)


def _norm_layers(network: nn.Module) -> dict[str, EpisodicBatchNorm2d]:
    """Name → norm layer; refuses layers whose output depends on a mode or on chance."""
    layers: dict[str, EpisodicBatchNorm2d] = {}
    for name, module in network.named_modules():
        if isinstance(module, EpisodicBatchNorm2d):
            layers[name] = module
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise MetasegError(
                f"Expected norm layers that take their statistics as an argument, found {type(module).__name__} at "
                f"{name}: call metaseg.networks.normalisation.replace_batch_norm(network) first."
            )
        elif module.training and getattr(module, "p", 0) and isinstance(module, nn.modules.dropout._DropoutNd):
            raise MetasegError(
                f"Expected a network that gives the same output twice, found active dropout at {name}: call "
                "network.eval()."
            )
    return layers

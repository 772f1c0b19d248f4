"""Parameter dictionaries as flat vectors, the form in which solvers and reductions handle them."""

from collections.abc import Iterable

import torch
from torch import Tensor

Parameters = dict[str, Tensor]
"""Name → tensor, in the order of ``module.named_parameters()``."""


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """Concatenate tensors of any shape into one vector of shape (N,)."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def unflatten(vector: Tensor, like: Parameters) -> Parameters:
    """Cut a vector of shape (N,) into views with the names and shapes of ``like``.

    Raises:
        ValueError: if N is not the number of elements of ``like``.
    """
    expected = sum(tensor.numel() for tensor in like.values())
    if vector.numel() != expected:
        raise ValueError(f"expected a vector of {expected} elements, found {vector.numel()}")
    pieces = vector.split([tensor.numel() for tensor in like.values()])
    return {name: piece.view_as(tensor) for (name, tensor), piece in zip(like.items(), pieces, strict=True)}


def detach(parameters: Parameters, requires_grad: bool = False) -> Parameters:
    """The same values cut from any graph, as leaves that require gradients if asked."""
    return {name: tensor.detach().requires_grad_(requires_grad) for name, tensor in parameters.items()}


def interpolate(theta: Parameters, phi: Parameters, share: float) -> Parameters:
    """θ + share · (φ - θ), tensor by tensor; `share` 1 gives φ itself."""
    return phi if share == 1 else {name: theta[name].lerp(value, share) for name, value in phi.items()}

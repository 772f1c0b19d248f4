"""Curvature-vector products at one point, set up once and applied many times."""

from collections.abc import Callable

import torch
from torch import Tensor

from metaseg.meta.vectors import Parameters, flatten, unflatten

Product = Callable[[Tensor], Tensor]
"""v → C v on vectors of shape (N,)."""


def hessian_product(gradient: Tensor, phi: Parameters) -> Product:
    """v → ∇²L(φ) v by a second backward pass through the kept graph of the gradient [Pearlmutter 1994].

    Args:
        gradient: ∇L(φ) as a vector of shape (N,), computed with ``create_graph=True``.
        phi: the parameters it was taken at.
    """
    leaves = list(phi.values())

    def product(vector: Tensor) -> Tensor:
        rows = torch.autograd.grad(gradient, leaves, grad_outputs=vector, retain_graph=True, materialize_grads=True)
        return flatten(rows)

    return product


def gauss_newton_product(
    logits_of: Callable[[Parameters], Tensor], curvature: Callable[[Tensor, Tensor], Tensor], phi: Parameters
) -> Product:
    """v → Jᵀ B J v with J the Jacobian of the logits and B the curvature of the loss in logit space.

    Positive semi-definite whenever B is, also where the Hessian is indefinite [Schraudolph 2002]. J v is a forward-mode
    pass; Jᵀ u a backward pass through a graph that is kept.

    Args:
        logits_of: parameters → logits, any shape; must be fit for ``torch.func.jvp``.
        curvature: (logits, u) → B u, shaped as the logits.
        phi: where to linearise; leaves that require gradients.
    """
    frozen = {name: value.detach() for name, value in phi.items()}
    logits = logits_of(phi)
    fixed = logits.detach()
    leaves = list(phi.values())

    def product(vector: Tensor) -> Tensor:
        with torch.no_grad():
            pushed = torch.func.jvp(logits_of, (frozen,), (unflatten(vector, frozen),))[1]
            tangent = curvature(fixed, pushed)
        rows = torch.autograd.grad(logits, leaves, grad_outputs=tangent, retain_graph=True, materialize_grads=True)
        return flatten(rows)

    return product

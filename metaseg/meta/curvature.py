"""Curvature-vector products at one point: set up once, applied many times.

Two classes share one interface: ``DoubleBackward`` works for any network, ``replay.Replay`` is faster. C is the Hessian
∇²L(φ), or the Gauss-Newton matrix Jᵀ B J with J the Jacobian of the logits and B the curvature of the loss in logit
space: positive semi-definite whenever B is, even where the Hessian is indefinite [Schraudolph 2002].
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from metaseg.meta.vectors import Parameters, flatten, unflatten

Forward = Callable[[Parameters], tuple[Tensor, Any]]
"""Parameters → (logits, other results of the forward pass)."""

LogitCurvature = Callable[[Tensor, Tensor], Tensor]
"""(logits, u) → B u, shaped as the logits."""


class Linearisation(Protocol):
    """A loss at φ with its gradient and curvature products.

    Attributes:
        loss: L(φ), detached.
        gradient: ∇L(φ), shape (N,), detached.
        before: the return value of the ``before`` callable.
    """

    loss: Tensor
    gradient: Tensor
    before: Any

    def hessian(self, vector: Tensor) -> Tensor:
        """∇²L(φ) v for v of shape (N,)."""

    def gauss_newton(self, curvature: LogitCurvature, vector: Tensor) -> Tensor:
        """Jᵀ B J v for v of shape (N,)."""

    def hessian_and_inputs(self, vector: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """∇²L(φ) v, and for each input c of the network the mixed product (∂²L/∂c∂φ) v, shaped as c."""

    def gauss_newton_and_inputs(self, curvature: LogitCurvature, vector: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Jᵀ B J v, and for each input c of the network J_cᵀ B J v, with J_c the Jacobian of the logits in c."""


class DoubleBackward:
    """Products by PyTorch's autograd: ∇²L v by a second backward pass through the kept graph of the gradient
    [Pearlmutter 1994], J v by ``torch.func.jvp`` and Jᵀ u by a backward pass.

    Args:
        logits_of: parameters → (logits, found).
        loss_of: logits → scalar loss.
        phi: φ, the point of linearisation; leaves that require gradients.
        before: called with the return values of ``logits_of``.
        exact: whether ``hessian`` is needed; if not, the gradient's graph is not kept.
        inputs: further leaves that ``logits_of`` reads and that require gradients.
    """

    def __init__(
        self,
        logits_of: Forward,
        loss_of: Callable[[Tensor], Tensor],
        phi: Parameters,
        before: Callable[[Tensor, Any], Any] | None = None,
        exact: bool = True,
        inputs: Sequence[Tensor] = (),
    ) -> None:
        self._logits_of, self._phi = logits_of, phi
        self._leaves, self._inputs = list(phi.values()), list(inputs)
        with torch.enable_grad():
            self._logits, found = logits_of(phi)
            self.before = None if before is None else before(self._logits, found)
            loss = loss_of(self._logits)
            rows = torch.autograd.grad(
                loss, self._leaves, create_graph=exact, retain_graph=True, materialize_grads=True
            )
            self._graph = flatten(rows)
        self.loss, self.gradient = loss.detach(), self._graph.detach()

    def hessian(self, vector: Tensor) -> Tensor:
        """∇²L(φ) v for v of shape (N,)."""
        return flatten(self._pull(self._graph, vector, self._leaves))

    def hessian_and_inputs(self, vector: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See ``Linearisation``."""
        return self._divided(self._pull(self._graph, vector, self._leaves + self._inputs))

    def gauss_newton(self, curvature: LogitCurvature, vector: Tensor) -> Tensor:
        """Jᵀ B J v for v of shape (N,)."""
        return flatten(self._pull(self._logits, self._in_logits(curvature, vector), self._leaves))

    def gauss_newton_and_inputs(self, curvature: LogitCurvature, vector: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See ``Linearisation``."""
        pulled = self._pull(self._logits, self._in_logits(curvature, vector), self._leaves + self._inputs)
        return self._divided(pulled)

    def _in_logits(self, curvature: LogitCurvature, vector: Tensor) -> Tensor:
        """B J v."""
        with torch.no_grad():
            frozen = {name: value.detach() for name, value in self._phi.items()}
            pushed = torch.func.jvp(lambda p: self._logits_of(p)[0], (frozen,), (unflatten(vector, frozen),))[1]
            return curvature(self._logits.detach(), pushed)

    def _pull(self, of: Tensor, cotangent: Tensor, by: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(of, by, grad_outputs=cotangent, retain_graph=True, materialize_grads=True)

    def _divided(self, rows: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        count = len(self._leaves)
        return flatten(rows[:count]), tuple(rows[count:])

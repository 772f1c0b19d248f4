"""Curvature products by replaying a recorded gradient: forward and backward run once, their derivative many times.

PyTorch's autograd computes the gradient at φ once, while every operation is recorded. The derivative of the record
along a direction v (see ``tangents``) is then

    forward part    v → J v, with J the Jacobian of the logits
    backward part   with tangents of all values:          the rest of ∇²L(φ) v             [Pearlmutter 1994]
                    with that of the logits' gradient u:  Jᵀ u, as the pass is linear in it

A Hessian product costs two convolutions for each one of the gradient, a Gauss-Newton product four for every three, and
no graph of the gradient is ever built. Values that the derivative does not read are not kept.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from metaseg.meta.curvature import Forward, LogitCurvature
from metaseg.meta.tangents import RULES, Rule
from metaseg.meta.vectors import Parameters, flatten, unflatten

_NO_RULE = Rule(lambda *_: None)
_CLONE = torch.ops.aten.clone.default
_DETACH = torch.ops.aten.detach.default
_CONSTANT = 0
"""Number of every value that depends on no tracked value."""
_OVERWRITTEN = -1
"""Number of every value overwritten through another view of its memory."""


class Unsupported(RuntimeError):
    """The network uses an operation that cannot be replayed; the message names it."""


@dataclass
class _Operation:
    """One recorded operation; ``inputs`` and ``outputs`` are the numbers of the values read and produced."""

    function: Any
    rule: Rule
    arguments: list[Any]
    inputs: list[int | list[int]]
    results: list[Any]
    outputs: list[int]
    single: bool


class Record(TorchDispatchMode):
    """Records the operations run inside it that depend on a tracked value; can be entered several times.

    Attributes:
        operations: in execution order.
        versions: the tensors kept, with the version that was read.
        dropped: numbers of values that are not kept, and neither is anything computed from them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[_Operation] = []
        self.versions: list[tuple[Tensor, int]] = []
        self.dropped: set[int] = set()
        self._numbers: dict[Any, int] = {}
        self._views: dict[int, list[Any]] = {}
        """Storage address → the values in it."""
        self._again: dict[int, _Operation] = {}
        self._count = _CONSTANT

    def track(self, tensor: Any) -> int:
        """Number a tensor, so that operations reading it are recorded."""
        if not isinstance(tensor, Tensor):
            return _CONSTANT
        self._count += 1
        identity = _identity(tensor)
        self._numbers[identity] = self._count
        self._views.setdefault(tensor.untyped_storage().data_ptr(), []).append(identity)
        return self._count

    def number(self, value: Any) -> int:
        """The number of a tensor."""
        return self._numbers.get(_identity(value), _CONSTANT) if isinstance(value, Tensor) else _CONSTANT

    # Called hundreds of times per pass while the device waits, so written for speed.
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DETACH:
            # Same memory and shape: keeps its number.
            return func(*args)
        tracked = False
        inputs: list[int | list[int]] = []
        for argument in args:
            if isinstance(argument, Tensor):
                number: int | list[int] = self._numbers.get(_identity(argument), _CONSTANT)
                tracked = tracked or number != _CONSTANT
            elif isinstance(argument, (list, tuple)):
                number = [self.number(item) for item in argument]
                tracked = tracked or any(number)
            else:
                number = _CONSTANT
            inputs.append(number)
        out = func(*args, **kwargs) if kwargs else func(*args)
        single = isinstance(out, Tensor)
        results = [out] if single else list(out) if isinstance(out, (tuple, list)) else []
        if not tracked:
            # A new constant may reuse the memory of a freed tracked value.
            for result in results:
                if isinstance(result, Tensor):
                    self._numbers.pop(_identity(result), None)
            return out
        rule = RULES.get(func, _NO_RULE)
        if (kwargs and func is not _CLONE) or _OVERWRITTEN in _each(inputs):
            rule = _NO_RULE
        in_place = func._schema.is_mutable
        if in_place:
            # Other views of this memory have changed in a way no rule describes.
            for view in self._views.pop(args[0].untyped_storage().data_ptr(), ()):
                self._numbers[view] = _OVERWRITTEN
        arguments = self._kept(args, rule.arguments, inputs, in_place)
        outputs = [self.track(result) for result in results]
        if self.dropped and not self.dropped.isdisjoint(_each(inputs)):
            self.dropped.update(outputs)
            self.dropped.discard(_CONSTANT)
        operation = _Operation(
            func, rule, arguments, inputs, self._kept(results, rule.results, outputs, in_place), outputs, single
        )
        self.operations.append(operation)
        if rule.again is not None:
            self._again[outputs[0]] = operation
        return out

    def _kept(
        self, values: Sequence[Any], positions: tuple[int, ...], numbers: Sequence[Any], in_place: bool
    ) -> list[Any]:
        """The values at these positions, detached; the shape in place of every other tensor."""
        kept = []
        for position, value in enumerate(values):
            if isinstance(value, Tensor):
                if position in positions and numbers[position] not in self.dropped:
                    again = self._again.get(numbers[position])
                    if again is not None:
                        kept.append(_Again(again))
                        continue
                    # A detached copy has no part in the version; the operation at hand will count as one if in place.
                    self.versions.append((value, value._version + in_place))
                    # The record must not keep autograd's saved memory alive.
                    value = value.detach()
                else:
                    value = value.shape
            elif isinstance(value, (list, tuple)):
                value = [item.shape if isinstance(item, Tensor) else item for item in value]
            kept.append(value)
        return kept


@dataclass
class _Again:
    """A value recomputed from what its operation keeps instead of being kept itself."""

    operation: _Operation

    def value(self) -> Tensor:
        again = self.operation.rule.again
        assert again is not None
        return again(self.operation.arguments, self.operation.results)


def _identity(tensor: Tensor) -> Any:
    # Autograd returns saved tensors as new objects over the same memory. Reused memory is safe, as every value written
    # there gets a new number.
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _each(items: Iterable[int | list[int]]) -> Iterator[int]:
    for item in items:
        if isinstance(item, list):
            yield from item
        else:
            yield item


class _Program:
    """The operations that lead to the wanted values, in order, with the last use of each tangent.

    Raises:
        Unsupported: if one of them has no rule.
    """

    def __init__(self, operations: Sequence[_Operation], wanted: Iterable[int]) -> None:
        alive = set(wanted) - {_CONSTANT}
        used_later = set(alive)
        self.steps: list[tuple[_Operation, list[int]]] = []
        for operation in reversed(operations):
            if alive.isdisjoint(operation.outputs):
                continue
            if operation.rule is _NO_RULE:
                raise Unsupported(str(operation.function))
            reads = set(_each(operation.inputs)) - {_CONSTANT}
            self.steps.append((operation, sorted(reads - used_later)))
            used_later |= reads
            alive |= reads
        self.steps.reverse()

    def run(self, tangents: dict[int, Tensor]) -> None:
        """Extend `tangents` to all values that depend on them; drop those no longer needed."""
        for operation, dead in self.steps:
            given = [
                [tangents.get(item) for item in number] if isinstance(number, list) else tangents.get(number)
                for number in operation.inputs
            ]
            if any(t is not None for entry in given for t in (entry if isinstance(entry, list) else (entry,))):
                arguments = [a.value() if isinstance(a, _Again) else a for a in operation.arguments]
                made = operation.rule.tangent(arguments, operation.results, given)
                pairs = zip(operation.outputs, (made,) if operation.single else made, strict=True)
                tangents.update((number, tangent) for number, tangent in pairs if tangent is not None)
                # Free the last one now, not after the next operation.
                del made, pairs, arguments
            given.clear()
            for number in dead:
                tangents.pop(number, None)


class Replay:
    """A gradient on record.

    Args:
        logits_of: parameters → (logits, other results); run once.
        loss_of: logits → scalar loss, whose curvature is computed by autograd.
        phi: φ, the point of linearisation; leaves that require gradients.
        before: called with the return values of ``logits_of``, before the forward graph is freed.
        exact: whether ``hessian`` is needed; if not, less is kept.
        inputs: further leaves that ``logits_of`` reads and that require gradients.

    Attributes:
        loss: the loss at φ, detached.
        gradient: ∇L(φ), shape (N,).
        before: the return value of the ``before`` callable.

    Raises:
        Unsupported: if an operation of the network has no rule.
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
        leaves, self._inputs = list(phi.values()), list(inputs)
        self._like = {name: leaf.detach() for name, leaf in phi.items()}
        record = Record()
        with torch.enable_grad():
            self._leaves = [record.track(leaf) for leaf in leaves]
            for leaf in self._inputs:
                record.track(leaf)
            with record:
                logits, found = logits_of(phi)
            self._logits_number = record.number(logits)
            self.before = None if before is None else before(logits, found)
            self._logits = logits.detach().requires_grad_()
            loss = loss_of(self._logits)
            (self._slope,) = torch.autograd.grad(loss, self._logits, create_graph=True)
            seed = self._slope.detach().clone(memory_format=torch.contiguous_format)
            self._seed = record.track(seed)
            if not exact:
                # The backward pass is linear in its gradients, so only the Hessian needs their values.
                record.dropped = {self._seed}
            recorded = len(record.operations)
            with record:
                rows = torch.autograd.grad(logits, leaves + self._inputs, seed, allow_unused=True)
        rows, of_inputs = rows[: len(leaves)], rows[len(leaves) :]
        self.loss = loss.detach()
        self.gradient = flatten(
            torch.zeros_like(leaf) if row is None else row for leaf, row in zip(leaves, rows, strict=True)
        ).detach()
        if any(tensor._version != version for tensor, version in record.versions):
            raise Unsupported("an operation that overwrites a value which the derivative needs")
        self._rows, self._of_inputs = [record.number(row) for row in rows], [record.number(row) for row in of_inputs]
        self._operations, self._backward_operations = record.operations[:recorded], record.operations[recorded:]
        self._backward = _Program(self._backward_operations, self._rows)

    @cached_property
    def _forward(self) -> _Program:
        """Up to the logits."""
        return _Program(self._operations, {self._logits_number})

    @cached_property
    def _forward_for_backward(self) -> _Program:
        """Up to the logits, keeping the tangents that the backward part reads."""
        return self._forward_for(self._backward)

    @cached_property
    def _backward_to_inputs(self) -> _Program:
        """As ``_backward``, with the gradients of the inputs."""
        return _Program(self._backward_operations, self._rows + self._of_inputs)

    @cached_property
    def _forward_for_backward_to_inputs(self) -> _Program:
        return self._forward_for(self._backward_to_inputs)

    def _forward_for(self, backward: _Program) -> _Program:
        read = {number for operation, _ in backward.steps for number in _each(operation.inputs)}
        return _Program(self._operations, {self._logits_number} | read)

    def hessian(self, vector: Tensor) -> Tensor:
        """∇²L(φ) v for v of shape (N,)."""
        with torch.no_grad():
            return self._collect(self._hessian(vector, self._forward_for_backward, self._backward))

    def hessian_and_inputs(self, vector: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See ``Linearisation``."""
        with torch.no_grad():
            tangents = self._hessian(vector, self._forward_for_backward_to_inputs, self._backward_to_inputs)
            return self._collect(tangents), self._collect_inputs(tangents)

    def gauss_newton(self, curvature: LogitCurvature, vector: Tensor) -> Tensor:
        """Jᵀ B J v for v of shape (N,), with ``curvature``: (logits, u) → B u."""
        with torch.no_grad():
            return self._collect(self._gauss_newton(curvature, vector, self._backward))

    def gauss_newton_and_inputs(self, curvature: LogitCurvature, vector: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See ``Linearisation``."""
        with torch.no_grad():
            tangents = self._gauss_newton(curvature, vector, self._backward_to_inputs)
            return self._collect(tangents), self._collect_inputs(tangents)

    def _hessian(self, vector: Tensor, forward: _Program, backward: _Program) -> dict[int, Tensor]:
        tangents = self._start(vector)
        forward.run(tangents)
        along = tangents[self._logits_number]
        (tangents[self._seed],) = torch.autograd.grad(self._slope, self._logits, along, retain_graph=True)
        backward.run(tangents)
        return tangents

    def _gauss_newton(self, curvature: LogitCurvature, vector: Tensor, backward: _Program) -> dict[int, Tensor]:
        tangents = self._start(vector)
        self._forward.run(tangents)
        tangents = {self._seed: curvature(self._logits.detach(), tangents[self._logits_number])}
        backward.run(tangents)
        return tangents

    def _start(self, vector: Tensor) -> dict[int, Tensor]:
        return dict(zip(self._leaves, unflatten(vector, self._like).values(), strict=True))

    def _collect(self, tangents: dict[int, Tensor]) -> Tensor:
        rows = [tangents.get(number) for number in self._rows]
        leaves = self._like.values()
        return flatten(torch.zeros_like(leaf) if row is None else row for row, leaf in zip(rows, leaves, strict=True))

    def _collect_inputs(self, tangents: dict[int, Tensor]) -> tuple[Tensor, ...]:
        rows = [tangents.get(number) for number in self._of_inputs]
        return tuple(torch.zeros_like(c) if row is None else row for row, c in zip(rows, self._inputs, strict=True))

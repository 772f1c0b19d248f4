"""Directional derivatives of the operations in a network's forward and backward passes.

For y = op(a, b, …) a rule returns ẏ from the arguments, the kept results, and the tangents ȧ, ḃ, … (None: zero).
Backward operations have rules too, so one pass over a recorded gradient yields its directional derivative: a
Hessian-vector product (see ``replay``).

This is fast mainly because of the rule for batch norm's backward pass: PyTorch's second derivative takes some sixty
elementwise operations there, and that of a convolution correlates whole images with one another.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

Tangents = Sequence[Any]
"""One entry per argument: a tensor, None, or a list of these for a list of tensors."""


@dataclass(frozen=True)
class Rule:
    """How to differentiate one operation.

    Attributes:
        tangent: (arguments, results, tangents of the arguments) → tangents of the results: a tensor, or a tuple where
            the operation returns one. Values that are not kept are replaced by their shape.
        arguments: positions of the arguments whose values the rule reads.
        results: positions of the results whose values the rule reads.
        again: (arguments, results) → the first result, for rules that keep enough to recompute it cheaply, so that
            operations reading it need not keep it.
    """

    tangent: Callable[[Sequence[Any], Sequence[Any], Tangents], Any]
    arguments: tuple[int, ...] = ()
    results: tuple[int, ...] = ()
    again: Callable[[Sequence[Any], Sequence[Any]], Tensor] | None = None


def _linear(operation: Any, arguments: tuple[int, ...] = ()) -> Rule:
    """The rule of an operation that is linear in its first argument and constant in all others."""

    def tangent(args: Sequence[Any], _: Sequence[Any], tangents: Tangents) -> Any:
        return operation(tangents[0], *args[1:])

    return Rule(tangent, arguments)


def _sum(terms: list[Tensor]) -> Tensor:
    """The sum of one or two temporary tensors, in the memory of the first."""
    return terms[0] if len(terms) == 1 else terms[0].add_(terms[1])


def _add(args: Sequence[Any], results: Sequence[Any], tangents: Tangents) -> Tensor:
    first, second = tangents
    if second is None:
        return first.expand(results[0])
    return second.expand(results[0]) if first is None else first + second


def _subtract(args: Sequence[Any], results: Sequence[Any], tangents: Tangents) -> Tensor:
    first, second = tangents
    if second is None:
        return first.expand(results[0])
    return -second.expand(results[0]) if first is None else first - second


def _multiply(args: Sequence[Any], _: Sequence[Any], tangents: Tangents) -> Tensor:
    return _sum([args[1 - i] * tangent for i, tangent in enumerate(tangents) if tangent is not None])


def _matrix_product(args: Sequence[Any], _: Sequence[Any], tangents: Tangents) -> Tensor:
    (a, b), (a_tangent, b_tangent) = args, tangents
    terms = [] if a_tangent is None else [torch.bmm(a_tangent, b)]
    return _sum(terms if b_tangent is None else [*terms, torch.bmm(a, b_tangent)])


def _concatenate(args: Sequence[Any], _: Sequence[Any], tangents: Tangents) -> Tensor:
    any_tangent = next(tangent for tangent in tangents[0] if tangent is not None)
    filled = [any_tangent.new_zeros(a) if t is None else t for a, t in zip(args[0], tangents[0], strict=True)]
    return torch.cat(filled, *args[1:])


def _max_pool(args: Sequence[Any], results: Sequence[Any], tangents: Tangents) -> tuple[Tensor, None]:
    indices = results[1]
    return tangents[0].flatten(2).gather(2, indices.flatten(2)).view(indices.shape), None


def _convolution(args: Sequence[Any], results: Sequence[Any], tangents: Tangents) -> Tensor:
    images, weight, _bias, *settings = args
    images_tangent, weight_tangent, bias_tangent = tangents[:3]
    terms = []
    if images_tangent is not None:
        terms.append(aten.convolution(images_tangent, weight, None, *settings))
    if weight_tangent is not None:
        terms.append(aten.convolution(images, weight_tangent, bias_tangent, *settings))
    elif bias_tangent is not None:
        terms.append(bias_tangent[:, None, None].expand(results[0]))
    return _sum(terms)


def _convolution_backward(args: Sequence[Any], _: Sequence[Any], tangents: Tangents) -> tuple[Tensor | None, ...]:
    grad, images, weight, *settings, wanted = args
    grad_tangent, images_tangent, weight_tangent = tangents[:3]
    sums: list[Tensor | None] = [None, None, None]
    if grad_tangent is not None:
        sums = list(aten.convolution_backward(grad_tangent, images, weight, *settings, wanted))
    through = [wanted[0] and weight_tangent is not None, wanted[1] and images_tangent is not None, False]
    if any(through):
        # Without a tangent, only the shape is read.
        more = aten.convolution_backward(
            grad,
            images if images_tangent is None else images_tangent,
            weight if weight_tangent is None else weight_tangent,
            *settings,
            through,
        )
        sums = [a if b is None else b if a is None else a.add_(b) for a, b in zip(sums, more, strict=True)]
    return tuple(sums)


def _channelwise(constant: Tensor, *terms: tuple[Tensor, Tensor]) -> Tensor:
    """constant + Σ coefficient · tensor, with constants and coefficients (C,) and tensors (B, C, H, W)."""
    batch, channels, height, width = terms[0][0].shape
    if terms[0][0].is_contiguous():
        total = None
        for tensor, coefficient in terms:
            by = coefficient[:, None, None]
            total = torch.addcmul(constant[:, None, None], tensor, by) if total is None else total.addcmul_(tensor, by)
        assert total is not None
        return total
    # Channels last: whole rows at a time, as a loop over a few channels costs more than its arithmetic.
    by_row = torch.stack([constant, *(coefficient for _, coefficient in terms)])
    by_row = by_row[:, None].expand(-1, width, -1).reshape(len(by_row), -1)
    total = by_row[0]
    for (tensor, _), by in zip(terms, by_row[1:], strict=True):
        rows = tensor.permute(0, 2, 3, 1).reshape(batch * height, width * channels)
        total = total.addcmul_(rows, by) if total.dim() == 2 else torch.addcmul(total, rows, by)
    return total.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _sums(of: Tensor, along: Tensor, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Per channel: Σ of · (along - mean) · scale and Σ of, in one pass of the fused kernel; each (C,)."""
    # The sums do not depend on γ, but CUDA's kernels need one to return them.
    _, product, total = aten.native_batch_norm_backward(
        of, along, torch.ones_like(mean), None, None, mean, scale, True, 0.0, [False, True, True]
    )
    return product, total


def _fixed(args: Sequence[Any], mean: int, epsilon: int) -> tuple[Tensor, Tensor]:
    """The mean and inverse deviation (C,) given to a batch norm."""
    return args[mean], torch.rsqrt(args[mean + 1] + args[epsilon])


def _fixed_norm(args: Sequence[Any], tangents: Tangents) -> Tensor:
    # y = γ r (x - μ) + β with constant μ and r.
    x, weight = args[:2]
    x_tangent, weight_tangent, bias_tangent = tangents[:3]
    mean, r = _fixed(args, 3, 7)
    terms = []
    constant = torch.zeros_like(r) if bias_tangent is None else bias_tangent
    if x_tangent is not None:
        terms.append((x_tangent, r if weight is None else weight * r))
    if weight_tangent is not None:
        terms.append((x, weight_tangent * r))
        constant = torch.addcmul(constant, weight_tangent * r, mean, value=-1)
    return _channelwise(constant, *terms) if terms else constant[:, None, None].expand(x.shape)


def _fixed_norm_backward(args: Sequence[Any], tangents: Tangents) -> tuple[Tensor | None, ...]:
    # dx = γ r h, dγ = Σ h r (x - μ), dβ = Σ h.
    h, x, weight = args[:3]
    h_tangent, x_tangent, weight_tangent = tangents[:3]
    mean, r = _fixed(args, 3, 8)
    terms, by_weight, by_bias = [], torch.zeros_like(r), torch.zeros_like(r)
    if h_tangent is not None:
        by_weight, by_bias = _sums(h_tangent, x, mean, r)
        terms.append((h_tangent, r if weight is None else weight * r))
    if x_tangent is not None:
        by_weight = by_weight + _sums(h, x_tangent, torch.zeros_like(r), r)[0]
    if weight_tangent is not None:
        terms.append((h, weight_tangent * r))
    return _channelwise(torch.zeros_like(r), *terms) if terms else None, by_weight, by_bias


def _batch_norm(args: Sequence[Any], results: Sequence[Any], tangents: Tangents) -> tuple[Tensor | None, ...]:
    # y = γ x̂ + β with x̂ = r (x - μ), μ' = mean ẋ, r' = -r² mean(x̂ ẋ), x̂' = r (ẋ - μ') + r'/r x̂.
    # On small images small operations cost as much as large ones, so use few.
    x, weight = args[:2]
    x_tangent, weight_tangent, bias_tangent = tangents[:3]
    if not args[5]:  # not training: by given statistics
        return _fixed_norm(args, tangents), None, None
    _, mean, r = results
    by_x_hat = torch.zeros_like(mean) if weight_tangent is None else weight_tangent
    constant = torch.zeros_like(mean) if bias_tangent is None else bias_tangent
    if x_tangent is None:
        by_x = by_x_hat * r
        return _channelwise(torch.addcmul(constant, by_x, mean, value=-1), (x, by_x)), None, None
    values = x.numel() // len(mean)
    product, total = _sums(x_tangent, x, mean, r)
    mean_tangent = total / values
    r_tangent = r * r * product / -values
    scale = r if weight is None else weight * r
    constant = torch.addcmul(constant, scale, mean_tangent, value=-1)
    by_x = by_x_hat * r + (r_tangent if weight is None else weight * r_tangent)
    y_tangent = _channelwise(torch.addcmul(constant, by_x, mean, value=-1), (x_tangent, scale), (x, by_x))
    return y_tangent, mean_tangent, r_tangent


def _batch_norm_backward(args: Sequence[Any], results: Sequence[Any], tangents: Tangents) -> tuple[Tensor | None, ...]:
    # dx = γ P(h) with P(h) = r (h - mean h - q x̂), q = mean(h x̂); dγ = n q, dβ = Σ h; h the gradient of y. Then
    #   P(h)' = P(h') + r'/r P(h) - r q x̂' - r t x̂  with  t = mean(h x̂') = r mean(h (ẋ - μ')) + q r'/r,
    #   dγ' = Σ h' x̂ + n t,   dβ' = Σ h',
    # all per-channel combinations of h', ẋ, h, x and 1, summed as such.
    if not args[7]:  # not training: by given statistics
        return _fixed_norm_backward(args, tangents)
    h, x, weight, _, _, mean, r = args[:7]
    h_tangent, x_tangent, weight_tangent, _, _, mean_tangent, r_tangent = tangents[:7]
    values = x.numel() // len(mean)
    scale = r if weight is None else weight * r
    terms = []
    weight_out, bias_out = None, None
    if h_tangent is not None:
        weight_out, bias_out = _sums(h_tangent, x, mean, r)
        terms.append((h_tangent, scale))
    by_h, by_x_hat, constant = None, None, None
    if x_tangent is not None:
        weight_grad = results[1]
        joint, _ = _sums(h, x_tangent, mean_tangent, torch.ones_like(r))
        turned = weight_grad * r_tangent / r
        more = torch.addcmul(turned, joint, r)
        weight_out = more if weight_out is None else weight_out + more
        slope = scale * r * weight_grad / -values
        terms.append((x_tangent, slope))
        by_h = r_tangent if weight is None else weight * r_tangent
        by_x_hat = scale * turned
        constant = slope * mean_tangent
    if weight_tangent is not None:
        by_weight = weight_tangent * r
        by_h = by_weight if by_h is None else by_h + by_weight
    # What remains: -scale · (dγ' + turned) x̂ / n - scale dβ'/n - slope μ' + by_h (h - mean h - q x̂).
    total_x_hat = torch.zeros_like(r) if by_x_hat is None else by_x_hat
    if weight_out is not None:
        total_x_hat = torch.addcmul(total_x_hat, scale, weight_out)
    total = torch.zeros_like(r) if bias_out is None else scale * bias_out
    if by_h is not None:
        total_x_hat = torch.addcmul(total_x_hat, by_h, results[1])
        total = torch.addcmul(total, by_h, results[2])
        terms.append((h, by_h))
    by_x = total_x_hat * r / -values
    total = torch.addcmul(total / -values, by_x, mean, value=-1)
    terms.append((x, by_x))
    dx = _channelwise(total if constant is None else total - constant, *terms)
    zeros = torch.zeros_like(r)
    return dx, zeros if weight_out is None else weight_out, zeros if bias_out is None else bias_out


def _batch_norm_backward_again(args: Sequence[Any], results: Sequence[Any]) -> Tensor:
    h, x, weight, _, _, mean, r = args[:7]
    if not args[7]:
        r = _fixed(args, 3, 8)[1]
        return h * (r if weight is None else weight * r)[:, None, None]
    _, weight_grad, bias_grad = results
    scale = r if weight is None else weight * r
    over_values = scale * (-x.shape[1] / x.numel())
    by_x = over_values * weight_grad * r
    return _channelwise(torch.addcmul(over_values * bias_grad, by_x, mean, value=-1), (h, scale), (x, by_x))


def _slope_rule(operation: Any, slope: Callable[[Tensor], Tensor]) -> Rule:
    """The rule of an activation's backward operation, grad · f(a), where `slope` is f' and a is the kept x or y."""

    def tangent(args: Sequence[Any], _: Sequence[Any], tangents: Tangents) -> Tensor:
        grad, kept = args
        grad_tangent, kept_tangent = tangents
        terms = []
        if grad_tangent is not None:
            terms.append(operation(grad_tangent, kept))
        if kept_tangent is not None:
            terms.append(grad * kept_tangent * slope(kept))
        return _sum(terms)

    return Rule(tangent, arguments=(0, 1))


def _silu_slope(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 - s) * (2 + x * (1 - 2 * s))


def _from_result(operation: Any) -> Rule:
    """The rule of an activation whose backward operation reads its result."""
    return Rule(lambda args, results, tangents: operation(tangents[0], results[0], *args[1:]), results=(0,))


_relu = Rule(lambda args, results, tangents: aten.threshold_backward(tangents[0], results[0], 0), results=(0,))
_hardtanh = Rule(
    lambda args, results, tangents: aten.hardtanh_backward(tangents[0], results[0], *(args[1:] or (-1.0, 1.0))),
    results=(0,),
)

RULES: dict[Any, Rule] = {
    **{
        operation: _linear(operation)
        for operation in (
            aten.alias.default,
            aten.clone.default,
            aten.expand.default,
            aten.unsqueeze.default,
            aten.squeeze.dim,
            aten.slice.Tensor,
            aten.select.int,
            aten.permute.default,
            aten.transpose.int,
            aten.t.default,
            aten.constant_pad_nd.default,
            aten.sum.dim_IntList,
            aten.mean.dim,
            aten.neg.default,
            aten.div.Scalar,
            aten.mul.Scalar,
            aten.upsample_nearest2d.default,
            aten.upsample_nearest2d_backward.default,
            aten.upsample_bilinear2d.default,
            aten.upsample_bilinear2d_backward.default,
            aten.slice_backward.default,
            aten.select_backward.default,
            aten.avg_pool2d.default,
            aten._adaptive_avg_pool2d.default,
        )
    },
    aten.view.default: _linear(torch.Tensor.reshape),
    aten._unsafe_view.default: _linear(torch.Tensor.reshape),
    aten.threshold_backward.default: _linear(aten.threshold_backward.default, arguments=(1,)),
    aten.hardtanh_backward.default: _linear(aten.hardtanh_backward.default, arguments=(1,)),
    aten.max_pool2d_with_indices_backward.default: _linear(
        aten.max_pool2d_with_indices_backward.default, arguments=(1, 7)
    ),
    aten.add.Tensor: Rule(_add),
    aten.add_.Tensor: Rule(_add),
    aten.sub.Tensor: Rule(_subtract),
    aten.mul.Tensor: Rule(_multiply, arguments=(0, 1)),
    aten.bmm.default: Rule(_matrix_product, arguments=(0, 1)),
    aten.cat.default: Rule(_concatenate),
    aten.relu.default: _relu,
    aten.relu_.default: _relu,
    aten.hardtanh.default: _hardtanh,
    aten.hardtanh_.default: _hardtanh,
    aten.sigmoid.default: _from_result(aten.sigmoid_backward.default),
    aten.sigmoid_backward.default: _slope_rule(aten.sigmoid_backward, lambda y: 1 - 2 * y),
    aten.silu.default: Rule(lambda args, _, tangents: aten.silu_backward(tangents[0], args[0]), arguments=(0,)),
    aten.silu_backward.default: _slope_rule(aten.silu_backward, _silu_slope),
    aten.max_pool2d_with_indices.default: Rule(_max_pool, results=(1,)),
    aten.convolution.default: Rule(_convolution, arguments=(0, 1)),
    aten.convolution_backward.default: Rule(_convolution_backward, arguments=(0, 1, 2)),
    aten.native_batch_norm.default: Rule(_batch_norm, arguments=(0, 1, 3, 4), results=(1, 2)),
    aten.native_batch_norm_backward.default: Rule(
        _batch_norm_backward, arguments=(0, 1, 2, 3, 4, 5, 6), results=(1, 2), again=_batch_norm_backward_again
    ),
}
"""Operation → rule. Other operations cannot be replayed (see ``replay.Unsupported``)."""

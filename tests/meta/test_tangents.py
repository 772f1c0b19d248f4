"""Every rule against finite differences of its operation, in float64."""

import pytest
import torch
from tensors import drawn
from torch.utils._python_dispatch import TorchDispatchMode

from metaseg.meta.tangents import RULES, aten

SHAPE = (3, 4, 6, 6)


def image(seed=0, shape=SHAPE):
    return drawn(*shape, seed=seed)


def pooled():
    return aten.max_pool2d_with_indices(image(1), [2, 2], [2, 2])[1]


def normalised():
    """x, mean and inverse deviation as the forward pass saves them."""
    x = image(3)
    _, mean, inverse = aten.native_batch_norm(x, None, None, None, None, True, 0.0, 1e-5)
    return x, mean, inverse


SAME = [[1, 1], [1, 1], [1, 1], False, [0, 0], 1]
STRIDED = [[2, 2], [1, 1], [2, 2], False, [0, 0], 2]
UP = [[2, 2], [0, 0], [1, 1], True, [0, 0], 1]

FIXED = (drawn(4, seed=5), drawn(4, seed=6).square() + 0.5)
"""Mean and variance that a batch norm is given."""

# Operation, arguments, and which of them vary; a list of tensors varies in all of its items.
CASES = [
    (aten.clone.default, [image()], [0]),
    (aten.view.default, [image(), [3, 4, 36]], [0]),
    (aten._unsafe_view.default, [image(), [3, 4, 36]], [0]),
    (aten.expand.default, [image(shape=(3, 1, 6, 6)), [3, 4, 6, 6]], [0]),
    (aten.unsqueeze.default, [image(), 1], [0]),
    (aten.squeeze.dim, [image(shape=(3, 1, 6, 6)), 1], [0]),
    (aten.slice.Tensor, [image(), 1, 1, 3], [0]),
    (aten.select.int, [image(), 1, 2], [0]),
    (aten.permute.default, [image(), [0, 2, 3, 1]], [0]),
    (aten.transpose.int, [image(), 1, 2], [0]),
    (aten.t.default, [drawn(3, 4)], [0]),
    (aten.bmm.default, [drawn(2, 3, 4), drawn(2, 4, 5)], [0, 1]),
    (aten.constant_pad_nd.default, [image(), [1, 0, 2, 1]], [0]),
    (aten.sum.dim_IntList, [image(), [1], True], [0]),
    (aten.mean.dim, [image(), [2, 3], True], [0]),
    (aten.neg.default, [image()], [0]),
    (aten.div.Scalar, [image(), 3.0], [0]),
    (aten.mul.Scalar, [image(), 3.0], [0]),
    (aten.upsample_nearest2d.default, [image(), [12, 12], 2.0, 2.0], [0]),
    (aten.upsample_nearest2d_backward.default, [image(), [6, 6], [3, 4, 3, 3], 2.0, 2.0], [0]),
    (aten.upsample_bilinear2d.default, [image(), [12, 12], True, None, None], [0]),
    (aten.upsample_bilinear2d_backward.default, [image(), [6, 6], [3, 4, 3, 3], True, None, None], [0]),
    (aten.slice_backward.default, [image(), [3, 9, 6, 6], 1, 2, 6, 1], [0]),
    (aten.select_backward.default, [image(shape=(3, 6, 6)), [3, 4, 6, 6], 1, 2], [0]),
    (aten.avg_pool2d.default, [image(), [2, 2], [2, 2]], [0]),
    (aten._adaptive_avg_pool2d.default, [image(), [2, 2]], [0]),
    (aten.threshold_backward.default, [image(), image(1), 0], [0]),
    (aten.hardtanh_backward.default, [image(), image(1), 0.0, 1.0], [0]),
    (
        aten.max_pool2d_with_indices_backward.default,
        [image(shape=(3, 4, 3, 3)), image(1), [2, 2], [2, 2], [0, 0], [1, 1], False, pooled()],
        [0],
    ),
    (aten.add.Tensor, [image(), image(1, (3, 1, 6, 6))], [0, 1]),
    (aten.add_.Tensor, [image(), image(1)], [0, 1]),
    (aten.sub.Tensor, [image(shape=(3, 1, 6, 6)), image(1)], [0, 1]),
    (aten.mul.Tensor, [image(), image(1, (3, 1, 6, 6))], [0, 1]),
    (aten.cat.default, [[image(), image(1, (3, 2, 6, 6))], 1], [0]),
    (aten.relu.default, [image()], [0]),
    (aten.relu_.default, [image()], [0]),
    (aten.hardtanh.default, [image()], [0]),
    (aten.hardtanh.default, [image(), 0.0, 1.0], [0]),
    (aten.hardtanh_.default, [image(), 0.0, 1.0], [0]),
    (aten.sigmoid.default, [image()], [0]),
    (aten.sigmoid_backward.default, [image(), image(1).sigmoid()], [0, 1]),
    (aten.silu.default, [image()], [0]),
    (aten.silu_backward.default, [image(), image(1)], [0, 1]),
    (aten.max_pool2d_with_indices.default, [image(), [2, 2], [2, 2]], [0]),
    (aten.convolution.default, [image(), drawn(5, 4, 3, 3), drawn(5), *SAME], [0, 1, 2]),
    (aten.convolution.default, [image(), drawn(6, 2, 3, 3), None, *STRIDED], [0, 1]),
    (aten.convolution.default, [image(), drawn(4, 2, 2, 2), drawn(2), *UP], [0, 1, 2]),
    (
        aten.convolution_backward.default,
        [image(2, (3, 5, 6, 6)), image(), drawn(5, 4, 3, 3), [5], *SAME, [True] * 3],
        [0, 1, 2],
    ),
    (
        aten.convolution_backward.default,
        [image(2, (3, 5, 6, 6)), image(), drawn(5, 4, 3, 3), [0], *SAME, [False, True, False]],
        [0, 1, 2],
    ),
    (
        aten.convolution_backward.default,
        [image(2, (3, 2, 12, 12)), image(), drawn(4, 2, 2, 2), [2], *UP, [True] * 3],
        [0, 1, 2],
    ),
    (aten.native_batch_norm.default, [image(), drawn(4), drawn(4), None, None, True, 0.0, 1e-2], [0, 1, 2]),
    (aten.native_batch_norm.default, [image(), None, None, None, None, True, 0.0, 1e-2], [0]),
    (aten.native_batch_norm.default, [image(), drawn(4), drawn(4), *FIXED, False, 0.0, 1e-2], [0, 1, 2]),
    (aten.native_batch_norm.default, [image(), None, None, *FIXED, False, 0.0, 1e-2], [0]),
    (
        aten.native_batch_norm_backward.default,
        [image(2), image(), drawn(4), *FIXED, drawn(0), drawn(0), False, 1e-2, [True] * 3],
        [0, 1, 2],
    ),
]


def gradient_of_batch_norm(h, x, weight):
    """The backward pass of batch norm as a function of its primal inputs, with the statistics taken anew."""
    _, mean, inverse = aten.native_batch_norm(x, None, None, None, None, True, 0.0, 1e-5)
    arguments = [h, x, weight, None, None, mean, inverse, True, 1e-5, [True, True, True]]
    return arguments, aten.native_batch_norm_backward(*arguments)


def layout(value, memory_format):
    if isinstance(value, list):
        return [layout(item, memory_format) for item in value]
    is_image = isinstance(value, torch.Tensor) and value.dim() == 4
    return value.contiguous(memory_format=memory_format) if is_image else value


def copies(arguments):
    return [a.clone() if isinstance(a, torch.Tensor) else [*a] if isinstance(a, list) else a for a in arguments]


def shifted(value, tangent, width):
    if isinstance(value, list):
        return [shifted(item, t, width) for item, t in zip(value, tangent, strict=True)]
    return value + width * tangent


def as_tuple(value):
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def directions(value, seed):
    if isinstance(value, list):
        return [directions(item, seed + i) for i, item in enumerate(value)]
    return torch.randn(value.shape, generator=torch.Generator().manual_seed(seed), dtype=value.dtype)


def masked(rule, arguments, results):
    """What the record hands a rule: shapes in place of what it does not read."""

    def hide(values, read):
        return [
            v if not isinstance(v, torch.Tensor) or i in read else v.shape
            for i, v in enumerate([[t.shape for t in v] if is_tensors(v) else v for v in values])
        ]

    return hide(arguments, rule.arguments), hide(results, rule.results)


def is_tensors(value):
    return isinstance(value, list) and bool(value) and isinstance(value[0], torch.Tensor)


class AsGpus(TorchDispatchMode):
    """CUDA's kernels of batch norm give no derivative by a weight that is absent; those of the CPU do."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is aten.native_batch_norm_backward.default and args[-1][1]:
            assert args[2] is not None
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(("operation", "arguments", "varied"), CASES, ids=[str(case[0]) for case in CASES])
def test_each_rule_equals_the_finite_difference_of_its_operation(operation, arguments, varied, memory_format):
    rule = RULES[operation]
    arguments = layout(arguments, memory_format)
    # Each subset of the arguments that vary: the rules have a branch for each tangent that is zero.
    for choice in range(1, 2 ** len(varied)):
        tangents = [None] * len(arguments)
        for i, position in enumerate(varied):
            if choice >> i & 1:
                tangents[position] = directions(arguments[position], seed=7 + i)
        ends = []
        for width in (1e-6, -1e-6):
            moved = [a if t is None else shifted(a, t, width) for a, t in zip(arguments, tangents, strict=True)]
            ends.append(as_tuple(operation(*copies(moved))))
        results = as_tuple(operation(*copies(arguments)))
        given = layout(tangents, memory_format)
        with AsGpus():
            found = as_tuple(rule.tangent(*masked(rule, arguments, results), given))
        for tangent, plus, minus in zip(found, *ends, strict=True):
            if tangent is not None:
                torch.testing.assert_close(tangent, (plus - minus) / 2e-6, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("choice", range(1, 8))
def test_the_derivative_of_batch_norms_backward_pass_includes_that_of_its_statistics(choice, memory_format):
    rule = RULES[aten.native_batch_norm_backward.default]
    primal = layout([image(5), image(3), drawn(4, seed=6)], memory_format)
    primal[2][1] = 0.0  # A weight of zero must not be divided by.
    tangents = [directions(value, 20 + i) if choice >> i & 1 else None for i, value in enumerate(primal)]
    ends = []
    for width in (1e-6, -1e-6):
        moved = [p if t is None else shifted(p, t, width) for p, t in zip(primal, tangents, strict=True)]
        ends.append(gradient_of_batch_norm(*moved)[1])
    arguments, results = gradient_of_batch_norm(*primal)
    given = [*layout(tangents, memory_format), *[None] * 7]
    if tangents[1] is not None:
        forward = [primal[1], None, None, None, None, True, 0.0, 1e-5]
        by_forward = aten.native_batch_norm(*forward)
        _, given[5], given[6] = RULES[aten.native_batch_norm.default].tangent(
            forward, by_forward, [given[1], *[None] * 7]
        )
    with AsGpus():
        found = rule.tangent(*masked(rule, arguments, results), given)
    for tangent, plus, minus in zip(found, *ends, strict=True):
        torch.testing.assert_close(tangent, (plus - minus) / 2e-6, rtol=1e-6, atol=1e-6)


def test_every_rule_has_a_case():
    tested = {case[0] for case in CASES} | {aten.native_batch_norm_backward.default}
    # An alias is the same memory and has nothing to compute.
    assert set(RULES) - tested == {aten.alias.default}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("weight", [None, drawn(4, seed=6)])
def test_recomputed_values_equal_the_originals(weight, memory_format):
    arguments, results = gradient_of_batch_norm(*layout([image(5), image(3), weight], memory_format))
    (rule,) = (rule for rule in RULES.values() if rule.again)
    torch.testing.assert_close(rule.again(*masked(rule, arguments, results)), results[0])

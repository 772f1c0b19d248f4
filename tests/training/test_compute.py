"""Operations of convolutions, the unit of the cost of training."""

import pytest
import torch
from conftest import settings_of
from torch.nn.functional import conv2d, conv_transpose2d
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.flop_counter import FlopCounterMode

from metaseg.learners.build import build_learner
from metaseg.runs.directory import RunDirectory
from metaseg.training.compute import Compute, FlopCounter


def convolution(groups, transposed, of_input):
    x = torch.randn(2, 8, 6, 6, requires_grad=of_input)
    shape = (8, 4 // groups, 3, 3) if transposed else (4, 8 // groups, 3, 3)
    weight = torch.randn(shape, requires_grad=True)
    convolve = conv_transpose2d if transposed else conv2d

    def run(x, weight, groups):
        convolve(x, weight, stride=2, padding=1, groups=groups).sum().backward()

    return x, weight, run


def counted(counter, *work):
    with counter:
        for one in work:
            one()
    return counter


@pytest.mark.parametrize("of_input", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_a_convolution_in_groups_counts_as_one_convolution_for_each(transposed, of_input):
    x, weight, run = convolution(4, transposed, of_input)
    whole = counted(FlopCounter(), lambda: run(x, weight, 4)).flops
    pieces = [
        lambda x=x_part, weight=weight_part: run(x.detach().requires_grad_(of_input), weight, 1)
        for x_part, weight_part in zip(x.chunk(4, 1), weight.chunk(4, 0), strict=True)
    ]
    assert whole == counted(FlopCounter(), *pieces).flops > 0


@pytest.mark.parametrize("of_input", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_a_convolution_without_groups_counts_as_in_pytorch(transposed, of_input):
    x, weight, run = convolution(1, transposed, of_input)
    expected = counted(FlopCounterMode(display=False), lambda: run(x, weight, 1)).get_total_flops()
    assert counted(FlopCounter(), lambda: run(x, weight, 1)).flops == expected > 0


def test_a_step_that_fails_is_counted_no_further(tmp_path):
    learner = build_learner(settings_of("learner=joint", "model.features=2", "data.size=16"))
    compute = Compute(learner, 16, RunDirectory(tmp_path))
    compute.on_train_batch_start(None, None, None, 0)
    assert isinstance(_get_current_dispatch_mode(), FlopCounter)
    compute.on_exception(None, None, RuntimeError())
    assert _get_current_dispatch_mode() is None

"""Every loss against values worked out by hand, and every gradient against finite differences."""

import math

import pytest
import torch

from metaseg.meta.losses import (
    LOSSES,
    UNMARKED,
    bce,
    dice,
    dice_per_image,
    log_cosh,
    log_cosh_dice,
    lovasz,
    over_marked,
)


def image(*values):
    return torch.tensor(values, dtype=torch.float64).reshape(1, 1, 2, -1)


LOGITS = image(math.log(3), -math.log(3), 0.0, math.log(9))  # probabilities 3/4, 1/4, 1/2, 9/10
TARGET = image(1, 0, 1, 0)
DICE = 1 - (2 * (0.75 + 0.5) + 1) / (2.4 + 2 + 1)


def test_dice_by_hand():
    assert dice(LOGITS, TARGET).item() == pytest.approx(DICE)


def test_bce_by_hand():
    expected = -(math.log(0.75) + math.log(0.75) + math.log(0.5) + math.log(0.1)) / 4
    assert bce(LOGITS, TARGET).item() == pytest.approx(expected)


def test_log_cosh_dice_by_hand():
    assert log_cosh_dice(LOGITS, TARGET).item() == pytest.approx(math.log(math.cosh(DICE)))


def test_sums_by_hand():
    cross_entropy = bce(LOGITS, TARGET).item()
    assert LOSSES["bce_dice"](LOGITS, TARGET).item() == pytest.approx(cross_entropy + DICE)
    expected = cross_entropy + math.log(math.cosh(DICE))
    assert LOSSES["bce_log_cosh_dice"](LOGITS, TARGET).item() == pytest.approx(expected)


def test_lovasz_by_hand():
    # Errors 1 - logit · sign: 1 - ln 3 < 0 twice, 1 and 1 + ln 9. Sorted: 1 + ln 9 (background), 1 (foreground), rest.
    # Jaccard losses along that order: {bg}: 1 - 2/3 = 1/3; {bg, fg}: 1 - 1/3 = 2/3. Weights 1/3 and 1/3; the rest is
    # cut off by the hinge.
    expected = (1 + math.log(9)) / 3 + 1 / 3
    assert lovasz(LOGITS, TARGET).item() == pytest.approx(expected)


def test_lovasz_of_large_correct_margins_is_zero_and_of_hard_errors_is_the_jaccard_loss_times_their_size():
    assert lovasz(10 * (2 * TARGET - 1), TARGET).item() == 0
    # One foreground pixel of two missed, all margins else satisfied: Jaccard loss 1/2, hinge 1 + 5.
    logits = image(-5.0, -10, 10, -10)
    assert lovasz(logits, TARGET).item() == pytest.approx(6 / 2)


def test_lovasz_of_an_empty_mask_punishes_the_worst_pixel_only():
    assert lovasz(image(1.0, -3, -3, -3), torch.zeros_like(TARGET)).item() == pytest.approx(2.0)


def test_dice_is_a_mean_over_images_and_finite_on_empty_masks():
    logits = torch.cat([LOGITS, LOGITS])
    target = torch.cat([TARGET, torch.zeros_like(TARGET)])
    per_image = dice_per_image(logits, target)
    assert per_image[0].item() == pytest.approx(DICE)
    assert per_image[1].item() == pytest.approx(1 - 1 / 3.4)
    assert dice(logits, target).item() == pytest.approx(per_image.mean().item())


def test_log_cosh_does_not_overflow():
    x = torch.tensor([-1e4, 0.0, 1e-3, 1e4], dtype=torch.float64)
    expected = torch.tensor([1e4 - math.log(2), 0.0, math.log(math.cosh(1e-3)), 1e4 - math.log(2)], dtype=torch.float64)
    torch.testing.assert_close(log_cosh(x), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_has_a_gradient(name):
    logits = (LOGITS + 0.01 * torch.arange(4).reshape(LOGITS.shape)).requires_grad_()
    (gradient,) = torch.autograd.grad(LOSSES[name](logits, TARGET), logits)
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.curvature])
def test_curvature_is_symmetric_positive_semidefinite_and_part_of_the_hessian(name):
    loss = LOSSES[name]
    logits = torch.cat([LOGITS, LOGITS.flip(-1)])
    target = torch.cat([TARGET, TARGET])
    columns = torch.eye(8, dtype=torch.float64).reshape(8, *logits.shape)
    matrix = torch.stack([loss.curvature(logits, target, column).flatten() for column in columns])
    torch.testing.assert_close(matrix, matrix.T)
    assert torch.linalg.eigvalsh(matrix).min() > -1e-12
    # The parts it leaves out are those of the maps inside the convex functions.
    hessian = torch.autograd.functional.hessian(lambda z: loss(z, target), logits).reshape(8, 8)
    inner = torch.autograd.functional.hessian(lambda z: dice_per_image(z, target).sum(), logits).reshape(8, 8)
    slope = {"bce_dice": torch.ones(2, dtype=torch.float64)}.get(name, torch.tanh(dice_per_image(logits, target)))
    dropped = inner * slope.repeat_interleave(4)[:, None] / 2
    torch.testing.assert_close(matrix + dropped, hessian)


def test_losses_without_convex_part_have_no_curvature():
    assert LOSSES["dice"].curvature is None
    assert LOSSES["lovasz"].curvature is None


@pytest.mark.parametrize("name", LOSSES)
def test_unmarked_pixels_have_no_part_in_a_loss(name):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 1, 5, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    target = (torch.rand(3, 1, 5, 6, generator=generator) < 0.4).double()
    loss = over_marked(LOSSES[name])
    assert loss(logits, target).item() == pytest.approx(LOSSES[name](logits, target).item(), rel=1e-12)

    unmarked = torch.rand(3, 1, 5, 6, generator=generator) < 0.5
    unmarked[2] = True  # nothing of the last image
    partial = target.masked_fill(unmarked, UNMARKED)
    value = loss(logits, partial)
    (gradient,) = torch.autograd.grad(value, logits)
    assert (gradient[unmarked] == 0).all()
    assert gradient[~unmarked].abs().sum() > 0
    other = torch.where(unmarked, torch.randn_like(logits), logits)
    assert loss(other, partial).item() == value.item()
    alone = [
        LOSSES[name](logits[i][~unmarked[i]].view(1, 1, 1, -1), target[i][~unmarked[i]].view(1, 1, 1, -1))
        for i in (0, 1)
    ]
    assert value.item() == pytest.approx(torch.stack(alone).mean().item(), rel=1e-12)
    assert loss(logits, torch.full_like(target, UNMARKED)).item() == 0

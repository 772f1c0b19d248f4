"""Binary segmentation losses, each with its Gauss-Newton curvature in logit space.

Logits and targets have shape (B, 1, H, W); targets lie in {0, 1}. Every loss is a scalar: the mean over the batch.
`over_marked` makes of a loss one for targets with unmarked pixels.

The paper calls log-cosh Dice "the Lovász extension"; it is not. The Lovász hinge of Berman et al. 2018 is ``lovasz``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SMOOTHING = 1.0
"""Added to the numerator and denominator of Dice [paper eq. 4], so that an empty mask has a finite loss."""

UNMARKED = 255
"""In a target: nobody has said whether this pixel is foreground, as outside the strokes of a scribble."""


def _flat(tensor: Tensor) -> Tensor:
    return tensor.flatten(start_dim=1)


def dice_per_image(logits: Tensor, target: Tensor) -> Tensor:
    """Dice loss 1 - (2 Σpt + 1) / (Σp + Σt + 1) of each image, with p = sigmoid(logits); shape (B,), range [0, 1).

    The sums run over one image, as in the reported Dice, not over the batch [our decision: the paper does not say].
    """
    probability, target = _flat(torch.sigmoid(logits)), _flat(target)
    overlap = (probability * target).sum(1)
    total = probability.sum(1) + target.sum(1)
    return 1 - (2 * overlap + SMOOTHING) / (total + SMOOTHING)


def log_cosh(x: Tensor) -> Tensor:
    """log(cosh(x)), without overflow for large |x|."""
    magnitude = x.abs()
    return magnitude + F.softplus(-2 * magnitude) - math.log(2)


def bce(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy, mean over pixels [paper eq. 3]."""
    return F.binary_cross_entropy_with_logits(logits, target)


def dice(logits: Tensor, target: Tensor) -> Tensor:
    """Dice loss, mean over images [paper table 7, first row]."""
    return dice_per_image(logits, target).mean()


def log_cosh_dice(logits: Tensor, target: Tensor) -> Tensor:
    """log(cosh(Dice loss)), mean over images [paper eq. 5 and table 7, second row]."""
    return log_cosh(dice_per_image(logits, target)).mean()


def bce_dice(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy + Dice loss."""
    return bce(logits, target) + dice(logits, target)


def bce_log_cosh_dice(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy + log(cosh(Dice loss)) [paper eq. 3]."""
    return bce(logits, target) + log_cosh_dice(logits, target)


def lovasz(logits: Tensor, target: Tensor) -> Tensor:
    """Lovász hinge, convex surrogate of 1 - IoU, per image, mean over images [Berman et al. 2018, eq. 9, alg. 1]."""
    logits, target = _flat(logits), _flat(target)
    errors, order = (1 - logits * (2 * target - 1)).sort(dim=1, descending=True)
    sorted_target = target.gather(1, order)
    positives = sorted_target.sum(1, keepdim=True)
    intersection = positives - sorted_target.cumsum(1)
    union = positives + (1 - sorted_target).cumsum(1)
    jaccard = 1 - intersection / union
    weights = torch.cat([jaccard[:, :1], jaccard[:, 1:] - jaccard[:, :-1]], dim=1)
    return (F.relu(errors) * weights).sum(1).mean()


def _bce_curvature(logits: Tensor, target: Tensor, vector: Tensor) -> Tensor:
    probability = torch.sigmoid(logits)
    return probability * (1 - probability) * vector / logits.numel()


def _log_cosh_dice_curvature(logits: Tensor, target: Tensor, vector: Tensor) -> Tensor:
    probability, flat_target = _flat(torch.sigmoid(logits)), _flat(target)
    overlap = (probability * flat_target).sum(1, keepdim=True)
    total = probability.sum(1, keepdim=True) + flat_target.sum(1, keepdim=True) + SMOOTHING
    ratio = (2 * overlap + SMOOTHING) / total
    slope = (ratio - 2 * flat_target) / total * probability * (1 - probability)
    outer = 1 / torch.cosh(1 - ratio) ** 2
    along = (slope * _flat(vector)).sum(1, keepdim=True)
    return (outer * along * slope / len(logits)).view_as(vector)


def _sum(*products: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def product(logits: Tensor, target: Tensor, vector: Tensor) -> Tensor:
        return torch.stack([one(logits, target, vector) for one in products]).sum(0)

    return product


@dataclass(frozen=True)
class Loss:
    """A loss and the positive semi-definite curvature that replaces its Hessian in logit space.

    Attributes:
        name: as in ``loss=``.
        value: (logits, target) → scalar.
        curvature: (logits, target, v) → B v, shaped as the logits, or None where the Gauss-Newton matrix would be zero.
            Each term is a convex function ∘ smooth map; B keeps the curvature of the convex functions (cross-entropy of
            the logits; log cosh of the Dice loss) and drops that of the maps, so B is positive semi-definite
            [Schraudolph 2002]. The plain Dice loss and the piecewise linear hinge have no convex outer function with
            curvature: B of ``dice`` and ``lovasz`` is zero.
    """

    name: str
    value: Callable[[Tensor, Tensor], Tensor]
    curvature: Callable[[Tensor, Tensor, Tensor], Tensor] | None

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch, a scalar."""
        return self.value(logits, target)


def over_marked(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss over the marked pixels alone: (logits, target) → scalar, where targets lie in {0, 1, `UNMARKED`}.

    Each image counts as an image of its marked pixels, so that sums and means run over these, and the loss is the mean
    over the images that have some; 0 without any. Its gradient at unmarked pixels is exactly zero.
    """

    def value(logits: Tensor, target: Tensor) -> Tensor:
        losses = []
        for one, truth in zip(logits, target, strict=True):
            marked = truth != UNMARKED
            if marked.any():
                losses.append(loss(one[marked].view(1, 1, 1, -1), truth[marked].view(1, 1, 1, -1)))
        return torch.stack(losses).mean() if losses else logits.sum() * 0

    return value


LOSSES = {
    loss.name: loss
    for loss in (
        Loss("bce_log_cosh_dice", bce_log_cosh_dice, _sum(_bce_curvature, _log_cosh_dice_curvature)),
        Loss("log_cosh_dice", log_cosh_dice, _log_cosh_dice_curvature),
        Loss("dice", dice, None),
        Loss("bce_dice", bce_dice, _bce_curvature),
        Loss("lovasz", lovasz, None),
    )
}
"""Name, as in ``loss=`` → loss."""

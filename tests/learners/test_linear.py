"""Logistic regression on encoder features."""

import pytest
import torch
import torch.nn.functional as F
from test_learners import pictures, typed

from metaseg.data.batches import SupportSet, image_tensor
from metaseg.errors import MetasegError
from metaseg.evaluation.scores import dice, foreground
from metaseg.learners import linear
from metaseg.learners.linear import Linear, enlarged, fit
from metaseg.meta.losses import LOSSES
from metaseg.networks.build import build
from metaseg.networks.functional import forward

SETTINGS = {"penalty": 0.01, "pixels": 5000, "copies": 1}
NO_STEPS = {"optimizer": "adam", "lr": 1.0, "steps": 0, "lam": 0.0}


def make(**changes):
    settings = {"network": build(features=4, seed=1), "norm": "support", "adapt": NO_STEPS, **SETTINGS, **changes}
    return typed(Linear, {"loss": LOSSES["bce_log_cosh_dice"], **settings})


def bright_discs(count, seed):
    return SupportSet(*pictures(count, seed), "flips", seed=0)


def test_the_fit_is_the_minimum_of_the_penalised_loss():
    generator = torch.Generator().manual_seed(0)
    features = 3 * torch.randn(200, 4, generator=generator, dtype=torch.float64) + 5
    targets = (features[:, 0] + torch.randn(200, generator=generator) > 5).double()
    weight, bias = (found.requires_grad_() for found in fit(features, targets, penalty=0.1))
    deviation = features.std(0, correction=0)
    loss = F.binary_cross_entropy_with_logits(features @ weight + bias, targets)
    (loss + 0.05 * (weight * deviation).square().sum()).backward()
    assert float((weight.grad / deviation).abs().max()) < 1e-4
    assert abs(float(bias.grad)) < 1e-4


def test_it_segments_new_images_of_the_kind():
    segmenter = make().adapt(bright_discs(6, 0))
    new = bright_discs(20, 1)
    assert dice(foreground(segmenter(image_tensor(new.images))), new.masks).mean() > 0.8


def test_it_is_fitted_to_pixels_of_the_images_and_of_their_augmented_copies(monkeypatch):
    seen = []

    def looked_at(features, targets, penalty):
        seen.append((features, targets, penalty))
        return fit(features, targets, penalty)

    monkeypatch.setattr(linear, "fit", looked_at)
    for copies in (0, 1):
        make(penalty=0.5, pixels=100, copies=copies).adapt(bright_discs(3, 0))
    (alone, _, _), (both, targets, penalty) = seen
    assert len(alone) == len(both) == len(targets) == 100
    torch.testing.assert_close(both[:50], alone[:50])
    assert not torch.allclose(both[50:], both[:50])
    assert penalty == 0.5


def test_weighing_before_enlarging_is_weighing_after():
    learner = make()
    segmenter = learner.adapt(bright_discs(3, 0))
    images = image_tensor(bright_discs(2, 1).images)
    features, _ = forward(learner.network, learner.theta(), images, segmenter.statistics, last="encoder")
    columns = torch.cat([enlarged(level, (16, 16)) for level in features], dim=1)
    logits = torch.einsum("bchw,c->bhw", columns, segmenter.weight)[:, None] + segmenter.bias
    torch.testing.assert_close(segmenter(images), torch.sigmoid(enlarged(logits, images.shape[-2:])))


def test_a_prediction_does_not_depend_on_the_other_images():
    segmenter = make().adapt(bright_discs(3, 0))
    images = image_tensor(bright_discs(4, 1).images)
    torch.testing.assert_close(segmenter(images)[:1], segmenter(images[:1]))


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"penalty": 0}, "learner.penalty"),
        ({"pixels": 0}, "learner.pixels"),
        ({"copies": -1}, "learner.copies"),
        ({"adapt": NO_STEPS | {"steps": 3}}, "learner.adapt.steps"),
        ({"network": torch.nn.Conv2d(3, 1, 1)}, "learner=linear"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, setting):
    with pytest.raises(MetasegError, match=setting):
        make(**changes)

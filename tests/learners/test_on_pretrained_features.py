"""Each learner on the network with a pre-trained encoder, composed as on the command line."""

import pytest
import torch
from conftest import settings_of
from test_learners import episode, support_set

from metaseg.data.batches import Episode
from metaseg.learners.build import build_learner
from metaseg.meta.vectors import unflatten
from metaseg.networks.functional import norm_layers
from metaseg.networks.stages import part_of

SMALL = ["model=pretrained", "model.widths=[8,8,8]", "protocol.adapt.steps=2", "shots=4"]


def built(*overrides):
    return build_learner(settings_of(*SMALL, *overrides))


def task():
    plain = episode(side=32)
    return Episode(*plain[:4], plain.query_images[:1])


@pytest.mark.long
@pytest.mark.parametrize("name", ["imaml", "maml", "reptile", "joint", "prototypes"])
def test_every_learner_of_episodes_has_a_gradient(name):
    learner = built(f"learner={name}")
    theta = learner.theta()
    result = learner.meta_gradient(theta, task())
    assert result.gradient.shape == (sum(value.numel() for value in theta.values()),)
    assert torch.isfinite(result.gradient).all()
    assert result.gradient.norm() > 0
    frozen = {name for name, layer in norm_layers(learner.network).items() if layer.frozen}
    assert frozen
    assert not frozen & set(result.found)
    by_name = unflatten(result.gradient, theta)
    encoder = [one for one in theta if part_of(learner.network, one) == "encoder"]
    assert any(by_name[one].any() for one in encoder)
    if name in ("imaml", "maml"):
        assert all(torch.equal(result.adapted[one], theta[one]) for one in encoder)


@pytest.mark.long
@pytest.mark.parametrize("curvature", [pytest.param("hessian", marks=pytest.mark.slow), "gauss_newton"])
def test_curvature_products_by_replay_are_those_by_autograd_with_all_parts_moving(curvature):
    moving = "learner.inner.rates={encoder: 0.5, decoder: 1, head: 1}"
    settings = ["learner=imaml", moving, f"learner.curvature={curvature}", "learner.inner.steps=1"]
    gradients = []
    for products in ("replay", "autograd"):
        learner = built(*settings, f"learner.products={products}").double()
        doubled = Episode(*(part.double() for part in task()))
        gradients.append(learner.meta_gradient(learner.theta(), doubled).gradient)
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-10)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "recipe"),
    [*((name, "quick") for name in ("scratch", "imaml", "anil", "linear", "prototypes")), ("imaml", "default")],
)
def test_every_kind_of_learner_adapts(name, recipe):
    learner = built(f"learner={name}", f"adapt.recipe={recipe}")
    segmenter = learner.adapt(support_set(side=32))
    images = task().query_images
    together = segmenter(images)
    assert together.shape == (len(images), 1, 32, 32)
    # Statistics are frozen or the support set's: no image knows of those beside it.
    torch.testing.assert_close(together[:1], segmenter(images[:1]), rtol=1e-4, atol=1e-5)

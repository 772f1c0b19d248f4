"""Learners that compare a query with the support."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_learners import episode as labelled_episode
from test_learners import mean_dice, pictures, support_set, trainer, typed

from metaseg.data.batches import Episode, SupportSet, image_tensor, mask_tensor
from metaseg.errors import MetasegError
from metaseg.learners.feyjie import NOISE, Feyjie
from metaseg.learners.pmg import PMG
from metaseg.learners.prototypes import Prototypes, prototype
from metaseg.meta.losses import LOSSES, bce
from metaseg.meta.vectors import flatten, unflatten
from metaseg.networks.build import build
from metaseg.networks.comparing import at_size_of, pooled
from metaseg.networks.feyjie import FeyjieNetwork
from metaseg.networks.pmg import Features, PMGNetwork, prior_mask, unit
from metaseg.tracking import dashboard
from metaseg.training.outer import MetaTraining

KINDS = {
    "prototypes": (Prototypes, partial(build, features=2, seed=1), {"scale": 20, "reversal": 1.0, "seed": 0}),
    "feyjie": (Feyjie, partial(FeyjieNetwork, 2), {"surrogate": 1.0, "pixel_bce": True, "seed": 0}),
    "pmg": (PMG, partial(PMGNetwork, 2), {"reversal": 1.0}),
}


def make(name, norm="support", **changes):
    kind, network, settings = KINDS[name]
    shared = {
        "loss": LOSSES["bce_log_cosh_dice"],
        "norm": norm,
        "adapt": {"optimizer": "adam", "lr": 0.1, "steps": 0, "lam": 0.0},
        "optimizer": {"lr": 1e-2, "weight_decay": 0.0, "clip_norm": None, "schedule": "constant"},
    }
    torch.manual_seed(1)
    return typed(kind, {"network": network()} | shared | settings | changes)


def episode(seed=0, shots=3):
    return labelled_episode(seed, shots)._replace(unlabelled=image_tensor(pictures(1, seed + 200)[0]))


def double(task):
    return Episode(*(part.double() for part in task))


def batches(*steps):
    return torch.utils.data.DataLoader(list(steps), batch_size=None, collate_fn=lambda x: x)


def segmented(learner, images, support=None):
    return learner.adapt(support or support_set())(image_tensor(images))


@pytest.mark.long
def test_training_makes_prototypes_find_the_discs():
    learner = make("prototypes")
    trainer(max_epochs=1).fit(MetaTraining(learner), batches(*([episode(seed)] for seed in range(20))))
    assert mean_dice(learner.adapt(support_set())) > 0.8


@pytest.mark.parametrize("name", KINDS)
def test_a_prediction_depends_on_its_neighbours_only_under_batch_statistics(name):
    images = pictures(5, 60)[0]
    for norm, depends in (("support", False), ("running", False), ("batch", True)):
        learner = make(name, norm)
        alone, among = segmented(learner, images[:1]), segmented(learner, images)[:1]
        assert torch.allclose(alone, among, atol=1e-3) is not depends


@pytest.mark.parametrize("name", KINDS)
def test_running_statistics_normalise_the_support_as_they_do_a_query(name):
    learner, task = make(name, "running"), episode()
    encoded = learner.encode_support(learner.theta(), task.support_images, task.support_masks)
    _, features = learner.compare(learner.theta(), encoded, task.support_images)
    torch.testing.assert_close(encoded.features, features)


@pytest.mark.parametrize("norm", ["support", "batch"])
@pytest.mark.parametrize("name", KINDS)
def test_another_support_set_changes_the_prediction(name, norm):
    learner, images = make(name, norm), pictures(2, 60)[0]
    shown, masks = pictures(4, 7)
    here = segmented(learner, images, SupportSet(shown, masks, "none", 0))
    other_masks = segmented(learner, images, SupportSet(shown, 1 - masks, "none", 0))
    other_images = segmented(learner, images, SupportSet(pictures(4, 8)[0], masks, "none", 0))
    assert (here - other_masks).abs().max() > 1e-4
    assert (here - other_images).abs().max() > 1e-4


def test_prototypes_of_inverted_masks_segment_the_inverse():
    learner, images = make("prototypes", reversal=0.0), pictures(2, 60)[0]
    shown, masks = pictures(4, 7)
    here, inverse = (segmented(learner, images, SupportSet(shown, one, "none", 0)) for one in (masks, 1 - masks))
    torch.testing.assert_close(here, 1 - inverse)


@pytest.mark.parametrize("name", KINDS)
def test_the_dashboard_shows_its_losses(name):
    learner = make(name)
    logged = learner.meta_gradient(learner.theta(), episode()).diagnostics
    panels = {key for section in dashboard.sections() for panel in section.panels for key in panel.keys}
    assert {f"train/{key}" for key in logged} <= panels


@pytest.mark.parametrize("filled", [0.0, 1.0])
@pytest.mark.parametrize("name", KINDS)
def test_masks_that_are_all_empty_or_all_full_leave_no_nan(name, filled):
    learner, task = make(name), episode()
    empty = torch.full_like(task.support_masks, filled)
    for changed in (task._replace(support_masks=empty), task._replace(support_masks=empty, query_masks=empty)):
        found = learner.meta_gradient(learner.theta(), changed)
        assert torch.isfinite(found.gradient).all()
        assert np.isfinite(list(found.diagnostics.values())).all()
    support = SupportSet(pictures(2, 7)[0], np.full((2, 32, 32), filled, np.uint8), "none", 0)
    assert torch.isfinite(segmented(learner, pictures(2, 60)[0], support)).all()


@pytest.mark.parametrize("norm", ["support", "batch", "running"])
@pytest.mark.parametrize("name", KINDS)
def test_the_gradient_equals_a_directional_difference_in_double_precision(name, norm):
    learner, task = make(name, norm).double(), double(episode())
    # Away from biases of zero, with which pixels whose inputs are all zero lie on the kinks of their ReLUs.
    generator = torch.Generator().manual_seed(1)
    theta = {
        name: value + 0.05 * torch.randn(value.shape, generator=generator, dtype=value.dtype)
        for name, value in learner.theta().items()
    }
    found = learner.meta_gradient(theta, task)
    gradient = found.gradient
    assert not any(one.requires_grad for one in (gradient, found.query_after, *found.adapted.values()))
    direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    direction /= direction.norm()
    flat, width = flatten(theta.values()), 1e-6
    ahead, behind = (
        learner.objective(unflatten(flat + sign * width * direction, theta), task)[0].item() for sign in (1, -1)
    )
    assert (gradient @ direction).item() == pytest.approx((ahead - behind) / (2 * width), rel=1e-4)


def test_adaptation_takes_no_steps_and_outlives_further_training():
    learner, images = make("prototypes"), pictures(2, 60)[0]
    ((step, segmenter),) = learner.adaptation(support_set(), [0, 1, 20])
    assert step == 0
    before = segmenter(image_tensor(images))
    assert not before.requires_grad
    with torch.inference_mode():  # nothing is fitted, so nothing needs gradients
        torch.testing.assert_close(segmented(learner, images), before)
    trainer(max_epochs=1).fit(MetaTraining(learner), batches([episode()]))
    assert torch.equal(segmenter(image_tensor(images)), before)
    assert not torch.equal(segmented(learner, images), before)


def test_a_prototype_is_the_mean_over_images_of_the_mean_under_the_mask():
    features = torch.tensor([[[[1.0, 3.0]]], [[[5.0, 7.0]]]])
    masks = torch.tensor([[[[1.0, 1.0]]], [[[0.0, 1.0]]]])
    torch.testing.assert_close(prototype(features, masks), torch.tensor([(2.0 + 7.0) / 2]))


def test_logits_of_prototypes_are_the_scaled_difference_of_the_cosines():
    network = make("prototypes", scale=7).network
    features = torch.tensor([[[[3.0, 0.0, 2.0]], [[0.0, 5.0, 2.0]]]])  # (1, 2, 1, 3)
    foreground, background = network.summarise(features, torch.tensor([[[[1.0, 0.0, 0.0]]]]))
    torch.testing.assert_close((foreground, background), (torch.tensor([3.0, 0.0]), torch.tensor([1.0, 3.5])))
    logits = network.compare((foreground, torch.tensor([0.0, 0.1])), features)
    torch.testing.assert_close(logits, torch.tensor([[[[7.0, -7.0, 0.0]]]]))


def test_features_are_pooled_under_the_masks_of_all_images_together():
    features = torch.tensor([[[[1.0, 3.0]]], [[[5.0, 7.0]]]])
    masks = torch.tensor([[[[1.0, 1.0, 1.0, 0.0]]], [[[0.0, 0.0, 1.0, 1.0]]]])
    shares = at_size_of(features, masks)
    assert shares.flatten().tolist() == [1.0, 0.5, 0.0, 1.0]
    torch.testing.assert_close(pooled(features, shares), torch.tensor([(1 + 1.5 + 7) / (2.5 + 1)]))


def test_prototypes_replace_the_last_layer_of_the_configured_network_alone():
    full, network = build(features=2, seed=1).state_dict(), make("prototypes").network.backbone.state_dict()
    assert list(network) == list(full)
    changed = [name for name, value in full.items() if not torch.equal(value, network[name])]
    assert changed == ["conv.weight", "conv.bias"]
    assert network["conv.weight"].shape == (2, 2, 1, 1)
    assert not torch.equal(network["conv.weight"], make("prototypes", seed=1).network.backbone.conv.weight)
    pytest.importorskip("segmentation_models_pytorch")
    library = make("prototypes", network=build(name="smp", arch="FPN", encoder="resnet18"))
    assert library.network.encode(image_tensor(pictures(2, 0)[0])).shape == (2, 128, 32, 32)


def parts(learner, gradient):
    """Largest absolute gradient of each part of the network."""
    found = {}
    for name, value in unflatten(gradient, learner.theta()).items():
        part = name.split(".")[0]
        found[part] = max(found.get(part, 0.0), value.abs().max().item())
    return found


def test_the_surrogate_task_teaches_the_encoder_and_its_own_branch_alone():
    learner, task = make("feyjie"), episode()
    theta = {name: value.clone().requires_grad_() for name, value in learner.theta().items()}
    loss, found = learner.surrogate_loss(theta, task)
    rows = torch.autograd.grad(loss, list(theta.values()), materialize_grads=True)
    of_surrogate = parts(learner, flatten(rows))
    assert of_surrogate["encoder"] > 0
    assert of_surrogate["surrogate"] > 0
    assert of_surrogate["decoder"] == of_surrogate["of_support"] == of_surrogate["of_query"] == 0
    assert all(name.startswith("surrogate.") for name in found)
    without = make("feyjie", surrogate=0.0).meta_gradient(learner.theta(), task).gradient
    assert parts(learner, without)["surrogate"] == 0
    both = learner.meta_gradient(learner.theta(), task)
    torch.testing.assert_close(both.gradient, without + flatten(rows))
    assert both.diagnostics["surrogate_loss"] == pytest.approx(loss.item())


def test_the_surrogate_task_sees_support_and_unlabelled_images_and_no_query():
    learner, task = make("feyjie"), episode()
    theta = learner.theta()
    loss = learner.surrogate_loss(theta, task)[0]
    others = {
        "query_images": episode(9).query_images,
        "query_masks": episode(9).query_masks,
        "support_images": episode(9).support_images,
        "unlabelled": episode(9).unlabelled,
    }
    changes = {key: not torch.equal(loss, learner.surrogate_loss(theta, task._replace(**{key: value}))[0])
               for key, value in others.items()}  # fmt: skip
    assert changes == {"query_images": False, "query_masks": False, "support_images": True, "unlabelled": True}


def test_the_surrogate_task_denoises_towards_the_clean_images(monkeypatch):
    learner, task = make("feyjie"), episode()
    seen, usual = [], FeyjieNetwork.denoise

    def denoise(network, noisy):
        seen.extend([noisy, usual(network, noisy)])
        return seen[1]

    monkeypatch.setattr(FeyjieNetwork, "denoise", denoise)
    loss = learner.surrogate_loss(learner.theta(), task)[0]
    noisy, logits = seen
    clean = (torch.cat([task.support_images, task.unlabelled]) + 1) / 2  # in [0, 1], where the noise is added
    torch.testing.assert_close((noisy + 1) / 2, clean + learner.noise(task))
    goal = F.adaptive_avg_pool2d(clean, logits.shape[-2:])
    torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(logits, goal))


def test_noise_is_a_function_of_seed_step_and_task():
    learner, task = make("feyjie"), episode()
    noise = learner.noise(task)
    assert noise.shape == (4, 3, 32, 32)
    assert noise.dtype == torch.float32
    assert torch.equal(noise, learner.noise(task))
    assert NOISE[0] * 0.95 < noise.std() < NOISE[1] * 1.05
    assert not torch.equal(noise, learner.noise(episode(1)))
    assert not torch.equal(noise, make("feyjie", seed=1).noise(task))
    trainer(max_epochs=1).fit(MetaTraining(learner), batches([task]))
    assert learner.outer_step == 1
    assert not torch.equal(noise, learner.noise(task))


def test_feyjie_trains_by_cross_entropy_and_is_validated_by_the_runs_loss():
    task = episode()
    published, ours = make("feyjie"), make("feyjie", pixel_bce=False)
    logits = published.segment(published.theta(), task.support_images, task.support_masks, task.query_images)
    by_bce, by_loss = (
        one.meta_gradient(one.theta(), task).diagnostics["query_loss_after"] for one in (published, ours)
    )
    assert by_bce == pytest.approx(bce(logits, task.query_masks).item())
    assert by_loss == pytest.approx(LOSSES["bce_log_cosh_dice"](logits, task.query_masks).item())
    assert published.trial(task)[1][0].item() == pytest.approx(by_loss)


@pytest.mark.parametrize(
    ("name", "weight", "further"),
    [("pmg", "reversal", "reversed_loss"), ("feyjie", "surrogate", "surrogate_loss")],
)
def test_the_further_loss_is_weighed(name, weight, further):
    learner = make(name, **{weight: 0.25})
    total, losses, *_ = learner.objective(learner.theta(), episode())
    assert total.item() == pytest.approx(losses["query_loss_after"].item() + 0.25 * losses[further].item())


@pytest.mark.parametrize("name", ["prototypes", "pmg"])
def test_with_reversed_roles_the_predicted_masks_segment_the_support(name):
    learner, task = make(name).double(), double(episode())
    theta = learner.theta()
    encoded = learner.encode_support(theta, task.support_images, task.support_masks)
    logits, features = learner.compare(theta, encoded, task.query_images)
    found = learner.reversed_roles(theta, encoded, features, logits)
    with torch.no_grad():

        def swapped(network):
            summary = network.summarise(network.encode(task.query_images), (logits > 0).double())
            return network.compare(summary, network.encode(task.support_images))

        # Each norm layer runs twice here, which given statistics allow.
        expected, _ = learner.call(theta, swapped, encoded.found)
    torch.testing.assert_close(found, expected)
    numbers = learner.meta_gradient(theta, task).diagnostics
    assert numbers["reversed_loss"] == pytest.approx(learner.loss(found, task.support_masks).item(), rel=1e-5)
    alone = make(name, reversal=0.0).double().meta_gradient(theta, task)
    assert "reversed_loss" not in alone.diagnostics
    assert alone.diagnostics["query_loss_after"] == pytest.approx(numbers["query_loss_after"])
    assert not torch.allclose(alone.gradient, learner.meta_gradient(theta, task).gradient)


def test_the_prior_mask_is_one_where_a_query_repeats_the_supports_foreground():
    generator = torch.Generator().manual_seed(0)
    support = torch.rand(2, 8, 3, 3, generator=generator)
    masks = torch.zeros(2, 1, 3, 3)
    masks[:, :, 1, 1] = masks[:, :, 2, 0] = 1
    query = torch.rand(1, 8, 3, 3, generator=generator)
    query[0, :, 0, 2] = 5 * support[0, :, 1, 1]  # of any length: the likeness is the cosine
    masked = (unit(support) * masks).flatten(2)
    prior = prior_mask(masked[:1], query)
    assert prior.shape == (1, 1, 3, 3)
    assert prior[0, 0, 0, 2] == pytest.approx(1, abs=1e-4)
    assert prior.min() == 0
    assert prior.argmax() == 2
    both = prior_mask(masked, query)
    torch.testing.assert_close(both, (prior + prior_mask(masked[1:], query)) / 2)
    assert prior_mask(torch.zeros_like(masked), query).abs().max() == 0
    shown = (support[:1, :, row, column, None, None] for row, column in ((1, 1), (2, 0)))
    likeness = torch.stack([F.cosine_similarity(query, one.expand_as(query))[0] for one in shown]).amax(0)
    torch.testing.assert_close(
        prior[0, 0], (likeness - likeness.min()) / (likeness.max() - likeness.min()), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("prototypes", {"adapt": {"optimizer": "adam", "lr": 0.1, "steps": 2, "lam": 0.0}}, "learner.adapt.steps=0"),
        ("prototypes", {"scale": 0}, "learner.scale must be a number above 0"),
        ("prototypes", {"reversal": -1}, "learner.reversal must be a number from 0"),
        ("prototypes", {"network": torch.nn.Conv2d(3, 1, 1)}, "model=attention_unet"),
        ("feyjie", {"surrogate": -1}, "learner.surrogate must be a number from 0"),
        ("feyjie", {"network": PMGNetwork(1)}, "needs metaseg.networks.feyjie.FeyjieNetwork, found PMGNetwork"),
        ("pmg", {"network": FeyjieNetwork(1)}, "needs metaseg.networks.pmg.PMGNetwork, found FeyjieNetwork"),
        ("pmg", {"network": torch.nn.Conv2d(3, 1, 1)}, "found Conv2d; set learner.network._target_"),
    ],
)
def test_refuses_invalid_settings(name, changes, words):
    with pytest.raises(MetasegError, match=words):
        make(name, **changes)


def test_refuses_an_episode_without_an_unlabelled_image():
    learner = make("feyjie")
    with pytest.raises(MetasegError, match=r"learner\.unlabelled above 0"):
        learner.meta_gradient(learner.theta(), labelled_episode())


def test_masks_reach_the_segmenter_unchanged():
    shown, masks = pictures(3, 7)
    learner = make("prototypes", "batch")
    query = image_tensor(pictures(2, 60)[0])
    expected = learner.segment(learner.theta(), image_tensor(shown), mask_tensor(masks), query)
    found = learner.adapt(SupportSet(shown, masks, "flips", 0))(query)
    torch.testing.assert_close(found, torch.sigmoid(expected))


def test_the_prior_does_not_depend_on_the_length_of_the_support_features():
    generator = torch.Generator().manual_seed(0)
    network = PMGNetwork(2)
    high, middle = (torch.randn(2, width, 4, 4, generator=generator) for width in (32, 8))
    lengths = 0.5 + torch.rand(2, 1, 4, 4, generator=generator)
    one, other = (
        network.summarise(Features(part, middle), torch.ones(2, 1, 16, 16)) for part in (high, lengths * high)
    )
    torch.testing.assert_close(one.masked, other.masked)

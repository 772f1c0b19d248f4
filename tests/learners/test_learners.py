"""Each learner on a small network: its gradient, its outer step, its adaptation."""

import gc
import re
from dataclasses import replace

import lightning as L
import numpy as np
import pytest
import torch
from conftest import TINY, settings_of

from metaseg.data.batches import Episode, SupportSet, image_tensor
from metaseg.errors import MetasegError
from metaseg.evaluation.scores import dice
from metaseg.learners.base import Learner
from metaseg.learners.build import build_learner, fitting
from metaseg.learners.fomaml import FirstOrderMAML
from metaseg.learners.imaml import ImplicitMAML
from metaseg.learners.joint import Joint
from metaseg.learners.maml import MAML
from metaseg.learners.reptile import Reptile
from metaseg.learners.scratch import Scratch
from metaseg.meta.losses import LOSSES, UNMARKED
from metaseg.meta.vectors import detach, flatten, unflatten
from metaseg.networks.build import build
from metaseg.networks.functional import forward
from metaseg.networks.rates import Rates
from metaseg.networks.stages import PARTS, output_bias, part_of
from metaseg.training.outer import MetaTraining

ADAPT = {"optimizer": "adam", "lr": 0.02, "steps": 25, "lam": 0.0}
INNER = {"optimizer": "sgd", "lr": 0.05, "steps": 3, "proximal": False}
OPTIMIZER = {"lr": 1e-2, "weight_decay": 0.0, "clip_norm": None, "schedule": "constant"}
HEAD = {"encoder": 0, "decoder": 0}
EPISODIC = {
    "imaml": (
        ImplicitMAML,
        {
            "lam": 2.0,
            "cg": {"steps": 4, "tolerance": 1e-3},
            "curvature": "gauss_newton",
            "inner": INNER | {"proximal": True},
        },
    ),
    "maml": (MAML, {"inner": INNER}),
    "fomaml": (FirstOrderMAML, {"inner": INNER}),
    "anil": (MAML, {"inner": INNER | {"rates": HEAD}, "adapt": ADAPT | {"rates": HEAD}}),
    "reptile": (Reptile, {"inner": INNER}),
    "joint": (Joint, {}),
}


def make(name, norm="support", **changes) -> Learner:
    kind, settings = EPISODIC.get(name, (Scratch, {}))
    shared = {
        "network": build(name="attention_unet", features=2, seed=1),
        "loss": LOSSES["bce_log_cosh_dice"],
        "norm": norm,
        "adapt": ADAPT,
    }
    if name != "scratch":
        shared["optimizer"] = OPTIMIZER
    return typed(kind, shared | settings | changes)


def typed(kind, settings) -> Learner:
    """A learner with settings that are typed and checked as those of a run."""
    given = {key: settings.pop(key) for key in ("network", "loss", "norm")}
    return kind(**given, **fitting(kind, settings, "learner", given.keys()))


def pictures(count, seed, side=32):
    """Bright discs on dark noise, with their masks."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    centres = generator.uniform(side * 0.3, side * 0.7, (count, 2, 1, 1))
    masks = (rows - centres[:, 0]) ** 2 + (columns - centres[:, 1]) ** 2 < (side / 5) ** 2
    images = generator.integers(0, 90, (count, side, side, 3)) + 120 * masks[..., None]
    return images.astype(np.uint8), masks.astype(np.uint8)


def episode(seed=0, shots=3, side=32):
    support, query = pictures(shots, seed, side), pictures(shots, seed + 100, side)
    return Episode(
        image_tensor(support[0]),
        torch.from_numpy(support[1])[:, None].float(),
        image_tensor(query[0]),
        torch.from_numpy(query[1])[:, None].float(),
    )


def in_double(task):
    return Episode(*(part if part is None else part.double() for part in task))


def support_set(augmentation="none", side=32):
    return SupportSet(*pictures(4, 7, side), augmentation, seed=0)


def mean_dice(segmenter, seed=50):
    images, masks = pictures(6, seed)
    prediction = (segmenter(image_tensor(images))[:, 0] > 0.5).numpy()
    return float(2 * (prediction & (masks > 0)).sum() / (prediction.sum() + masks.sum()))


def trainer(**settings):
    return L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, inference_mode=False, num_sanity_val_steps=0, **settings,
    )  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("imaml", "support"),
        ("maml", "batch"),
        ("fomaml", "running"),
        ("joint", "support"),
        ("anil", "support"),
        ("reptile", "support"),
    ],
)
def test_the_outer_steps_lower_the_query_loss(name, norm):
    learner = make(name, norm)
    steps = [[episode(0), episode(1)] for _ in range(5)]
    seen = []
    training = MetaTraining(learner)
    training.log_dict = lambda values, **_: seen.append({key: float(value) for key, value in values.items()})
    training.log = lambda *_, **__: None
    trainer(max_epochs=1).fit(training, torch.utils.data.DataLoader(steps, batch_size=None, collate_fn=lambda x: x))
    losses = [row["train/query_loss_after"] for row in seen]
    assert losses[-1] < losses[0]
    assert all(np.isfinite(list(row.values())).all() for row in seen)


@pytest.mark.long
def test_the_gradient_of_maml_through_support_statistics_equals_a_directional_difference():
    learner = make("maml").double()
    task = in_double(episode())
    theta = learner.theta()
    gradient = learner.meta_gradient(theta, task).gradient
    direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    direction /= direction.norm()
    flat, width = flatten(theta.values()), 1e-6
    ahead, behind = (
        learner.meta_gradient(unflatten(flat + sign * width * direction, theta), task).diagnostics["query_loss_after"]
        for sign in (1, -1)
    )
    assert (gradient @ direction).item() == pytest.approx((ahead - behind) / (2 * width), rel=1e-4)


@pytest.mark.long
def test_the_implicit_gradient_of_the_network_equals_the_unrolled_one_at_convergence():
    # A network of ReLUs is smooth only near θ: at a smaller λ the inner loop comes to rest on a kink, where no
    # implicit gradient exists, and the stationarity says so.
    task = in_double(episode())
    lam = 1e4
    inner = {"optimizer": "sgd", "lr": 0.8 / lam, "steps": 16, "proximal": True}
    implicit = make("imaml", inner=inner, lam=lam, curvature="hessian", cg={"steps": 40, "tolerance": 1e-12}).double()
    unrolled, first_order = (make(name, inner=inner, lam=lam).double() for name in ("maml", "fomaml"))
    ours, exact, first = (x.meta_gradient(x.theta(), task) for x in (implicit, unrolled, first_order))
    assert ours.diagnostics["stationarity"] < 1e-9
    distance = (ours.gradient - exact.gradient).norm()
    assert distance < 1e-7 * exact.gradient.norm()
    assert distance < 1e-4 * (first.gradient - exact.gradient).norm()


def test_the_solver_is_that_of_the_settings():
    few = make("imaml", cg={"steps": 2, "tolerance": 0.0})
    assert few.meta_gradient(few.theta(), episode()).diagnostics["cg_iterations"] == 2
    loose = make("imaml", cg={"steps": 30, "tolerance": 0.3})
    found = loose.meta_gradient(loose.theta(), episode()).diagnostics
    assert found["cg_residual"] <= 0.3
    assert found["cg_iterations"] < 30


def test_joint_training_learns_from_all_images_as_one_batch():
    learner, task = make("joint").double(), in_double(episode())
    found = learner.meta_gradient(learner.theta(), task)
    leaves = detach(learner.theta(), requires_grad=True)
    logits, _ = forward(learner.network, leaves, torch.cat([task.support_images, task.query_images]))
    loss = learner.loss(logits, torch.cat([task.support_masks, task.query_masks]))
    torch.testing.assert_close(found.gradient, flatten(torch.autograd.grad(loss, list(leaves.values()))))
    torch.testing.assert_close(found.query_after, logits[3:].detach())


def test_reptile_learns_from_support_and_query_alike():
    learner, task = make("reptile").double(), in_double(episode())
    swapped = Episode(task.query_images, task.query_masks, task.support_images, task.support_masks)
    one, other = (learner.meta_gradient(learner.theta(), some).gradient for some in (task, swapped))
    torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-11)


@pytest.mark.long
@pytest.mark.parametrize(
    "name",  # the learners share adaptation: two of them stand for all
    [
        name if name in ("imaml", "anil") else pytest.param(name, marks=pytest.mark.slow)
        for name in (*EPISODIC, "scratch")
    ],
)
def test_adaptation_raises_the_dice_and_leaves_the_learner_as_it_was(name):
    learner = make(name)
    before = {key: value.clone() for key, value in learner.state_dict().items()}
    stages = dict(learner.adaptation(support_set("flips"), [0, 25]))
    assert mean_dice(stages[25]) > mean_dice(stages[0])
    assert mean_dice(learner.adapt(support_set("flips"))) == mean_dice(stages[25])
    assert all(torch.equal(value, before[key]) for key, value in learner.state_dict().items())


def test_refuses_adaptation_in_inference_mode():
    with torch.inference_mode(), pytest.raises(MetasegError, match="inference_mode=False"):
        make("maml").adapt(support_set())


@pytest.mark.long
def test_no_task_leaves_tensors_behind_even_before_cycles_are_collected():
    learner = make("imaml")
    theta = learner.theta()
    learner.meta_gradient(theta, episode())
    counts = []
    gc.collect()
    gc.disable()
    try:
        for seed in range(3):
            learner.meta_gradient(theta, episode(seed, shots=2))
            counts.append(sum(isinstance(one, torch.Tensor) for one in gc.get_objects()))
    finally:
        gc.enable()
    assert counts[-1] == counts[0]


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("imaml", {"curvature": "fisher"}, "learner.curvature must be one of hessian, gauss_newton"),
        ("imaml", {"lam": 0}, "learner.lam must be a number above 0"),
        ("imaml", {"cg": {"steps": 0, "tolerance": 0.1}}, "learner.cg.steps must be a whole number from 1"),
        ("imaml", {"products": "finite"}, "learner.products must be one of auto, replay, autograd"),
        ("imaml", {"loss": LOSSES["dice"]}, "loss=dice"),
        ("maml", {"adapt": ADAPT | {"rates": dict.fromkeys(("encoder", "decoder", "head"), 0)}}, "learner.adapt.rates"),
    ],
)
def test_refuses_invalid_settings(name, changes, words):
    with pytest.raises(MetasegError, match=words):
        make(name, **changes)


@pytest.mark.long
@pytest.mark.parametrize("name", EPISODIC)
def test_the_memory_layout_does_not_change_the_gradient(name):
    by_planes, by_pixels = (make(name, channels_last=last).double() for last in (False, True))
    task = in_double(episode())
    one, other = (learner.meta_gradient(learner.theta(), task).gradient for learner in (by_planes, by_pixels))
    torch.testing.assert_close(one, other)


class Erf(torch.nn.Module):
    """A layer that no rule is known for."""

    def forward(self, images):
        return torch.erf(images)


def test_warns_once_and_falls_back_to_autograd_without_replay(caplog):
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), Erf(), torch.nn.Conv2d(4, 1, 1))
    learner = make("imaml", network=network, curvature="hessian", lam=100.0)
    found = learner.meta_gradient(learner.theta(), episode()).gradient
    learner.meta_gradient(learner.theta(), episode())
    (message,) = caplog.messages
    assert re.search(r"aten\.(erf|exp).* fall back to autograd", message)
    exact = make("imaml", network=network, curvature="hessian", lam=100.0, products="autograd")
    torch.testing.assert_close(found, exact.meta_gradient(exact.theta(), episode()).gradient)
    strict = make("imaml", network=network, curvature="hessian", lam=100.0, products="replay")
    with pytest.raises(MetasegError, match="products=autograd"):
        strict.meta_gradient(strict.theta(), episode())


def test_without_learned_strengths_there_is_no_gradient_of_theirs():
    learner = make("imaml")
    assert learner.meta_gradient(learner.theta(), episode()).by_strengths is None


def test_only_the_parameters_that_a_learner_names_adapt():
    learner = make("anil")
    theta = learner.theta()
    adapted = learner.adapt(support_set()).parameters
    moved = {name for name in theta if not torch.equal(adapted[name], theta[name])}
    assert moved
    assert all(name.startswith(("decoder1.", "conv.")) for name in moved)
    result = learner.meta_gradient(theta, episode())
    assert all(torch.equal(result.adapted[name], theta[name]) for name in theta.keys() - moved)
    # The others are learnt all the same.
    assert unflatten(result.gradient, theta)["encoder1.enc1conv1.weight"].norm() > 0


def outer_steps(training, count):
    steps = torch.utils.data.DataLoader(
        [[episode(seed)] for seed in range(count)], batch_size=None, collate_fn=lambda x: x
    )
    trainer(max_epochs=1).fit(training, steps)
    return flatten(training.learner.theta().values())


def test_a_cosine_schedule_ends_near_zero():
    shared = {"lr": 1e-2, "weight_decay": 0.0, "clip_norm": None}
    training = MetaTraining(make("joint", optimizer=shared | {"schedule": "cosine"}))
    rates = []
    original = training._step

    def step(*gradients):
        original(*gradients)
        rates.append(training.optimizers().param_groups[0]["lr"])

    training._step = step
    outer_steps(training, 4)
    assert rates == pytest.approx([1e-2 * (1 + np.cos(np.pi * k / 4)) / 2 for k in range(4)])


STAGED = {"rates": {"encoder": 0}}


@pytest.mark.long
@pytest.mark.parametrize(
    ("norm", "products", "curvature"),
    [
        ("batch", "replay", "hessian"),
        ("running", "replay", "hessian"),
        ("support", "autograd", "hessian"),
        ("support", "autograd", "gauss_newton"),
    ],
    ids=str,
)
def test_held_stages_leave_the_implicit_gradient_as_it_is(norm, products, curvature, monkeypatch):
    """In float64, against the plain path: all stages in each pass, and a mask."""

    def gradient():
        learner = make(
            "imaml", norm=norm, inner=EPISODIC["imaml"][1]["inner"] | STAGED, products=products, curvature=curvature
        ).double()
        return learner.meta_gradient(learner.theta(), in_double(episode()))

    fast = gradient()
    monkeypatch.setattr(Rates, "held", lambda *_: None)
    plain = gradient()
    # Single precision enters by batch norm's fixed rounding alone; the rest is float64.
    torch.testing.assert_close(fast.gradient, plain.gradient, rtol=1e-8, atol=1e-11)
    assert fast.gradient.norm() > 0
    assert fast.found.keys() == plain.found.keys()
    for name, value in fast.adapted.items():
        torch.testing.assert_close(value, plain.adapted[name], rtol=1e-9, atol=1e-12)


@pytest.mark.long
@pytest.mark.parametrize("name", ["maml", "fomaml", "reptile"])
@pytest.mark.parametrize("norm", ["support", {"encoder": "frozen", "decoder": "support"}], ids=str)
def test_held_stages_leave_other_meta_gradients_as_they_are(name, norm, monkeypatch):
    def gradient():
        learner = make(name, norm=norm, inner=INNER | STAGED).double()
        return learner.meta_gradient(learner.theta(), in_double(episode()))

    fast = gradient()
    monkeypatch.setattr(Rates, "held", lambda *_: None)
    torch.testing.assert_close(fast.gradient, gradient().gradient, rtol=1e-8, atol=1e-11)


def test_clipping_measures_what_the_step_moves_alone():
    rates = {"rates": {"encoder": 0}}
    plain = make("fomaml", optimizer=OPTIMIZER | rates)
    theta = plain.theta()
    pieces = unflatten(plain.meta_gradient(theta, episode()).gradient, theta)
    moving = flatten(piece for name, piece in pieces.items() if plain.learns(name))
    learner = make("fomaml", optimizer=OPTIMIZER | rates | {"clip_norm": 0.5 * moving.norm().item()})
    training = MetaTraining(learner)
    outer_steps(training, 1)
    state = training.trainer.optimizers[0].state
    moments = [state[one]["exp_avg"] for name, one in learner.network.named_parameters() if learner.learns(name)]
    torch.testing.assert_close(10 * flatten(moments), 0.5 * moving, rtol=1e-4, atol=1e-6)


def test_the_norm_of_a_gradient_counts_held_stages():
    learner = make("fomaml", inner=INNER | STAGED)
    found = learner.meta_gradient(learner.theta(), episode())
    assert found.diagnostics["gradient_norm"] == pytest.approx(found.gradient.norm().item())


def test_outer_step_respects_rates_and_freezing():
    rates = {"encoder": 0, "decoder": 0.5}
    learner = make("imaml", optimizer={**OPTIMIZER, "rates": rates}, inner=EPISODIC["imaml"][1]["inner"] | STAGED)
    before = {name: value.clone() for name, value in learner.theta().items()}
    outer_steps(MetaTraining(learner), 1)
    # Adam's first step is as long as its learning rate wherever the gradient is not tiny.
    longest = dict.fromkeys(PARTS, 0.0)
    for name, value in learner.theta().items():
        part = part_of(learner.network, name)
        longest[part] = max(longest[part], float((value - before[name]).abs().max()))
    assert longest["encoder"] == 0
    assert longest["decoder"] == pytest.approx(0.5 * OPTIMIZER["lr"], rel=1e-3)
    assert longest["head"] == pytest.approx(OPTIMIZER["lr"], rel=1e-3)


def test_an_outer_step_is_the_mean_over_its_tasks():
    learner, taken, logged = make("fomaml", "running"), [], {}
    training = MetaTraining(learner)
    training._step = lambda gradient, _: taken.append(gradient)
    training.log_dict = lambda values, **_: logged.update(values)
    training.log = lambda *_, **__: None
    tasks = [episode(0), episode(1)]
    one, other = (learner.meta_gradient(learner.theta(), task) for task in tasks)
    training.training_step(tasks, 0)
    torch.testing.assert_close(taken, [(one.gradient + other.gradient) / 2])
    for name in ("query_loss_after", "moved"):
        assert logged[f"train/{name}"] == pytest.approx((one.diagnostics[name] + other.diagnostics[name]) / 2)
    layer = "encoder1.enc1norm1"
    mean = (one.found[layer][0] + other.found[layer][0]) / 2
    torch.testing.assert_close(learner.network.get_submodule(layer).running_mean, 0.1 * mean)
    assert training.tally.tasks == 2


@pytest.mark.parametrize("share", [0.1, 10.0])
def test_the_gradient_is_clipped_and_decays_the_weights_and_no_strength(share):
    """Adam's first moments after a step are a tenth of the gradient that it was given."""
    strengths = {"by": "part", "lr": 0.2}
    plain = make("imaml", strengths=strengths)
    found = plain.meta_gradient(plain.theta(), episode())
    clipped = OPTIMIZER | {"clip_norm": share * found.gradient.norm().item(), "weight_decay": 0.5}
    learner = make("imaml", strengths=strengths, optimizer=clipped)
    training = MetaTraining(learner)
    outer_steps(training, 1)
    state = training.trainer.optimizers[0].state
    by_theta = 10 * flatten(state[one]["exp_avg"] for one in learner.network.parameters())
    expected = min(share, 1.0) * found.gradient + 0.5 * flatten(plain.theta().values())
    torch.testing.assert_close(by_theta, expected, rtol=1e-4, atol=1e-6)
    by_strengths = 10 * state[learner.strengths.logarithms]["exp_avg"]
    torch.testing.assert_close(by_strengths, found.by_strengths, rtol=1e-4, atol=1e-7)


def test_validation_scores_the_query_before_and_after_the_inner_loop():
    learner, task = make("fomaml", inner=INNER | {"steps": 20}), episode()
    training = MetaTraining(learner)
    training.validation_step(task, 0)
    found = {name: mean.compute().item() for name, mean in training._validation.items()}
    theta = learner.theta()
    for when, parameters in (("before", theta), ("after", learner.meta_gradient(theta, task).adapted)):
        _, statistics = forward(learner.network, parameters, task.support_images)
        logits, _ = forward(learner.network, parameters, task.query_images, statistics)
        assert found[f"query_loss_{when}"] == pytest.approx(learner.loss(logits, task.query_masks).item(), rel=1e-4)
        assert found[f"dice_{when}"] == pytest.approx(dice(logits > 0, task.query_masks).mean(), abs=1e-3)
    assert abs(found["dice_after"] - found["dice_before"]) > 0.01


@pytest.mark.parametrize(
    ("chosen", "stride"),
    [
        (["learner=scratch", "model=pretrained", "data.size=112"], 32),
        (["learner=scratch", "model.features=2", "data.size=36"], 16),
        (["learner=feyjie", "model.features=2", "data.size=34"], 4),
        (["learner=pmg", "model.features=2", "data.size=36"], 8),
    ],
)
def test_a_size_that_the_network_cannot_halve_is_refused_before_images_are_read(chosen, stride):
    with pytest.raises(MetasegError, match=f"multiples of {stride}"):
        build_learner(settings_of(*chosen))


def test_with_a_prior_the_logits_start_at_the_share_of_foreground():
    learner = build_learner(settings_of("learner=scratch", "pair=none", "learner.prior=true", "model.features=2"))
    masks = np.zeros((2, 32, 32), np.uint8)
    masks[0, :8, :16] = 1
    masks[1, 0] = UNMARKED
    support = SupportSet(np.zeros((2, 32, 32, 3), np.uint8), masks, "none", 0)
    theta, start = learner.theta(), learner.start(support)
    (moved,) = [name for name in theta if not torch.equal(theta[name], start[name])]
    assert moved == output_bias(learner.network)
    assert start[moved].item() == pytest.approx(np.log(129 / (2 * 1024 - 32 - 128 + 1)))
    everything = SupportSet(support.images, np.ones_like(masks), "none", 0)
    assert torch.isfinite(learner.start(everything)[moved])
    ((_, at_start),) = learner.adaptation(support, [0])
    assert torch.equal(at_start.parameters[moved], start[moved])


def test_every_network_has_one_bias_of_its_logits():
    for model in ("attention_unet", "pretrained"):
        network = build_learner(settings_of("learner=scratch", "pair=none", f"model={model}")).network
        assert part_of(network, output_bias(network)) == "head"


def test_a_learner_that_trains_needs_an_optimizer():
    with pytest.raises(MetasegError, match=r"needs learner\.optimizer, found null"):
        MetaTraining(make("joint", optimizer=None)).configure_optimizers()


def test_a_learner_that_cannot_be_loaded_is_refused_in_a_sentence():
    with pytest.raises(MetasegError, match=r"metaseg\.learners\.nowhere\.Mine cannot be loaded"):
        build_learner(settings_of("learner=fomaml", "learner._target_=metaseg.learners.nowhere.Mine"))


def test_a_network_with_other_logits_than_one_for_each_pixel_is_refused():
    learner = build_learner(settings_of(*TINY, "learner=fomaml"))
    with pytest.raises(MetasegError, match=r"logits of shape \(2, 1, 8, 8\).*found \(2, 2, 8, 8\)"):
        learner.loss(torch.zeros(2, 2, 8, 8), torch.zeros(2, 1, 8, 8))


class Silent(Learner):
    """A learner that trains but has no meta_gradient."""


class Choosy(FirstOrderMAML):
    """A learner with an argument that has no default."""

    def __init__(self, *, colour: str, **settings):
        super().__init__(**settings)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("torch.nn.Identity", r"Expected a learner as learner\._target_, found torch\.nn\.Identity"),
        (f"{__name__}.Silent", r"Silent trains, but has no meta_gradient"),
        (f"{__name__}.Choosy", r"Choosy needs learner\.colour, found nothing"),
    ],
)
def test_a_class_that_does_not_keep_a_learners_contract_is_refused(kind, said):
    with pytest.raises(MetasegError, match=said):
        build_learner(settings_of(*TINY, "learner=fomaml", f"learner._target_={kind}"))


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"gradient": torch.zeros(3)}, r"must return a vector of the network's \d+ parameters, found the shape \(3,\)"),
        ({"diagnostics": {"query_loss": 1.0}}, "must report query_loss_after, found query_loss"),
    ],
)
def test_a_meta_gradient_without_what_training_needs_is_refused(monkeypatch, broken, said):
    learner, task = make("joint"), episode()
    found = learner.meta_gradient(learner.theta(), task)
    monkeypatch.setattr(learner, "meta_gradient", lambda *_: replace(found, **broken))
    with pytest.raises(MetasegError, match=said):
        MetaTraining(learner).training_step([task], 0)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda *_: None, "must return a MetaGradient, found NoneType"),
        (lambda theta, _: theta["conv.bias"].add_(0.1), "must not change theta"),
    ],
)
def test_a_meta_gradient_that_returns_nothing_or_changes_theta_is_refused(monkeypatch, broken, said):
    learner = make("joint")
    monkeypatch.setattr(learner, "meta_gradient", broken)
    with pytest.raises(MetasegError, match=said):
        MetaTraining(learner).training_step([episode()], 0)

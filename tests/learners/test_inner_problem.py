"""The inner problem of iMAML: learned strengths, step sizes, when it is solved, and what a target is adapted to by."""

import math

import pytest
import torch
from test_learners import ADAPT, EPISODIC, INNER, OPTIMIZER, episode, in_double, make, outer_steps, support_set, typed
from torch import nn

from metaseg.data.batches import Episode
from metaseg.errors import MetasegError
from metaseg.learners.base import Learner
from metaseg.learners.checkpoints import load_weights
from metaseg.learners.imaml import ImplicitMAML
from metaseg.learners.strengths import RANGE
from metaseg.meta.inner_loop import InnerLoop
from metaseg.meta.losses import LOSSES
from metaseg.meta.vectors import flatten, unflatten
from metaseg.networks.normalisation import replace_batch_norm
from metaseg.networks.rates import Rates
from metaseg.networks.stages import StagedNetwork
from metaseg.training.outer import MetaTraining
from metaseg.training.tally import Tally, still

PROXIMAL = EPISODIC["imaml"][1]["inner"]
BOUND = {"bound": {"every": 1, "share": 0.5}}
BY_LAYER = {"by": "layer", "lr": 0.1}
HELD = {"rates": {"encoder": 0, "head": 0.5}}


class Smooth(StagedNetwork):
    """A network without kinks, so that its inner problem has a minimiser with a derivative."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.encoder = nn.Conv2d(3, 2, 3, padding=1)
        self.decoder = nn.Conv2d(2, 2, 3, padding=1)
        self.norm = nn.BatchNorm2d(2)
        self.head = nn.Conv2d(2, 1, 1)

    def stage(self, part, hidden):
        if part == "encoder":
            return torch.tanh(self.encoder(hidden))
        return torch.tanh(self.norm(self.decoder(hidden))) if part == "decoder" else self.head(hidden)


def trained(learner, count):
    """θ after outer steps."""
    return outer_steps(MetaTraining(learner), count)


def smooth(curvature="hessian", **changes) -> Learner:
    inner = {"optimizer": "sgd", "lr": 0.4, "steps": 3000, "proximal": True, "tolerance": 1e-10} | HELD
    settings = {
        "network": replace_batch_norm(Smooth()),
        "loss": LOSSES["bce_log_cosh_dice"],
        "norm": "support",
        "adapt": ADAPT,
        "optimizer": OPTIMIZER,
        "inner": inner,
        "lam": 1.0,
        "cg": {"steps": 200, "tolerance": 1e-12},
        "curvature": curvature,
        "products": "autograd",
        "strengths": BY_LAYER,
    }
    learner = typed(ImplicitMAML, settings | changes).double()
    if learner.strengths is not None:
        logarithms = learner.strengths.logarithms
        logarithms.data = logarithms.data.double() + torch.linspace(-1, 1, len(logarithms), dtype=torch.float64)
    return learner


@pytest.mark.long
@pytest.mark.parametrize("staged", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_gradients_by_theta_and_by_log_lambda_are_those_of_the_solved_problem(staged, monkeypatch):
    """Central differences in float64 along random directions in θ and along every log λ, the encoder held or masked."""
    if not staged:
        monkeypatch.setattr(Rates, "held", lambda *_: None)
    task = in_double(episode(side=8))
    learner = smooth()
    theta = learner.theta()
    found = learner.meta_gradient(theta, task)
    assert found.diagnostics["unsolved"] == 0
    assert found.diagnostics["cg_negative_curvature"] == 0
    assert learner.strengths.names == ("decoder", "norm", "head")

    def query_loss(parameters):
        return learner.meta_gradient(parameters, task).diagnostics["query_loss_after"]

    flat, width = flatten(theta.values()), 1e-4
    generator = torch.Generator().manual_seed(1)
    encoder = torch.cat([torch.full((value.numel(),), name.startswith("encoder")) for name, value in theta.items()])
    for part in (encoder, ~encoder):
        direction = torch.randn(flat.shape, generator=generator, dtype=torch.float64) * part
        direction /= direction.norm()
        ahead, behind = (query_loss(unflatten(flat + sign * width * direction, theta)) for sign in (1, -1))
        assert (found.gradient @ direction).item() == pytest.approx((ahead - behind) / (2 * width), rel=1e-4)
    for place in range(3):
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                learner.strengths.logarithms[place] += sign * width
                ends.append(query_loss(theta))
                learner.strengths.logarithms[place] -= sign * width
        expected = (ends[0] - ends[1]) / (2 * width)
        assert found.by_strengths[place].item() == pytest.approx(expected, rel=1e-4, abs=1e-9)
        assert abs(expected) > 1e-6


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("norm", ["support", {"encoder": "frozen", "decoder": "support"}], ids=str)
def test_held_stages_leave_the_gradient_by_lambda_as_it_is(norm, curvature, monkeypatch):
    def gradient():
        learner = make("imaml", norm=norm, inner=PROXIMAL | HELD, curvature=curvature, strengths=BY_LAYER).double()
        return learner.meta_gradient(learner.theta(), in_double(episode()))

    fast = gradient()
    monkeypatch.setattr(Rates, "held", lambda *_: None)
    plain = gradient()
    torch.testing.assert_close(fast.by_strengths, plain.by_strengths, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(fast.gradient, plain.gradient, rtol=1e-8, atol=1e-11)
    assert fast.by_strengths.abs().min() > 0


def test_beside_a_proximal_term_the_start_counts_no_further():
    few = {"adapt": ADAPT | {"start_worth": 2.0}}
    assert make("imaml", inner=PROXIMAL, **few).fine_tuning().share_of(2) == 0.5
    assert make("imaml", inner=PROXIMAL, **few).with_adaptation(lam=0.1).fine_tuning().share_of(2) == 1
    learned = {"strengths": {"by": "part", "lr": 0.2}, "adapt": few["adapt"] | {"lam": None}}
    assert make("imaml", inner=PROXIMAL, **learned).fine_tuning().share_of(2) == 1
    assert make("imaml", inner=PROXIMAL, adapt=ADAPT | {"share": 0.7}).fine_tuning().share_of(2) == 0.7


def test_outer_steps_move_lambda_by_its_own_rate_and_the_rest_as_before():
    learner = make("imaml", strengths={"by": "part", "lr": 0.2}, inner=PROXIMAL | {"rates": {"encoder": 0}})
    plain = make("imaml", inner=PROXIMAL | {"rates": {"encoder": 0}})
    assert learner.strengths.names == ("decoder", "head")
    assert torch.equal(trained(learner, 1), trained(plain, 1))
    # Adam's first step is as long as its rate.
    moved = learner.strengths.logarithms.detach() - torch.tensor(2.0).log()
    torch.testing.assert_close(moved.abs(), torch.full((2,), 0.2), rtol=1e-3, atol=0)


def test_fine_tuning_holds_no_parameter_whose_strength_was_not_learned():
    support = support_set("flips")

    def adapted(rates, **changes):
        learner = smooth(adapt=ADAPT | {"rates": rates, "lam": None}, **changes).float()
        return learner.adapt(support)(support.clean()[0])

    unheld = {"strengths": {"by": "none", "lr": 0.1}}
    encoder_alone = {"decoder": 0, "head": 0}
    torch.testing.assert_close(adapted(encoder_alone), adapted(encoder_alone, **unheld), rtol=0, atol=0)
    assert not torch.allclose(adapted({}), adapted({}, **unheld), atol=0.01)


def test_lambda_is_logged_and_stays_in_its_range():
    learner = make("imaml", strengths={"by": "part", "lr": 50.0})
    training, seen = MetaTraining(learner), []
    training.log_dict = lambda values, **_: seen.append(values)
    outer_steps(training, 2)
    assert {"train/lambda/encoder", "train/lambda/decoder", "train/lambda/head"} < seen[0].keys()
    for row in seen:  # one step of 50 leads out of the range
        strengths = [value for name, value in row.items() if name.startswith("train/lambda/")]
        assert all(RANGE[0] * 0.999 <= value <= RANGE[1] * 1.001 for value in strengths)
        assert any(value < 2 * RANGE[0] or value > RANGE[1] / 2 for value in strengths)


@pytest.mark.long
def test_larger_strengths_hold_a_layer_closer_to_theta():
    learner = make("imaml", strengths={"by": "part", "lr": 0.1}, inner=PROXIMAL | {"lr": 0.01, "steps": 10})
    theta = learner.theta()

    def moved(part):
        adapted = learner.meta_gradient(theta, episode()).adapted
        names = [
            name for name in theta if (name in learner.strengths._group) and learner.strengths._group[name] == part
        ]
        return sum((adapted[name] - theta[name]).norm().item() for name in names)

    for place, part in enumerate(learner.strengths.names):
        before = moved(part)
        with torch.no_grad():
            learner.strengths.logarithms[place] += 3
        assert moved(part) < 0.5 * before
        with torch.no_grad():
            learner.strengths.logarithms[place] -= 3


def checkpoint_of(learner, path):
    training = MetaTraining(learner)
    checkpoint = {"state_dict": training.state_dict()}
    training.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    return path


@pytest.mark.long
def test_checkpoints_hold_lambda_and_start_learners_with_and_without_it(tmp_path):
    bound = {"bound": {"every": 1, "share": 1.0}}
    learner = make("imaml", strengths=BY_LAYER, inner=PROXIMAL | bound)
    trained(learner, 2)
    checkpoint = checkpoint_of(learner, tmp_path / "imaml.ckpt")
    again = make("imaml", strengths=BY_LAYER, inner=PROXIMAL | bound)
    load_weights(again, checkpoint)
    assert torch.equal(again.strengths.logarithms, learner.strengths.logarithms)
    assert again.inner_curvature == learner.inner_curvature > 0
    plain = make("imaml")
    load_weights(plain, checkpoint)
    assert torch.equal(flatten(plain.theta().values()), flatten(learner.theta().values()))
    assert plain.inner_curvature == 0
    # From a run without learned strengths, such as joint training, they begin at lam.
    fresh = make("imaml", strengths=BY_LAYER)
    load_weights(fresh, checkpoint_of(make("joint"), tmp_path / "joint.ckpt"))
    assert list(fresh.strengths.table().values()) == pytest.approx([2.0] * len(fresh.strengths.names))
    with pytest.raises(MetasegError, match=r"learner\.strengths\.by"):
        load_weights(make("imaml", strengths={"by": "part", "lr": 0.1}), checkpoint)


@pytest.mark.long
def test_the_step_size_follows_the_curvature_where_that_is_large():
    learner = make("imaml", inner=PROXIMAL | {"bound": {"every": 2, "share": 0.5}, "lr": 10.0})
    measured, taken = iter([100.0, 50.0]), []
    learner.curvature_of = lambda _: next(measured)
    original = learner._inner_loop

    def looked_at(theta):
        loop = original(theta)
        taken.append(loop.lr)
        return loop

    learner._inner_loop = looked_at
    trained(learner, 4)
    assert taken == [0.005, 0.005, 0.01, 0.01]
    small = make("imaml", inner=PROXIMAL | BOUND | {"lr": 1e-4})
    small.inner_curvature = 100.0
    assert small._inner_loop(small.theta()).lr == 1e-4


@pytest.mark.parametrize(("measured", "expected"), [([2.0, 5.0], 5.0), ([7.0, math.nan], 3.0)])
def test_the_curvature_of_a_step_is_the_largest_of_its_tasks(measured, expected):
    learner = make("imaml", inner=PROXIMAL | BOUND)
    learner.inner_curvature, values = 3.0, iter(measured)
    learner.curvature_of = lambda _: next(values)
    MetaTraining(learner)._measure_curvature([episode(), episode(1)])
    assert learner.inner_curvature == expected


def test_the_curvature_includes_the_learned_strengths():
    learner = make("imaml", inner=PROXIMAL | BOUND, strengths=BY_LAYER)
    learner.strengths.logarithms.data.fill_(math.log(1e4))
    assert learner.curvature_of(episode()) == pytest.approx(1e4, rel=0.1)


def test_adams_step_size_is_not_bounded():
    assert make("imaml", inner=PROXIMAL | BOUND).bound_every == 1
    assert make("imaml", inner=PROXIMAL | BOUND | {"optimizer": "adam"}).bound_every == 0


def test_without_a_proximal_term_the_inner_loop_has_none():
    assert make("imaml", inner=INNER).inner.lam == 0
    assert make("imaml", inner=PROXIMAL).inner.lam == 2


def test_training_ends_with_a_warning_where_inner_problems_were_not_solved(caplog):
    trained(make("imaml", inner=PROXIMAL | {"tolerance": 1e-6}), 2)
    assert "not solved in 2 of 2 tasks (100 %)" in caplog.text
    assert "learner.inner.tolerance=1e-06" in caplog.text


def test_warns_if_lambda_holds_phi_at_theta(caplog):
    inner = {"optimizer": "sgd", "lr": 1e-3, "steps": 50, "proximal": True, "tolerance": 0.5}
    learner = make("imaml", inner=inner, lam=1e3)
    trained(learner, 2)
    assert "less than 1 % in 2 of 2 tasks" in caplog.text
    assert "Lower learner.lam" in caplog.text


@pytest.mark.long
def test_training_that_solves_its_inner_problems_ends_without_a_warning(caplog):
    learner = make("imaml", inner=PROXIMAL | {"lr": 0.01, "steps": 300, "tolerance": 0.2}, lam=10.0)
    trained(learner, 2)
    assert "inner" not in caplog.text


def test_outer_steps_without_an_inner_loop_are_not_counted():
    tally = Tally()
    tally.add(2, {"query_loss_after": 1.0})
    assert (tally.tasks, tally.unsolved) == (0, None)
    tally.add(2, {"still": 0.0, "unsolved": 0.5})
    tally.add(2, {"still": 0.0, "unsolved": 1.0})
    assert (tally.tasks, tally.unsolved) == (4, 3)
    (words,) = tally.warnings(InnerLoop(tolerance=0.1))
    assert "3 of 4 tasks (75 %)" in words


@pytest.mark.parametrize(("share", "warnings"), [(0.5, 0), (0.75, 1)])
def test_a_warning_needs_most_tasks_to_stand_still(share, warnings):
    tally = Tally()
    tally.add(4, {"still": share})
    assert len(list(tally.warnings(InnerLoop()))) == warnings


def test_a_run_that_goes_on_counts_on_and_keeps_what_it_learned():
    training, again = (MetaTraining(make("imaml", strengths=BY_LAYER, inner=PROXIMAL | BOUND)) for _ in range(2))
    training.skipping.total = 3
    training.tally.add(4, {"still": 0.5, "unsolved": 0.25})
    outer_steps(training, 1)
    checkpoint = {"state_dict": training.state_dict()}
    training.on_save_checkpoint(checkpoint)
    again.on_load_checkpoint(checkpoint)
    assert again.skipping.total == 3
    assert again.tally.state() == training.tally.state()
    assert again.tally.tasks == 5
    assert str(again.learner.inner_state()) == str(training.learner.inner_state())


def test_maml_solves_no_inner_problem_to_count():
    tally = Tally()
    tally.add(2, {"still": 0.0})
    assert (tally.tasks, tally.unsolved) == (2, None)
    tally.take_over(tally.state())
    assert not list(tally.warnings(InnerLoop(tolerance=0.1)))


def test_still_is_relative_to_the_loss():
    for before, after, expected in ((0.05, 0.045, 0.0), (5.0, 4.96, 1.0), (1.0, 3.0, 0.0)):
        assert still({"moved": 1.0, "support_loss_before": before, "support_loss_after": after}) == {"still": expected}


def of_itself(support):
    """A task whose support and query are these images."""
    images, masks = support.clean()
    return Episode(images, masks, images, masks)


@pytest.mark.long
@pytest.mark.parametrize("rates", [{}, {"encoder": 0}])
def test_a_target_is_adapted_to_by_the_inner_problem_of_training(rates):
    inner = PROXIMAL | {"rates": rates, "tolerance": 0.3, "steps": 10}
    learner = make("imaml", inner=inner, adapt=ADAPT | {"folds": 3}, strengths=BY_LAYER)
    trained(learner, 1)
    support = support_set("flips")
    (_, at_start), (_, logits) = learner.trial(of_itself(support))
    assert not torch.allclose(at_start, logits, atol=0.1)
    adapted = learner.after_inner(support)
    torch.testing.assert_close(adapted(support.clean()[0]), logits.sigmoid(), rtol=1e-4, atol=1e-5)


def test_a_target_of_larger_curvature_has_a_smaller_step_size():
    learner, support = make("imaml", inner=PROXIMAL | BOUND | {"lr": 10.0}), support_set()
    own = learner.curvature_of(of_itself(support))
    for known, expected in ((own / 2, own), (2 * own, 2 * own)):
        learner.inner_curvature = known
        tuning, _ = learner._inner_tuning(support)
        assert tuning.loop.lr == pytest.approx(0.5 / expected)


def test_the_inner_problem_of_a_target_is_whole_and_followed_to_its_end():
    learner = make("imaml", inner=PROXIMAL, adapt=ADAPT | {"batch": 2, "share": 0.5, "folds": 2})
    tuning, support = learner._inner_tuning(support_set("flips"))
    assert (tuning.batch, tuning.share, tuning.folds, support.augmentation) == (None, 1, 0, "none")


@pytest.mark.long
def test_learned_strengths_hold_the_recipe_too_where_it_names_no_lambda():
    def recipe(lam, strengths=BY_LAYER):
        adapt = {"optimizer": "sgd", "lr": 1e-4, "steps": 20, "lam": lam}
        return make("imaml", adapt=adapt, strengths=strengths, lam=1000.0)

    def way(learner):
        theta = flatten(learner.theta().values())
        return (flatten(learner.adapt(support_set()).parameters.values()) - theta).norm().item()

    free, learned = way(recipe(0.0)), recipe(None)
    assert way(recipe(None, {"by": "none", "lr": 0.1})) == pytest.approx(free)
    assert way(learned) < 0.5 * free
    assert way(learned) == pytest.approx(way(recipe(1000.0)), rel=1e-4)
    assert way(learned.with_adaptation(lam=0.0)) == pytest.approx(free)
    assert way(learned.with_adaptation(lam=5000.0)) < 0.5 * way(learned)


def test_learners_without_an_inner_loop_have_no_inner_adaptation():
    assert make("joint").after_inner(support_set()) is None
    assert make("fomaml").after_inner(support_set()) is not None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strengths": {"by": "pixel", "lr": 0.1}}, "learner.strengths.by .*none, part, layer.*pixel"),
        ({"strengths": {"by": "part", "lr": 0}}, "learner.strengths.lr"),
        ({"strengths": BY_LAYER, "inner": INNER}, "learner.inner.proximal"),
    ],
)
def test_refuses_invalid_inner_problem_settings(changes, words):
    with pytest.raises(MetasegError, match=words):
        make("imaml", **changes)

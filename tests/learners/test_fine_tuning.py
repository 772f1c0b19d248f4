"""How far a learner follows the descent on a target's support set."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from test_learners import make

from metaseg.data.batches import SupportSet, image_tensor
from metaseg.errors import MetasegError
from metaseg.evaluation.scores import dice
from metaseg.learners.fine_tuning import SHARES, FineTuning, chosen_share, held_out, turns
from metaseg.learners.side_by_side import SideBySide
from metaseg.meta.inner_loop import InnerLoop
from metaseg.meta.losses import LOSSES, UNMARKED
from metaseg.meta.vectors import flatten
from metaseg.networks.build import build
from metaseg.networks.functional import forward
from metaseg.networks.norms import Norms
from metaseg.networks.rates import Rates
from metaseg.networks.segmenter import AdaptedNetwork, Ensemble


def tuning(folds=2, norm="support", steps=20, rates=None) -> FineTuning:
    network = build(name="attention_unet", features=2, seed=1)
    return FineTuning(
        network=network,
        loss=LOSSES["bce_log_cosh_dice"],
        norms=Norms.of(network, norm),
        loop=InnerLoop("adam", lr=0.02, steps=steps),
        rates=Rates.of(network, "rates", rates),
        folds=folds,
        flips=False,
        device=torch.device("cpu"),
        memory_format=torch.contiguous_format,
    )


def theta(of: FineTuning):
    return {name: value.detach() for name, value in of.network.named_parameters()}


def discs(count, seed, bright=True):
    """Discs on noise; the mask is the disc where it is bright, else everything around it."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:32, :32]
    centres = generator.uniform(10, 22, (count, 2, 1, 1))
    inside = (rows - centres[:, 0]) ** 2 + (columns - centres[:, 1]) ** 2 < 40
    images = generator.integers(0, 90, (count, 32, 32, 3)) + 120 * inside[..., None]
    return SupportSet(images.astype(np.uint8), (inside if bright else ~inside).astype(np.uint8), "none", seed=0)


def contradicting():
    """The first half says the opposite of the second, so that no half serves the other."""
    one, other = discs(3, 1), discs(3, 2, bright=False)
    return SupportSet(np.concatenate([one.images, other.images]), np.concatenate([one.masks, other.masks]), "none", 0)


def divided(support, folds):
    """The rest and the part, as support sets, for each part that is held out."""
    everything = np.arange(len(support.images))
    parts = held_out(len(everything), folds)
    return [(support.only(np.setdiff1d(everything, part)), support.only(part)) for part in parts]


def share_of(way, segmenter, start):
    """Which share of the way from θ to φ the segmenter's parameters lie at."""
    moved = flatten(segmenter.parameters.values()) - start
    share = float(moved @ way / (way @ way))
    torch.testing.assert_close(moved, share * way, rtol=1e-3, atol=1e-5)
    return share


def first(segmenter):
    """The network adapted to all support images."""
    return segmenter.members[0] if isinstance(segmenter, Ensemble) else segmenter


def adapted_share(support, at=10, **changes):
    of = replace(tuning(), **changes)
    start = flatten(theta(of).values())
    whole = dict(replace(of, folds=0, share=1.0).run(theta(of), support, [at]))
    found = dict(of.run(theta(of), support, [at]))
    return share_of(flatten(whole[at].parameters.values()) - start, first(found[at]), start)


def test_images_that_serve_one_another_are_followed_further():
    assert adapted_share(discs(6, 3)) > 0.7


@pytest.mark.long
def test_images_that_contradict_one_another_are_followed_less():
    assert adapted_share(contradicting()) < 0.6


@pytest.mark.long
def test_the_share_is_chosen_by_dice_of_held_out_images():
    of, support = tuning(folds=3, steps=10), contradicting()
    start = flatten(theta(of).values())
    by_hand = [[] for _ in SHARES]
    for rest, part in divided(support, 3):
        ((_, end),) = replace(of, folds=0).run(theta(of), rest, [10])
        for row, share in enumerate(SHARES):
            parameters = {name: value.lerp(end.parameters[name], share) for name, value in theta(of).items()}
            images, masks = part.clean()
            with torch.no_grad():
                statistics = forward(of.network, parameters, rest.clean()[0])[1]
                logits = forward(of.network, parameters, images, statistics)[0]
            by_hand[row] += dice((logits > 0)[:, 0].numpy(), masks[:, 0].numpy() > 0).tolist()
    whole = dict(replace(of, folds=0).run(theta(of), support, [10]))
    found = dict(of.run(theta(of), support, [10]))
    share = share_of(flatten(whole[10].parameters.values()) - start, first(found[10]), start)
    assert share == pytest.approx(chosen_share(np.array(by_hand)), abs=1e-3)
    followed = found[10].followed
    assert followed.share == chosen_share(np.array(by_hand))
    assert followed.held_out == pytest.approx(dict(zip(SHARES, np.mean(by_hand, 1), strict=True)), abs=1e-6)
    torch.testing.assert_close(found[10].alone.parameters, whole[10].parameters)


def test_held_out_images_are_scored_where_they_are_marked():
    of, support = replace(tuning(), loop=InnerLoop("sgd", 1e-12, 1)), discs(4, 3)
    support.masks[:, :16] = UNMARKED
    ((_, found),) = of.run(theta(of), support, [1])
    values = []
    for rest, part in divided(support, 2):
        statistics = forward(of.network, theta(of), rest.clean()[0])[1]
        logits = forward(of.network, theta(of), part.clean()[0], statistics)[0][:, 0, 16:]
        values += dice(logits > 0, part.masks[:, 16:]).tolist()
    assert found.followed.held_out == pytest.approx(dict.fromkeys(SHARES, np.mean(values)), abs=1e-6)


def test_smallest_share_within_one_standard_error_is_chosen():
    best = np.array([0.5, 0.6, 0.7, 0.8, 0.9])
    assert chosen_share(np.stack([best - 0.1, best - 0.05, best])) == SHARES[2]
    assert chosen_share(np.stack([best - 0.1, best, best])) == SHARES[1]
    spread = 0.03 * np.array([4, -1, -1, -1, -1])  # a standard error of 0.03
    for behind, expected in ((0.029, SHARES[1]), (0.031, SHARES[2])):
        assert chosen_share(np.stack([best - 1, best - behind - spread, best])) == expected


@pytest.mark.long
def test_predictions_average_the_fold_networks():
    of, support = tuning(folds=3, steps=10), contradicting()
    start = flatten(theta(of).values())
    ((_, ensemble),) = of.run(theta(of), support, [10])
    ends = [dict(replace(of, folds=0).run(theta(of), rest, [10]))[10] for rest, _ in divided(support, 3)]
    assert len(ensemble.members) == 4
    shares = [
        share_of(flatten(end.parameters.values()) - start, member, start)
        for end, member in zip(ends, ensemble.members[1:], strict=True)
    ]
    assert shares == pytest.approx([shares[0]] * 3, abs=1e-3)
    assert min(abs(shares[0] - share) for share in SHARES) < 1e-3
    # All are normalised with all support images, whatever they were adapted to.
    for member in ensemble.members:
        expected = forward(of.network, member.parameters, support.clean()[0])[1]
        torch.testing.assert_close(member.statistics, expected)
    images = image_tensor(discs(4, 9).images)
    mean = torch.stack([member(images) for member in ensemble.members]).mean(0)
    torch.testing.assert_close(ensemble(images), mean)


@pytest.mark.parametrize("folds", [3, 5])
def test_a_part_may_be_a_single_image(folds):
    ((_, ensemble),) = tuning(folds=folds, steps=2).run(theta(tuning()), discs(5, 3), [2])
    assert len(ensemble.members) == folds + 1
    assert ensemble(image_tensor(discs(2, 9).images)).shape == (2, 1, 32, 32)


def test_no_ensemble_before_the_first_step_or_without_folds():
    of, support = tuning(steps=2), discs(4, 3)
    found = dict(of.run(theta(of), support, [0, 2]))
    assert isinstance(found[0], AdaptedNetwork)
    assert isinstance(found[2], Ensemble)
    assert isinstance(dict(replace(of, folds=0).run(theta(of), support, [2]))[2], AdaptedNetwork)


@pytest.mark.long
def test_yielding_steps_does_not_change_the_descent():
    of, support = tuning(steps=10), contradicting()
    alone = dict(of.run(theta(of), support, [10]))
    among = dict(of.run(theta(of), support, [0, 1, 5, 10]))
    images = image_tensor(discs(2, 9).images)
    assert sorted(among) == [0, 1, 5, 10]
    torch.testing.assert_close(alone[10](images), among[10](images))
    assert all(torch.equal(among[0].parameters[name], value) for name, value in theta(of).items())


def test_a_schedule_does_not_depend_on_where_one_looks():
    of, support = replace(tuning(folds=0), loop=InnerLoop("sgd", 0.1, 20, schedule="cosine")), discs(4, 3)
    alone, among = (dict(of.run(theta(of), support, at))[2] for at in ([2], [2, 20]))
    assert all(torch.equal(value, among.parameters[name]) for name, value in alone.parameters.items())


@pytest.mark.parametrize("norm", ["support", "batch", "running"])
def test_every_kind_of_statistics_can_be_weighed(norm):
    of = tuning(norm=norm, steps=3)
    ((_, found),) = of.run(theta(of), discs(5, 3), [3])
    assert torch.isfinite(found(image_tensor(discs(2, 9).images))).all()


def test_running_statistics_follow_a_tenth_of_the_way():
    of, support = tuning(folds=0, norm="running", steps=1), discs(4, 3)
    ((_, found),) = of.run(theta(of), support, [1])
    for name, (mean, variance) in forward(of.network, theta(of), support.clean()[0])[1].items():
        torch.testing.assert_close(found.statistics[name], (0.1 * mean, 0.9 + 0.1 * variance))


@pytest.mark.parametrize(("images", "folds", "expected"), [(1, 2, 1 / 3), (2, 0, 1 / 2), (5, 0, 5 / 7)])
def test_where_none_is_held_out_the_start_counts_as_further_images(images, folds, expected):
    found = adapted_share(discs(images, 3), at=5, folds=folds, start_worth=2)
    assert found == pytest.approx(expected, abs=1e-3)
    assert adapted_share(discs(images, 3), at=5, folds=folds) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("count", "folds", "sizes"), [(5, 2, [3, 2]), (3, 7, [1, 1, 1]), (1, 2, []), (4, 0, [])])
def test_every_image_is_held_out_once(count, folds, sizes):
    parts = held_out(count, folds)
    assert [len(part) for part in parts] == sizes
    if parts:
        assert np.array_equal(np.concatenate(parts), np.arange(count))


@pytest.mark.long
@pytest.mark.parametrize("norm", ["support", "batch", "running", {"encoder": "frozen", "decoder": "support"}], ids=str)
def test_running_held_stages_once_does_not_change_results(norm, monkeypatch):
    frozen = {"encoder": 0, "decoder": 1, "head": 0.5}
    support = SupportSet(discs(5, 3).images, discs(5, 3).masks, "flips", seed=0)
    fast = tuning(norm=norm, steps=4, rates=frozen)
    ((_, expected),) = fast.run(theta(fast), support, [4])
    monkeypatch.setattr(Rates, "held", lambda *_: None)
    plain = tuning(norm=norm, steps=4, rates=frozen)
    ((_, found),) = plain.run(theta(plain), support, [4])
    for one, other in zip(expected.members, found.members, strict=True):
        for name, value in one.parameters.items():
            torch.testing.assert_close(value, other.parameters[name], rtol=1e-3, atol=1e-5)
            held = name.startswith(("encoder", "bottleneck"))
            assert torch.equal(value, theta(fast)[name]) == held, name


def test_images_are_augmented_once_a_step_for_all_members(monkeypatch):
    asked = []
    original = SupportSet.augmented
    monkeypatch.setattr(
        SupportSet, "augmented", lambda self, step, rows: (asked.append(step), original(self, step, rows))[1]
    )
    of = tuning(folds=3, steps=4)
    support = SupportSet(discs(5, 3).images, discs(5, 3).masks, "flips", seed=0)
    list(of.run(theta(of), support, [4]))
    assert sorted(asked)[:4] == [0, 1, 2, 3]
    assert len(asked) == len(set(asked)) <= 5  # one is prepared ahead


def test_progress_counts_the_steps():
    seen = []
    of = tuning(steps=3)
    list(of.run(theta(of), discs(4, 3), [3], lambda done, total: seen.append((done, total))))
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.long
def test_flips_average_mirrored_predictions():
    of = tuning(folds=2)
    images = image_tensor(discs(2, 9).images)
    ((_, plain),) = of.run(theta(of), discs(4, 3), [2])
    ((_, flipped),) = replace(of, flips=True).run(theta(of), discs(4, 3), [2])
    for axes in ((-1,), (-2,), (-2, -1)):
        torch.testing.assert_close(flipped(images.flip(axes)), flipped(images).flip(axes))
    assert not torch.allclose(plain(images.flip(-1)), plain(images).flip(-1), atol=1e-3)
    views = [plain(images.flip(axes)).flip(axes) for axes in ((), (-1,), (-2,), (-2, -1))]
    torch.testing.assert_close(flipped(images), torch.stack(views).mean(0))


def test_batches_use_every_image_once_before_any_again():
    rows = np.array([1, 3, 4, 7, 8])
    drawn = [batch for batch, _ in zip(turns(rows, 2, (0, 0)), range(9), strict=False)]

    assert {len(batch) for batch in drawn} == {1, 2}
    for first in (0, 3, 6):
        assert sorted(np.concatenate(drawn[first : first + 3])) == sorted(rows)
    assert any(set(drawn[0]) != set(batch) for batch in drawn[3::3])


@pytest.mark.parametrize("batch", [None, 5, 9])
def test_a_batch_of_all_images_is_the_plain_path(batch):
    drawn = turns(np.arange(5), batch, (0, 0))

    assert all(list(next(drawn)) == [0, 1, 2, 3, 4] for _ in range(3))


@pytest.mark.parametrize(
    ("images", "changes"),
    [
        (5, {"folds": 0}),
        (5, {"folds": 2, "flips": True}),
        (5, {"folds": 3, "batch": 2}),
        (1, {"folds": 2, "flips": True}),
    ],
)
def test_the_passes_foretold_are_those_taken(images, changes):
    of, counts, before = replace(tuning(), **changes), [0], []
    *_, head = of.network.modules()
    head.register_forward_pre_hook(lambda _, inputs: counts.append(counts[-1] + len(inputs[0])))
    ((_, segmenter),) = of.run(theta(of), discs(images, 3), [6], lambda step, last: before.append(counts[-1]))
    taken = before[-1]
    counts.append(0)
    segmenter(image_tensor(discs(7, 4).images))

    assert (taken / 6, counts[-1] / 7) == of.passes(images)


@pytest.mark.parametrize("batch", [None, 2])
def test_a_network_does_not_learn_from_the_images_that_it_is_tested_on(batch):
    support, part = discs(6, 1), held_out(6, 2)[0]
    images = support.images.copy()
    images[part] = 255 - images[part]
    found = []
    for shown in (support.images, images):
        given = SupportSet(shown, support.masks, "none", seed=0)
        ((_, segmenter),) = replace(tuning(folds=2, norm="batch"), batch=batch, share=1.0).run(
            theta(tuning()), given, [2]
        )
        found.append([member(image_tensor(discs(2, 5).images)) for member in segmenter.members])
    same = [torch.equal(one, other) for one, other in zip(*found, strict=True)]
    assert same == [
        False,
        True,
        False,
    ]  # of the network of all images, the one without this part, and without the other


@pytest.mark.long
def test_networks_fine_tuned_side_by_side_are_those_fine_tuned_in_turn(kept_threads):
    # Adam's first steps follow the sign of a gradient, so that the rounding of another number of threads would show.
    of = replace(tuning(folds=2), loop=InnerLoop("sgd", lr=0.5, steps=2))
    support, found = contradicting(), []
    for threads in (1, 4):
        torch.set_num_threads(threads)
        ((_, ensemble),) = of.run(theta(of), support, [2])
        found.append([member.parameters for member in ensemble.members])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found[0][1]["conv.weight"], found[0][2]["conv.weight"], atol=1e-3)


def test_what_is_computed_side_by_side_shares_the_threads_and_gives_them_back(kept_threads):
    def where(number):
        return number, torch.get_num_threads(), threading.current_thread() is threading.main_thread()

    torch.set_num_threads(4)
    for device, threads, here in (("cpu", 2, False), ("cuda", 4, True)):
        with SideBySide(2, torch.device(device)) as side_by_side:
            found = side_by_side([partial(where, number) for number in range(3)])
        assert found == [(number, threads, here) for number in range(3)]
        with ThreadPoolExecutor(1) as later:
            assert later.submit(where, 0).result() == (0, 4, False)


def test_a_given_share_is_not_chosen():
    ((_, segmenter),) = replace(tuning(folds=2), share=1.0).run(theta(tuning()), contradicting(), [2])

    assert segmenter.followed.share == 1
    assert not segmenter.followed.held_out


@pytest.mark.parametrize("wrong", [{"folds": -3}, {"share": 7.0}, {"batch": 0}, {"lr": float("nan")}, {"foo": 1}])
def test_an_adaptation_out_of_range_is_refused(wrong):
    with pytest.raises(MetasegError, match=next(iter(wrong))):
        make("scratch").with_adaptation(**wrong)


def test_a_changed_adaptation_is_that_of_the_copy_alone():
    learner = make("scratch")
    changed = learner.with_adaptation(steps=2, batch=1, rates={"encoder": 0.0}).fine_tuning()
    assert (changed.loop.steps, changed.batch, changed.rates.by_part["encoder"]) == (2, 1, 0)
    assert (learner.adapt_loop.steps, learner.batch, learner.fine_tuning().rates.by_part["encoder"]) == (25, None, 1)

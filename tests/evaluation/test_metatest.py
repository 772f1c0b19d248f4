"""Scores before adaptation, after the inner problem of training, and after all of it."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import settings_of

from metaseg.data.module import Target
from metaseg.data.pools import prepare_arrays
from metaseg.evaluation.intervals import bootstrap_interval
from metaseg.evaluation.metatest import (
    Scores,
    drawn,
    from_scratch,
    groups_of,
    limited,
    of_curve,
    per_image_rows,
    score_target,
    stops,
    summarise,
    trivial_baselines,
)
from metaseg.evaluation.sharing import Share
from metaseg.networks.segmenter import Ensemble, Followed
from metaseg.runs.result import plain

HOW = settings_of(
    "shots=3", *(f"evaluation.{one}" for one in ("draws=2", "limit=8", "batch=3", "curve=[0,2]", "curve_limit=4"))
)


def replaced(seed=0, **evaluation):
    return HOW.model_copy(update={"seed": seed, "evaluation": HOW.evaluation.model_copy(update=evaluation)})


def saying(probability):
    return lambda images: torch.full((len(images), 1, *images.shape[2:]), probability)


class Adapting:
    """Nothing is foreground before adaptation, everything after the inner problem, and nothing at the end."""

    device = torch.device("cpu")

    def __init__(self, inner):
        self.adapt_loop, self.inner, self.asked = SimpleNamespace(steps=2, schedule="constant"), inner, []

    def after_inner(self, support):
        self.asked.append(support)
        return saying(1.0) if self.inner else None

    def adaptation(self, support, at, progress):
        yield from ((step, saying(0.0)) for step in sorted(set(at)))


@pytest.fixture
def target():
    images = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    return Target.of(prepare_arrays("kvasir", images, (images[..., 0] > 127).astype(np.uint8)), 0, 0)


def test_the_inner_problem_is_scored_on_the_same_images(target):
    learner = Adapting(inner=True)
    scores = score_target(learner, target, HOW)
    assert len(learner.asked) == HOW.evaluation.draws
    assert np.array_equal(np.isnan(scores.inner), np.isnan(scores.after))
    assert np.nanmax(scores.after) == 0
    masks = target.pool.take(np.arange(12))[1].reshape(12, -1).mean(1)
    expected = np.broadcast_to(2 * masks / (1 + masks), scores.inner.shape)
    known = ~np.isnan(scores.inner)
    np.testing.assert_allclose(scores.inner[known], expected[known], rtol=1e-6)
    assert summarise(scores, target, 0, {}).dsc_inner.mean == pytest.approx(float(np.nanmean(scores.inner)))


def test_each_draw_is_augmented_by_a_seed_of_its_own(target):
    learner = Adapting(inner=True)
    score_target(learner, target, replaced(seed=5))
    assert [support.seed for support in learner.asked] == [5, 6]


def test_the_curve_has_images_even_if_its_subset_holds_none_that_are_scored(target):
    for seed in range(20):
        settings = replaced(seed=seed, limit=2, curve_limit=1)
        _, scored = drawn(target, settings, 0)
        assert len(of_curve(target, settings, scored)) == 1
        assert np.isin(of_curve(target, settings, scored), scored).all()


def test_the_curve_is_of_its_own_subset(target):
    scores = score_target(Adapting(inner=False), target, HOW)
    assert len(scores.curve) == 2
    for matrix in scores.curve.values():
        for draw, row in enumerate(matrix):
            expected = of_curve(target, HOW, drawn(target, HOW, draw)[1])
            assert np.flatnonzero(~np.isnan(row)).tolist() == sorted(expected)


def test_intervals_are_over_groups_of_images(target):
    target = replace(target, pool=replace(target.pool, groups=np.arange(len(target.pool)) // 3))
    scores = Scores.empty(2, len(target.pool))
    matrices = np.random.default_rng(1).random((3, *scores.after.shape))
    scores.after, scores.before, scores.curve[0] = matrices
    found = summarise(scores, target, 0, {})
    after, before, curve = (np.clip(bootstrap_interval(one, groups=target.pool.groups), 0, 1) for one in matrices)
    for part, expected in ((found.dsc, after), (found.dsc_before, before), (from_scratch(scores, target, 0), after)):
        assert (part.mean, part.low, part.high) == tuple(expected)
    assert ([found.curve.dsc, found.curve.low, found.curve.high] == curve[:, None]).all()


def test_the_entries_of_a_target_by_hand(target):
    scores = Scores.empty(2, len(target.pool))
    scores.before[:, :2], scores.after[:, :2] = [[0.1, 0.3], [0.2, 0.4]], [[0.5, 0.7], [0.6, 0.8]]
    scores.iou_before[:, :2], scores.iou_after[:, :2] = [[0.0, 0.2], [0.1, 0.3]], [[0.4, 0.6], [0.5, 0.7]]
    scores.overlap[:, :2], scores.total[:, :2] = [[3, 1], [2, 0]], [[10, 4], [5, 1]]
    found = summarise(scores, target, 0, {})
    assert (found.dsc_before.mean, found.dsc.mean) == pytest.approx((0.25, 0.65))
    assert (found.iou_before, found.iou) == pytest.approx((0.15, 0.55))
    assert found.pooled_dsc == pytest.approx(2 * 6 / 20)
    assert (found.images, found.draws) == (2, 2)


def test_intersection_over_union_and_pixel_counts_are_those_of_the_end(target):
    learner = Adapting(inner=False)
    learner.adaptation = lambda *_, **__: iter([(0, saying(0.0)), (2, saying(1.0))])
    scores = score_target(learner, target, HOW)
    known = ~np.isnan(scores.after)
    assert (scores.before[known] == 0).all()
    assert (scores.after[known] > 0.3).all()
    np.testing.assert_allclose(scores.iou_after, scores.after / (2 - scores.after))
    np.testing.assert_allclose(2 * scores.overlap / scores.total, scores.after)
    assert not any(mask.any() for mask in scores.pictures["before"].values())
    assert all(mask.all() for mask in scores.pictures["after"].values())
    for row in per_image_rows("kvasir", target, scores):
        assert row["iou_after"] == pytest.approx(row["dsc_after"] / (2 - row["dsc_after"]))


def test_trivial_baselines_are_scored_on_the_images_that_learners_are(target):
    share = target.pool.masks.mean((1, 2))
    expected = [(2 * share / (1 + share))[drawn(target, HOW, draw)[1]].mean() for draw in range(HOW.evaluation.draws)]
    assert trivial_baselines(target, HOW)["all_foreground"] == pytest.approx(np.mean(expected))


def test_every_draw_scores_as_many_images_as_the_limit_allows(target):
    assert {len(drawn(target, HOW, draw)[1]) for draw in range(20)} == {HOW.evaluation.limit}
    assert not np.array_equal(limited(target, 5, 0), limited(target, 5, 1))


def test_a_limit_takes_images_from_all_over_the_target(target):
    """Ids follow patients and videos, so none of them may be left out for its place."""
    times = np.zeros(len(target.pool), int)
    for seed in range(200):
        for draw in range(HOW.evaluation.draws):
            times[drawn(target, replaced(seed=seed), draw)[1]] += 1
    assert times.min() > 0.75 * times.mean()


def test_blocks_of_one_video_are_one_group(target):
    pool = replace(target.pool, groups=np.arange(12) // 3)
    groups = [groups_of(replace(target, pool=replace(pool, blocks=blocks))) for blocks in (False, True)]
    assert [len(np.unique(of_images)) for of_images in groups] == [4, 1]


@pytest.mark.parametrize(("schedule", "steps"), [("constant", [0, 4, 0, 2, 8]), ("cosine", [0, 4, 0, 2])])
def test_a_schedule_that_decays_has_no_further_steps(schedule, steps):
    assert stops(SimpleNamespace(steps=4, schedule=schedule), replaced(curve=(0, 2, 8))) == (4, steps)


def test_learners_without_an_inner_problem_have_no_score_of_it(target):
    assert "dsc_inner" not in plain(summarise(score_target(Adapting(inner=False), target, HOW), target, 0, {}))


def test_the_single_network_is_scored_besides_the_recipe(target):
    learner = Adapting(inner=False)
    recipe = Ensemble((saying(0.0),), flips=False, alone=saying(1.0), followed=Followed(0.5, {0.5: 0.8, 1.0: 0.7}))
    learner.adaptation = lambda support, at, progress: iter([(0, saying(0.0)), (2, recipe)])
    scores = score_target(learner, target, HOW)
    assert np.array_equal(np.isnan(scores.alone), np.isnan(scores.after))
    found = summarise(scores, target, 0, {})
    assert found.dsc.mean == 0
    assert found.dsc_alone.mean > 0.1
    assert plain(found)["followed"] == [{"alpha": 0.5, "held_out": {"0.5": 0.8, "1": 0.7}}] * HOW.evaluation.draws


class OfTheBatch(Adapting):
    """Predictions that depend on the images beside an image, as with model.norm=batch, and on the support set."""

    def adaptation(self, support, at, progress):
        def segmenter(images):
            return torch.sigmoid(images.mean(1, keepdim=True) - images.mean() + float(support.images.mean() / 1e3))

        recipe = Ensemble((segmenter,), flips=False, alone=segmenter, followed=Followed(0.5, {0.5: 0.8, 1.0: 0.7}))
        yield from ((step, recipe if step else segmenter) for step in sorted(set(at)))


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_processes_that_share_a_test_score_bitwise_what_one_does(target, processes):
    learner = OfTheBatch(inner=True)
    alone = score_target(learner, target, HOW)
    parts = [score_target(learner, target, HOW, share=Share(rank, processes)) for rank in range(processes)]
    if processes > 1:
        assert not any(np.isfinite(part.after).all() for part in parts)
    # Nothing is scored twice.
    assert sum(np.isfinite(part.after).astype(int) for part in parts).max() == 1
    whole = Scores.whole(parts)
    for name in ("before", "inner", "alone", "after", "iou_before", "iou_after", "overlap", "total"):
        assert np.array_equal(getattr(whole, name), getattr(alone, name), equal_nan=True)
    assert list(whole.curve) == list(alone.curve)
    for step, values in alone.curve.items():
        assert np.array_equal(whole.curve[step], values, equal_nan=True)
    assert whole.followed == alone.followed
    assert np.isfinite(whole.seconds).all()
    for when, masks in alone.pictures.items():
        assert whole.pictures[when].keys() == masks.keys()
        assert all(np.array_equal(whole.pictures[when][image], mask) for image, mask in masks.items())

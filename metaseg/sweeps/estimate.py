"""Estimate the time and memory of a cell on this machine from one measured step of each kind.

A step is measured on two and on four images: with small images, call overhead dominates, so time is modelled as a fixed
part per step plus a part per image. Memory is modelled likewise; the process's own memory, for parameters and
libraries, comes on top. On a CPU large networks are measured on smaller images, since their steps take minutes, and the
part per image grows with its pixels.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from metaseg.data.batches import Episode, SupportSet
from metaseg.data.module import TARGET_TEST_SHARE, image_count
from metaseg.evaluation.metatest import stops
from metaseg.learners.base import Learner
from metaseg.learners.build import build_learner
from metaseg.learners.fine_tuning import images_per_step, sizes
from metaseg.memory import finish_on, of_call, tidy
from metaseg.networks.comparing import ComparingNetwork
from metaseg.networks.segmenter import VIEWS, Segmenter
from metaseg.runs.provenance import check_gpu
from metaseg.runs.schema import Adapt, Run

IMAGES = 2
"""Images in the smaller of two measured steps; the larger has twice as many."""
SLOW = 0.1
"""Seconds of segmenting `IMAGES` images on a CPU above which steps are measured on images of half the side [D]."""
SMALLEST = 64
"""Side in pixels of the smallest such images [D]."""
LONG = 1.0
"""Seconds of a call on a CPU that is not repeated, as warming up hardly counts in it [D]."""


@dataclass(frozen=True)
class LinearCost:
    """Seconds or MiB of a step: a fixed part, a part per (support) image, and a part per query image."""

    fixed: float = 0.0
    image: float = 0.0
    query: float = 0.0

    def of(self, images: float, query: int = 0) -> float:
        """The cost of a step with these numbers of (support) images and query images."""
        return self.fixed + images * self.image + query * self.query

    def larger(self, area: float) -> "LinearCost":
        """The cost of a step on images with `area` times as many pixels."""
        return LinearCost(self.fixed, area * self.image, area * self.query)


@dataclass(frozen=True)
class StepCosts:
    """Seconds and peak MiB of a step of each kind; `outer_mib` counts support and query images alike.

    `passing`: seconds of passing the images of a task once, the unit of ``trainer.max_passes``; zero without that.
    """

    outer: LinearCost
    validation: LinearCost
    adaptation: LinearCost
    prediction: LinearCost
    outer_mib: LinearCost
    adaptation_mib: LinearCost
    prediction_mib: LinearCost
    passing: LinearCost = LinearCost()


def kind(settings: Run) -> str:
    """The settings that determine the cost of a step, as JSON; equal for cells whose steps cost the same per image."""
    return settings.model_dump_json(
        include={"learner": True, "model": True, "loss": True, "data": {"size", "augment"}, "trainer": {"max_passes"}},
        exclude={"learner": {"name", "train_on", "unlabelled"}},
    )


def measure(settings: Run) -> StepCosts:
    """Measure outer steps, validation, an adaptation step and a prediction on random images.

    Pre-trained weights are not loaded, since they do not affect the cost and may need a download.

    Raises:
        MetasegError: settings that a run would refuse.
    """
    device = "cuda" if settings.trainer.accelerator != "cpu" and torch.cuda.is_available() else "cpu"
    if device == "cuda":
        check_gpu()
    adapt = settings.learner.adapt.model_copy(update={"folds": 0})
    alone = settings.learner.model_copy(update={"adapt": adapt})
    learner = build_learner(settings, alone, initial_weights=False).to(device)
    size = _affordable(learner, settings) if device == "cpu" else settings.data.size
    drawn = [_random(settings, count, size, device) for count in (IMAGES, 2 * IMAGES)]
    cost, peak = (partial(_cost, drawn=drawn, device=device, measured=one) for one in (_seconds, _mib))
    outer = validation = passing = outer_mib = adaptation_mib = LinearCost()
    if learner.trains:
        theta = learner.theta()
        outer = _outer(lambda episode: learner.meta_gradient(theta, episode), drawn[0][1], drawn[1][1], device)
        outer_mib = peak(lambda one: learner.meta_gradient(theta, one[1]), of_each=2)
        validation = cost(lambda one: learner.trial(one[1]), of_each=2)
        if settings.trainer.max_passes is not None and not isinstance(learner.network, ComparingNetwork):
            passing = cost(lambda one: learner.plain_gradient(theta, one[1]), of_each=2)
    segmenter = _segmenter(learner, drawn[0][0])
    prediction = cost(lambda one: segmenter(one[1].query_images))
    adaptation = _line(*(_adaptation(learner, support, device) for support, _ in drawn))
    if learner.adapt_loop.steps:
        adaptation_mib = peak(lambda one: list(learner.adaptation(one[0], [1])))
    prediction_mib = peak(lambda one: segmenter(one[1].query_images))
    costs = (outer, validation, adaptation, prediction, outer_mib, adaptation_mib, prediction_mib, passing)
    return StepCosts(*(one.larger((settings.data.size / size) ** 2) for one in costs))


def of_cell(settings: Run, step: StepCosts, steps_done: int = 0) -> tuple[float, float]:
    """Seconds and MiB of one cell, or of the training of a shared start.

    Args:
        settings: its resolved settings.
        step: the result of `measure` for its kind.
        steps_done: outer steps already taken.
    """
    tasks, epochs, budget = settings.tasks, settings.trainer.max_epochs, settings.trainer.max_passes
    pools = 1 if settings.learner.train_on == "target" else max(1, len(settings.pair.pools))
    mixed = tasks.mixing == "mixed"
    shots, query = (number * (pools if mixed else 1) for number in (settings.shots, tasks.query))
    images = shots + query
    per_step = tasks.per_step * (1 if mixed else pools)
    learns = step.outer != LinearCost()
    training = 0.0
    if settings.train and learns:
        steps = max(1, epochs * tasks.in_epoch(pools) // per_step)
        seconds = steps * per_step * step.outer.of(shots, query)
        tests = epochs * tasks.validation * (1 if mixed else pools) * step.validation.of(images)
        share = 1.0 if budget is None else min(1.0, budget * step.passing.of(images) / images / seconds)
        training = max(0.0, share - steps_done / steps) * (seconds + tests)
    adapt, inner = settings.learner.adapt, settings.learner.inner
    testing = _testing(settings, step, adapt, inner.steps if inner else 0)
    if settings.evaluation.scratch.compare and learns:
        testing += _testing(settings, step, settings.protocol.adapt)
    mib = max(
        step.outer_mib.of(images),
        # Networks of an ensemble take turns: all parameters and moments are in memory, but images of only one network.
        len(sizes(settings.shots, adapt.folds)) * step.adaptation_mib.fixed
        + math.ceil(images_per_step(settings.shots, adapt.batch)) * step.adaptation_mib.image,
        step.prediction_mib.of(settings.evaluation.batch),
    )
    return training + testing, mib


def _testing(settings: Run, step: StepCosts, adapt: Adapt, inner: int = 0) -> float:
    """Seconds of `metaseg.evaluation.metatest.score_target` on all targets; `inner`: maximum number of inner steps.

    Each network of an ensemble, and each mirror image, costs as much as a single network.
    """
    evaluation, shots = settings.evaluation, settings.shots
    last, steps = stops(adapt, settings)
    points = len({*steps} - {0, last})
    # One descent on all images, one without each fold, and that of the inner problem.
    members = sizes(shots, adapt.folds)
    of_step = sum(step.adaptation.of(images_per_step(images, adapt.batch)) for images in members)
    descents = max(steps) * of_step + (inner * step.adaptation.of(shots) if last else 0.0)
    ensemble = len(members) * (len(VIEWS) if adapt.flips else 1)
    # Of all images: at the start, after the inner problem, by the ensemble, and only by its first network.
    passes = 1 + (bool(inner) + ensemble + (ensemble > 1) if last else 0)
    seconds = len(settings.target) * evaluation.draws * descents
    for target in settings.target:
        whole = image_count(target, settings.data.source, settings.data.root)
        if settings.learner.train_on == "target":
            whole = round(TARGET_TEST_SHARE * whole)
        whole = min(whole, evaluation.limit or whole)
        for size, times in (
            (whole, passes),
            (min(whole, evaluation.curve_limit), points * ensemble),
        ):
            predicting = math.ceil(size / evaluation.batch) * step.prediction.fixed + size * step.prediction.image
            seconds += evaluation.draws * times * predicting
    return seconds


def _affordable(learner: Learner, settings: Run) -> int:
    """The side of the images to measure on: halved while segmenting `IMAGES` of them is `SLOW`."""
    size = settings.data.size
    while size % (2 * SMALLEST) == 0:
        support, episode = _random(settings, IMAGES, size, "cpu")
        segmenter = _segmenter(learner, support)
        if _seconds(partial(segmenter, episode.query_images), "cpu") < SLOW:
            break
        size //= 2
    return size


def _segmenter(learner: Learner, support: SupportSet) -> Segmenter:
    """The segmenter before any adaptation step."""
    return next(iter(learner.adaptation(support, [0])))[1]


def _random(settings: Run, count: int, size: int, device: str) -> tuple[SupportSet, Episode]:
    """A support set and an episode of `count` images of `size` x `size` pixels each."""
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    support = SupportSet(images, (images[..., 0] > 127).astype(np.uint8), settings.data.augment, 0)
    clean, labels = (tensor.to(device) for tensor in support.clean())
    return support, Episode(clean, labels, clean.flip(0), labels.flip(0), clean[:1])


def _outer(call: Callable[[Episode], object], small: Episode, large: Episode, device: str) -> LinearCost:
    """The cost of an outer step, in which support and query images differ in cost."""
    of_support = small._replace(support_images=large.support_images, support_masks=large.support_masks)
    of_query = small._replace(query_images=large.query_images, query_masks=large.query_masks)
    base, more_support, more_query = (_seconds(partial(call, one), device) for one in (small, of_support, of_query))
    image, query = (min(max(0.0, more - base) / IMAGES, base / (2 * IMAGES)) for more in (more_support, more_query))
    return LinearCost(base - IMAGES * (image + query), image, query)


def _cost(
    call: Callable[[Any], object],
    drawn: Sequence[Any],
    device: str,
    measured: Callable[[Callable[[], object], str], float],
    of_each: int = 1,
) -> LinearCost:
    """Seconds or peak MiB, as `measured`, of a step on `IMAGES` and twice as many that uses `of_each` per image."""
    return _line(*(measured(partial(call, one), device) for one in drawn), of_each=of_each)


def _mib(call: Callable[[], object], device: str) -> float:
    """Peak MiB of a call."""
    tidy(device)  # freed memory that is cached for reuse would hide the needs of the call
    return of_call(call, device)[0]


def _line(small: float, large: float, *, of_each: int = 1) -> LinearCost:
    """The line through the costs of `IMAGES` and twice as many images; no part of it is negative."""
    image = min(max(0.0, large - small) / IMAGES, small / IMAGES)
    return LinearCost(max(0.0, small - IMAGES * image), image / of_each)


def _adaptation(learner: Learner, support: SupportSet, device: str) -> float:
    """Seconds of one adaptation step, the mean of the second and third."""
    if not learner.adapt_loop.steps:
        return 0.0
    seconds = [_seconds(lambda steps=steps: list(learner.adaptation(support, [steps])), device) for steps in (1, 3)]  # type: ignore[misc]
    return max(0.0, (seconds[1] - seconds[0]) / 2)


def _seconds(call: Callable[[], object], device: str) -> float:
    """Seconds of the second of two calls, or of the first if it is `LONG` on a CPU."""
    for _ in range(2):
        finish_on(device)
        began = time.perf_counter()
        call()
        finish_on(device)
        seconds = time.perf_counter() - began
        if device == "cpu" and seconds > LONG:  # a GPU's first call can be long by itself
            break
    return seconds

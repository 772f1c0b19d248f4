"""Estimate the time and memory of a cell on this machine from one measured step of each kind.

A step is measured on two and on four images: with small images, call overhead dominates, so time is modelled as a fixed
part per step plus a part per image. Memory is modelled likewise; the process's own memory, for parameters and
libraries, comes on top.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from metaseg.data.batches import Episode, SupportSet
from metaseg.data.module import TARGET_TEST_SHARE, image_count
from metaseg.learners.base import Learner
from metaseg.learners.build import build_learner
from metaseg.memory import finish_on, of_call, tidy
from metaseg.runs.provenance import check_gpu
from metaseg.runs.schema import Run

IMAGES = 2
"""Images in the smaller of two measured steps; the larger has twice as many."""


@dataclass(frozen=True)
class LinearCost:
    """Seconds or MiB of a step: a fixed part, a part per (support) image, and a part per query image."""

    fixed: float = 0.0
    image: float = 0.0
    query: float = 0.0

    def of(self, images: float, query: int = 0) -> float:
        """The cost of a step with these numbers of (support) images and query images."""
        return self.fixed + images * self.image + query * self.query


@dataclass(frozen=True)
class StepCosts:
    """Seconds and peak MiB of a step of each kind; `outer_mib` counts support and query images alike."""

    outer: LinearCost
    validation: LinearCost
    adaptation: LinearCost
    prediction: LinearCost
    outer_mib: LinearCost
    adaptation_mib: LinearCost
    prediction_mib: LinearCost


@dataclass(frozen=True)
class CellCost:
    """Seconds and MiB of one cell."""

    seconds: float
    mib: float


def kind(settings: Run) -> str:
    """The settings that determine the cost of a step, as JSON; equal for cells whose steps cost the same per image."""
    return settings.model_dump_json(
        include={"learner": True, "model": True, "loss": True, "data": {"size", "augment"}},
        exclude={"learner": {"name", "train_on", "unlabelled"}},
    )


def measure(settings: Run) -> StepCosts:
    """Measure outer steps, validation, an adaptation step and a prediction on random images, each after a warm-up.

    Pre-trained weights are not loaded, since they do not affect the cost and may need a download.

    Raises:
        MetasegError: settings that a run would refuse.
    """
    cuda = settings.trainer.accelerator != "cpu" and torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    if cuda:
        check_gpu()
    adapt = settings.learner.adapt.model_copy(update={"folds": 0})
    alone = settings.learner.model_copy(update={"adapt": adapt})
    learner = build_learner(settings, alone, initial_weights=False).to(device)
    small, large = (_random(settings, count, device) for count in (IMAGES, 2 * IMAGES))
    outer = validation = outer_mib = adaptation_mib = LinearCost()
    if learner.trains:
        theta = learner.theta()
        outer = _outer(lambda episode: learner.meta_gradient(theta, episode), small[1], large[1], device)
        outer_mib = _peak(lambda drawn: learner.meta_gradient(theta, drawn[1]), small, large, device, of_each=2)
        validation = _cost(lambda drawn: learner.trial(drawn[1]), small, large, device, of_each=2)
    _, segmenter = next(iter(learner.adaptation(small[0], [0])))
    prediction = _cost(lambda drawn: segmenter(drawn[1].query_images), small, large, device)
    adaptation = _line(*(_adaptation(learner, support, device) for support, _ in (small, large)))
    if learner.adapt_loop.steps:
        adaptation_mib = _peak(lambda drawn: list(learner.adaptation(drawn[0], [1])), small, large, device)
    prediction_mib = _peak(lambda drawn: segmenter(drawn[1].query_images), small, large, device)
    return StepCosts(outer, validation, adaptation, prediction, outer_mib, adaptation_mib, prediction_mib)


def of_cell(settings: Run, step: StepCosts, steps_done: int = 0) -> CellCost:
    """The estimate of one cell.

    Args:
        settings: its resolved settings.
        step: the result of `measure` for its kind.
        steps_done: outer steps already taken.
    """
    tasks, evaluation, epochs = settings.tasks, settings.evaluation, settings.trainer.max_epochs
    pools = 1 if settings.learner.train_on == "target" else max(1, len(settings.pair.pools))
    mixed = tasks.mixing == "mixed"
    shots, query = (number * (pools if mixed else 1) for number in (settings.shots, tasks.query))
    per_step = tasks.per_step * (1 if mixed else pools)
    trains = step.outer != LinearCost()
    steps = epochs * tasks.in_epoch(pools) // per_step if trains else 0
    left = max(0.0, 1 - steps_done / steps) if steps else 0.0
    of_task = step.outer.of(shots, query)
    tests_of_epoch = tasks.validation * (1 if mixed else pools) * step.validation.of(shots + query)
    training = left * (steps * per_step * of_task + (epochs * tests_of_epoch if steps else 0.0))
    last = settings.learner.adapt.steps
    longest = max([last, *evaluation.curve]) if last else 0
    testing = _testing(settings, step, last, longest)
    if evaluation.scratch.compare and trains:
        steps = settings.protocol.adapt.steps
        testing += _testing(settings, step, steps, steps)
    folds = _folds(settings)
    mib = max(
        step.outer_mib.of(shots + query),
        # Members of an ensemble take turns: all parameters and moments are in memory, but images of only one member.
        (1 + folds) * step.adaptation_mib.fixed + settings.shots * step.adaptation_mib.image,
        step.prediction_mib.of(evaluation.batch),
    )
    return CellCost(training + testing, mib)


def _folds(settings: Run) -> int:
    """Number of folds of a target's support set."""
    shots = settings.shots
    return min(settings.learner.adapt.folds, shots) if shots > 1 else 0


def _testing(settings: Run, step: StepCosts, last: int, longest: int) -> float:
    """Seconds of all draws on all targets: adaptation, the whole target before and after it, and the curve's images.

    Each member of an ensemble costs as much as a single network.
    """
    evaluation = settings.evaluation
    points = len(set(evaluation.curve) - {0, last}) if last else 0
    shots = settings.shots
    folds = _folds(settings)
    # One descent on all images, and one without each fold.
    of_step = step.adaptation.of(shots) + (folds * step.adaptation.of(shots - shots / folds) if folds else 0.0)
    seconds = 0.0
    for target in settings.target:
        whole = image_count(target, settings.data.source, settings.data.root)
        if settings.learner.train_on == "target":
            whole = round(TARGET_TEST_SHARE * whole)
        whole = min(whole, evaluation.limit or whole)
        adapted = [whole] * (1 if last else 0) + [min(whole, evaluation.curve_limit)] * points
        sizes = [whole, *adapted * (1 + folds)]
        batches = sum(math.ceil(size / evaluation.batch) for size in sizes)
        predicting = batches * step.prediction.fixed + sum(sizes) * step.prediction.image
        seconds += evaluation.draws * (longest * of_step + predicting)
    return seconds


def _random(settings: Run, count: int, device: str) -> tuple[SupportSet, Episode]:
    size = settings.data.size
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
    call: Callable[[tuple[SupportSet, Episode]], object],
    small: tuple[SupportSet, Episode],
    large: tuple[SupportSet, Episode],
    device: str,
    of_each: int = 1,
) -> LinearCost:
    """The cost of a step that uses `of_each` images per drawn image."""
    return _line(*(_seconds(partial(call, one), device) for one in (small, large)), of_each=of_each)


def _peak(
    call: Callable[[tuple[SupportSet, Episode]], object],
    small: tuple[SupportSet, Episode],
    large: tuple[SupportSet, Episode],
    device: str,
    of_each: int = 1,
) -> LinearCost:
    """Peak MiB of a step that uses `of_each` images per drawn image."""
    peaks = []
    for one in (small, large):
        tidy(device)  # freed memory that is cached for reuse would hide the needs of the call
        peaks.append(of_call(partial(call, one), device)[0])
    return _line(*peaks, of_each=of_each)


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
    """Seconds of the second of two calls."""
    for _ in range(2):
        finish_on(device)
        began = time.perf_counter()
        call()
        finish_on(device)
    return time.perf_counter() - began

"""How long a cell will take on this machine and what memory it needs, from one measured step of each kind.

A step is measured on few images and multiplied: both time and memory of activations are proportional to the images,
while parameters and libraries are not, so small memory figures are too small by what a process needs anyway.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from metaseg.data import catalogue
from metaseg.data.batches import Episode, SupportSet
from metaseg.data.module import TARGET_TEST_SHARE
from metaseg.data.synthetic import DEFAULT_COUNTS
from metaseg.learners.base import Learner
from metaseg.memory import of_call
from metaseg.run import build_learner

IMAGES = 2
"""Support images of the measured steps; query images are as many, and twice as many."""


@dataclass(frozen=True)
class Step:
    """Seconds per image of each kind of step: of a support and of a query image where they differ; MiB per image."""

    support: float
    query: float
    joint: float
    mib: float
    validation: float
    adaptation: float
    prediction: float


@dataclass(frozen=True)
class Estimate:
    """Seconds and MiB of one cell."""

    seconds: float
    mib: float


def kind(settings: Mapping[str, Any]) -> str:
    """Cells of one kind have steps that cost the same for each image."""
    learner = {
        key: value for key, value in settings["learner"].items() if key not in ("name", "train_on", "unlabelled")
    }
    return repr((learner, settings["model"], settings["data"]["size"], settings["loss"], settings["data"]["augment"]))


def measure(settings: Mapping[str, Any]) -> Step:
    """Outer steps, validation, an adaptation step and a prediction on random images, each after one to warm up.

    Pre-trained weights are left out: they cost nothing but a download.

    Raises:
        MetasegError: on settings that no run would take.
    """
    cuda = settings["trainer"]["accelerator"] != "cpu" and torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    learner = build_learner(*_without_weights(settings)).to(device)
    support, episode = _random(settings, IMAGES, device)
    larger = _random(settings, 2 * IMAGES, device)[1]
    wider = episode._replace(query_images=larger.query_images, query_masks=larger.query_masks)
    of_support = of_query = joint = mib = validation = 0.0
    if learner.trains:
        theta = learner.theta()
        narrow = _seconds(lambda: learner.meta_gradient(theta, episode), cuda)
        wide = _seconds(lambda: learner.meta_gradient(theta, wider), cuda)
        of_query = min(max(0.0, wide - narrow), narrow) / IMAGES
        of_support = (narrow - IMAGES * of_query) / IMAGES
        if settings["learner"].get("warmup"):
            joint = _seconds(lambda: learner.plain_gradient(theta, episode), cuda) / (2 * IMAGES)
        mib = of_call(lambda: learner.meta_gradient(theta, episode), device)[0] / (2 * IMAGES)
        validation = _seconds(lambda: learner.trial(episode), cuda) / (2 * IMAGES)
    _, segmenter = next(iter(learner.adaptation(support, [0])))
    prediction = _seconds(lambda: segmenter(episode.query_images), cuda) / IMAGES
    return Step(of_support, of_query, joint, mib, validation, _adaptation(learner, support, cuda) / IMAGES, prediction)


def of_cell(settings: Mapping[str, Any], step: Step, steps_done: int = 0) -> Estimate:
    """The estimate of one cell.

    Args:
        settings: its resolved settings.
        step: what `measure` found for its kind.
        steps_done: outer steps that need not be taken again.
    """
    tasks, evaluation, epochs = settings["tasks"], settings["evaluation"], settings["trainer"]["max_epochs"]
    pools = 1 if settings["learner"]["train_on"] == "target" else max(1, len(settings["pair"]["pools"]))
    mixed = tasks["mixing"] == "mixed"
    shots, query = (number * (pools if mixed else 1) for number in (settings["shots"], tasks["query"]))
    per_step = tasks["per_step"] * (1 if mixed else pools)
    steps = epochs * tasks["count"] // per_step if step.support else 0
    left = max(0.0, 1 - steps_done / steps) if steps else 0.0
    warm = settings["learner"].get("warmup", 0.0)
    of_task = warm * (shots + query) * step.joint + (1 - warm) * (shots * step.support + query * step.query)
    tests_of_epoch = tasks["validation"] * (1 if mixed else pools) * (shots + query) * step.validation
    training = left * (steps * per_step * of_task + (epochs * tests_of_epoch if steps else 0.0))
    last = settings["learner"]["adapt"]["steps"]
    longest = max([last, *evaluation["curve"]]) if last else 0
    testing = _testing(settings, step, last, longest)
    if evaluation["scratch"]["compare"] and step.support:
        testing += _testing(settings, step, evaluation["scratch"]["steps"], evaluation["scratch"]["steps"])
    return Estimate(training + testing, step.mib * (shots + query))


def _testing(settings: Mapping[str, Any], step: Step, last: int, longest: int) -> float:
    """Seconds of all draws on all targets: adaptation, the whole target before and after it, and the curve's images."""
    evaluation = settings["evaluation"]
    points = len(set(evaluation["curve"]) - {0, last}) if last else 0
    targets = [settings["target"]] if isinstance(settings["target"], str) else settings["target"]
    seconds = 0.0
    for target in targets:
        whole = DEFAULT_COUNTS[target] if settings["data"]["source"] == "synthetic" else catalogue.get(target).count
        if settings["learner"]["train_on"] == "target":
            whole = round(TARGET_TEST_SHARE * whole)
        whole = min(whole, evaluation["limit"] or whole)
        scored = (2 if last else 1) * whole + points * min(whole, evaluation["curve_limit"])
        seconds += evaluation["draws"] * (longest * settings["shots"] * step.adaptation + scored * step.prediction)
    return seconds


def _without_weights(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    learner, model = dict(settings["learner"]), dict(settings["model"])
    if learner.get("network"):
        learner["network"] = {key: None if key == "encoder_weights" else one for key, one in learner["network"].items()}
    if "encoder_weights" in model:
        model["encoder_weights"] = None
    if "init_path" in model:
        model |= {"init": "random", "init_path": None}
    return {**settings, "learner": learner, "model": model}, learner


def _random(settings: Mapping[str, Any], count: int, device: str) -> tuple[SupportSet, Episode]:
    size = settings["data"]["size"]
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    support = SupportSet(images, (images[..., 0] > 127).astype(np.uint8), settings["data"]["augment"], 0)
    clean, labels = (tensor.to(device) for tensor in support.clean())
    return support, Episode(clean, labels, clean.flip(0), labels.flip(0), clean[:1])


def _adaptation(learner: Learner, support: SupportSet, cuda: bool) -> float:
    """Seconds of one adaptation step: the third, less what the first two took."""
    if not learner.adapt_loop.steps:
        return 0.0
    seconds = [_seconds(lambda steps=steps: list(learner.adaptation(support, [steps])), cuda) for steps in (1, 3)]  # type: ignore[misc]
    return max(0.0, (seconds[1] - seconds[0]) / 2)


def _seconds(call: Callable[[], object], cuda: bool) -> float:
    """Seconds of the second of two calls."""
    for _ in range(2):
        if cuda:
            torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        if cuda:
            torch.cuda.synchronize()
    return time.perf_counter() - began

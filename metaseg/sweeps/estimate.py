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
from metaseg.learners.base import Learner
from metaseg.memory import of_call
from metaseg.run import build_learner

IMAGES = 2
"""Support images, and as many query images, of the measured step."""


@dataclass(frozen=True)
class Step:
    """What a learner's steps cost per image: seconds, and MiB of an outer step."""

    outer: float
    outer_mib: float
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
    """One outer step, validation, adaptation step and prediction on random images, after one to warm up.

    Raises:
        MetasegError: on settings that no run would take.
    """
    cuda = settings["trainer"]["accelerator"] != "cpu" and torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    learner = build_learner(settings, settings["learner"]).to(device)
    size = settings["data"]["size"]
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (IMAGES, size, size, 3), dtype=np.uint8)
    masks = (images[..., 0] > 127).astype(np.uint8)
    support = SupportSet(images, masks, settings["data"]["augment"], 0)
    clean, labels = (tensor.to(device) for tensor in support.clean())
    episode = Episode(clean, labels, clean.flip(0), labels.flip(0), clean[:1])
    outer = outer_mib = validation = 0.0
    if learner.trains:
        theta = learner.theta()
        outer = _seconds(lambda: learner.meta_gradient(theta, episode), cuda)
        outer_mib, _ = of_call(lambda: learner.meta_gradient(theta, episode), device)
        validation = _seconds(lambda: learner.trial(episode), cuda)
    segmenter = learner.adapt(support)
    prediction = _seconds(lambda: segmenter(clean), cuda)
    return Step(
        outer / (2 * IMAGES),
        outer_mib / (2 * IMAGES),
        validation / (2 * IMAGES),
        _adaptation(learner, support, cuda) / IMAGES,
        prediction / IMAGES,
    )


def of_cell(settings: Mapping[str, Any], step: Step, steps_done: int = 0) -> Estimate:
    """The estimate of one cell.

    Args:
        settings: its resolved settings.
        step: what `measure` found for its kind.
        steps_done: outer steps that need not be taken again.
    """
    tasks, evaluation = settings["tasks"], settings["evaluation"]
    pools = max(1, len(settings["pair"]["pools"]))
    mixed = tasks["mixing"] == "mixed"
    images = (settings["shots"] + tasks["query"]) * (pools if mixed else 1)
    per_step = tasks["per_step"] * (1 if mixed else pools)
    steps = settings["trainer"]["max_epochs"] * tasks["count"] // per_step if step.outer else 0
    share = max(0.0, 1 - steps_done / steps) if steps else 0.0
    training = share * steps * per_step * images * step.outer
    validating = share * settings["trainer"]["max_epochs"] * tasks["validation"] * pools * images * step.validation
    targets = [settings["target"]] if isinstance(settings["target"], str) else settings["target"]
    last = settings["learner"]["adapt"]["steps"]
    longest = max([last, *evaluation["curve"]]) if last else 0
    points = len(set(evaluation["curve"]) - {0, last}) if last else 0
    testing = 0.0
    for target in targets:
        whole = min(catalogue.get(target).count, evaluation["limit"] or 10**9)
        scored = (2 if last else 1) * whole + points * min(whole, evaluation["curve_limit"])
        testing += evaluation["draws"] * (longest * settings["shots"] * step.adaptation + scored * step.prediction)
    return Estimate(training + validating + testing, step.outer_mib * images)


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

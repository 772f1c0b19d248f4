"""Adaptation to K images of a new dataset: Dice against seconds, and time relative to the passes that it needs."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from benchmarks.report import Report
from benchmarks.setting import Setting
from benchmarks.timing import round_robin
from metaseg import configuration
from metaseg.data import catalogue, pools
from metaseg.data.batches import SupportSet
from metaseg.data.module import Target
from metaseg.data.synthetic.twins import TWIN_SEED, twin
from metaseg.evaluation.metatest import segment
from metaseg.evaluation.scores import dice
from metaseg.learners.base import Learner
from metaseg.learners.build import build_learner
from metaseg.learners.fine_tuning import held_out
from metaseg.meta.vectors import Parameters
from metaseg.networks.functional import forward
from metaseg.progress import Progress
from metaseg.runs.schema import Run
from metaseg.runs.validation import read

RECIPES = {
    "pre-trained, default": ("model=pretrained",),
    "pre-trained, quick": ("model=pretrained", "adapt.recipe=quick"),
    "8 features, random weights": ("model=attention_unet", "model.features=8"),
}
"""Row → overrides of train.py."""

COLUMNS = ("recipe", "networks × steps", "seconds", "× plain passes", "s for 200 images", "Dice, %, over seconds")

SHARES = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)
"""Points at which Dice is measured, as shares of a recipe's steps."""

BATCH = 16
"""Batch size for prediction."""

TWINS = 100
"""Images of the synthetic twin."""


@dataclass(frozen=True)
class Points:
    """Dice along one adaptation.

    Attributes:
        seconds: time of the steps up to each point, including the choice of the ensemble's α there.
        dice: mean over the scored images, as fractions.
        per_image: seconds to segment an image after the last point.
    """

    seconds: list[float]
    dice: list[float]
    per_image: float


def adaptation(setting: Setting, dataset: str, root: Path | None, images: int, rounds: int) -> Report:
    """Run the benchmark.

    Args:
        setting: only ``size``, ``shots``, ``device``, ``threads`` and ``seed`` are used.
        dataset: name of the dataset to adapt to.
        root: folder of the dataset; None: its synthetic twin.
        images: maximum number of other images to score.
        rounds: rounds of timing.
    """
    report = Report("adaptation", f"Adapting to {setting.shots} images", setting, COLUMNS)
    report.subject = (
        f"{dataset}, {'real images' if root else 'synthetic twin'} of {setting.size}×{setting.size}; no pair, no "
        f"meta-training; one support set; on {setting.device}"
    )
    if root is None:
        pictures, masks, ids, groups = twin(dataset, TWINS, setting.size, TWIN_SEED)
        pool = pools.prepare_arrays(dataset, pictures, masks, ids, groups)
    else:
        pool = pools.prepare(catalogue.get(dataset, root), root, setting.size)
    target = Target.of(pool, 0, setting.seed)
    chosen, scored = target.draw(setting.shots, setting.seed, 0)
    support = target.support_set(chosen, "standard", setting.seed)
    scored = np.random.default_rng(setting.seed).permutation(scored)[:images]
    with Progress("adapting", len(RECIPES), "recipes") as progress:
        for done, (name, overrides) in enumerate(RECIPES.items()):
            progress.note(name)
            learner = learner_of(overrides, setting)
            points = follow(learner, support, *pool.take(scored))
            progress.note(f"{name}, timing")
            once = partial(adapt, learner, support)
            base, timings = round_robin({name: once}, partial(plain_passes, learner, support), rounds, setting.device)
            timing = timings[name]
            folds = len(held_out(setting.shots, learner.fine_tuning().folds))
            report.rows.append(
                [
                    name,
                    f"{1 + folds} × {learner.adapt_loop.steps}",
                    f"{np.median(timing.seconds):.1f}",
                    f"{timing.ratio:.2f}",
                    f"{200 * points.per_image:.1f}",
                    ", ".join(f"{100 * d:.1f} ({s:.1f} s)" for d, s in zip(points.dice, points.seconds, strict=True)),
                ]
            )
            report.numbers[name] = {
                "settings": overrides,
                "seconds": timing.seconds,
                "plain": base.seconds,
                "ratios": timing.ratios,
                "per_image": points.per_image,
                "curve": {"seconds": points.seconds, "dice": points.dice},
            }
            progress.update(done + 1)
    report.notes = [
        "Seconds: all steps of all networks, augmentation, and the choice of α for each network. Median "
        f"of {rounds} rounds.",
        "Plain passes: the same number of forward and backward passes over as many images through the parts that are "
        "trained (only forward through frozen ones), one network after the other. Below 1: networks run in parallel.",
        f"Dice: mean over {len(scored)} other images.",
    ]
    return report


def learner_of(overrides: tuple[str, ...], setting: Setting) -> Learner:
    """A learner that trains on the support set alone with a recipe of its model."""
    given = [*overrides, f"data.size={setting.size}", f"shots={setting.shots}", f"seed={setting.seed}"]
    config = configuration.composed("config", ["learner=scratch", "logger.wandb=false", *given])
    return build_learner(read(Run, config)).to(setting.device)


def follow(learner: Learner, support: SupportSet, images: np.ndarray, masks: np.ndarray) -> Points:
    """Adapt once, scoring along the way."""
    end = learner.adapt_loop.steps
    at = sorted({round(share * end) for share in SHARES})
    found = Points([], [], 0.0)
    stepping, per_image = 0.0, 0.0
    began = time.perf_counter()

    def tick(done: int, of: int) -> None:
        nonlocal stepping, began
        now = time.perf_counter()
        stepping, began = stepping + now - began, now

    for _, segmenter in learner.adaptation(support, at, progress=tick):
        found.seconds.append(stepping + time.perf_counter() - began)
        began = time.perf_counter()
        prediction = segment(segmenter, images, BATCH)
        per_image = (time.perf_counter() - began) / len(images)
        found.dice.append(float(dice(prediction, masks).mean()))
        began = time.perf_counter()
    return Points(found.seconds, found.dice, per_image)


def adapt(learner: Learner, support: SupportSet) -> None:
    """Run all steps of the recipe."""
    for _ in learner.adaptation(support, [learner.adapt_loop.steps]):
        pass


def plain_passes(learner: Learner, support: SupportSet) -> None:
    """The passes that adaptation needs at least: no augmentation, no update, one network after the other."""
    tuning, theta = learner.fine_tuning(), learner.theta()
    everything = np.arange(len(support.images))
    members = [everything, *(np.setdiff1d(everything, part) for part in held_out(len(everything), tuning.folds))]
    images, masks = (part.to(tuning.device) for part in support.clean())
    images = images.to(memory_format=tuning.memory_format)
    held = tuning.rates.held(tuning.network)
    moving = {name: value for name, value in theta.items() if held is None or name not in held.names}
    for _ in range(tuning.loop.steps):
        inputs: Callable[[np.ndarray], Any]
        if held is None:
            inputs = images.__getitem__
        else:
            with torch.no_grad():
                features, _ = forward(tuning.network, _named(theta, held.names), images, last=held.last)
            inputs = partial(_rows, features)
        for rows in members:
            leaves = {name: value.clone().requires_grad_() for name, value in moving.items()}
            logits, _ = forward(tuning.network, leaves, inputs(rows), first=None if held is None else held.next)
            tuning.loss(logits, masks[rows]).backward()


def _named(parameters: Parameters, names: frozenset[str]) -> Parameters:
    return {name: value for name, value in parameters.items() if name in names}


def _rows(features: Any, rows: np.ndarray) -> Any:
    return pytree.tree_map(lambda one: one[rows], features)

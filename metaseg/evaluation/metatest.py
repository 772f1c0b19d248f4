"""The meta-test: adapt to K images of a target and score all others, over several support draws."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch

from metaseg.data.batches import SupportSet, image_tensor
from metaseg.data.episodes import Stream
from metaseg.data.module import Target
from metaseg.evaluation.intervals import bootstrap_interval
from metaseg.evaluation.scores import dice, foreground, iou, pixel_counts
from metaseg.evaluation.sharing import ALONE, Share, filled
from metaseg.evaluation.trivial import trivial_scores
from metaseg.evaluation.work import Work
from metaseg.memory import finish_on
from metaseg.meta.inner_loop import InnerLoop
from metaseg.networks.segmenter import Ensemble, Followed, Segmenter
from metaseg.runs import result
from metaseg.runs.schema import Adapt, Run

LEVEL = 0.95


class Learner(Protocol):
    """Anything that adapts to a target from annotated images."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def adapt_loop(self) -> InnerLoop:
        """The fine-tuning loop on the support set."""

    def passes(self, images: int) -> tuple[float, int]:
        """Of adaptation to so many images: images of a step, over all networks, and passes per predicted image."""

    def adaptation(
        self, support: SupportSet, steps: Sequence[int], progress: Callable[[int, int], None]
    ) -> Iterator[tuple[int, Segmenter]]:
        """Adapt, and yield (step, segmenter) at each step number in `steps`; progress: (steps taken, total steps)."""

    def after_inner(self, support: SupportSet) -> Segmenter | None:
        """Adapt only by the inner problem of training; None: the learner has no inner loop."""


@dataclass
class Scores:
    """Per-image scores of one learner on one target.

    Arrays have shape (draws, images) over the images of the whole target, NaN where an image was not scored. ``inner``
    is Dice after the inner problem of training, ``alone`` that of the full-support network after fine-tuning, without
    the ensemble and mirror images that ``after`` averages; all NaN if not applicable, as the matrices of ``before`` are
    for a learner without adaptation steps.
    """

    before: np.ndarray
    inner: np.ndarray
    alone: np.ndarray
    after: np.ndarray
    iou_before: np.ndarray
    iou_after: np.ndarray
    overlap: np.ndarray
    total: np.ndarray
    seconds: np.ndarray
    """Seconds of adaptation and of segmenting one image, for each draw; shape (draws, 2)."""
    curve: dict[int, np.ndarray] = field(default_factory=dict)
    followed: dict[int, Followed] = field(default_factory=dict)
    """α by draw; empty if no held-out images choose it."""
    pictures: dict[str, dict[int, np.ndarray]] = field(default_factory=lambda: {"before": {}, "after": {}})
    """Masks (H, W) predicted in draw 0, bit-packed along the last axis: when → image index → mask. None are ``before``
    without adaptation steps."""

    @classmethod
    def empty(cls, draws: int, images: int) -> "Scores":
        """All NaN."""
        matrices = {name: np.full((draws, images), np.nan) for name in _MATRICES}
        return cls(**matrices, seconds=np.full((draws, 2), np.nan))  # type: ignore[arg-type]

    @classmethod
    def whole(cls, parts: Sequence["Scores"]) -> "Scores":
        """What several processes have scored, each a part of the same draws and images."""
        return cls(
            **{name: filled([getattr(part, name) for part in parts]) for name in (*_MATRICES, "seconds")},
            curve={
                step: filled([part.curve[step] for part in parts if step in part.curve])
                for step in sorted({step for part in parts for step in part.curve})
            },
            followed=dict(sorted((draw, one) for part in parts for draw, one in part.followed.items())),
            pictures={
                when: {image: mask for part in parts for image, mask in part.pictures[when].items()}
                for when in parts[0].pictures
            },
        )


_MATRICES = ("before", "inner", "alone", "after", "iou_before", "iou_after", "overlap", "total")


def segment(
    segmenter: Segmenter, images: np.ndarray, batch: int, progress: Callable[[int], None] = lambda done: None
) -> np.ndarray:
    """Binary masks (N, H, W) of uint8 images (N, H, W, 3), ``batch`` at a time.

    ``progress`` is called with the number of images segmented, after each batch.
    """
    pieces = []
    for first in range(0, len(images), batch):
        pieces.append(foreground(segmenter(image_tensor(images[first : first + batch])))[:, 0])
        progress(min(first + batch, len(images)))
    return np.concatenate(pieces)


def work(learner: Learner, target: Target, settings: Run) -> Work:
    """The work of `score_target`, assuming that all draws score as many images as the first.

    Args:
        learner: as for `score_target`.
        target: as for `score_target`.
        settings: as for `score_target`.
    """
    _, scored = drawn(target, settings, 0)
    subset = of_curve(target, settings, scored)
    of_step, predicting = learner.passes(settings.shots)
    end, steps = stops(learner.adapt_loop, settings)
    points = dict.fromkeys(sorted(steps), (len(subset), predicting)) | {0: (len(scored), 1)}
    if end:
        # The first network of an ensemble is also scored alone.
        points[end] = (len(scored), predicting + (predicting > 1))
    return Work(settings.evaluation.draws, max(steps), of_step, points)


def stops(adapt: InnerLoop | Adapt, settings: Run) -> tuple[int, list[int]]:
    """The last step of `adapt`, and the steps after which images are scored."""
    end = adapt.steps
    # A learner without adaptation has a one-point curve, and a schedule that decays to 0 has no further steps.
    further = adapt.schedule == "constant"
    return end, [0, end, *(step for step in settings.evaluation.curve if further or step <= end)] if end else [0]


def of_curve(target: Target, settings: Run, scored: np.ndarray) -> np.ndarray:
    """The scored indices used for the curve."""
    limit = settings.evaluation.curve_limit
    return _among(scored, limited(target, limit, settings.seed), limit)


def score_target(
    learner: Learner,
    target: Target,
    settings: Run,
    progress: Callable[[int, float, int], None] = lambda draw, step, images: None,
    share: Share = ALONE,
) -> Scores:
    """Adapt and score over all draws.

    Args:
        learner: a trained learner, or one that trains only on the support set.
        target: the target.
        settings: of the run; the seed fixes the support draws, the same for every learner.
        progress: called in order with (draw from 0, adaptation steps taken in it, images segmented after that step).
        share: what this process does of it; the rest is NaN.
    """
    draws, batch = settings.evaluation.draws, settings.evaluation.batch
    scores = Scores.empty(draws, len(target.pool))
    end, steps = stops(learner.adapt_loop, settings)
    for draw in share.draws(draws):
        support, scored = drawn(target, settings, draw)
        subset = of_curve(target, settings, scored)
        scores.seconds[draw] = 0
        support_set = target.support_set(support, settings.data.augment, settings.seed + draw)
        tick = partial(_tick, progress, draw, max(steps))
        began = time.perf_counter()
        for step, segmenter in learner.adaptation(support_set, steps, progress=tick):
            finish_on(learner.device)
            if step <= end:
                scores.seconds[draw, 0] += time.perf_counter() - began
            progress(draw, step, 0)
            wanted = share.images(scored if step in (0, end) else subset, draw, draws, batch)
            if not len(wanted):
                began = time.perf_counter()
                continue
            images, masks = target.pool.take(wanted)
            began = time.perf_counter()
            prediction = segment(segmenter, images, batch, partial(progress, draw, step))
            if step == end:
                scores.seconds[draw, 1] = (time.perf_counter() - began) / len(wanted)
            values = dice(prediction, masks)
            if draw == 0 and step in (0, end):
                packed = dict(zip(wanted.tolist(), np.packbits(prediction, axis=-1), strict=True))
                scores.pictures["after" if step == end else "before"] = packed
            if step == 0 and end:
                scores.before[draw, wanted], scores.iou_before[draw, wanted] = values, iou(prediction, masks)
                after_inner = learner.after_inner(support_set)
                if after_inner is not None:
                    scores.inner[draw, wanted] = dice(segment(after_inner, images, batch), masks)
            if step == end:
                scores.after[draw, wanted], scores.iou_after[draw, wanted] = values, iou(prediction, masks)
                scores.overlap[draw, wanted], scores.total[draw, wanted] = pixel_counts(prediction, masks)
                if isinstance(segmenter, Ensemble):
                    scores.alone[draw, wanted] = dice(segment(segmenter.alone, images, batch), masks)
                    if segmenter.followed.held_out:
                        scores.followed[draw] = segmenter.followed
            if step in settings.evaluation.curve:
                row = scores.curve.setdefault(step, np.full_like(scores.before, np.nan))
                inside = np.isin(wanted, subset)
                row[draw, wanted[inside]] = values[inside]
            began = time.perf_counter()
    return scores


def _tick(progress: Callable[[int, float, int], None], draw: int, last: int, done: int, of: int) -> None:
    """Report an adaptation step; `done` and `of` may count the steps of all networks of an ensemble."""
    progress(draw, last * done / of, 0)


def trivial_baselines(target: Target, settings: Run) -> dict[str, float]:
    """Mean Dice of the trivial baselines on the same draws and images."""
    sums: dict[str, list[float]] = {}
    for draw in range(settings.evaluation.draws):
        support, scored = drawn(target, settings, draw)
        for name, values in trivial_scores(*target.pool.take(support), *target.pool.take(scored)).items():
            sums.setdefault(name, []).append(float(values.mean()))
    return {name: float(np.mean(values)) for name, values in sums.items()}


def drawn(target: Target, settings: Run, draw: int) -> tuple[np.ndarray, np.ndarray]:
    """Support and scored indices of a draw, with the limit applied."""
    support, scored = target.draw(settings.shots, settings.seed, draw)
    if (limit := settings.evaluation.limit) is not None:
        scored = _among(scored, limited(target, limit + settings.shots, settings.seed), limit)
    return support, scored


def _among(scored: np.ndarray, subset: np.ndarray, count: int) -> np.ndarray:
    """At most this many of the scored indices: the first of the subset's, or any if it holds none; in index order."""
    kept = subset[np.isin(subset, scored)]
    return np.sort((kept if len(kept) else scored)[:count])


def limited(target: Target, count: int, seed: int) -> np.ndarray:
    """A random subset of the scored images, the same for every draw and every learner.

    It permutes the whole target, so images that a learner keeps unscored do not change the order of the others.
    """
    generator = np.random.default_rng([seed, Stream.LIMIT])
    everything = generator.permutation(len(target.pool))
    return everything[np.isin(everything, target.scored)][:count]


def summarise(scores: Scores, target: Target, seed: int, trivial: Mapping[str, float]) -> result.TargetScores:
    """The entries of result.json for one target; `trivial`: Dice of the trivial baselines."""
    interval = partial(_interval, seed=seed, groups=groups_of(target))
    matrices = {"dsc_before": scores.before, "dsc_inner": scores.inner, "dsc_alone": scores.alone}
    further: dict[str, Any] = {
        name: interval(matrix) for name, matrix in matrices.items() if not np.isnan(matrix).all()
    }
    if "dsc_before" in further:
        further["iou_before"] = float(np.nanmean(scores.iou_before))
    if scores.followed:
        further["followed"] = [
            result.ChosenShare(alpha=one.share, held_out={f"{share:g}": value for share, value in one.held_out.items()})
            for one in scores.followed.values()
        ]
    total = np.nansum(scores.total)
    adapting, image = scores.seconds.mean(0).tolist()
    return result.TargetScores(
        dsc=interval(scores.after),
        pooled_dsc=float(2 * np.nansum(scores.overlap) / total) if total else 1.0,
        iou=float(np.nanmean(scores.iou_after)),
        images=int((~np.isnan(scores.after)).any(0).sum()),
        draws=len(scores.after),
        seconds=result.Seconds(adapting=adapting, image=image),
        curve=_curve(scores, interval),
        trivial=dict(trivial),
        **further,
    )


def from_scratch(scores: Scores, target: Target, seed: int) -> result.FromScratch:
    """The entries of result.json for fine-tuning without a pair on one target."""
    interval = partial(_interval, seed=seed, groups=groups_of(target))
    return result.FromScratch(**dict(interval(scores.after)), curve=_curve(scores, interval))


def _curve(scores: Scores, interval: Callable[[np.ndarray], result.Interval]) -> result.Curve:
    """Dice over adaptation steps with interval bounds."""
    points = {step: interval(matrix) for step, matrix in sorted(scores.curve.items())}
    return result.Curve(
        steps=list(points),
        dsc=[point.mean for point in points.values()],
        low=[point.low for point in points.values()],
        high=[point.high for point in points.values()],
    )


def _interval(matrix: np.ndarray, seed: int, groups: np.ndarray) -> result.Interval:
    """Mean and bootstrap interval of a (draws, images) matrix."""
    mean, *bounds = bootstrap_interval(matrix, level=LEVEL, seed=seed, groups=groups)
    # With two or three draws the interval can exceed [0, 1]; NaN stays.
    low, high = (min(max(bound, 0.0), 1.0) for bound in bounds)
    return result.Interval(mean=mean, low=low, high=high, level=LEVEL)


def groups_of(target: Target) -> np.ndarray:
    """The group of each image of the target, shape (images,): one patient, video or set of near-duplicates."""
    pool = target.pool
    return np.zeros(len(pool), np.int64) if pool.blocks else pool.groups  # blocks of one video form one group


def per_image_rows(name: str, target: Target, scores: Scores) -> Iterable[Mapping[str, Any]]:
    """The rows of per_image.csv for one target."""
    pool, groups = target.pool, groups_of(target)
    for draw, position in zip(*np.nonzero(~np.isnan(scores.after)), strict=True):
        yield {
            "dataset": name,
            "image": pool.ids[position],
            "draw": int(draw),
            "dsc_before": _known(scores.before[draw, position]),
            "iou_before": _known(scores.iou_before[draw, position]),
            "dsc_after": scores.after[draw, position],
            "iou_after": scores.iou_after[draw, position],
            "dsc_inner": _known(scores.inner[draw, position]),
            "dsc_alone": _known(scores.alone[draw, position]),
            "group": int(groups[position]),
        }


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value


def picture(scores: Scores, when: str, index: int, width: int) -> np.ndarray:
    """Draw 0's mask (H, W) of an image ``when`` = "before" or "after" adaptation."""
    return np.unpackbits(scores.pictures[when][index], axis=-1, count=width)

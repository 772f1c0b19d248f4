"""A few annotated images of each kind, as a user brings them: Dice, time, and what the program says about itself."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

import metaseg
from benchmarks import unannotated
from benchmarks.report import Report
from benchmarks.setting import Setting
from metaseg.adapting.arrays import resized_mask, shrunk
from metaseg.adapting.confidence import agreement, soft_dice
from metaseg.adapting.estimate import corrected
from metaseg.adapting.files import Annotated, annotated_in
from metaseg.adapting.masks import foregrounds
from metaseg.adapting.model import Adapted, Model
from metaseg.data.batches import image_tensor
from metaseg.errors import MetasegError, listed
from metaseg.evaluation.scores import dice
from metaseg.evaluation.trivial import trivial_scores
from metaseg.progress import Progress
from metaseg.runs.settings import changed

COLUMNS = (
    *("images", "K", "draws", "size", "Dice, %", "best trivial, %", "unannotated, %", "expected, %", "error, points"),
    *("rank of agreement", "rank of soft Dice", "seconds"),
)

FORESEEN = (10, 20)
"""Numbers of annotated images whose Dice is extrapolated from fewer."""

SEEN = 0.002
"""Share of an image that its foreground must cover: slices of a volume that show nothing are left out."""


@dataclass(frozen=True)
class Draw:
    """Annotated images, and others of the same kind to score."""

    images: list[np.ndarray]
    masks: list[np.ndarray]
    new: list[np.ndarray]
    truth: list[np.ndarray]


def own_images(
    setting: Setting, folders: Sequence[Path], shots: Sequence[int], draws: int, images: int, record: Path, **how: Any
) -> Report:
    """Run the benchmark. Finished draws are kept in `record` and not repeated.

    Args:
        setting: only ``device``, ``threads`` and ``seed`` are used.
        folders: of annotated images, each of one kind; see `annotated_in`.
        shots: numbers of annotated images.
        draws: of the annotated images.
        images: maximum number of other images to score.
        record: a file of one JSON object a line.
        how: further arguments of `Model.adapt`, such as ``steps`` and ``budget``.

    Raises:
        MetasegError: if `record` holds draws of other settings.
    """
    report = Report("own_images", "A few images of one's own", setting, COLUMNS)
    report.subject = f"the built-in model, {', '.join(f'{name}={value}' for name, value in how.items())}"
    settings = {"seed": setting.seed, "threads": setting.threads, "device": setting.device, "images": images, **how}
    done = [json.loads(line) for line in record.read_text().splitlines()] if record.is_file() else []
    for apart in (changed(one["settings"], settings, ()) for one in done):
        if apart:
            raise MetasegError(
                f"{record} holds draws of other settings, found {listed(apart)}: repeat these, or choose another --out."
            )
    known = {(one["kind"], one["shots"], one["draw"]) for one in done}
    todo = [(folder, count, draw) for count in shots for draw in range(draws) for folder in folders]
    todo = [(folder, count, draw) for folder, count, draw in todo if (folder.name, count, draw) not in known]
    model, outlines = metaseg.load(device=setting.device), unannotated.network()
    record.parent.mkdir(parents=True, exist_ok=True)
    with Progress("adapting", len(todo), "draws") as progress, record.open("a", encoding="utf-8") as file:
        for number, (folder, count, draw) in enumerate(todo):
            progress.note(f"{count} images of {folder.name}")
            found = drawn(annotated_in(folder), count, images, (setting.seed, draw))
            line = {"kind": folder.name, "shots": count, "draw": draw, "settings": settings}
            line |= measured(model, found, **how)
            if outlines is not None:
                line["unannotated"] = float(_dice(unannotated.salient(found.new, outlines), found.truth).mean())
            print(json.dumps(line), file=file, flush=True)
            done.append(line)
            progress.update(number + 1)
    done = [one | {"expected": one["held_out"] and corrected(float(np.mean(one["held_out"])))} for one in done]
    report.numbers = {"draws": done}
    report.rows = list(_rows(done))
    errors = [abs(one["expected"] - one["dice"]) for one in done if one["expected"] is not None]
    report.notes = [
        "Expected: the Dice that the program gives, from the annotated images alone. Error: its mean distance from the "
        "Dice on the other images.",
        "Unannotated: U²-Net-p, which takes what stands out in an image, with no annotated image at all.",
        "Rank: Spearman's correlation with the Dice of the same images, mean over draws. The agreement of networks is "
        "the confidence; soft Dice is that which the probabilities promise.",
    ]
    report.notes += list(_foresight(done))
    if errors:
        report.notes.append(f"Mean error of the expected Dice over all draws: {100 * np.mean(errors):.1f} points.")
    return report


def drawn(pairs: Sequence[Annotated], shots: int, images: int, seed: tuple[int, ...]) -> Draw:
    """Random annotated images, and up to ``images`` others."""
    found = Draw([], [], [], [])
    for index in np.random.default_rng(seed).permutation(len(pairs)):
        image = pairs[index].image.read()
        (mask,), _ = foregrounds([pairs[index].mask.read_mask()], some=False)
        if mask.mean() < SEEN:
            continue
        support = len(found.images) < shots
        (found.images if support else found.new).append(image)
        (found.masks if support else found.truth).append(mask)
        if len(found.new) == images:
            break
    return found


def measured(model: Model, draw: Draw, **how: Any) -> dict[str, Any]:
    """Adapt, segment, and compare with the truth."""
    began = time.perf_counter()
    adapted = model.adapt(draw.images, draw.masks, **how)
    adapting = time.perf_counter() - began
    began = time.perf_counter()
    predicted = adapted.predict(draw.new)
    segmenting = time.perf_counter() - began
    scores = _dice([one.probabilities > 0.5 for one in predicted], draw.truth)
    own, others = _parts(adapted, draw.new)
    shape = adapted.plan.shape
    small = [np.stack([shrunk(image, shape) for image in some]) for some in (draw.images, draw.new)]
    masks = [np.stack([resized_mask(mask, shape) for mask in some]) for some in (draw.masks, draw.truth)]
    trivial = trivial_scores(small[0], masks[0], small[1], masks[1])
    ranks = {"soft": soft_dice(own)}
    if others:
        ranks["agreement"] = agreement(own, others)
    estimate = adapted.estimate
    ahead = estimate is not None and adapted.plan.folds > 2
    curve = metaseg.learning_curve(adapted) if ahead else None
    return {
        "size": adapted.plan.settings(),
        "dice": float(scores.mean()),
        "trivial": {name: float(values.mean()) for name, values in trivial.items()},
        "held_out": None if estimate is None else estimate.dsc.tolist(),
        "foreseen": None if curve is None else {str(n): curve.at(n) for n in FORESEEN},
        "ranks": {name: _rank(values, scores) for name, values in ranks.items()},
        "adapting": adapting,
        "segmenting": segmenting / len(draw.new),
    }


def _dice(masks: Sequence[np.ndarray], truth: Sequence[np.ndarray]) -> np.ndarray:
    """(N,): of each image, at its own size."""
    return np.array([dice(one[None], other[None])[0] for one, other in zip(masks, truth, strict=True)])


def _parts(adapted: Adapted, images: Sequence[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Probabilities (N, h, w) of the segmenter, and those of the networks that have seen a part of the images."""
    small = np.stack([shrunk(image, adapted.plan.shape) for image in images])
    found = [
        np.concatenate(
            [one(image_tensor(small[first : first + 16]))[:, 0].cpu().numpy() for first in range(0, len(small), 16)]
        )
        for one in (adapted.segmenter, *adapted.members)
    ]
    return found[0], found[1:]


def _rank(values: np.ndarray, scores: np.ndarray) -> float | None:
    if len(np.unique(values)) < 2 or len(np.unique(scores)) < 2:
        return None
    return float(spearmanr(values, scores).statistic)


def _rows(done: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    for kind, shots in dict.fromkeys((one["kind"], one["shots"]) for one in done):
        draws = [one for one in done if (one["kind"], one["shots"]) == (kind, shots)]
        known = [one for one in draws if one["expected"] is not None]
        error = np.mean([abs(one["expected"] - one["dice"]) for one in known]) if known else None
        yield [
            kind,
            str(shots),
            str(len(draws)),
            draws[0]["size"],
            _percent([one["dice"] for one in draws]),
            _percent([max(one["trivial"].values()) for one in draws]),
            _percent([one["unannotated"] for one in draws if "unannotated" in one]),
            _percent([one["expected"] for one in known]),
            "" if error is None else f"{100 * error:.1f}",
            *(_mean([one["ranks"].get(name) for one in draws]) for name in ("agreement", "soft")),
            f"{np.mean([one['adapting'] for one in draws]):.0f}",
        ]


def _foresight(done: Sequence[dict[str, Any]]) -> Iterator[str]:
    """How far the extrapolated Dice was from the Dice with so many images, of the same kind and draw."""
    found = {(one["kind"], one["draw"], one["shots"]): one["dice"] for one in done}
    for count in FORESEEN:
        for fewer in sorted({one["shots"] for one in done if one["shots"] < count}):
            errors = [
                one["foreseen"][str(count)] - found[one["kind"], one["draw"], count]
                for one in done
                if one["shots"] == fewer and one.get("foreseen") and (one["kind"], one["draw"], count) in found
            ]
            if errors:
                yield (
                    f"Dice with {count} images, extrapolated from {fewer}: {100 * np.mean(np.abs(errors)):.1f} points "
                    f"off on average, {100 * np.mean(errors):+.1f} in the mean ({len(errors)} draws)."
                )


def _percent(values: Sequence[float]) -> str:
    return f"{100 * np.mean(values):.1f}" if values else ""


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{np.mean(known):.2f}" if known else ""

"""The program adapt.py: a folder of annotated images in, masks and results out."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig
from PIL import Image

from metaseg.adapting import checks, output
from metaseg.adapting.arrays import shrunk
from metaseg.adapting.export import export
from metaseg.adapting.files import Annotated, Source, annotated_in, images_in, passed_over, truth_in
from metaseg.adapting.model import Adapted, Model, Predicted, load
from metaseg.adapting.results import RESULTS, fitting, resized_mask, row
from metaseg.adapting.saved import NAME, SUFFIX, load_segmenter, savable, save
from metaseg.adapting.working_size import KEPT
from metaseg.data.check import plural
from metaseg.data.layouts import read_mask
from metaseg.errors import MetasegError
from metaseg.evaluation.scores import THRESHOLD, dice, iou
from metaseg.plots.overlays import overlay
from metaseg.progress import Progress
from metaseg.runs import schema
from metaseg.runs.directory import replacing

_INPUTS = ("support", "images", "truth")
_SCORES = ["dsc", "iou"]
_COMPARED = (128, 128)  # pixels: the size at which new images are compared with annotated ones
_LONGEST = 1024  # pixels of an overlay's longer side: enough to judge an outline


def run(config: DictConfig) -> None:
    """Run a composed configuration of conf/adapt.yaml.

    Raises:
        MetasegError: on unusable settings, files or folders. Results written before the error remain.
    """
    settings = schema.read(schema.Adaptation, config)
    if settings.truth is not None and settings.images is None:
        raise MetasegError("truth=DIR needs images=DIR, the images it belongs to.")
    kept = settings.checkpoint is not None and Path(settings.checkpoint).suffix == SUFFIX
    if settings.support is None and not kept:
        raise MetasegError(
            f"support=DIR is required, the annotated images, unless checkpoint is a segmenter ({SUFFIX})."
        )
    given = {key: getattr(settings, key) for key in (*_INPUTS, "out")}
    paths = {key: Path(value).expanduser() for key, value in given.items() if value is not None}
    out = paths["out"]
    read = [(key, paths[key]) for key in _INPUTS if key in paths]
    output.check(out, read + [(key, path / "masks") for key, path in read if key == "support"], settings.overwrite)
    annotated = annotated_in(paths["support"]) if "support" in paths else []
    sources = images_in(paths["images"]) if "images" in paths else []
    _warn(passed_over(paths["images"]) if "images" in paths else [])
    truth = truth_in(paths["truth"], sources) if "truth" in paths else {}
    source = _source(settings, kept)
    began = time.monotonic()
    pictures, masks = _support(annotated)
    output.clear(out)
    if isinstance(source, Adapted) and not annotated:
        adapted = source
    else:
        with Progress("adapting", None, "steps") as progress:
            adapted = _adapted(source, pictures, masks, settings, progress.update)
        if settings.save:
            print(f"segmenter   {save(adapted, out / NAME) if savable(adapted) else 'not saved: nothing was adapted'}")
    _say(adapted)
    for path in export(adapted, out, settings.export):
        print(f"segmenter   {path}")
    if not sources:
        return
    with Progress("segmenting", len(sources), "images") as progress:
        table, faults = _segment(adapted, sources, truth, settings, out, progress.update)
    _summary(table, out, time.monotonic() - began)
    if faults:
        raise MetasegError(
            f"{' and '.join(faults)} could not be used, see the messages above; all other results are in {out}."
        )


def _source(settings: schema.Adaptation, kept: bool) -> Model | Adapted:
    """What to adapt: a model, or a saved segmenter, which also segments as it is."""
    if kept:
        assert settings.checkpoint is not None
        return load_segmenter(settings.checkpoint, settings.device)
    return load(settings.checkpoint, settings.device, settings.recipe)


def _adapted(
    source: Model | Adapted,
    pictures: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    settings: schema.Adaptation,
    progress: Callable[[int, int], None],
) -> Adapted:
    how: dict[str, Any] = {name: getattr(settings, name) for name in ("steps", "lr", "seed", "size", "crop", "folds")}
    adapt = source.adapt if isinstance(source, Model) else source.with_more
    return adapt(pictures, masks, **how, budget=settings.budget, progress=progress)


def _support(annotated: Sequence[Annotated]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    if not annotated:
        return [], []
    names = [one.image.name for one in annotated]
    pictures, masks = (list(part) for part in zip(*(one.read() for one in annotated), strict=True))
    for one, picture, mask in zip(annotated, pictures, masks, strict=True):
        if picture.shape[:2] != mask.shape:
            raise MetasegError(
                f"Expected a mask of its image's size, {picture.shape[1]}×{picture.shape[0]} pixels, found "
                f"{mask.shape[1]}×{mask.shape[0]} in {one.mask}; it may belong to another image."
            )
    _warn(checks.of_support(names, [picture.shape[:2] for picture in pictures], masks))
    return pictures, masks


def _say(adapted: Adapted) -> None:
    """What was adapted, and how good it is."""
    plan = adapted.plan
    print(
        f"adapted     at {plan.shape[1]}×{plan.shape[0]} pixels, which keeps {100 * plan.kept:.0f} % of the masks' Dice"
    )
    print(f"repeat      {plan.settings()} seed= as given")
    if plan.kept < KEPT:
        _warn(
            [f"At the working size the masks keep {100 * plan.kept:.0f} % of their Dice, so no result can be better."]
        )
    if adapted.estimate is not None:
        print(f"{adapted.estimate.sentence()}\n{adapted.estimate.verdict()}")
    elif len(adapted.support.images) == 1:
        print("Dice to expect: unknown, as a single annotated image cannot be held out; annotate more.")


def _segment(
    adapted: Adapted,
    sources: Sequence[Source],
    truth: Mapping[str, Path],
    settings: schema.Adaptation,
    out: Path,
    progress: Callable[[int, int], None],
) -> tuple[pd.DataFrame, list[str]]:
    """Segment and write batch by batch; unreadable files are reported and skipped.

    Returns:
        The content of results.csv, and texts that count the unusable files.
    """
    support = np.stack([shrunk(picture, _COMPARED) for picture in adapted.support.images])
    rows: list[dict[str, Any]] = []
    small: list[np.ndarray] = []
    failed: list[str] = []
    unscored: list[str] = []
    for first in range(0, len(sources), settings.batch):
        tried = [(source, _read(source)) for source in sources[first : first + settings.batch]]
        failed += [result for _, result in tried if isinstance(result, str)]
        read = [(source, result) for source, result in tried if not isinstance(result, str)]
        found = adapted.predict([image for _, image in read], settings.batch)
        truths = [_truth(truth.get(source.name), image) for source, image in read]
        unscored += [result for result in truths if isinstance(result, str)]
        known = [None if isinstance(result, str) else result for result in truths]
        small += [shrunk(image, _COMPARED) for _, image in read]
        rows += [_row(source, predicted, true) for (source, _), predicted, true in zip(read, found, known, strict=True)]
        if rows:
            # Before the pictures, so that it lists all of them whenever the program is stopped.
            table = _table(rows, scored=bool(truth))
            with replacing(out / RESULTS) as path:
                table.to_csv(path, index=False)
        for (source, image), predicted, true in zip(read, found, known, strict=True):
            _write(source, image, predicted.probabilities, true, settings, out)
        progress(min(first + settings.batch, len(sources)), len(sources))
    _warn([*failed, *unscored])
    if not rows:
        raise MetasegError(f"None of the {len(sources)} images could be read; the first error: {failed[0]}.")
    _warn(checks.of_new(support, np.stack(small), [line["image"] for line in rows]))
    faults = []
    if failed:
        faults.append(f"{len(failed)} of {len(sources)} images")
    if unscored:
        faults.append(plural(len(unscored), "true mask"))
    return table, faults


def _table(rows: Sequence[Mapping[str, Any]], scored: bool) -> pd.DataFrame:
    table = pd.DataFrame(rows)
    table["page"] = table["page"].astype("Int64")  # nullable, as most images have no page
    # The same columns in every batch, wherever the first image with a truth comes.
    return table.reindex(columns=[*table.columns.drop(_SCORES, errors="ignore"), *(_SCORES if scored else ())])


def _read(source: Source) -> np.ndarray | str:
    """The image, or an error message."""
    try:
        return source.read()
    except MetasegError as error:
        return str(error)


def _truth(path: Path | None, image: np.ndarray) -> np.ndarray | str | None:
    """The true mask, or an error message; None if there is no mask."""
    if path is None:
        return None
    try:
        mask = read_mask(path)
    except MetasegError as error:
        return str(error)
    if mask.shape != image.shape[:2]:
        return (
            f"Expected a mask of its image's size, {image.shape[1]}×{image.shape[0]} pixels, found "
            f"{mask.shape[1]}×{mask.shape[0]} in {path}; the image is not scored."
        )
    return mask


def _row(source: Source, predicted: Predicted, truth: np.ndarray | None) -> dict[str, Any]:
    mask = predicted.probabilities > THRESHOLD
    line = row(source.name, source.path.name, source.page, *predicted)
    if truth is not None:
        line |= {"dsc": float(dice(mask[None], truth[None])[0]), "iou": float(iou(mask[None], truth[None])[0])}
    return line


def _write(
    source: Source,
    image: np.ndarray,
    probabilities: np.ndarray,
    truth: np.ndarray | None,
    settings: schema.Adaptation,
    out: Path,
) -> None:
    mask = probabilities > THRESHOLD
    _save(mask.astype(np.uint8) * 255, out / "masks" / f"{source.name}.png")
    if settings.probabilities:
        _save(np.rint(probabilities * 65535).astype(np.uint16), out / "probabilities" / f"{source.name}.png")
    if settings.overlays:
        size = fitting(mask.shape, _LONGEST)
        picture = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        outlined = overlay(picture, None if truth is None else resized_mask(truth, size), resized_mask(mask, size))
        _save(outlined, out / "overlays" / f"{source.name}.png")


def _save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def _warn(sentences: Sequence[str]) -> None:
    for sentence in sentences:
        print(f"warning: {sentence}", file=sys.stderr)


def _summary(table: pd.DataFrame, out: Path, seconds: float) -> None:
    print(f"{plural(len(table), 'image')} segmented in {seconds:.0f} s")
    known = table.get("dsc", pd.Series(dtype=float)).dropna()
    if len(known):
        print(
            f"Dice        {100 * known.mean():.1f} % (median {100 * known.median():.1f}; {plural(len(known), 'image')})"
        )
    doubtful = table.sort_values("confidence")["image"].head(3)
    print(f"masks       {out / 'masks'}\nresults     {out / RESULTS}")
    print(f"least confident, check these first: {', '.join(doubtful)}")

"""The program adapt.py: a folder of annotated images in, masks and results out."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from omegaconf import DictConfig
from PIL import Image

from metaseg.adapting import checks, model_file, output
from metaseg.adapting.arrays import resized_mask, same_size
from metaseg.adapting.export import export
from metaseg.adapting.files import Annotated, Source, annotated_in, images_in, passed_over, truth_in
from metaseg.adapting.formats import is_turned
from metaseg.adapting.learning_curve import learning_curve
from metaseg.adapting.loading import load
from metaseg.adapting.masks import Reading, decide, foregrounds, require_foreground, survey
from metaseg.adapting.model import Adapted, Model, Predicted
from metaseg.adapting.plan import FEWEST_STEPS
from metaseg.adapting.results import RESULTS, reduced_size, row
from metaseg.adapting.saved import NAME, load_segmenter, savable, save
from metaseg.adapting.working_size import KEPT
from metaseg.errors import MetasegError, expanded, listed, plural
from metaseg.evaluation.scores import THRESHOLD, dice, iou
from metaseg.plots.overlays import overlay
from metaseg.progress import Progress
from metaseg.runs import schema, validation
from metaseg.system import replacing

_INPUTS = ("support", "images", "truth")
_HOW = ("steps", "lr", "size", "crop", "per_step", "folds")
_SCORES = ["dsc", "iou"]
Read = TypeVar("Read")
_LATE = 1.5
"""Times the budget that adapting may take without a warning: its steps are counted in advance [D]."""
_PIXELS = 20_000_000
"""Pixels of a batch of new images, beyond which no further image is added [D]: each takes some 11 bytes."""
_LONGEST = 1024  # pixels of an overlay's longer side: enough to judge an outline


def run(config: DictConfig) -> None:
    """Run a composed configuration of conf/adapt.yaml.

    Raises:
        MetasegError: on unusable settings, files or folders. With several labels, the others are segmented; results of
            an earlier call remain where there are no new ones.
    """
    settings = validation.read(schema.Adaptation, config)
    labels = _labels(settings)
    each = [(label, _paths(settings, f"label_{label}" if len(labels) > 1 else "")) for label in labels]
    faults = []
    for label, paths in each:
        if len(each) > 1:
            print(f"\nlabel {label}")
        try:
            faults += _run(settings, label, paths)
        except MetasegError as error:
            faults.append(str(error))
    if faults:
        raise MetasegError(" ".join(dict.fromkeys(faults)))


def _labels(settings: schema.Adaptation) -> list[int | None]:
    """The labels to be segmented, one after the other; None: all but the background as one."""
    chosen = settings.label
    if chosen is None or isinstance(chosen, int):
        return [chosen]
    if settings.support is None:
        raise MetasegError(f"label={chosen} needs support=DIR, the masks with these labels.")
    if _kept(settings):
        kept = _source(settings)
        assert isinstance(kept, Adapted)
        if chosen == "all":
            return [kept.label]
        for label in chosen:
            kept.require_label(label)
        return [*chosen]
    masks = [one.mask.read_mask() for one in annotated_in(expanded(settings.support))]
    found = foregrounds(masks)[1]
    if chosen == "all":
        return [*found.labels] or [None]
    for label in chosen:
        found.require(label)
    return [*chosen]


def _paths(settings: schema.Adaptation, below: str) -> dict[str, Path]:
    """The folders by the settings' names, results in a folder below `out`; checked before anything is written."""
    if settings.truth is not None and settings.images is None:
        raise MetasegError("truth=DIR needs images=DIR, the images it belongs to.")
    if settings.support is None and not _kept(settings):
        raise MetasegError(
            f"support=DIR is required, the annotated images, unless checkpoint is a segmenter ({model_file.SUFFIX})."
        )
    if _kept(settings):
        without_effect = ("recipe",) if settings.support else ("recipe", *_HOW)
        if lost := [name for name in without_effect if getattr(settings, name) is not None]:
            raise MetasegError(
                f"A saved segmenter {'adapts by its own recipe' if settings.support else 'segments as it is'}, found "
                f"{lost[0]}={getattr(settings, lost[0])}; leave it out, or name a model or a run instead of the file."
            )
    given = {key: getattr(settings, key) for key in (*_INPUTS, "out")}
    paths = {key: expanded(value) for key, value in given.items() if value is not None}
    paths["out"] /= below
    output.check(paths["out"], _read(paths), settings.overwrite)
    return paths


def _read(paths: Mapping[str, Path]) -> list[tuple[str, Path]]:
    """The folders that are read, each with the setting that names it."""
    read = [(key, paths[key]) for key in _INPUTS if key in paths]
    return read + [(key, path / "masks") for key, path in read if key == "support"]


def _kept(settings: schema.Adaptation) -> bool:
    """Whether the checkpoint is a saved segmenter."""
    path = None if settings.checkpoint is None else expanded(settings.checkpoint)
    return path is not None and path.suffix == model_file.SUFFIX and not model_file.is_one(path)


def _run(settings: schema.Adaptation, label: int | None, paths: Mapping[str, Path]) -> list[str]:
    """Adapt to one label and segment; a sentence if files could not be used, after all others have been."""
    annotated = annotated_in(paths["support"]) if "support" in paths else []
    sources = images_in(paths["images"]) if "images" in paths else []
    _warn(passed_over(paths["images"]) if "images" in paths else [])
    source = _source(settings)
    earlier = None
    if isinstance(source, Adapted):
        source.require_label(label)
        label = source.label if label is None else label
        earlier = Reading.of_colours(source.colours)
    pictures, masks, reading = _support(annotated, label, some=not _kept(settings), like=earlier)
    truth = _Truth.read(truth_in(paths["truth"], sources), label, reading) if "truth" in paths else None
    began = time.monotonic()
    with output.replaced(paths["out"], _read(paths), settings.overwrite, settings.checkpoint) as out:
        if isinstance(source, Adapted) and not annotated:
            adapted = source
        else:
            with Progress("adapting", None, "steps") as progress:
                adapted = _adapted(source, pictures, masks, settings, progress.update)
            # The masks were already read with these.
            adapted = replace(adapted, label=label, colours={} if reading is None else reading.colours)
            _warn(_late(settings, time.monotonic() - began))
            if settings.save:
                done = savable(adapted) and save(adapted, out / NAME)
                print(f"segmenter   {paths['out'] / NAME if done else 'not saved: nothing was adapted'}")
        _say(adapted, settings)
        if settings.curve:
            _say_curve(adapted)
        for path in export(adapted, out, settings.export):
            print(f"segmenter   {paths['out'] / path.name}")
        if not sources:
            return []
        with Progress("segmenting", len(sources), "images") as progress:
            table, faults = _segment(adapted, sources, truth, settings, out, progress.update)
    _summary(table, paths["out"], time.monotonic() - began)
    if not faults:
        return []
    return [f"{' and '.join(faults)} could not be used, see the messages above; all others are in {paths['out']}."]


def _late(settings: schema.Adaptation, seconds: float) -> list[str]:
    """A warning if adapting took much longer than it should."""
    if settings.budget is None or settings.steps is not None or seconds <= _LATE * settings.budget:
        return []
    return [
        f"Adapting took {seconds:.0f} s instead of budget={settings.budget:g}: the budget is too short for the "
        f"{FEWEST_STEPS} steps that are always taken, or the machine is busy."
    ]


def _source(settings: schema.Adaptation) -> Model | Adapted:
    """What to adapt: a model, or a saved segmenter, which also segments as it is."""
    if _kept(settings):
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
    how: dict[str, Any] = {name: getattr(settings, name) for name in ("seed", *_HOW)}
    how |= {"budget": settings.budget, "progress": progress}
    return (source.adapt if isinstance(source, Model) else source.with_more)(pictures, masks, **how)


def _support(
    annotated: Sequence[Annotated], label: int | None, some: bool, like: Reading | None
) -> tuple[list[np.ndarray], list[np.ndarray], Reading | None]:
    """The annotated images, their masks, bool (H, W), and how these and earlier ones (`like`) were read."""
    if not annotated:
        return [], [], like
    names = [one.image.name for one in annotated]
    pictures = [one.image.read() for one in annotated]
    masks, reading = foregrounds([one.mask.read_mask() for one in annotated], label, some, like)
    print(f"masks: {reading.sentence()}")
    for one, picture, mask in zip(annotated, pictures, masks, strict=True):
        same_size(picture, mask, str(one.mask.path))
    checks.require_different(names, np.stack([checks.thumbnail(picture) for picture in pictures]))
    if turned := [one.image.name for one in annotated if is_turned(one.image.path) and not is_turned(one.mask.path)]:
        _warn([f"Stored rotated and shown upright (EXIF), while the mask may not be: {listed(turned, 4)}; check it."])
    _warn(checks.of_support(names, [picture.shape[:2] for picture in pictures], masks))
    if len(annotated) > 1 and len({one.image.path for one in annotated}) == 1:
        _warn(["All annotated images are from one file; expect a lower Dice on other patients than the one below."])
    return pictures, masks, reading.after(like)


@dataclass(frozen=True)
class _Truth:
    """True masks by image name, read by one rule."""

    files: Mapping[str, Source]
    reading: Reading

    @classmethod
    def read(cls, files: Mapping[str, Source], label: int | None, like: Reading | None) -> _Truth:
        """Read the masks; `like`: how the annotated ones were read."""
        raws = (_tried(source.read_mask) for source in files.values())
        surveys = [survey(raw) for raw in raws if not isinstance(raw, str)]  # a damaged mask costs only its own score
        reading = decide(surveys, label if surveys else None, like)
        if surveys:
            require_foreground(reading, [one.name for one in surveys])
        return cls(files, reading)

    def of(self, name: str, image: np.ndarray) -> np.ndarray | str | None:
        """The true mask of an image, or an error message; None if there is no mask."""
        if name not in self.files:
            return None
        source = self.files[name]

        def read() -> np.ndarray:
            mask = self.reading.foreground(source.read_mask())
            same_size(image, mask, str(source.path))
            return mask

        return _tried(read)


def _say(adapted: Adapted, settings: schema.Adaptation) -> None:
    """What was adapted, and how good it is."""
    plan = adapted.plan
    print(f"size        {plan.shape[1]}×{plan.shape[0]} pixels: a Dice of at most {100 * plan.kept:.0f} % is possible")
    if settings.support is not None:
        given = {"recipe": settings.recipe, "label": adapted.label}
        chosen = [f"{name}={value}" for name, value in given.items() if value is not None]
        print("repeat with", *chosen, plan.settings(), f"seed={settings.seed}")
    if plan.kept < KEPT:
        _warn(["The annotated objects are too small for the working size; crop the images to the part that matters."])
    if adapted.estimate is not None:
        print(f"{adapted.estimate.sentence()}\n{adapted.estimate.verdict()}")
    elif len(adapted.support.images) == 1:
        print("Expected Dice: unknown, because a single annotated image cannot be held out; annotate more.")
    elif settings.folds is None and settings.support is not None and settings.budget is not None:
        print(f"Expected Dice: unknown, as budget={settings.budget:g} seconds allow no estimate; raise budget.")


def _say_curve(adapted: Adapted) -> None:
    try:
        with Progress("adapting to fewer", None, "folds") as progress:
            curve = learning_curve(adapted, progress.update)
    except MetasegError as error:  # too few images: no reason not to segment the others
        _warn([str(error)])
    else:
        print(curve.sentence())


def _segment(
    adapted: Adapted,
    sources: Sequence[Source],
    truth: _Truth | None,
    settings: schema.Adaptation,
    out: Path,
    progress: Callable[[int, int], None],
) -> tuple[pd.DataFrame, list[str]]:
    """Segment and write batch by batch; unreadable files are reported and skipped.

    Returns:
        The content of results.csv, and texts that count the unusable files.
    """
    support = np.stack([checks.look(picture) for picture in adapted.support.images])
    rows: list[dict[str, Any]] = []
    looks: list[np.ndarray] = []
    failed: list[str] = []
    unscored: list[str] = []
    done = 0
    for tried in _batches(sources, settings.batch):
        failed += [result for _, result in tried if isinstance(result, str)]
        read = [(source, result) for source, result in tried if not isinstance(result, str)]
        found = adapted.predict([image for _, image in read], settings.batch)
        truths = [None if truth is None else truth.of(source.name, image) for source, image in read]
        unscored += [result for result in truths if isinstance(result, str)]
        known = [None if isinstance(result, str) else result for result in truths]
        looks += [checks.look(image) for _, image in read]
        seen = [adapted.place_of(image) is not None for _, image in read]
        rows += [
            _row(source, predicted, true) | {"annotated": one}
            for (source, _), predicted, true, one in zip(read, found, known, seen, strict=True)
        ]
        if rows:
            # Before the pictures, so that it lists all of them whenever the program is stopped.
            table = _table(rows, scored=truth is not None)
            with replacing(out / RESULTS) as path:
                table.to_csv(path, index=False)
        for (source, image), predicted, true in zip(read, found, known, strict=True):
            _write(source, image, predicted.probabilities, true, settings, out)
        progress(done := done + len(tried), len(sources))
        del tried, read, found, truths, known  # before the next batch is read
    _warn([*failed, *unscored])
    if not rows:
        raise MetasegError(f"None of the {len(sources)} images could be read; the first error: {failed[0]}.")
    _warn(checks.of_new(support, np.stack(looks), [line["image"] for line in rows]))
    faults = []
    if failed:
        faults.append(f"{len(failed)} of {len(sources)} images")
    if unscored:
        faults.append(plural(len(unscored), "true mask"))
    return table, faults


def _batches(sources: Sequence[Source], most: int) -> Iterator[list[tuple[Source, np.ndarray | str]]]:
    """Images, or the messages of those that cannot be read, at most so many at a time, and few if they are large."""
    batch: list[tuple[Source, np.ndarray | str]] = []
    pixels = 0
    for source in sources:
        image = _tried(source.read)
        batch.append((source, image))
        pixels += 0 if isinstance(image, str) else image.shape[0] * image.shape[1]
        del image
        if len(batch) == most or pixels >= _PIXELS:
            yield batch
            batch, pixels = [], 0
    if batch:
        yield batch


def _table(rows: Sequence[Mapping[str, Any]], scored: bool) -> pd.DataFrame:
    table = pd.DataFrame(rows)
    table["page"] = table["page"].astype("Int64")  # nullable, because most images have no page
    # The same columns in every batch, wherever the first image with a truth comes.
    return table.reindex(columns=[*table.columns.drop(_SCORES, errors="ignore"), *(_SCORES if scored else ())])


def _tried(read: Callable[[], Read]) -> Read | str:
    """What `read` returns, or its error message."""
    try:
        return read()
    except MetasegError as error:
        return str(error)


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
        size = reduced_size(mask.shape, _LONGEST)
        picture = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        reduced = [None if one is None else resized_mask(one, picture.shape[:2]) for one in (truth, mask)]
        outlined = overlay(picture, *reduced)
        _save(outlined, out / "overlays" / f"{source.name}.png")


def _save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def _warn(sentences: Sequence[str]) -> None:
    for sentence in sentences:
        print(f"warning: {sentence}", file=sys.stderr)


def _summary(table: pd.DataFrame, out: Path, seconds: float) -> None:
    print(f"{plural(len(table), 'image')} segmented, {seconds:.0f} s in all")
    learnt = table["annotated"]
    known = table.loc[~learnt].get("dsc", pd.Series(dtype=float)).dropna()
    if len(known):
        without = f", without {learnt.sum()} that were learnt from" if learnt.any() else ""
        print(
            f"Dice        {100 * known.mean():.1f} % (median {100 * known.median():.1f}; {plural(len(known), 'image')}"
            f"{without})"
        )
    if nothing := int((table["area"] == 0).sum()):
        print(f"nothing found in {nothing} of them")
    doubtful = table.sort_values("confidence")["image"].head(3)
    print(f"masks       {out / 'masks'}\nresults     {out / RESULTS}")
    print(f"least confident, check these first: {', '.join(doubtful)}")

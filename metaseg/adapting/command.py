"""What adapt.py does: folders in, folders out."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from metaseg.adapting import checks
from metaseg.adapting.arrays import shrunk
from metaseg.adapting.export import FORMATS, export
from metaseg.adapting.files import Annotated, Source, annotated_in, images_in, truth_in
from metaseg.adapting.held_out import hold_out
from metaseg.adapting.model import Adapted, Model, load
from metaseg.adapting.results import RESULTS, fitting, resized_mask, row
from metaseg.data.layouts import read_mask
from metaseg.errors import MetasegError
from metaseg.evaluation.scores import THRESHOLD, dice, iou
from metaseg.reporting.overlays import overlay
from metaseg.run import quieten
from metaseg.rundir import replacing

_WRITTEN = ("masks", "overlays", "probabilities", RESULTS, "segmenter.onnx", "segmenter.pt2")
_LONGEST = 1024  # pixels of an overlay's longer side: enough to judge an outline


def run(config: DictConfig) -> None:
    """Carry out a composed configuration of conf/adapt.yaml.

    Raises:
        MetasegError: on settings, files or folders that cannot be used. What was written before stays.
    """
    quieten()
    settings: dict[str, Any] = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    out = Path(settings["out"])
    _check(settings, out)
    annotated = annotated_in(Path(settings["support"]))
    sources = images_in(Path(settings["images"])) if settings["images"] is not None else []
    truth = truth_in(Path(settings["truth"]), sources) if settings["truth"] is not None else {}
    model = load(settings["checkpoint"], settings["device"])
    began = time.monotonic()
    pictures, masks = _support(annotated)
    out.mkdir(parents=True, exist_ok=True)
    for name in _WRITTEN if settings["overwrite"] else ():
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    options = {key: settings[key] for key in ("steps", "lr", "seed")}
    with _progress() as bar:
        if settings["estimate"]:
            if len(annotated) > 1:
                shown = bar("estimating", settings["folds"] or len(annotated))
                found = hold_out(model, pictures, masks, settings["folds"], **options, progress=shown)
                print(found.sentence())
            else:
                print("Dice to expect: unknown, as one annotated image cannot be held out; annotate more.")
        if not sources and not settings["export"]:
            return
        adapted = model.adapt(pictures, masks, **options, progress=bar("adapting", None))
        for path in export(adapted, out, settings["export"]):
            print(f"segmenter   {path}")
        if not sources:
            return
        table = _segment(model, adapted, pictures, sources, truth, settings, out, bar("segmenting", len(sources)))
    _summary(table, out, time.monotonic() - began)


def _check(settings: Mapping[str, Any], out: Path) -> None:
    unknown = [name for name in settings["export"] if name not in FORMATS]
    if unknown:
        raise MetasegError(f"export must be a list out of {', '.join(FORMATS)}, found {unknown[0]!r}.")
    for key, least in (("steps", 0), ("folds", 2), ("batch", 1)):
        value = settings[key]
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise MetasegError(f"{key} must be a whole number from {least} on, found {value!r}.")
    if settings["truth"] is not None and settings["images"] is None:
        raise MetasegError("truth=DIR needs images=DIR, the images that it is the truth of.")
    if out.exists() and not out.is_dir():
        raise MetasegError(f"out must be a folder, found the file {out}; choose another.")
    there = [name for name in _WRITTEN if (out / name).exists()]
    if there and not settings["overwrite"]:
        raise MetasegError(f"{out} holds {there[0]} of an earlier call; choose another folder, or add overwrite=true.")


def _support(annotated: Sequence[Annotated]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    names = [one.image.name for one in annotated]
    pictures, masks = (list(part) for part in zip(*(one.read() for one in annotated), strict=True))
    for one, picture, mask in zip(annotated, pictures, masks, strict=True):
        if picture.shape[:2] != mask.shape:
            raise MetasegError(
                f"{one.mask} has {mask.shape[1]}×{mask.shape[0]} pixels, its image "
                f"{picture.shape[1]}×{picture.shape[0]}: expected equal sizes, so it may belong to another image."
            )
    _warn(checks.of_support(names, [picture.shape[:2] for picture in pictures], masks))
    return pictures, masks


def _segment(
    model: Model,
    adapted: Adapted,
    pictures: Sequence[np.ndarray],
    sources: Sequence[Source],
    truth: Mapping[str, Path],
    settings: Mapping[str, Any],
    out: Path,
    progress: Callable[[int, int], None],
) -> pd.DataFrame:
    """Segment and write image by image; a file that cannot be read is told, and does not keep the others."""
    support = np.stack([shrunk(picture, model.size) for picture in pictures])
    rows: list[dict[str, Any]] = []
    small: list[np.ndarray] = []
    failed: list[str] = []
    for first in range(0, len(sources), settings["batch"]):
        tried = [(source, _read(source)) for source in sources[first : first + settings["batch"]]]
        failed += [result for _, result in tried if isinstance(result, str)]
        read = [(source, result) for source, result in tried if not isinstance(result, str)]
        found = adapted.probabilities([image for _, image in read], settings["batch"])
        for (source, image), probabilities in zip(read, found, strict=True):
            small.append(shrunk(image, model.size))
            true = _truth(truth.get(source.name), image)
            rows.append(_row(source, image, probabilities, true))
            _write(source, image, probabilities, true, settings, out)
        progress(min(first + settings["batch"], len(sources)), len(sources))
    _warn(failed)
    if not rows:
        raise MetasegError(f"None of the {len(sources)} images could be read, the first because: {failed[0]}.")
    _warn(checks.of_new(support, np.stack(small), [line["image"] for line in rows]))
    table = pd.DataFrame(rows)
    with replacing(out / RESULTS) as path:
        table.to_csv(path, index=False)
    if failed:
        raise MetasegError(
            f"{len(failed)} of {len(sources)} images could not be read, as told above; the others are in {out}."
        )
    return table


def _read(source: Source) -> np.ndarray | str:
    """The image, or what is wrong with it."""
    try:
        return source.read()
    except MetasegError as error:
        return str(error)


def _truth(path: Path | None, image: np.ndarray) -> np.ndarray | None:
    if path is None:
        return None
    mask = read_mask(path)
    if mask.shape != image.shape[:2]:
        raise MetasegError(
            f"{path} has another size than its image; expected {image.shape[1]}×{image.shape[0]} pixels."
        )
    return mask


def _row(source: Source, image: np.ndarray, probabilities: np.ndarray, truth: np.ndarray | None) -> dict[str, Any]:
    mask = probabilities > THRESHOLD
    line = row(source.name, source.path.name, source.page, probabilities)
    if truth is not None:
        line |= {"dsc": float(dice(mask[None], truth[None])[0]), "iou": float(iou(mask[None], truth[None])[0])}
    return line


def _write(
    source: Source,
    image: np.ndarray,
    probabilities: np.ndarray,
    truth: np.ndarray | None,
    settings: Mapping[str, Any],
    out: Path,
) -> None:
    mask = probabilities > THRESHOLD
    _save(mask.astype(np.uint8) * 255, out / "masks" / f"{source.name}.png")
    if settings["probabilities"]:
        _save(np.rint(probabilities * 65535).astype(np.uint16), out / "probabilities" / f"{source.name}.png")
    if settings["overlays"]:
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


@contextmanager
def _progress() -> Iterator[Callable[[str, int | None], Callable[[int, int], None]]]:
    """Bars on a terminal, nothing elsewhere: `bar(what, total)` returns a function of (done, of how many)."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:

        def bar(what: str, total: int | None) -> Callable[[int, int], None]:
            task = progress.add_task(what, total=total)
            return lambda done, of: progress.update(task, completed=done, total=of)

        yield bar


def _summary(table: pd.DataFrame, out: Path, seconds: float) -> None:
    print(f"{len(table)} images segmented in {seconds:.0f} s")
    if "dsc" in table:
        known = table["dsc"].dropna()
        print(f"Dice        {100 * known.mean():.1f} % (median {100 * known.median():.1f}; {len(known)} images)")
    doubtful = table.sort_values("confidence")["image"].head(3)
    print(f"masks       {out / 'masks'}\nresults     {out / RESULTS}")
    print(f"look first at the least confident: {', '.join(doubtful)}")

"""A trained model in one small file: its meta-parameters, its settings, and a card of what it learned from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from metaseg import __version__
from metaseg.data import catalogue
from metaseg.errors import MetasegError
from metaseg.learners.checkpoints import read_checkpoint
from metaseg.networks.weight_files import halved, opened_described, tensors_in, write_described
from metaseg.runs.directory import RunDirectory

SUFFIX = ".safetensors"

_KEY = "metaseg-model"
_FORMAT = 1
_OF_CHECKPOINT = ("settings", "architecture", "weights", "inner_problem")


def write(run: RunDirectory, path: Path) -> Path:
    """Write the model of a finished run, in half precision.

    Args:
        run: with a result and its best checkpoint.
        path: the file, .safetensors; replaced if it exists.

    Raises:
        MetasegError: if the run is unfinished, or the file cannot be written.
    """
    best = run.best
    if not (run.result.is_file() and best.is_file()):
        raise MetasegError(f"Expected a finished run with a checkpoint in {run.path}, found none; train it first.")
    state = read_checkpoint(best)
    tensors = {name: halved(value) for name, value in state["state_dict"].items()}
    described = {key: state[key] for key in _OF_CHECKPOINT if key in state}
    description = {"format": _FORMAT, "version": __version__, "card": card(run), **described}
    write_described(path, tensors, _KEY, description)
    return path


def card(run: RunDirectory) -> dict[str, Any]:
    """What the model of a finished run learned from, and how."""
    result = run.read_result()
    settings, weights = result.settings, result.weights
    root = settings["data"]["root"] if settings["data"]["source"] == "real" else None
    datasets = {}
    for name in settings["pair"]["pools"]:
        known = catalogue.get(name, root)
        datasets[name] = {
            "title": known.title if settings["data"]["source"] == "real" else f"{known.title}, synthetic twin",
            "images": result.data[name].images,
            "licence": known.licence or "unknown",
            "url": known.url,
        }
    return {
        "learner": settings["learner"]["name"],
        "shots": settings["shots"],
        "size": settings["data"]["size"],
        "encoder": None if weights is None else f"{weights.name} ({weights.trained_on}; {weights.licence})",
        "datasets": datasets,
        "commit": result.commit,
        "scores": {name: one.dsc.mean for name, one in result.targets.items()},
    }


def lines(path: Path) -> list[str]:
    """The card of a model file, for people. Raises as `header`."""
    with _opened(path) as (_, description):
        return _lines(description)


def _lines(description: dict[str, Any]) -> list[str]:
    about = description["card"]
    scores = ", ".join(f"{name} {100 * (score or 0):.1f}" for name, score in about["scores"].items())
    datasets = [
        f"  {'learned from' if not number else '':<12}  {one['title']}: {one['images']} images; terms: {one['licence']}"
        + (f" ({one['url']})" if one["url"] else "")
        for number, one in enumerate(about["datasets"].values())
    ]
    return [
        f"  learner       {about['learner']}, {about['shots']} shots, {about['size']} pixels",
        f"  encoder       {about['encoder'] or 'random at first'}",
        *datasets,
        f"  scores        {f'Dice in %: {scores}' if scores else 'none: it was tested on no other dataset'}",
        f"  made by       metaseg {description['version']}, commit {about['commit']}",
        "  for           research, not diagnosis; the datasets' terms may extend to what was learned from them",
    ]


def header(path: Path) -> dict[str, Any]:
    """The settings and the card of a model file; nothing but its header is read.

    Raises:
        MetasegError: as for `read`.
    """
    with _opened(path) as (_, description):
        return description


def read(path: Path) -> dict[str, Any]:
    """The content of a model file, as that of a checkpoint, with the card. Nothing in the file is executed.

    Raises:
        MetasegError: if the file is damaged, of another kind, or of a later version.
    """
    with _opened(path) as (file, description):
        tensors = tensors_in(file)
    floats = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
    return description | {"state_dict": floats}


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    otherwise = (
        f"Expected a model file of `metaseg models build`, but {path} is something else or damaged; segmenters that "
        "metaseg adapt saved are read by metaseg.load_segmenter, or named in checkpoint= of metaseg adapt."
    )
    with opened_described(path, _KEY, _FORMAT, "was made by", otherwise) as (file, description):
        if not isinstance(description["settings"], dict):
            raise TypeError("settings of another type")
        yield file, description


def is_one(path: Path) -> bool:
    """Whether a file's header identifies it as a model file; only the header is read."""
    try:
        with safe_open(path, framework="pt") as file:
            return _KEY in (file.metadata() or {})
    except (SafetensorError, OSError, ValueError):
        return False

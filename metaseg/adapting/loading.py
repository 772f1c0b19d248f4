"""Read a model: the built-in one, a run directory or a checkpoint, none of which is trusted."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_class
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from metaseg import configuration
from metaseg.adapting import model_file
from metaseg.adapting.model import Model
from metaseg.errors import MetasegError, expanded, shown
from metaseg.learners.base import Learner
from metaseg.learners.build import build_learner
from metaseg.learners.checkpoints import read_checkpoint, restore
from metaseg.runs import schema, validation
from metaseg.runs.directory import RunDirectory
from metaseg.runs.provenance import check_gpu
from metaseg.runs.settings import without_retired

log = logging.getLogger(__name__)

DEVICES = ("auto", "cpu", "cuda")

_SPARE = 200_000_000  # weights that are built and removed again: a VGG classifier has 124 million

BUILT_IN = ("learner=scratch", "learner.prior=true", "pair=none", "model=pretrained", "logger=csv")
"""The built-in model as settings of train.py: the pre-trained encoder and a decoder that has seen no image yet."""


def load(path: str | Path | None = None, device: str = "auto", recipe: str | None = None) -> Model:
    """Load the built-in model or a run of train.py.

    Nothing in the file is executed. The pre-trained weights the run started from are not needed. On a GPU, PyTorch's
    TF32 in convolutions is turned off for the whole process, as in training and in tests.

    Args:
        path: a run directory, a checkpoint (best.ckpt, last.ckpt) anywhere, or a file of `metaseg models build`. None:
            the built-in model, which has learned only from ImageNet.
        device: "cpu", "cuda", or "auto" for a GPU if there is one.
        recipe: adaptation recipe of the run's network: "default", or "quick", which adapts only the decoder. None: as
            in the run.

    Raises:
        MetasegError: if there is no run, it is unfinished, its files are damaged, or the device does not exist.
    """
    place = chosen_device(device)
    if place == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    settings: Mapping[str, Any]
    checkpoint: Path | None
    if path is None:
        settings, checkpoint = validation.read(schema.Run, configuration.composed("config", BUILT_IN)).plain, None
    else:
        path = expanded(path)
        settings, checkpoint = _directory(path) if path.is_dir() else _file(path)
    try:
        if checkpoint is None:
            known, learner = learner_of(settings, recipe)
        else:
            state = _state(checkpoint)
            known, learner = learner_of(settings, recipe, state["state_dict"])
            restore(learner, state)
    except MetasegError:
        raise
    except Exception as error:  # a foreign file may contain anything
        reason = " ".join(str(error).split())
        raise MetasegError(
            f"Expected settings and weights of a run of train.py, but those in {path} do not match this version of "
            f"metaseg ({type(error).__name__}: {reason[:200]}); train again."
        ) from error
    learner.to(place).eval()
    origin: Any = "built-in" if path is None else "file" if checkpoint and _is_model_file(checkpoint) else "run"
    return Model(learner, known, known.data.size, known.data.augment, origin, recipe)


def chosen_device(device: str) -> str:
    """ "cpu" or "cuda", for "auto" a GPU if there is one that this torch has kernels for.

    Raises:
        MetasegError: if the device is unknown or missing, or this torch has no kernels for it.
    """
    if device not in DEVICES:
        raise MetasegError(f"device must be one of {', '.join(DEVICES)}, found {device!r}.")
    if device == "cuda" and not torch.cuda.is_available():
        raise MetasegError("device=cuda needs a GPU that torch can use, found none; use device=cpu.")
    if device == "cpu" or not torch.cuda.is_available():
        return "cpu"
    try:
        check_gpu()
    except MetasegError as error:
        if device == "cuda":
            raise
        log.warning("Using the CPU: %s", error)
        return "cpu"
    return "cuda"


def learner_of(
    settings: Mapping[str, Any], recipe: str | None = None, weights: Mapping[str, Tensor] | None = None
) -> tuple[schema.Trained, Learner]:
    """The checked settings of a run and its learner. Settings may come from an untrusted file.

    Args:
        settings: of the run.
        recipe: as for `load`.
        weights: those that will replace the initial ones, which are then not loaded.

    Raises:
        MetasegError: on settings that name foreign classes, are invalid, or describe a network far larger than the
            weights.
    """
    settings = without_retired(settings)
    _own_classes(settings)
    known = _with_recipe(validation.checked(schema.Trained, settings), recipe)
    if weights is None:
        return known, build_learner(known)
    with _Bounded(_SPARE + 2 * sum(value.numel() for value in weights.values())):
        return known, build_learner(known, initial_weights=False)


class _Bounded(TorchFunctionMode):
    """Ends the building of a network of more elements than this, before the memory for them is used."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements = self.left = elements

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and not any(isinstance(one, Tensor) for one in args):
            self.left -= made.numel()
            if self.left < 0:
                raise MetasegError(
                    f"Expected a network of at most {self.elements / 1e6:.0f} million weights, by the file's size, "
                    "found settings of a larger one in it: it is damaged or malicious."
                )
        return made


def _with_recipe(settings: schema.Trained, recipe: str | None) -> schema.Trained:
    """The settings with an adaptation recipe of the run's network; a start that saw no task stays worth no images.

    Raises:
        MetasegError: if there is no recipe of that name.
    """
    if recipe is None:
        return settings
    of_model = settings.model.recipe
    known = {} if of_model is None else {name: one for name, one in of_model.adapt if one is not None}
    if recipe not in known:
        raise MetasegError(
            f"Expected a recipe of the run's network ({', '.join(known) or 'it has none'}), found recipe={recipe!r}; "
            "omit it to adapt as in the run."
        )
    given = {name: value for name, value in known[recipe] if name in known[recipe].model_fields_set}
    if not get_class(settings.learner.target_).trains:  # type: ignore[attr-defined]
        given.pop("start_worth", None)
    adapt = settings.learner.adapt.model_copy(update=given)
    return settings.model_copy(update={"learner": settings.learner.model_copy(update={"adapt": adapt})})


def _own_classes(settings: Mapping[str, Any]) -> None:
    """Refuse settings that name other classes than metaseg's learners and networks: those of a foreign file could harm.

    Raises:
        MetasegError: on such a name, or a network of its own that is wider than any of metaseg.
    """
    learner = settings["learner"]
    network = learner.get("network")
    for node, base, package in ((learner, Learner, "learners"), (network, nn.Module, "networks")):
        name = None if node is None else str(node["_target_"])
        if name is None:
            continue
        # By its name first, as looking a class up imports its module.
        kind = get_class(name) if re.fullmatch(rf"metaseg\.{package}\.\w+\.[A-Z]\w*", name) else object
        if not (issubclass(kind, base) and kind.__module__.startswith(f"metaseg.{package}.")):
            raise MetasegError(
                f"Expected settings of a run of train.py with a learner and network of metaseg, found {shown(name)}; "
                "it was not executed, and the file may be malicious."
            )
    for key, value in (network or {}).items():
        if isinstance(value, int) and value > schema.WIDEST:
            raise MetasegError(f"Expected learner.network.{key} to be at most {schema.WIDEST}, found {value}.")


def _directory(path: Path) -> tuple[Mapping[str, Any], Path | None]:
    directory = RunDirectory(path)
    if not directory.config.is_file():
        raise MetasegError(f"Expected a run of train.py in {path}, found no {directory.config.name} in it.")
    settings = directory.read_config()
    best = directory.best
    if best.is_file():
        return settings, best
    if _trains(settings):
        raise MetasegError(
            f"Expected the checkpoint {best} of a trained run, found none; finish the run, or name a file."
        )
    return settings, None


def _trains(settings: Any) -> bool:
    try:
        _own_classes(settings)
        return bool(settings["train"] and get_class(settings["learner"]["_target_"]).trains)  # type: ignore[attr-defined]
    except MetasegError:
        raise
    except Exception as error:
        raise MetasegError("Expected the settings of a run of train.py, found no learner in them.") from error


def _is_model_file(path: Path) -> bool:
    return path.suffix == model_file.SUFFIX


def _state(path: Path) -> dict[str, Any]:
    return model_file.read(path) if _is_model_file(path) else read_checkpoint(path)


def _file(path: Path) -> tuple[Mapping[str, Any], Path]:
    if not path.is_file():
        raise MetasegError(f"Expected a run directory or a checkpoint, found nothing at {path}.")
    if _is_model_file(path):
        return model_file.header(path)["settings"], path
    settings = read_checkpoint(path, mmap=True).get("settings")
    if isinstance(settings, dict):
        return settings, path
    directory = RunDirectory(path.parent.parent)
    if directory.config.is_file():
        return directory.read_config(), path
    raise MetasegError(
        f"Expected a checkpoint that contains its settings or is in a run directory, found neither at {path}; name the "
        "run directory."
    )

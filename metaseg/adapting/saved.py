"""An adapted segmenter in one file: networks, how they were adapted, and the annotated images they learnt from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from metaseg import __version__
from metaseg.adapting.checks import SIDE
from metaseg.adapting.estimate import TRIVIAL, Estimate
from metaseg.adapting.loading import chosen_device, learner_of, load
from metaseg.adapting.model import Adapted, Model
from metaseg.adapting.plan import Plan
from metaseg.data.batches import SupportSet
from metaseg.errors import MetasegError, expanded
from metaseg.meta.losses import UNMARKED
from metaseg.networks.segmenter import AdaptedNetwork, Ensemble, Followed, Segmenter
from metaseg.networks.weight_files import halved, opened_described, tensors_in, write_described
from metaseg.runs import schema

NAME = "segmenter.safetensors"
"""File in the output folder of `metaseg adapt`."""

_KEY = "metaseg"
_FORMAT = 2  # 1 had neither colours nor thumbnails


def save(adapted: Adapted, path: str | Path) -> Path:
    """Write a segmenter, in half precision: some 7 MB for each of its networks with the built-in model.

    The file contains the annotated images at the working size and as thumbnails, so pass it on only where these may go.

    Args:
        adapted: the segmenter; of a learner that adapts a network.
        path: the file, usually .safetensors; replaced if it exists.

    Raises:
        MetasegError: if the learner compares images instead of adapting a network, or the file cannot be written.
    """
    own, flips = _networks(adapted.segmenter)
    others = [network for member in adapted.members for network in _networks(member)[0]]
    tensors: dict[str, Tensor] = {}
    for number, network in enumerate([*own, *others]):
        tensors |= {f"{number}.parameters.{name}": value for name, value in network.parameters.items()}
        for name, (mean, variance) in network.statistics.items():
            tensors |= {f"{number}.mean.{name}": mean, f"{number}.variance.{name}": variance}
    tensors = {name: halved(value) for name, value in tensors.items()}
    tensors["images"] = torch.from_numpy(np.ascontiguousarray(adapted.support.images))
    tensors["masks"] = torch.from_numpy(np.ascontiguousarray(adapted.support.masks))
    if adapted.thumbnails is not None:
        tensors["thumbnails"] = torch.from_numpy(np.ascontiguousarray(adapted.thumbnails))
    description = {
        "format": _FORMAT,
        "version": __version__,
        "settings": adapted.model.settings.plain,
        "recipe": adapted.model.recipe,
        "plan": asdict(adapted.plan),
        "networks": len(own),
        "flips": flips,
        "augmentation": adapted.support.augmentation,
        "built_in": adapted.model.origin == "built-in",
        "estimate": None if adapted.estimate is None else adapted.estimate.plain(),
        "threshold": adapted.threshold,
        "label": adapted.label,
        "colours": dict(adapted.colours),
    }
    path = expanded(path)
    write_described(path, tensors, _KEY, description)
    return path


def load_segmenter(path: str | Path, device: str = "auto") -> Adapted:
    """Read a segmenter that `save` wrote. Nothing in the file is executed.

    Args:
        path: the file.
        device: "cpu", "cuda", or "auto" for a GPU if there is one.

    Raises:
        MetasegError: if the file is missing, damaged, of another kind, or of a later version.
    """
    path = expanded(path)
    if not path.is_file():
        raise MetasegError(f"Expected a segmenter saved by metaseg, found nothing at {path}.")
    otherwise = (
        f"Expected a segmenter saved by metaseg, but {path} is damaged or something else; adapt again to get a new one."
    )
    with opened_described(path, _KEY, _FORMAT, "was saved by", otherwise) as (file, description):
        return _read(description, tensors_in(file), device)


def _read(description: dict[str, Any], tensors: dict[str, Tensor], device: str) -> Adapted:
    model = _model(description, tensors, device)
    network, place = model.learner.network, model.learner.device
    plan = Plan(**description["plan"] | {"shape": tuple(description["plan"]["shape"])})
    support = SupportSet(
        tensors.pop("images").numpy(), tensors.pop("masks").numpy(), description["augmentation"], 0, plan.crop
    )
    thumbnails = tensors.pop("thumbnails").numpy() if "thumbnails" in tensors else None
    if support.images.shape[1:] != (*plan.shape, 3) or support.masks.shape != support.images.shape[:3]:
        raise ValueError("images of another shape")
    parts: dict[int, dict[str, dict[str, Tensor]]] = {}
    for name, value in tensors.items():
        network_number, kind, rest = name.split(".", 2)
        of = parts.setdefault(int(network_number), {"parameters": {}, "mean": {}, "variance": {}})
        of[kind][rest] = value.float().to(place)
    expected = {name: value.shape for name, value in network.named_parameters()}
    networks = []
    for number in sorted(parts):
        found = parts[number]
        if {name: value.shape for name, value in found["parameters"].items()} != expected:
            raise ValueError("weights of another network")
        statistics = {name: (mean, found["variance"][name]) for name, mean in found["mean"].items()}
        ordered = {name: found["parameters"][name] for name in expected}
        networks.append(AdaptedNetwork(network, ordered, statistics))
    own, others = networks[: description["networks"]], networks[description["networks"] :]
    estimate = None if description["estimate"] is None else Estimate.of(description["estimate"])
    segmenter = Ensemble(tuple(own), bool(description["flips"]), own[0], Followed(1.0))
    threshold, label = float(description["threshold"]), description["label"]
    colours = {int(colour): one for colour, one in description.get("colours", {}).items()}
    _require_sound(support, estimate, plan, threshold, label, colours, thumbnails)
    return Adapted(segmenter, plan, model, support, tuple(others), estimate, threshold, label, colours, thumbnails)


def _require_sound(
    support: SupportSet,
    estimate: Estimate | None,
    plan: Plan,
    threshold: float,
    label: int | None,
    colours: Mapping[int, int],
    thumbnails: np.ndarray | None,
) -> None:
    """Refuse content that no segmenter has, and that would fail only when it is used.

    Raises:
        ValueError: on such content.
    """
    count = len(support.images)
    sound = [
        support.images.dtype == support.masks.dtype == np.uint8,
        bool(np.isin(support.masks, (0, 1, UNMARKED)).all()),
        support.augmentation in get_args(schema.Augmentation),
        0 <= plan.kept <= 1 and plan.steps >= 0 and plan.folds >= 0,
        0 < threshold < 1,
        label is None or (isinstance(label, int) and label > 0),
        all(0 <= colour < 1 << 24 and isinstance(one, int) and one >= 0 for colour, one in colours.items()),
        thumbnails is None or (thumbnails.dtype == np.uint8 and thumbnails.shape == (count, SIDE, SIDE, 3)),
    ]
    if estimate is not None:
        known = TRIVIAL.keys() >= estimate.trivial.keys() and bool(estimate.trivial or estimate.scribbled)
        scores = (estimate.dsc, *estimate.trivial.values())
        sound += [known, all(one.shape == (count,) and bool(((one >= 0) & (one <= 1)).all()) for one in scores)]
    if not all(sound):
        raise ValueError("values that no segmenter has")


def _model(description: dict[str, Any], tensors: dict[str, Tensor], device: str) -> Model:
    """The model that was adapted: the built-in one, or the architecture of a run."""
    recipe = description["recipe"]
    if description["built_in"]:
        return load(None, device, recipe)
    settings, learner = learner_of(description["settings"], recipe, tensors)
    learner.to(chosen_device(device)).eval()
    return Model(learner, settings, settings.data.size, settings.data.augment, recipe=recipe, complete=False)


def savable(adapted: Adapted) -> bool:
    """Whether the segmenter is one or more networks, rather than a comparison of images."""
    return isinstance(adapted.segmenter, Ensemble | AdaptedNetwork)


def _networks(segmenter: Segmenter) -> tuple[Sequence[AdaptedNetwork], bool]:
    """The networks whose predictions a segmenter averages, and whether it mirrors images."""
    if isinstance(segmenter, Ensemble):
        return segmenter.members, segmenter.flips
    if isinstance(segmenter, AdaptedNetwork):
        return [segmenter], False
    raise MetasegError(
        "Saving needs an adapted network, but this learner compares images with annotated ones; use the built-in "
        "model, or a run of imaml, maml, joint or similar."
    )

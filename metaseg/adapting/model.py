"""The Python interface to a trained run: load it, adapt it to annotated images, segment others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from hydra.utils import get_class
from PIL import Image
from torch import nn

from metaseg import configuration
from metaseg.adapting.arrays import binary_mask, rgb, same_size, shrunk, shrunk_mask
from metaseg.data.batches import SupportSet, image_tensor
from metaseg.errors import MetasegError
from metaseg.evaluation.scores import THRESHOLD
from metaseg.learners.base import Learner
from metaseg.learners.build import build_learner
from metaseg.learners.checkpoints import load_weights
from metaseg.networks.segmenter import Segmenter
from metaseg.runs import schema
from metaseg.runs.directory import RunDirectory
from metaseg.runs.settings import upgraded

DEVICES = ("auto", "cpu", "cuda")


BUILT_IN = ("learner=scratch", "pair=none", "model=pretrained", "logger=csv")
"""The built-in model as settings of train.py: the pre-trained encoder and a decoder that has seen no image yet."""


def load(path: str | Path | None = None, device: str = "auto", recipe: str | None = None) -> Model:
    """Load the built-in model or a run of train.py.

    Nothing in the file is executed. The pre-trained weights the run started from are not needed.

    Args:
        path: a run directory, or a checkpoint (best.ckpt, last.ckpt) anywhere. None: the built-in model, which has
            learned from ImageNet alone.
        device: "cpu", "cuda", or "auto" for a GPU if there is one.
        recipe: adaptation recipe of the run's network: "default", or "quick", which adapts the decoder alone. None: as
            in the run.

    Raises:
        MetasegError: if there is no run, it is unfinished, its files are damaged, or the device does not exist.
    """
    if device not in DEVICES:
        raise MetasegError(f"device must be one of {', '.join(DEVICES)}, found {device!r}.")
    if device == "cuda" and not torch.cuda.is_available():
        raise MetasegError("device=cuda needs a GPU that torch can use, found none; use device=cpu.")
    settings: Mapping[str, Any]
    checkpoint: Path | None
    if path is None:
        settings, checkpoint = schema.read(schema.Run, configuration.composed("config", BUILT_IN)).plain, None
    else:
        path = Path(path).expanduser()
        settings, checkpoint = _directory(path) if path.is_dir() else _file(path)
    try:
        _own_classes(settings)
        known = _with_recipe(schema.checked(schema.Trained, upgraded(settings)), recipe)
        learner = build_learner(known, initial_weights=checkpoint is None)
        if checkpoint is not None:
            load_weights(learner, checkpoint)
    except MetasegError:
        raise
    except Exception as error:  # a foreign file may contain anything
        reason = " ".join(str(error).split())
        raise MetasegError(
            f"Expected settings and weights of a run of train.py, but those in {path} do not match this version of "
            f"metaseg ({type(error).__name__}: {reason[:200]}); train again."
        ) from error
    chosen = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    learner.to(chosen).eval()
    return Model(learner, known, known.data.size, known.data.augment)


@dataclass(frozen=True)
class Model:
    """A trained learner with its settings. Immutable: several threads may adapt it at the same time.

    Attributes:
        learner: the learner, at its meta-parameters.
        settings: of the run.
        size: S, the side of the network's input in pixels.
        augmentation: of the support images during adaptation.
    """

    learner: Learner
    settings: schema.Trained
    size: int
    augmentation: str

    def adapt(
        self,
        images: Sequence[np.ndarray],
        masks: Sequence[np.ndarray],
        steps: int | None = None,
        lr: float | None = None,
        seed: int = 0,
        progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> Adapted:
        """Adapt the network to annotated images; the model itself is not changed.

        Args:
            images: K ≥ 1 arrays (H, W), (H, W, 3) or (H, W, 4): uint8, uint16, or floats in [0, 1]; sizes may differ.
            masks: K arrays (H, W); foreground is > 0 if a mask has at most two values, else above half of the largest.
            steps: adaptation steps; None: the run's.
            lr: step size; None: the run's.
            seed: of the random augmentation.
            progress: called with (steps taken, total steps).

        Raises:
            MetasegError: on invalid images or masks, or if their numbers or sizes do not match.
        """
        support_images, support_masks = self.support(images, masks)
        return self.adapt_to(support_images, support_masks, steps, lr, seed, progress)

    def support(self, images: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Annotated images at the network's size: uint8 (K, S, S, 3) and {0, 1} (K, S, S). Arguments as for `adapt`."""
        if not len(images) or len(images) != len(masks):
            raise MetasegError(
                f"Expected at least one image and a mask for each, found {len(images)} images and {len(masks)} masks."
            )
        coloured = [rgb(image, f"image {number}") for number, image in enumerate(images)]
        binary = [binary_mask(mask, f"mask {number}") for number, mask in enumerate(masks)]
        for number, (image, mask) in enumerate(zip(coloured, binary, strict=True)):
            same_size(image, mask, f"mask {number}")
        small = [shrunk(image, self.size) for image in coloured]
        return np.stack(small), np.stack([shrunk_mask(mask, self.size) for mask in binary])

    def adapt_to(
        self,
        images: np.ndarray,
        masks: np.ndarray,
        steps: int | None = None,
        lr: float | None = None,
        seed: int = 0,
        progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> Adapted:
        """`adapt` to the arrays returned by `support`."""
        changes = {"steps": steps, "lr": lr}
        learner = self.learner.with_adaptation(**{name: one for name, one in changes.items() if one is not None})
        end = learner.adapt_loop.steps
        progress(0, end)
        ((_, segmenter),) = learner.adaptation(SupportSet(images, masks, self.augmentation, seed), [end], progress)
        return Adapted(segmenter, self.size)


@dataclass(frozen=True)
class Adapted:
    """A segmenter for one kind of image.

    Attributes:
        segmenter: images (B, 3, S, S) in [-1, 1] → foreground probabilities (B, 1, S, S).
        size: S.
    """

    segmenter: Segmenter
    size: int

    def probabilities(self, images: Sequence[np.ndarray], batch: int = 16) -> list[np.ndarray]:
        """Foreground probabilities, float32 (H, W) in [0, 1], at each image's size.

        Args:
            images: as for `Model.adapt`.
            batch: images segmented at a time.

        Raises:
            MetasegError: on invalid images, or if adaptation diverged.
        """
        small = [shrunk(rgb(image, f"image {number}"), self.size) for number, image in enumerate(images)]
        found: list[np.ndarray] = []
        for first in range(0, len(small), batch):
            pieces = self.segmenter(image_tensor(np.stack(small[first : first + batch])))[:, 0].cpu().numpy()
            if not np.isfinite(pieces).all():
                raise MetasegError(
                    "Expected probabilities from the network, found NaN: adaptation diverged or the checkpoint is "
                    "damaged; choose a smaller lr."
                )
            found += [enlarged(piece, image.shape[:2]) for piece, image in zip(pieces, images[first:], strict=False)]
        return found

    def segment(self, images: Sequence[np.ndarray], batch: int = 16) -> list[np.ndarray]:
        """Masks, bool (H, W), of probabilities above 0.5. Arguments as for `probabilities`."""
        return [found > THRESHOLD for found in self.probabilities(images, batch)]


def enlarged(probabilities: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Probabilities (S, S) resized bilinearly to (H, W), which keeps outlines smooth."""
    height, width = size
    picture = Image.fromarray(probabilities.astype(np.float32))
    # Rounding errors may leave [0, 1].
    return np.clip(np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR)), 0, 1)


def _with_recipe(settings: schema.Trained, recipe: str | None) -> schema.Trained:
    """The settings with an adaptation recipe of the run's network.

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
    adapt = settings.learner.adapt.model_copy(update={**given, "by": "recipe"})
    return settings.model_copy(update={"learner": settings.learner.model_copy(update={"adapt": adapt})})


def _own_classes(settings: Mapping[str, Any]) -> None:
    """Refuse settings that name classes outside metaseg: instantiating those of a foreign file could do harm.

    Raises:
        MetasegError: on such a name.
    """
    learner = settings["learner"]
    for node, base in ((learner, Learner), (learner.get("network"), nn.Module)):
        name = None if node is None else str(node["_target_"])
        if name is None:
            continue
        kind = get_class(name) if name.startswith("metaseg.") else object
        if not (issubclass(kind, base) and kind.__module__.startswith("metaseg.")):
            raise MetasegError(
                f"Expected settings of a run of train.py with a learner and network of metaseg, found {name}; it was "
                "not executed, and the file may be malicious."
            )


def _directory(path: Path) -> tuple[Mapping[str, Any], Path | None]:
    directory = RunDirectory(path)
    if not directory.config.is_file():
        raise MetasegError(f"Expected a run of train.py in {path}, found no {directory.config.name} in it.")
    settings = _settings(directory.config)
    best = directory.checkpoints / "best.ckpt"
    if best.is_file():
        return settings, best
    if _trains(settings):
        raise MetasegError(
            f"Expected the checkpoint {best} of a trained run, found none; finish the run, or name a file."
        )
    return settings, None


def _settings(config: Path) -> Any:
    try:
        return yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise MetasegError(f"Expected the settings of a run, but {config} cannot be read.") from error


def _trains(settings: Any) -> bool:
    try:
        _own_classes(settings)
        return bool(settings["train"] and get_class(settings["learner"]["_target_"]).trains)  # type: ignore[attr-defined]
    except MetasegError:
        raise
    except Exception as error:
        raise MetasegError("Expected the settings of a run of train.py, found no learner in them.") from error


def _file(path: Path) -> tuple[Mapping[str, Any], Path]:
    if not path.is_file():
        raise MetasegError(f"Expected a run directory or a checkpoint, found nothing at {path}.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # the unpickler may raise anything on a foreign file
        # torch's own message for such files suggests loading them unsafely.
        raise MetasegError(
            f"Expected a metaseg checkpoint, but {path} is something else or damaged; name a run directory of "
            "train.py, or its best.ckpt."
        ) from error
    settings = state.get("settings") if isinstance(state, dict) else None
    if isinstance(settings, dict):
        return settings, path
    config = RunDirectory(path.parent.parent).config
    if config.is_file():
        return _settings(config), path
    raise MetasegError(
        f"Expected a checkpoint that contains its settings or is in a run directory, found neither at {path}; name the "
        "run directory."
    )

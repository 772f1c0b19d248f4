"""Records of pre-trained weights and their origin, stored in checkpoints and results and shown in reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from metaseg.errors import MetasegError

UNKNOWN = "unknown"

KNOWN = {
    "7e8d20f2ad5e4bcf72e625e52dd2cb5f698153a572be1b36f8072681948ffac4": (
        "VGG16",
        "MIT",
        "ImageNet classification, then edges (HED, BSDS500)",
    ),
    "397923af": ("VGG16", "BSD-3-Clause", "ImageNet-1k classification"),  # torchvision's vgg16-397923af.pth
    "e012d006": ("Brain-MRI U-Net", "MIT", "tumour segmentation in LGG brain MRI"),  # torch hub's mateuszbuda
}
"""Leading digits of a file's SHA-256, as many as published → name, licence, training data."""

_SHOWN = 3
_DIGITS = 8


@dataclass(frozen=True)
class WeightsRecord:
    """Pre-trained weights, and which of their tensors (parameters and buffers) were loaded.

    Batch-norm counters (``num_batches_tracked``) are not included.
    """

    name: str
    source: str
    """Package with version, file name, or repository; never a path."""
    sha256: str
    """SHA-256 of the file, 64 digits; "unknown" if a library read it."""
    licence: str
    trained_on: str
    """Description such as "ImageNet-1k classification"."""
    mean: tuple[float, ...]
    """Mean of the training images, (3,), RGB in [0, 1]."""
    std: tuple[float, ...]
    """Standard deviation, as `mean`."""
    loaded: int
    """Number of tensors loaded."""
    unused: tuple[str, ...] = ()
    """Tensors of the file that are not in the network, such as a classifier's."""
    missing: tuple[str, ...] = ()
    """Tensors of the network that are not in the file and stay random."""
    matched: str = "name"
    """How tensors were matched: by "name", or by "order and shape"."""

    def rescaling(self) -> tuple[Tensor, Tensor, Tensor]:
        """Order, scale and offset of the channels, (3,) each, that map RGB in [-1, 1] to the training range."""
        return rescaling({"input_space": "RGB", "input_range": [0, 1], "mean": self.mean, "std": self.std})

    def sentence(self) -> str:
        """A one-line summary of what was loaded."""
        digits = "" if self.sha256 == UNKNOWN else f", SHA-256 {self.sha256[:_DIGITS]}"
        line = f"{self.name} from {self.source} (trained on: {self.trained_on}; licence: {self.licence}{digits}): "
        line += f"{self.loaded} tensors loaded by {self.matched}, "
        line += f"{shortened(self.missing)} missing and left random" if self.missing else "none missing"
        return f"{line}, {shortened(self.unused)} unused" if self.unused else line

    def to_dict(self) -> dict[str, Any]:
        """As plain containers, for JSON and for checkpoints read with ``weights_only=True``."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> WeightsRecord:
        """Read a record written by `to_dict`; keys of later versions are ignored.

        Raises:
            MetasegError: it is not such a record.
        """
        try:
            known: dict[str, Any] = {field.name: found[field.name] for field in fields(cls) if field.name in found}
            known = {key: tuple(value) if isinstance(value, list) else value for key, value in known.items()}
            return cls(**known)
        except (TypeError, AttributeError) as error:
            raise MetasegError(
                f"Expected weights to be a record of pre-trained weights, found an invalid {type(found).__name__} "
                f"({error}): the checkpoint is damaged, or of another version of metaseg."
            ) from error


def rescaling(trained_on: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Order, scale and offset of the channels, (3,) each, that map RGB in [-1, 1] to an encoder's input range.

    Args:
        trained_on: smp's preprocessing parameters: input_space "RGB" or "BGR", input_range (0, 1) or (0, 255), mean (3)
            and std (3) in that order and range.
    """
    order = torch.tensor([2, 1, 0] if trained_on["input_space"] == "BGR" else [0, 1, 2])
    half = max(trained_on["input_range"]) / 2
    mean, deviation = torch.tensor(trained_on["mean"]), torch.tensor(trained_on["std"])
    return order, half / deviation, (half - mean) / deviation


def described(sha256: str, name: str, metadata: Mapping[str, str] | None = None) -> dict[str, str]:
    """Name, licence and trained_on of a file: from its hash, else its metadata, else its name and "unknown"."""
    for digits, (known, licence, trained_on) in KNOWN.items():
        if sha256.startswith(digits):
            return {"name": known, "licence": licence, "trained_on": trained_on}
    own = metadata or {}
    return {
        "name": own.get("name", name),
        "licence": own.get("licence", own.get("license", UNKNOWN)),
        "trained_on": own.get("trained_on", UNKNOWN),
    }


def shortened(names: Sequence[str]) -> str:
    """The number of names and the first few: "5 (a, b, c, …)"."""
    return f"{len(names)} ({', '.join(names[:_SHOWN])}{', …' if len(names) > _SHOWN else ''})"

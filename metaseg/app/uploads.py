"""Files from a browser → images and masks, or one sentence on what is wrong with them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from metaseg.adapting.files import DICOM, PICTURES, Source, images_in
from metaseg.data.layouts import read_mask
from metaseg.errors import MetasegError

SHORTEST, LONGEST_TO_SHORTEST = 16, 10
"""Pixels of an image's shorter side, and how often it may fit into the longer one: no clinical image is beyond [D]."""
# Not all that Pillow opens: some of its formats start other programs, or fetch further files.
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "JPEG2000", "MPO")


@dataclass(frozen=True)
class Limits:
    """What a page takes.

    Attributes:
        max_images: images of one session.
        max_mb: megabytes (2^20 bytes) of a file.
        max_megapixels: of an image, as its header says: judged before it is unpacked.
    """

    max_images: int = 200
    max_mb: float = 25
    max_megapixels: float = 50


def images_of(path: Path, limits: Limits) -> list[tuple[Source, np.ndarray]]:
    """The images in an uploaded file, uint8 (H, W, 3) each; more than one in a TIFF of several pages.

    Args:
        path: the file, alone in its folder.
        limits: what is too much.

    Raises:
        MetasegError: it is too large, no image, or damaged. The sentence names the file without its folder.
    """
    judge(path, limits)
    try:
        sources = images_in(path.parent)
        if len(sources) > limits.max_images:
            raise MetasegError(f"{path.name} has {len(sources)} pages; {limits.max_images} images are the most.")
        return [(source, source.read()) for source in sources]
    except MetasegError as error:
        raise MetasegError(str(error).replace(str(path), path.name)) from error
    except Exception as error:  # a foreign file makes the libraries raise all kinds
        raise MetasegError(f"{path.name} cannot be read as an image; save it anew as PNG.") from error


def mask_of(path: Path, limits: Limits) -> np.ndarray:
    """The mask in an uploaded file, bool (H, W).

    Args:
        path: the file.
        limits: what is too much.

    Raises:
        MetasegError: it is too large, no image, or damaged.
    """
    judge(path, limits)
    try:
        return read_mask(path)
    except MetasegError as error:
        raise MetasegError(str(error).replace(str(path), path.name)) from error
    except Exception as error:
        raise MetasegError(f"{path.name} cannot be read as a mask; save it anew as PNG.") from error


def judge(path: Path, limits: Limits) -> None:
    """Refuse a file by its size, its name and its header, without unpacking it.

    Raises:
        MetasegError: in one sentence that names the file.
    """
    if not path.is_file():
        raise MetasegError(f"{path.name} did not arrive; upload it again.")
    megabytes = path.stat().st_size / 2**20
    if megabytes > limits.max_mb:
        raise MetasegError(f"{path.name} has {megabytes:.1f} MB; {limits.max_mb:g} MB are the most.")
    if path.suffix.lower() not in (*PICTURES, *DICOM) or path.name.startswith("."):
        raise MetasegError(f"{path.name} is no image of a known kind; save it as PNG, JPEG, TIFF or DICOM.")
    width, height = _dicom_size(path) if path.suffix.lower() in DICOM else _size(path)
    if width * height > limits.max_megapixels * 1e6:
        raise MetasegError(
            f"{path.name} has {width}×{height} pixels; {limits.max_megapixels:g} million are the most, so shrink it."
        )
    if min(width, height) < SHORTEST or max(width, height) > LONGEST_TO_SHORTEST * min(width, height):
        raise MetasegError(
            f"{path.name} has {width}×{height} pixels; expected {SHORTEST} or more along the shorter side, and at most "
            f"{LONGEST_TO_SHORTEST} times as many along the other."
        )


def _size(path: Path) -> tuple[int, int]:
    # Pillow itself warns of large images, and refuses very large ones while opening.
    try:
        with Image.open(path, formats=_FORMATS) as image:
            pages = [image.size]
            for page in range(1, getattr(image, "n_frames", 1) if image.format == "TIFF" else 1):
                image.seek(page)
                pages.append(image.size)
            return max(pages, key=lambda size: size[0] * size[1])
    except Image.DecompressionBombError as error:
        raise MetasegError(f"{path.name} has too many pixels; shrink it.") from error
    except Exception as error:
        raise MetasegError(f"{path.name} is not an image that can be read; replace it by a fresh copy.") from error


def _dicom_size(path: Path) -> tuple[int, int]:
    try:
        import pydicom
    except ImportError as error:
        hint = "pip install 'metaseg-implicit[medical]'"
        raise MetasegError(f"{path.name} needs the library pydicom: {hint}.") from error
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True)
        return int(header.Columns), int(header.Rows)
    except Exception as error:
        raise MetasegError(f"{path.name} is not a DICOM image that can be read; save it as PNG.") from error

"""Uploaded files → images and masks, or an error message of one sentence."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metaseg.adapting.files import Source, images_in, masks_for
from metaseg.adapting.formats import DICOM, NIFTI, READABLE, read_dicom, sizes, suffix
from metaseg.errors import MetasegError, needs

SHORTEST, LONGEST_TO_SHORTEST = 16, 10
"""Minimum shorter side in pixels, and maximum aspect ratio: generous for any clinical image [D]."""
_VOLUME = 2  # a volume's voxels, in a picture's largest number of pixels


@dataclass(frozen=True)
class Limits:
    """Limits on uploads.

    Attributes:
        max_images: images of one session.
        max_mb: megabytes (2^20 bytes) of a file.
        max_megapixels: of an image, by its header, checked before decoding.
    """

    max_images: int = 200
    max_mb: float = 25
    max_megapixels: float = 50


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Name an uploaded file without its folder in errors."""
    try:
        yield
    except MetasegError as error:
        raise MetasegError(str(error).replace(str(path), path.name)) from error


def images_of(path: Path, limits: Limits) -> list[tuple[Source, np.ndarray]]:
    """The images in an uploaded file, uint8 (H, W, 3) each; several for a multi-page TIFF or a volume.

    Args:
        path: the only file in its folder.
        limits: of uploads.

    Raises:
        MetasegError: if it is too large, not an image, or damaged. The message names the file without its folder.
    """
    try:
        with named(path):
            judge(path, limits)
            sources = images_in(path.parent)
            if len(sources) > limits.max_images:
                raise MetasegError(f"{path.name} has {len(sources)} pages; the limit is {limits.max_images} images.")
            return [(source, source.read()) for source in sources]
    except MetasegError:
        raise
    except Exception as error:  # foreign files raise errors of any type
        raise MetasegError(f"{path.name} cannot be read as an image; save it again as PNG.") from error


def masks_of(path: Path, limits: Limits, images: Sequence[Source]) -> dict[str, Source]:
    """The masks in an uploaded file: name of the image → its mask; several for a volume.

    Args:
        path: the file.
        limits: of uploads.
        images: those that it may belong to.

    Raises:
        MetasegError: if it is too large, not an image, damaged, or belongs to no image.
    """
    with named(path):
        judge(path, limits)
        found = masks_for([path], images)
    if not found:
        raise MetasegError(
            f"{path.name} matches no image; name it after its image, e.g. a.png or a_mask.png for a.jpg."
        )
    return found


def judge(path: Path, limits: Limits) -> None:
    """Refuse a file by its size, name or the header of each page, without decoding it.

    Raises:
        MetasegError: with a message that names the file.
    """
    if not path.is_file():
        raise MetasegError(f"{path.name} did not arrive; upload it again.")
    megabytes = path.stat().st_size / 2**20
    if megabytes > limits.max_mb:
        raise MetasegError(f"{path.name} has {megabytes:.1f} MB; the limit is {limits.max_mb:g} MB.")
    if suffix(path) not in READABLE or path.name.startswith("."):
        raise MetasegError(f"{path.name} is not in a supported format; save it as PNG, JPEG, TIFF, DICOM or NIfTI.")
    if suffix(path) in NIFTI:
        found = [_nifti_size(path, limits)]
    else:
        found = [_dicom_size(path)] if suffix(path) in DICOM else sizes(path)
    for width, height in dict.fromkeys(found):
        _judge_size(path, width, height, limits)


def _judge_size(path: Path, width: int, height: int, limits: Limits) -> None:
    if width * height > limits.max_megapixels * 1e6:
        raise MetasegError(
            f"{path.name} has {width}×{height} pixels; the limit is {limits.max_megapixels:g} million, so shrink it."
        )
    if min(width, height) < SHORTEST or max(width, height) > LONGEST_TO_SHORTEST * min(width, height):
        raise MetasegError(
            f"{path.name} has {width}×{height} pixels; expected at least {SHORTEST} along the shorter side, and at "
            f"most {LONGEST_TO_SHORTEST} times as many along the longer."
        )


def _dicom_size(path: Path) -> tuple[int, int]:
    try:
        header = read_dicom(path, stop_before_pixels=True)
        return int(header.Columns), int(header.Rows)
    except MetasegError:
        raise
    except Exception as error:
        raise MetasegError(f"{path.name} cannot be read as a DICOM image; save it as PNG.") from error


def _nifti_size(path: Path, limits: Limits) -> tuple[int, int]:
    try:
        import nibabel
    except ImportError as error:
        raise MetasegError(needs(path.name, "nibabel", "medical")) from error
    try:
        header: Any = nibabel.load(path).header
        width, height, *others = header.get_data_shape()
    except Exception as error:
        raise MetasegError(f"{path.name} cannot be read as a NIfTI file; save its slices as PNG.") from error
    slices = math.prod(others)
    if slices > limits.max_images or width * height * slices > _VOLUME * limits.max_megapixels * 1e6:
        raise MetasegError(
            f"{path.name} has {slices} slices of {width}×{height} pixels; the limits are {limits.max_images} slices "
            f"and {_VOLUME * limits.max_megapixels:g} million voxels, so save a part of it."
        )
    return width, height

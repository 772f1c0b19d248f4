"""Checks of what a Python user passes besides the pixels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from metaseg.errors import MetasegError


def several(arrays: Any, what: str) -> list[np.ndarray]:
    """Images or masks as a list of arrays; images of Pillow become arrays, those with a palette in RGB.

    Args:
        arrays: a sequence of arrays or Pillow images, or one array of images (N, H, W, 3) or masks (N, H, W).
        what: "images" or "masks", for errors.

    Raises:
        MetasegError: if it is a single image, or no sequence.
    """
    least = 4 if what == "images" else 3
    single = isinstance(arrays, Image.Image) or (isinstance(arrays, np.ndarray) and arrays.ndim < least)
    if single or isinstance(arrays, str | bytes | dict) or not isinstance(arrays, Sequence | np.ndarray):
        found = f"an array of shape {arrays.shape}" if isinstance(arrays, np.ndarray) else type(arrays).__name__
        raise MetasegError(f"Expected a list of {what}, found {found}; put a single one into brackets: [image].")
    return [_array(one, what) for one in arrays]


def _array(one: Any, what: str) -> np.ndarray:
    if isinstance(one, Image.Image) and one.mode == "P" and what == "images":
        one = one.convert("RGB")
    found = np.asarray(one)
    if found.dtype == object or found.dtype.kind in "US":
        raise MetasegError(
            f"Expected {what} as arrays or Pillow images, found {type(one).__name__}; read the files first."
        )
    return found


def at_least(least: int, **values: Any) -> None:
    """Refuse anything but whole numbers from `least` up, and None.

    Raises:
        MetasegError: names the argument.
    """
    for name, value in values.items():
        if value is None or (isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= least):
            continue
        raise MetasegError(f"{name} must be a whole number from {least} up, found {value!r}.")

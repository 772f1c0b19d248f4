"""Checks of what a Python user passes besides the pixels."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from metaseg.adapting.arrays import of_pillow
from metaseg.errors import MetasegError, quoted


def several(arrays: Any, what: str) -> list[np.ndarray]:
    """Images or masks as a list of arrays; Pillow images become arrays, in RGB unless they are grey or RGBA.

    The indices of a palette stay as they are in masks, where they are labels.

    Args:
        arrays: a sequence of arrays or Pillow images, or one array of images (N, H, W, 3) or masks (N, H, W).
        what: "images" or "masks", for errors.

    Raises:
        MetasegError: if it is a single image, or not a sequence.
    """
    least = 4 if what == "images" else 3
    single = isinstance(arrays, Image.Image) or (isinstance(arrays, np.ndarray) and arrays.ndim < least)
    if single or isinstance(arrays, str | bytes | dict) or not isinstance(arrays, Sequence | np.ndarray):
        found = f"an array of shape {arrays.shape}" if isinstance(arrays, np.ndarray) else type(arrays).__name__
        raise MetasegError(f"Expected a list of {what}, found {found}; {_remedy(arrays, what)}.")
    return [_array(one, what) for one in arrays]


def _remedy(arrays: Any, what: str) -> str:
    if isinstance(arrays, np.ndarray) and arrays.ndim == 3 and arrays.shape[2] not in (1, 3, 4):
        return "pass a stack of grey images as list(images)"
    return f"put a single one into brackets: [{what[:-1]}]"


def _array(one: Any, what: str) -> np.ndarray:
    labels = isinstance(one, Image.Image) and one.mode == "P" and what == "masks"
    found = of_pillow(one) if isinstance(one, Image.Image) and not labels else np.asarray(one)
    if found.dtype == object or found.dtype.kind in "US":
        raise MetasegError(
            f"Expected {what} as arrays or Pillow images, found {type(one).__name__}; read the files first."
        )
    return found


def above_zero(**settings: float | None) -> None:
    """Refuse numbers that are not above 0; None passes.

    Raises:
        MetasegError: if a number is not above 0.
    """
    for name, value in settings.items():
        if value is not None and not (isinstance(value, int | float) and 0 < value < math.inf):
            raise MetasegError(f"{name} must be a number above 0, found {quoted(value)}.")


def at_least(least: int, **values: Any) -> None:
    """Refuse anything but whole numbers from `least` up, and None.

    Raises:
        MetasegError: names the argument.
    """
    for name, value in values.items():
        if value is None or (isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= least):
            continue
        raise MetasegError(f"{name} must be a whole number from {least} up, found {value!r}.")

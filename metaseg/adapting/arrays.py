"""Users' images as arrays → network input. Only this module checks their shapes and types, and windows them."""

import math

import numpy as np
from PIL import Image

from metaseg.errors import MetasegError
from metaseg.meta.losses import UNMARKED

_WITHIN = (0.5, 99.5)
"""Percentiles of an image that become black and white if it has more than 8 bits [D]."""
_AS_THEY_ARE = ("1", "L", "I", "F", "RGB", "RGBA")
"""Pillow's modes, besides those of 16 bits, whose arrays mean what they show."""


def of_pillow(image: Image.Image) -> np.ndarray:
    """A Pillow image as an array that `rgb` takes: palettes, CMYK and others become RGB, or RGBA if clear."""
    if image.mode not in _AS_THEY_ARE and not image.mode.startswith("I;16"):
        image = image.convert("RGBA" if image.mode in ("LA", "PA", "La", "RGBa") else "RGB")
    return np.asarray(image)


def rgb(image: np.ndarray, name: str) -> np.ndarray:
    """An image as uint8 (H, W, 3).

    Args:
        image: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8, bool, floats in [0, 1], or other integers, such as
            12 or 16 bits, which are windowed by their content; a fourth channel is opacity, composited over black, and
            has no part in the window.
        name: used in error messages.

    Raises:
        MetasegError: on another shape, type or range.
    """
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or not pixels.size:
        raise MetasegError(f"{name} must have the shape (H, W), (H, W, 3) or (H, W, 4), found {np.shape(image)}.")
    pixels = _eight_bits(pixels, name)
    if pixels.shape[2] == 4:
        opacity = pixels[..., 3:].astype(np.uint16)
        pixels = (pixels[..., :3] * opacity // 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def _eight_bits(pixels: np.ndarray, name: str) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == bool:
        return pixels * np.uint8(255)
    if np.issubdtype(pixels.dtype, np.integer):
        return windowed_colours(pixels)
    if np.issubdtype(pixels.dtype, np.floating):
        if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1):
            raise MetasegError(f"{name} holds floats, which must be from 0 to 1, found others; rescale it.")
        return np.rint(pixels * 255).astype(np.uint8)
    raise MetasegError(f"{name} must be integers or floats, found {pixels.dtype}; convert it.")


def windowed(values: np.ndarray, window: tuple[float, float] | None = None) -> np.ndarray:
    """Values of any range as uint8: those at the window's ends, and beyond, become 0 and 255.

    Args:
        values: of any shape, the channels of an image together; what is not finite counts as lowest.
        window: its ends; None: `content_window`.
    """
    low, high = content_window(values) if window is None else window
    shares = (np.where(np.isfinite(values), values, low).astype(np.float32) - low) / ((high - low) or 1)
    return np.rint(np.clip(shares, 0, 1) * 255).astype(np.uint8)


def windowed_colours(values: np.ndarray) -> np.ndarray:
    """An image's values of any range, (H, W) or (H, W, C), in the window of their content: uint8.

    A fourth channel is opacity: full opacity is 1, or the highest number of as many bits as the highest value has.
    """
    if values.shape[2:] != (4,):
        return windowed(values)
    alpha = values[..., 3]
    highest = float(np.max(alpha, initial=0, where=np.isfinite(alpha)))
    full = 1 if highest <= 1 else 2 ** math.ceil(math.log2(highest + 1)) - 1
    return np.dstack([windowed(values[..., :3]), windowed(alpha, (0, full))])


def content_window(values: np.ndarray) -> tuple[float, float]:
    """The range of nearly all values, without the extremes of a few pixels; of all values if nearly all are equal."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = np.percentile(finite, _WITHIN)
    return (float(low), float(high)) if low < high else (float(finite.min()), float(finite.max()))


def same_size(image: np.ndarray, mask: np.ndarray, name: str) -> None:
    """Refuse a mask whose size differs from its image's.

    Raises:
        MetasegError: if sizes differ.
    """
    if image.shape[:2] != mask.shape[:2]:
        (height, width), (rows, columns) = image.shape[:2], mask.shape[:2]
        swapped = (height, width) == (columns, rows)
        reason = "one of the two may be stored rotated (EXIF): save both upright" if swapped else ""
        raise MetasegError(
            f"Expected a mask of its image's size, {width}×{height} pixels, found {columns}×{rows} in {name}; "
            f"{reason or 'it may belong to another image'}."
        )


def shrunk(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """uint8 (H, W, 3) → (h, w, 3), averaging when shrinking, as when datasets are prepared for training."""
    return np.asarray(Image.fromarray(image).resize(shape[::-1], Image.Resampling.BILINEAR))


def resized_mask(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """bool (H, W), or uint8 with `UNMARKED`, → uint8 of the same values (h, w), by nearest neighbour.

    Strokes may be thinner than a pixel of the result. A pixel is therefore marked if any of its area is, with the value
    of the larger marked part.
    """
    if (mask == UNMARKED).any():
        inside, outside = (
            np.asarray(Image.fromarray((mask == value).astype(np.float32)).resize(shape[::-1], Image.Resampling.BOX))
            for value in (1, 0)
        )
        return np.where(inside + outside > 0, inside > outside, np.uint8(UNMARKED)).astype(np.uint8)
    return np.asarray(Image.fromarray(mask.astype(np.uint8)).resize(shape[::-1], Image.Resampling.NEAREST))

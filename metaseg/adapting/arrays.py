"""Users' arrays → network input. The only place that checks shapes and types."""

import numpy as np
from PIL import Image

from metaseg.errors import MetasegError


def rgb(image: np.ndarray, name: str) -> np.ndarray:
    """An image as uint8 (H, W, 3).

    Args:
        image: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8, bool, uint16 (reduced to the upper 8 bits) or floats
            in [0, 1]; a fourth channel is opacity, composited over black.
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
    if pixels.dtype == np.uint16:
        return (pixels >> 8).astype(np.uint8)
    if np.issubdtype(pixels.dtype, np.floating):
        if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1):
            raise MetasegError(f"{name} holds floats, which must be from 0 to 1, found others; rescale it.")
        return np.rint(pixels * 255).astype(np.uint8)
    raise MetasegError(f"{name} must be uint8, uint16 or floats, found {pixels.dtype}; convert it.")


def binary_mask(mask: np.ndarray, name: str) -> np.ndarray:
    """A mask as bool (H, W).

    Args:
        mask: (H, W) or (H, W, 1): bool, or non-negative numbers. With at most two values, foreground is > 0; with more,
            e.g. the soft edges of a JPEG, it is above half of the largest.
        name: used in error messages.

    Raises:
        MetasegError: on another shape, or negative values.
    """
    values = np.asarray(mask)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim != 2 or not values.size:
        raise MetasegError(f"{name} must have the shape (H, W), found {np.shape(mask)}.")
    if values.dtype == bool:
        return values
    if not np.issubdtype(values.dtype, np.number) or not np.isfinite(values).all() or values.min() < 0:
        raise MetasegError(f"{name} must hold numbers from 0 up, above 0 for the foreground, found others.")
    return values > (0 if len(np.unique(values)) <= 2 else values.max() / 2)


def same_size(image: np.ndarray, mask: np.ndarray, name: str) -> None:
    """Refuse a mask whose size differs from its image's.

    Raises:
        MetasegError: if sizes differ.
    """
    if image.shape[:2] != mask.shape[:2]:
        (height, width), (rows, columns) = image.shape[:2], mask.shape[:2]
        raise MetasegError(
            f"Expected a mask of its image's size, {width}×{height} pixels, found {columns}×{rows} in {name}; it may "
            "belong to another image."
        )


def shrunk(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """uint8 (H, W, 3) → (h, w, 3), averaging when shrinking, as when datasets are prepared for training."""
    return np.asarray(Image.fromarray(image).resize(shape[::-1], Image.Resampling.BILINEAR))


def shrunk_mask(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """bool (H, W) → uint8 {0, 1} (h, w), by nearest neighbour."""
    return np.asarray(Image.fromarray(mask.astype(np.uint8)).resize(shape[::-1], Image.Resampling.NEAREST))

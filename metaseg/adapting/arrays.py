"""Arrays as users have them → the pixels a network takes. Shapes and types are judged here, once."""

import numpy as np
from PIL import Image

from metaseg.errors import MetasegError


def rgb(image: np.ndarray, name: str) -> np.ndarray:
    """An image as uint8 (H, W, 3).

    Args:
        image: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8, bool, uint16 (its highest 8 bits count) or floats in
            [0, 1]; a fourth channel is opacity, over black.
        name: what an error calls it.

    Raises:
        MetasegError: on another shape, type or range.
    """
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or not pixels.size:
        raise MetasegError(f"{name} should have the shape (H, W), (H, W, 3) or (H, W, 4), found {np.shape(image)}.")
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
            raise MetasegError(f"{name} should hold values from 0 to 1, as it is of floats, found others; rescale it.")
        return np.rint(pixels * 255).astype(np.uint8)
    raise MetasegError(f"{name} should be of uint8, uint16 or floats, found {pixels.dtype}; convert it.")


def binary_mask(mask: np.ndarray, name: str) -> np.ndarray:
    """A mask as bool (H, W).

    Args:
        mask: (H, W) or (H, W, 1): bool, or numbers from 0. Where there are two values at most, all above 0 is
            foreground; where there are more, as at the soft edges of a JPEG, all above half of the largest.
        name: what an error calls it.

    Raises:
        MetasegError: on another shape, or values below 0.
    """
    values = np.asarray(mask)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim != 2 or not values.size:
        raise MetasegError(f"{name} should have the shape (H, W), found {np.shape(mask)}.")
    if values.dtype == bool:
        return values
    if not np.issubdtype(values.dtype, np.number) or not np.isfinite(values).all() or values.min() < 0:
        raise MetasegError(f"{name} should hold numbers from 0 on, above 0 where the foreground is, found others.")
    return values > (0 if len(np.unique(values)) <= 2 else values.max() / 2)


def same_size(image: np.ndarray, mask: np.ndarray, name: str) -> None:
    """Refuse a mask of another size than its image.

    Raises:
        MetasegError: if sizes differ.
    """
    if image.shape[:2] != mask.shape[:2]:
        (height, width), (rows, columns) = image.shape[:2], mask.shape[:2]
        raise MetasegError(
            f"{name} has {columns}×{rows} pixels, its image {width}×{height}: expected equal sizes, so it may belong "
            "to another image."
        )


def shrunk(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 (H, W, 3) → (S, S, 3), averaging where it gets smaller: as datasets are prepared for training."""
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def shrunk_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """bool (H, W) → uint8 {0, 1} (S, S), the nearest pixel's value."""
    return np.asarray(Image.fromarray(mask.astype(np.uint8)).resize((size, size), Image.Resampling.NEAREST))

"""Read one file as an image or a mask, whatever its format, depth and colours."""

from __future__ import annotations

import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from metaseg.errors import MetasegError, reason

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm", ".jp2")
LOSSY = (".jpg", ".jpeg", ".webp", ".jp2")
"""Formats whose compression may add faint noise to black areas."""
THRESHOLD = 127  # Kvasir-SEG's masks are JPEG with grey edges; its authors use the same threshold
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "JPEG2000")
"""Pillow's names of the formats read, whatever a file's suffix: some others start programs or read further files."""
MOST_PIXELS = 2**26
"""Largest image, 8192×8192: a header of a hundred bytes may claim any size."""
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `opened` has its own limit

# Exceptions that Pillow raises for truncated or damaged files, depending on the format.
DAMAGED = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, AttributeError, ArithmeticError),
    *(struct.error, zlib.error, Image.DecompressionBombError, MemoryError),  # a part that claims to be of exabytes
)


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """An open image. Raises MetasegError naming the file if it turns out to be damaged, also while it is decoded."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            require_size(path, *image.size)
            image.filename = ""  # else Pillow 12 maps uncompressed pages to memory as if they were stored upright
            yield image
    except DAMAGED as error:
        raise MetasegError(
            f"cannot read {path}: {reason(error)}; replace it with a fresh copy, or remove it"
        ) from error


def require_size(path: Path, *sides: int, most: int = MOST_PIXELS) -> None:
    """Refuse an image or volume that is too large, by the sides that its header states.

    Raises:
        MetasegError: if it has more than `most` pixels.
    """
    if math.prod(sides) > most:
        raise MetasegError(
            f"cannot read {path}: its header states {'×'.join(map(str, sides))} pixels, and the limit is "
            f"{most / 1e6:.0f} million; replace it with a smaller copy, or remove it"
        )


def open_image(path: Path, at_least: int | None = None) -> tuple[Image.Image, tuple[int, int]]:
    """The image as 8-bit RGB, rotated according to its EXIF entry, and the file's full (width, height), rotated too.

    at_least: a JPEG may be decoded at a half, quarter or eighth of its size (averaged in the frequency domain, and much
    faster) if both sides keep this many pixels. Raises MetasegError naming the file if it is damaged.
    """
    with opened(path) as image:
        width, height = image.size
        size = (height, width) if image.getexif().get(0x0112, 1) in (5, 6, 7, 8) else (width, height)
        if at_least:
            image.draft(None, (at_least, at_least))
        image.load()
        # In place, and no conversion of RGB: the copies would take a tenth of the time to prepare a dataset.
        ImageOps.exif_transpose(image, in_place=True)
        return (image if image.mode == "RGB" else _rgb(image)), size


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("L", "P", "CMYK", "YCbCr", "1"):
        return image.convert("RGB")
    if image.mode in ("RGBA", "LA", "PA"):
        # Transparent pixels become black, the colour that all these cameras use outside the field of view.
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "black"), image).convert("RGB")
    return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")


def read_image(path: Path) -> np.ndarray:
    """The image as uint8 (H, W, 3), RGB, 0 to 255. Raises MetasegError naming the file if it is damaged."""
    return np.array(open_image(path)[0])


def read_mask(path: Path) -> np.ndarray:
    """The mask as bool (H, W), True on the lesion. Raises MetasegError naming the file if it is damaged.

    A pixel is foreground where `grey_mask` is above 127.
    """
    return grey_mask(path) > THRESHOLD


def grey_mask(path: Path) -> np.ndarray:
    """The mask as uint8 (H, W), 0 to 255, before the threshold.

    - 1 bit, or no value above 1: 0 and 1 become 0 and 255.
    - 16 bits: scaled to 0 to 255.
    - Colours, with or without a palette: the brightest channel, so red on black is foreground.
    - Varying transparency: the mask itself if the colour is constant; else colours are composited over black. All
      transparent: empty.
    """
    with opened(path) as image:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode in ("P", "PA", "LA", "RGBA") and (image.mode != "P" or "transparency" in image.info):
            rgba = np.asarray(image.convert("RGBA"))
            colour, alpha = rgba[..., :3].max(axis=-1), rgba[..., 3]
            if not alpha.any():
                grey = alpha  # nothing is drawn
            elif np.ptp(alpha) == 0:
                grey = colour
            elif np.ptp(colour) == 0:
                grey = alpha
            else:
                grey = (colour.astype(np.uint16) * alpha // 255).astype(np.uint8)
        elif image.mode in ("P", "RGB", "CMYK", "YCbCr"):
            grey = np.asarray(image.convert("RGB")).max(axis=-1)
        else:
            grey = _eight_bits(np.asarray(image))
    return grey * np.uint8(255) if grey.max(initial=0) <= 1 else grey


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Grey values of any depth as uint8.

    1 bit becomes 0 and 1, more than 8 bits the highest 8 of 16, floats from 0 to 1 become 0 to 255.
    """
    if values.dtype == np.uint8 or values.dtype == bool:
        return values.astype(np.uint8)
    highest = values.max(initial=0)
    if np.issubdtype(values.dtype, np.floating) and highest <= 1:
        values = values * 255  # the convention of numerical software
    scaled = values / 257.0 if highest > 255 else values
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)

"""Plausibility checks of a support set: warnings, and the refusal of an image that is there twice."""

from collections.abc import Sequence

import numpy as np

from metaseg.adapting.arrays import shrunk
from metaseg.errors import MetasegError, listed, plural

SHARE_RATIO = 30
"""Warn if the largest foreground fraction exceeds the smallest by this factor [D]. Five random images do so in one of
five draws from ISIC-2018, one of thirty from Kvasir-SEG and CVC-ClinicDB, and never from PH2."""
SIZE_RATIO = 4
"""Warn if image sides differ by this factor [D]."""
UNLIKE = 3.0
"""An image is unlike the support if its distance exceeds this multiple of the distance between support images [D].
With 5 random support images this flags about 1 % of the other images of the same dataset, but 76 to 97 % of skin images
given endoscopy as support, and 10 to 48 % of endoscopy given skin."""
ALIKE = 0.5
"""Images whose values, from 0 to 255, differ by less than this on average are one image, perhaps saved again [D].
As thumbnails, frames of CVC-ClinicDB's videos differ by 0.78 and more, those of the capsule video by 5.4, images of
other datasets by 7; slices of brain MRI by 0.28 where they are nearly black, a tenth of their standard deviation."""
ALIKE_SHARE = 0.05
"""Likewise as a share of the image's standard deviation [D]: dim images, such as cells on black, differ by less."""
SIDE = 128
"""Sides of a thumbnail in pixels: images of any resolution compare, at whatever size a network works [D]. An image of
600 to 1280 pixels that was reduced first, as the page does, differs from itself by 0.25 at most; one that was at two
working sizes, 128 and 192, by 1 to 3. At 64, two frames of CVC-ClinicDB differ by 0.51."""
_NEAR = 0.08  # in colours from 0 to 1: minimum distance assumed between images of one kind, however alike


def of_support(names: Sequence[str], sizes: Sequence[tuple[int, int]], masks: Sequence[np.ndarray]) -> list[str]:
    """Warnings about annotated images.

    Args:
        names: of the K images.
        sizes: (height, width) of each.
        masks: K bool arrays.
    """
    said = []
    shares = np.array([mask.mean() for mask in masks])
    for what, which in (("no foreground", shares == 0), ("nothing but foreground", shares == 1)):
        if which.any():
            said.append(f"{_named(names, which)}: the mask has {what}; check that it was saved correctly.")
    some = shares[shares > 0]
    if len(some) and some.max() > SHARE_RATIO * some.min():
        low, high = int(np.flatnonzero(shares == some.min())[0]), int(shares.argmax())
        said.append(
            f"The foreground covers {100 * shares[low]:.2g} % of {names[low]} and {100 * shares[high]:.2g} % of "
            f"{names[high]}; if both are correct, annotate more images in between."
        )
    pixels = np.array([height * width for height, width in sizes])
    proportions = np.array([width / height for height, width in sizes])
    if pixels.max() > SIZE_RATIO**2 * pixels.min() or proportions.max() > 2 * proportions.min():
        small, large = (int(index) for index in (pixels.argmin(), pixels.argmax()))
        said.append(
            f"The images differ in size, from {_size(sizes[small])} ({names[small]}) to {_size(sizes[large])} "
            f"({names[large]}); all are resized to one shape, so crop those that show a wider view."
        )
    return said


def thumbnail(image: np.ndarray) -> np.ndarray:
    """What an image, uint8 (H, W, 3), is recognised by: uint8 (`SIDE`, `SIDE`, 3)."""
    return shrunk(image, (SIDE, SIDE))


def require_different(names: Sequence[str], images: np.ndarray) -> None:
    """Refuse annotated images of which two are one: a network that has learnt from one knows the other.

    Args:
        names: of the K images.
        images: uint8 (K, h, w, 3), at any common size.

    Raises:
        MetasegError: if two are alike.
    """
    levels = images.mean((1, 2, 3))
    for place in range(1, len(images)):
        near = np.flatnonzero(np.abs(levels[:place] - levels[place]) < ALIKE)  # others cannot be alike
        if (first := place_of(images[place], images[near])) is not None:
            raise MetasegError(
                f"Expected different annotated images, found {names[near[first]]} and {names[place]} alike; remove "
                "one: a network that learns from one knows the other, and the expected Dice would be too high."
            )


def place_of(image: np.ndarray, images: np.ndarray) -> int | None:
    """The position of an image, uint8 (h, w, 3), among others, uint8 (K, h, w, 3); None if it is not there."""
    apart = [float(np.abs(image.astype(np.int16) - other).mean()) for other in images]
    place = int(np.argmin(apart)) if apart else 0
    return place if apart and apart[place] <= min(ALIKE, ALIKE_SHARE * float(image.std())) else None


def of_new(support: np.ndarray, images: np.ndarray, names: Sequence[str]) -> list[str]:
    """Warnings about images that look unlike the annotated ones, judged only by colour and contrast.

    Args:
        support: `look` of the K annotated images, (K, 6).
        images: `look` of the N images, (N, 6).
        names: of the N images.
    """
    unlike = distances(support, images) > UNLIKE
    if not unlike.any():
        return []
    return [
        f"{plural(int(unlike.sum()), 'image')} of {len(images)} {'look' if unlike.sum() > 1 else 'looks'} unlike the "
        f"annotated ones in colour or contrast ({_named(names, unlike)}); check these first, and annotate one or two."
    ]


def distances(support: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Distance of each image to the nearest annotated one, relative to the distance among those; shape (N,)."""
    among = np.linalg.norm(support[:, None] - support[None], axis=-1)
    np.fill_diagonal(among, np.inf)
    usual = max(_NEAR, float(np.median(among.min(1)))) if len(support) > 1 else _NEAR
    return np.linalg.norm(images[:, None] - support[None], axis=-1).min(1) / usual


def look(image: np.ndarray) -> np.ndarray:
    """How an image looks: mean and standard deviation of each colour, as fractions.

    Args:
        image: uint8 (H, W, 3), shrunk to `SIDE` first.

    Returns:
        float64 (6,).
    """
    pixels = thumbnail(image).reshape(-1, 3) / 255
    return np.concatenate([pixels.mean(0), pixels.std(0)])


def _named(names: Sequence[str], which: np.ndarray) -> str:
    return listed([name for name, is_one in zip(names, which, strict=True) if is_one], 4)


def _size(size: tuple[int, int]) -> str:
    return f"{size[1]}×{size[0]}"

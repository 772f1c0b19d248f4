"""What makes a support set doubtful, in sentences: a warning each, nothing is refused here."""

from collections.abc import Sequence

import numpy as np

from metaseg.data.check import plural

SHARE_RATIO = 30
"""Foreground shares further apart than this are mentioned [D]. So far apart are 5 random images of ISIC-2018 one time
in five, of Kvasir-SEG and CVC-ClinicDB one time in thirty, of PH2 never."""
SIZE_RATIO = 4
"""So are images with a side so many times longer than another's [D]."""
UNLIKE = 3.0
"""An image is unlike the support if it is so many times further from it than support images are from one another [D].
With 5 random images of one of the five datasets about 1 % of its others are, but 76 to 97 % of skin images beside
endoscopy, and 10 to 48 % of endoscopy beside skin."""
_NEAR = 0.08  # of colours from 0 to 1: what two images of one kind differ by at least, however alike the support images


def of_support(names: Sequence[str], sizes: Sequence[tuple[int, int]], masks: Sequence[np.ndarray]) -> list[str]:
    """Sentences on annotated images.

    Args:
        names: of the K images.
        sizes: (height, width) of each.
        masks: K bool arrays.
    """
    said = []
    shares = np.array([mask.mean() for mask in masks])
    for what, which in (("no foreground", shares == 0), ("nothing but foreground", shares == 1)):
        if which.any():
            said.append(f"{_named(names, which)}: the mask has {what}; is that so, or was it saved wrongly?")
    some = shares[shares > 0]
    if len(some) and some.max() > SHARE_RATIO * some.min():
        low, high = int(np.flatnonzero(shares == some.min())[0]), int(shares.argmax())
        said.append(
            f"The foreground covers {100 * shares[low]:.2g} % of {names[low]} and {100 * shares[high]:.2g} % of "
            f"{names[high]}; if both are right, more images between them would help."
        )
    pixels = np.array([height * width for height, width in sizes])
    proportions = np.array([width / height for height, width in sizes])
    if pixels.max() > SIZE_RATIO**2 * pixels.min() or proportions.max() > 2 * proportions.min():
        small, large = (int(index) for index in (pixels.argmin(), pixels.argmax()))
        said.append(
            f"The images differ in size, from {_size(sizes[small])} ({names[small]}) to {_size(sizes[large])} "
            f"({names[large]}); all are brought to one square, so crop those that show more than the others."
        )
    return said


def of_new(support: np.ndarray, images: np.ndarray, names: Sequence[str]) -> list[str]:
    """Sentences on images that look unlike the annotated ones, by colour and contrast alone.

    Args:
        support: uint8 (K, S, S, 3).
        images: uint8 (N, S, S, 3).
        names: of the N images.
    """
    unlike = distances(support, images) > UNLIKE
    if not unlike.any():
        return []
    return [
        f"{plural(int(unlike.sum()), 'image')} of {len(images)} {'look' if unlike.sum() > 1 else 'looks'} unlike the "
        f"annotated ones in colour or contrast ({_named(names, unlike)}); look at these first, and annotate one or two."
    ]


def distances(support: np.ndarray, images: np.ndarray) -> np.ndarray:
    """How far each image is from the nearest annotated one, in units of the distance among these. Shape (N,)."""
    known, new = _look(support), _look(images)
    among = np.linalg.norm(known[:, None] - known[None], axis=-1)
    np.fill_diagonal(among, np.inf)
    usual = max(_NEAR, float(np.median(among.min(1)))) if len(known) > 1 else _NEAR
    return np.linalg.norm(new[:, None] - known[None], axis=-1).min(1) / usual


def _look(images: np.ndarray) -> np.ndarray:
    """Mean and standard deviation of each colour, as fractions: (N, 6)."""
    pixels = images.reshape(len(images), -1, 3) / 255
    return np.concatenate([pixels.mean(1), pixels.std(1)], axis=1)


def _named(names: Sequence[str], which: np.ndarray) -> str:
    chosen = [name for name, is_one in zip(names, which, strict=True) if is_one]
    return ", ".join(chosen[:4]) + (f" and {len(chosen) - 4} more" if len(chosen) > 4 else "")


def _size(size: tuple[int, int]) -> str:
    return f"{size[1]}×{size[0]}"

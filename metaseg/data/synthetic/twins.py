"""Synthetic twins of the five datasets: painted images with exact masks, to run everything without data.

They resemble the real datasets in what matters for few-shot segmentation, not for diagnosis:

- ph2, isic (dermoscopy.py): skin with one lesion; isic varies more and has many artefacts.
- kvasir, cvc, kvasir_capsule (endoscopy.py): mucosa with one polyp; cvc has sequences of near-identical frames,
  kvasir_capsule is one video of one large polyp.

Foreground shares and positions are distributed as in the real masks, so that the trivial baselines
(metaseg/evaluation/trivial.py) score about the same as on the real data. Mean Dice in %, twins at 64×64 and default
counts / real data at 64×64:

    twin            share      all-foreground  best disc    mean mask    Otsu on green
    ph2             .31 / .32  43 / 45         63 / 64      63 / 64      72 / 70
    kvasir          .16 / .15  25 / 25         39 / 39      39 / 40      34 / 34
    cvc             .11 / .09  18 / 16         32 / 29      37 / 31      29 / 26
    isic            .24 / .21  33 / 31         53 / 53      54 / 54      60 / 61
    kvasir_capsule  .60 / .61  74 / 75         84 / 83      88 / 86      89 / 84

Our decision throughout; no paper describes such twins.
"""

from collections.abc import Callable

import numpy as np

from metaseg.data.synthetic.dermoscopy import skin_lesion
from metaseg.data.synthetic.endoscopy import (
    CAPSULE_BLOCK,
    CVC_FRAMES,
    capsule_frame,
    colonoscopy_frame,
    colonoscopy_image,
)
from metaseg.data.synthetic.painting import Frame
from metaseg.errors import MetasegError

DEFAULT_COUNTS = {"ph2": 200, "kvasir": 200, "cvc": 150, "isic": 200, "kvasir_capsule": 55}
"""Images per twin: enough for 20-shot tasks of every pair; ph2 and kvasir_capsule have as many as the real ones."""

TWIN_SEED = 0
"""Seed of the twins under data=synthetic, the same for all runs."""

SMALLEST = 32
"""Smallest side in pixels: below it, the smallest polyps would vanish."""

_PAINTERS: dict[str, Callable[[str, int, int, int], Frame]] = {
    "ph2": skin_lesion,
    "isic": skin_lesion,
    "kvasir": colonoscopy_image,
    "cvc": colonoscopy_frame,
    "kvasir_capsule": capsule_frame,
}
_GROUP = {"cvc": CVC_FRAMES, "kvasir_capsule": CAPSULE_BLOCK}


def twin(name: str, count: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray, tuple[str, ...], np.ndarray]:
    """Paint the first `count` images of the synthetic twin of dataset `name`; 2 to 3 ms per image at 64×64 on one core.

    Args:
        name: ph2, kvasir, cvc, isic or kvasir_capsule.
        count: number of images N ≥ 1; defaults in `DEFAULT_COUNTS`.
        size: side S of the square images in pixels, at least 32. Except for grain, scenes are the same at every size.
        seed: ≥ 0. Image i depends only on (name, seed, size, i), bit for bit on one machine, not on `count` or the
            number of threads. Another processor may round a value differently.

    Returns:
        images uint8 (N,S,S,3) RGB, masks uint8 {0,1} (N,S,S), never empty, ids (N), groups int64 (N,): images that a
        split must not separate. One group per sequence of `CVC_FRAMES` for cvc, per block of `CAPSULE_BLOCK`
        consecutive frames for kvasir_capsule, as in the real video, else per image.

    Raises:
        MetasegError: the name is unknown, or a count, size or seed is out of range.
    """
    if name not in _PAINTERS:
        raise MetasegError(f"There is no synthetic twin of '{name}': choose one of {', '.join(sorted(_PAINTERS))}.")
    if count < 1 or size < SMALLEST or seed < 0:
        raise MetasegError(
            f"A synthetic twin needs count ≥ 1, size ≥ {SMALLEST} and seed ≥ 0, found count={count}, size={size}, "
            f"seed={seed}: change these settings."
        )
    images = np.empty((count, size, size, 3), np.uint8)
    masks = np.empty((count, size, size), np.uint8)
    for index in range(count):
        image, masks[index] = _PAINTERS[name](name, seed, index, size)
        images[index] = np.rint(np.clip(image, 0, 1) * 255)
    ids = tuple(f"{name}_{index:04d}" for index in range(count))
    return images, masks, ids, np.arange(count) // _GROUP.get(name, 1)

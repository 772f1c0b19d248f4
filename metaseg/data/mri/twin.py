"""The synthetic twin of the brain-MRI slices: painted heads with one bright lesion, in the style of the other twins.

Our decision throughout: a head is an ellipse that shrinks towards both ends of the volume, with a rim for the skull;
the lesion is roughly a ball, bright in the second channel (FLAIR) and slightly dark in the first, like low-grade
glioma. It is visible on about a third of the slices, as in the real data.
"""

import numpy as np

from metaseg.data.mri.volumes import Volume
from metaseg.data.synthetic.painting import Outline, generator, grain, grid, noise, smoothstep

PATIENTS = 12
SLICES = 16

_TISSUE = np.array([0.42, 0.36, 0.48], np.float32)
_LESION = np.array([-0.08, 0.34, 0.06], np.float32)
_SKULL = np.array([0.35, 0.18, 0.4], np.float32)


def twin(patients: int, size: int, seed: int) -> list[Volume]:
    """Paint the volumes of the first `patients` patients, `SLICES` slices of size×size each.

    A volume depends only on (index, size, seed); except for grain, the scene is the same at every size.
    """
    return [
        Volume.of(f"twin_{index:02d}", *(np.stack(part) for part in zip(*_slices(index, size, seed), strict=True)))
        for index in range(patients)
    ]


def _slices(index: int, size: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Image uint8 (S,S,3) and mask uint8 {0, 1} (S,S) of each slice of one volume."""
    rng = generator("brain_mri", seed, index)
    head = Outline.draw(rng, spread=0.03, roughness=0.02, decay=1.0)
    lesion = Outline.draw(rng, spread=0.0, roughness=0.12, decay=1.2)
    turn, away = rng.uniform(0, 2 * np.pi), rng.uniform(0.15, 0.4)
    lesion.centre = (head.centre[0] + away * np.cos(turn), head.centre[1] + away * np.sin(turn))
    middle, half, share = rng.uniform(-0.4, 0.4), rng.uniform(0.25, 0.45), rng.uniform(0.03, 0.08)
    gain = rng.uniform(0.8, 1.1)
    x, y = grid(size)
    painted = []
    for number in range(SLICES):
        height = (number + 0.5) * 2 / SLICES - 1
        texture = generator("brain_mri", seed, index, number)
        depth = head.depth(x, y, 0.5 * (1 - 0.8 * height**2), np.ones_like(x, bool))
        inside = smoothstep(depth, 0, 0.05)[..., None]
        skull = (inside[..., 0] - smoothstep(depth, 0.08, 0.13))[..., None]
        folds = np.float32(0.06) * noise(texture, size, 6, 2)[..., None] * np.array([1, -0.7, 1], np.float32)
        image = _TISSUE + folds + _SKULL * skull
        mask = np.zeros((size, size), bool)
        reach = 1 - ((height - middle) / half) ** 2
        if reach > 0.1:
            # Scale the lesion's depth so that its area is that of a ball's cross-section at this height.
            below = lesion.depth(x, y, share * reach, depth > 0.15)
            mask = (below > 0) & (depth > 0.15)
            image = image + _LESION * (smoothstep(below, -0.05, 0.1) * (depth > 0.15))[..., None]
        image = grain(texture, image * inside * np.float32(gain), 0.02)
        painted.append((np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8), mask.astype(np.uint8)))
    return painted

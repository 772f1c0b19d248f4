"""Augmentation of support images and training queries, deterministic by seed; never of images that are scored."""

import os
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from metaseg.errors import MetasegError

if TYPE_CHECKING:
    import albumentations

AUGMENTATIONS = ("none", "flips", "standard")


@lru_cache(maxsize=4)
def _pipeline(name: str) -> "albumentations.Compose":
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # no look-up of newer versions over the network
    import albumentations as A

    turns = [A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5), A.RandomRotate90(p=1.0)]
    if name == "flips":
        return A.Compose(turns)
    geometry = A.Affine(
        scale=(0.8, 1.25), translate_percent=(-0.1, 0.1), rotate=(-30, 30), border_mode=2, mask_interpolation=0, p=0.8
    )
    colour = A.ColorJitter(brightness=(0.7, 1.3), contrast=(0.7, 1.3), saturation=(0.7, 1.3), hue=(-0.05, 0.05), p=0.8)
    return A.Compose([*turns, geometry, colour])


def one_thread(_worker: int = 0) -> None:
    """What a worker process does first: leave the other cores to training.

    OpenCV's threads do not survive a fork either: a worker that called on them would wait for ever.
    """
    import cv2

    cv2.setNumThreads(0)  # torch does the same to its own in every worker of a DataLoader


def augment(name: str, images: np.ndarray, masks: np.ndarray, seed: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Augment each image together with its mask.

    Args:
        name: "none"; "flips" (flips and quarter turns); "standard" (those, affine by up to 30° and 25 %, colour jitter
            of ± 30 %) [our decision: the paper names no augmentation].
        images: uint8 (B, H, W, 3).
        masks: uint8 {0, 1} (B, H, W); resampled by nearest neighbour.
        seed: any tuple of non-negative integers; equal seeds give equal results.

    Raises:
        MetasegError: if the name is unknown.
    """
    if name not in AUGMENTATIONS:
        raise MetasegError(f"data.augment must be one of {', '.join(AUGMENTATIONS)}, found {name!r}.")
    if name == "none":
        return images, masks
    pipeline = _pipeline(name)
    out_images, out_masks = np.empty_like(images), np.empty_like(masks)
    for position, (image, mask) in enumerate(zip(images, masks, strict=True)):
        pipeline.set_random_seed(int(np.random.SeedSequence([*seed, position]).generate_state(1)[0]))
        pair = pipeline(image=image, mask=mask)
        out_images[position], out_masks[position] = pair["image"], pair["mask"]
    return out_images, out_masks

"""Seeded augmentation of support images and training queries; images that are scored are never augmented."""

import os
import random
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import albumentations


@lru_cache(maxsize=16)
def _pipeline(name: str, square: bool, thread: int) -> "albumentations.Compose":
    """One pipeline per thread, because the random state lives in the pipeline."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # no version check over the network
    import albumentations as A

    turns = [A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)]
    if square:  # a quarter turn would change the shape of others
        turns.append(A.RandomRotate90(p=1.0))
    if name == "flips":
        return A.Compose(turns)
    geometry = A.Affine(
        scale=(0.8, 1.25), translate_percent=(-0.1, 0.1), rotate=(-30, 30), border_mode=2, mask_interpolation=0, p=0.8
    )
    colour = A.ColorJitter(brightness=(0.7, 1.3), contrast=(0.7, 1.3), saturation=(0.7, 1.3), hue=(-0.05, 0.05), p=0.8)
    return A.Compose([*turns, geometry, colour])


def one_thread(_worker: int = 0) -> None:
    """Initialise a worker process: one thread, so that the other cores are left to training.

    OpenCV's threads do not survive a fork either; a worker that used them would deadlock.
    """
    import cv2

    cv2.setNumThreads(0)  # a DataLoader worker does the same for torch


def augment(
    name: str,
    images: np.ndarray,
    masks: np.ndarray,
    seed: tuple[int, ...],
    positions: Sequence[int] | np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Augment each image together with its mask.

    Args:
        name: "none"; "flips" (flips, and quarter turns of square images); "standard" (also affine by up to 30° and
            25 %, and colour jitter of ± 30 %); "coupled" (these, but one random number for all of them: both flips,
            affine and colour, or the last two, or none, so that nothing is ever mirrored; only for results that were
            made so) [our decision: the paper names no augmentation].
        images: uint8 (B, H, W, 3).
        masks: uint8 (B, H, W); resampled by nearest neighbour, so that no value is new.
        seed: any tuple of non-negative integers; equal seeds give equal results.
        positions: of the images in a larger set, which they are augmented as part of; None: 0 to B - 1.
    """
    if name == "none":
        return images, masks
    pipeline = _pipeline(name, images.shape[1] == images.shape[2], threading.get_ident())
    out_images, out_masks = np.empty_like(images), np.empty_like(masks)
    places = range(len(images)) if positions is None else positions
    for index, (position, image, mask) in enumerate(zip(places, images, masks, strict=True)):
        sequence = np.random.SeedSequence([*seed, int(position)])
        number = int(sequence.generate_state(1)[0])
        if name == "coupled":
            pipeline.set_random_seed(number)  # which gives each transform a generator of its own with the same seed
        else:
            pipeline.set_random_state(np.random.default_rng(sequence), random.Random(number))
        pair = pipeline(image=image, mask=mask)
        out_images[index], out_masks[index] = pair["image"], pair["mask"]
    return out_images, out_masks


def cropped(
    images: np.ndarray, masks: np.ndarray, side: int, seed: tuple[int, ...], positions: Sequence[int] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Random square crops, one of each image; half of them are centred on a pixel of the foreground [our decision].

    Args:
        images: uint8 (B, H, W, 3).
        masks: uint8 (B, H, W), 1 in the foreground.
        side: S, at most H and W.
        seed: any tuple of non-negative integers.
        positions: of the images in a larger set, which each image's randomness depends on.

    Returns:
        uint8 (B, S, S, 3) and (B, S, S).
    """
    height, width = masks.shape[1:]
    out_images, out_masks = [], []
    for position, image, mask in zip(positions, images, masks, strict=True):
        generator = np.random.default_rng([*seed, int(position)])
        corner = generator.integers([height - side + 1, width - side + 1])
        inside = np.argwhere(mask == 1)
        if len(inside) and generator.random() < 0.5:
            corner = np.clip(generator.choice(inside) - side // 2, 0, [height - side, width - side])
        crop = tuple(slice(low, low + side) for low in corner)
        out_images.append(image[crop])
        out_masks.append(mask[crop])
    return np.stack(out_images), np.stack(out_masks)


def recolour(images: Sequence[np.ndarray], share: float, seed: tuple[int, ...]) -> list[np.ndarray]:
    """Recolour all images of a task in the same random way, or leave all of them unchanged.

    With two source datasets a network can memorise both and ignore the support set. Colours that vary between tasks but
    not within one give the support set information found nowhere else [our decision, after Yin et al. 2020,
    "Meta-learning without memorization", and Rajendran et al. 2020, "Meta-learning requires meta-augmentation"].

    Args:
        images: arrays uint8 (B, H, W, 3), the task's support and query images.
        share: probability, 0 to 1, that the task is recoloured: channels permuted, a gamma of 0.5 to 2 in each, and
            inverted with probability one half.
        seed: any tuple of non-negative integers; equal seeds give equal results.
    """
    generator = np.random.default_rng(seed)
    if generator.uniform() >= share:
        return list(images)
    order = generator.permutation(3)
    levels = (np.arange(256) / 255) ** np.exp(generator.uniform(-np.log(2), np.log(2), (3, 1)))
    if generator.uniform() < 0.5:
        levels = 1 - levels
    table = np.rint(255 * levels).astype(np.uint8)
    return [np.stack([table[channel][some[..., order[channel]]] for channel in range(3)], axis=-1) for some in images]

"""Trivial baselines: predictors without learning, the floor for every result.

Measured at 128×128 (mean per-image Dice, %; support: the whole dataset, in brackets 20 random images, five times):

                     all_foreground   centred_disc   mean_support_mask   otsu
    PH2                   44.6            63.6          64.5 (63.0)      70.0
    Kvasir-SEG            24.8            38.6          39.7 (36.0)      34.3
    CVC-ClinicDB          16.0            28.7          31.3 (28.5)      25.9
    ISIC-2018             31.1            53.2          53.8 (51.8)      60.1
    KvasirCapsule-SEG     74.9            82.8          86.6 (86.4)      83.9
"""

import numpy as np

from metaseg.evaluation.scores import dice


def trivial_scores(
    support_images: np.ndarray, support_masks: np.ndarray, images: np.ndarray, masks: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the per-image Dice of the four trivial baselines.

    Args:
        support_images: uint8 (K, H, W, 3) RGB, the support set that a learner would get. K ≥ 1.
        support_masks: {0, 1} (K, H, W).
        images: uint8 (N, H, W, 3), the images to score. N ≥ 1.
        masks: {0, 1} (N, H, W).

    Returns:
        name → float64 (N,) in [0, 1]:

        - all_foreground: every pixel is foreground.
        - centred_disc: `best_centred_disc`, with the radius chosen on the scored masks themselves.
        - mean_support_mask: `mean_support_mask`, the same mask for every image.
        - otsu: `otsu_green`, dark or bright side, whichever fits the support masks better.
    """
    everything = np.ones(masks.shape, bool)
    disc = np.broadcast_to(best_centred_disc(masks), masks.shape)
    mean = np.broadcast_to(mean_support_mask(support_masks), masks.shape)
    dark = lesion_is_dark(support_images, support_masks)
    return {
        "all_foreground": dice(everything, masks),
        "centred_disc": dice(disc, masks),
        "mean_support_mask": dice(mean, masks),
        "otsu": dice(otsu_green(images, dark), masks),
    }


def best_centred_disc(masks: np.ndarray) -> np.ndarray:
    """Return the centred disc, bool (H, W), with the highest mean Dice on these masks (N, H, W).

    An upper bound for discs, not a fair competitor: no predictor could know this radius in advance. All radii are tried
    (on non-square images the disc is an ellipse with the image's aspect ratio).
    """
    height, width = masks.shape[1:]
    rows = (np.arange(height) + 0.5) / height - 0.5
    columns = (np.arange(width) + 0.5) / width - 0.5
    # Rounded, so that equal distances get one radius despite rounding errors.
    return _best_level_set(-np.round(np.hypot(rows[:, None], columns[None, :]), 9), masks)


def mean_support_mask(support_masks: np.ndarray) -> np.ndarray:
    """Return the mean of the support masks (K, H, W), thresholded at the level that fits them best, bool (H, W).

    Why not at 0.5: if objects are small and their position varies, no pixel is foreground in half of the masks, and the
    mask is empty (Kvasir-SEG: Dice 1.5 % at 0.5, 39.7 % at the best level, 0.22). The level with the highest mean Dice
    on the support masks uses the support only and never gives an empty mask.
    """
    return _best_level_set(np.asarray(support_masks, np.float64).mean(0), support_masks)


def _best_level_set(height_map: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return {height_map ≥ level}, bool (H, W), at the level with the highest mean Dice over masks (N, H, W)."""
    levels, rank = np.unique(-height_map.ravel(), return_inverse=True)
    area = np.cumsum(np.bincount(rank))
    order, ends = np.argsort(rank, kind="stable"), area - 1
    total = np.zeros(len(levels))
    for mask in masks.reshape(len(masks), -1) != 0:
        overlap = np.cumsum(mask[order])[ends]
        total += 2 * overlap / (area + overlap[-1])
    return (rank <= np.argmax(total)).reshape(height_map.shape)


def lesion_is_dark(support_images: np.ndarray, support_masks: np.ndarray) -> bool:
    """Return whether the dark side of Otsu's threshold fits the support masks better than the bright side."""
    sides = [dice(otsu_green(support_images, dark), support_masks).mean() for dark in (True, False)]
    return bool(sides[0] >= sides[1])


def otsu_green(images: np.ndarray, dark: bool) -> np.ndarray:
    """Return bool (N, H, W): the pixels on the dark (or bright) side of each image's Otsu threshold on green.

    Otsu 1979: the threshold with the largest variance between the two sides of the 256-bin histogram; ties: the
    midpoint of the first and the last. Dark means ≤ threshold; a constant image is all dark.
    """
    green = np.asarray(images)[..., 1]
    count = len(green)
    histogram = np.stack([np.bincount(plane.ravel(), minlength=256) for plane in green]).astype(np.float64)
    below = np.cumsum(histogram, axis=1)
    moment = np.cumsum(histogram * np.arange(256), axis=1)
    pixels, whole = below[:, -1:], moment[:, -1:]
    above = pixels - below
    gap = moment * pixels - whole * below
    between = np.divide(gap**2, below * above, out=np.zeros_like(gap), where=(below > 0) & (above > 0))
    top = between >= between.max(axis=1, keepdims=True) * (1 - 1e-12)
    threshold = (np.argmax(top, axis=1) + 255 - np.argmax(top[:, ::-1], axis=1)) // 2
    low = green <= threshold.reshape(count, 1, 1)
    return low if dark else ~low

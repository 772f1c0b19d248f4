"""How far a prediction can be trusted: what ranks images from the best to the worst."""

from collections.abc import Sequence

import numpy as np

from metaseg.evaluation.scores import THRESHOLD, dice


def soft_dice(probabilities: np.ndarray, empty: bool = False) -> np.ndarray:
    """The Dice of each mask if the probabilities (B, h, w) are calibrated: (B,) in [0, 1].

    Of an empty mask it is 1 minus the highest probability if masks may be `empty`, else 0.
    """
    masks = probabilities > THRESHOLD
    inside = (probabilities * masks).sum((1, 2))
    either = probabilities.sum((1, 2)) + masks.sum((1, 2))
    of_empty = (1 - probabilities.max((1, 2))) * empty
    return np.divide(2 * inside, either, out=of_empty.astype(float), where=masks.any((1, 2)))


def agreement(probabilities: np.ndarray, others: Sequence[np.ndarray], empty: bool = False) -> np.ndarray:
    """Mean Dice of each mask with those of other networks: (B,) in [0, 1].

    Args:
        probabilities: (B, h, w).
        others: of the other networks, likewise; at least one.
        empty: whether masks may be empty: two empty ones agree. Otherwise an empty mask is a miss, 0.
    """
    masks = probabilities > THRESHOLD
    found = np.mean([dice(masks, one > THRESHOLD) for one in others], axis=0)
    return np.asarray(np.where(masks.any((1, 2)) | empty, found, 0.0))


def confidence(probabilities: np.ndarray, others: Sequence[np.ndarray], empty: bool) -> np.ndarray:
    """`agreement`; `soft_dice` without other networks. Shape (B,), in [0, 1].

    With five and with twenty annotated images of eleven kinds, agreement ranks new images by their Dice with a Spearman
    correlation of -0.08 to 0.88 (median 0.45), the soft Dice with -0.43 to 0.84 (median 0.16); agreement is better in
    18 of the 22 draws (`python -m benchmarks own_images`). It ranks poorly where all images are alike, such as
    membranes and retinal vessels.
    """
    return agreement(probabilities, others, empty) if others else soft_dice(probabilities, empty)

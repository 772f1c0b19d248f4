"""Results of a segmented image: its line in results.csv, and reduced pictures."""

from typing import Any

import numpy as np

from metaseg.evaluation.scores import THRESHOLD

RESULTS = "results.csv"


def row(name: str, file: str, page: int | None, probabilities: np.ndarray, confidence: float | None) -> dict[str, Any]:
    """A line of results.csv.

    Args:
        name: of the image.
        file: name of the file it is in.
        page: of the file, from 0; None for a single-page file.
        probabilities: (H, W) in [0, 1], at the image's size.
        confidence: in [0, 1]; None for a user's mask.
    """
    mask = probabilities > THRESHOLD
    return {
        "image": name,
        "file": file,
        "page": page,
        "width": mask.shape[1],
        "height": mask.shape[0],
        "area": int(mask.sum()),
        "foreground": round(float(mask.mean()), 5),
        "confidence": None if confidence is None else round(confidence, 4),
    }


def reduced_size(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """(height, width) → (width, height), Pillow's order, with no side longer than `longest` pixels."""
    share = min(1.0, longest / max(size))
    return max(1, round(size[1] * share)), max(1, round(size[0] * share))

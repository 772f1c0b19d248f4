"""Which images to annotate: those that differ most from one another, by their pre-trained features.

Five of 80 images chosen so, adapted to by the quick recipe and scored on 40 others, beside the mean of four or five
random choices (one set each; runs not kept): CVC-ClinicDB 57.7 and 50.9, brain MRI 61.9 and 58.9, PH2 90.5 and 91.1,
Kvasir-SEG 54.3 and 46.3, ISIC-2018 75.3 and 73.1. The most central images (k-medoids) are no better than random ones:
53.4, 58.7, 92.2, 47.0 and 73.1.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from metaseg.adapting.arrays import rgb, shrunk
from metaseg.adapting.model import Model
from metaseg.data.batches import image_tensor
from metaseg.errors import MetasegError
from metaseg.networks.functional import forward
from metaseg.networks.stages import StagedNetwork

_BATCH = 16


def image_features(
    model: Model,
    images: Sequence[np.ndarray],
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> np.ndarray:
    """Each image as the mean of the encoder's deepest features, of length 1: float32 (N, C).

    Args:
        model: with an encoder.
        images: N arrays, as for `Model.adapt`.
        progress: called with (images done, N).

    Raises:
        MetasegError: on invalid images, or a network without an encoder.
    """
    network = model.learner.network
    if not (isinstance(network, StagedNetwork) and network.staged):
        raise MetasegError("Expected a network with an encoder to compare images by; use the built-in model.")
    theta, found = model.learner.theta(), []
    for first in range(0, len(images), _BATCH):
        some = [rgb(image, f"image {first + number}") for number, image in enumerate(images[first : first + _BATCH])]
        small = image_tensor(np.stack([shrunk(image, (model.size, model.size)) for image in some]))
        with torch.no_grad():
            features, _ = forward(network, theta, small.to(model.learner.device), last="encoder")
        deepest = features[-1] if isinstance(features, list | tuple) else features
        found.append(deepest.mean((2, 3)).cpu().numpy())
        progress(min(first + _BATCH, len(images)), len(images))
    described = np.concatenate(found)
    return np.asarray(described / np.maximum(np.linalg.norm(described, axis=1, keepdims=True), 1e-9))


def farthest(points: np.ndarray, count: int, start: Sequence[int] = ()) -> list[int]:
    """Indices of `count` points, each the one farthest from all before it.

    Args:
        points: (N, C).
        count: from 1 to N - len(start).
        start: points that are already chosen; empty: the point closest to the mean comes first.
    """
    if not len(start):
        first = int(np.linalg.norm(points - points.mean(0), axis=1).argmin())
        return [first, *farthest(points, count - 1, [first])] if count > 1 else [first]
    nearest = np.min([np.linalg.norm(points - points[one], axis=1) for one in start], axis=0)
    found: list[int] = []
    for _ in range(count):
        found.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(points - points[found[-1]], axis=1))
    return found

"""Which images to annotate: those that stand for the others, by their pre-trained features."""

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
_ROUNDS = 100  # k-medoids ends long before


def described(
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


def k_medoids(points: np.ndarray, count: int) -> list[int]:
    """Indices of `count` points to which the others are closest on average, most central first.

    Greedy choice, then exchanges until none helps [Kaufman and Rousseeuw 1990, PAM]. Deterministic.

    Args:
        points: (N, C).
        count: from 1 to N.
    """
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    chosen: list[int] = []
    nearest = np.full(len(points), np.inf)
    for _ in range(count):
        gains = np.minimum(distances, nearest[None]).sum(1)
        gains[chosen] = np.inf
        chosen.append(int(gains.argmin()))
        nearest = np.minimum(nearest, distances[chosen[-1]])
    cost = float(nearest.sum())
    for _ in range(_ROUNDS):
        lowest, exchange = cost - 1e-9, (-1, -1)
        for position in range(count):
            rest = [one for other, one in enumerate(chosen) if other != position]
            without = distances[rest].min(0) if rest else np.full(len(points), np.inf)
            costs = np.minimum(distances, without[None]).sum(1)
            costs[chosen] = np.inf
            if costs.min() < lowest:
                lowest, exchange = float(costs.min()), (position, int(costs.argmin()))
        if exchange[0] < 0:
            break
        cost, chosen[exchange[0]] = lowest, exchange[1]
    return chosen


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

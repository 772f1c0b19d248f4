"""The probability from which a pixel counts as foreground, by the Dice of annotated images held out."""

import math
from dataclasses import replace

from torch import nn

from metaseg.evaluation.scores import THRESHOLD
from metaseg.networks.segmenter import AdaptedNetwork, Ensemble, Segmenter
from metaseg.networks.stages import output_bias

LOWEST = 0.1
"""Threshold of networks that miss all held-out images [D]."""

UNKNOWN = 0.2
"""Threshold of the built-in model without held-out images: of 0.5, 0.4, 0.3, 0.2 and 0.1 the best on average over five
kinds of image, with five annotated images each (runs not kept)."""

ONE_IMAGE = 0.1
"""The same with a single image: mean Dice over four kinds 45, against 38 at 0.3 and 31 at 0.5 (one draw each)."""


def threshold_for(dsc: float) -> float:
    """Half of the mean Dice of masks cut at one half, and no less than `LOWEST`.

    For calibrated probabilities the threshold of the highest Dice is half of that Dice [Lipton et al. 2014]. Unlike the
    threshold that is best on the held-out images, it does not jump with one of five.

    Args:
        dsc: mean Dice of annotated images that a network has not seen, in [0, 1].
    """
    return max(LOWEST, dsc / 2)


def has_output_bias(segmenter: Segmenter) -> bool:
    """Whether `with_threshold` can change the segmenter: it consists of networks whose logits have a bias."""
    return isinstance(segmenter, AdaptedNetwork | Ensemble) and output_bias(_network(segmenter)) is not None


def with_threshold(segmenter: Segmenter, threshold: float) -> Segmenter:
    """The segmenter whose probabilities are one half where they were ``threshold``: the logits' bias moves.

    Args:
        segmenter: one for which `has_output_bias` holds.
        threshold: in (0, 1).
    """
    if threshold == THRESHOLD:
        return segmenter
    if isinstance(segmenter, Ensemble):
        members = tuple(_moved(member, threshold) for member in segmenter.members)
        return replace(segmenter, members=members, alone=_moved(segmenter.alone, threshold))
    assert isinstance(segmenter, AdaptedNetwork)
    return _moved(segmenter, threshold)


def _moved(network: AdaptedNetwork, threshold: float) -> AdaptedNetwork:
    name = output_bias(network.network)
    assert name is not None
    moved = network.parameters[name] - math.log(threshold / (1 - threshold))
    return replace(network, parameters={**network.parameters, name: moved})


def _network(segmenter: AdaptedNetwork | Ensemble) -> nn.Module:
    return segmenter.members[0].network if isinstance(segmenter, Ensemble) else segmenter.network

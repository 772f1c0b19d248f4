"""From settings to the learner that they describe."""

from collections.abc import Mapping
from typing import Any

import torch
from hydra.utils import get_class
from torch import nn

from metaseg.errors import MetasegError
from metaseg.learners.base import Learner
from metaseg.meta.losses import LOSSES
from metaseg.networks.build import build

NOT_THE_LEARNERS = ("name", "train_on", "train_images", "unlabelled", "network")
"""Keys of a learner's configuration that its constructor does not take."""

NOT_THE_NETWORKS = ("norm", "recipe")
"""Keys of a model's configuration that say how it is used."""


def build_learner(settings: Mapping[str, Any], learner: Mapping[str, Any], initial_weights: bool = True) -> Learner:
    """The learner that a configuration describes, with its network at the initial weights.

    Args:
        settings: the whole configuration, resolved.
        learner: the group ``learner``, of this run or of another learner that is compared with it.
        initial_weights: False leaves pre-trained initial weights out, for when others take their place anyway.

    Raises:
        MetasegError: on an unknown loss, network or value.
    """
    if settings["loss"] not in LOSSES:
        raise MetasegError(f"loss must be one of {', '.join(LOSSES)}, found {settings['loss']!r}.")
    network = build_network(settings, learner, initial_weights)
    norm = settings["model"]["norm"]
    arguments = {key: value for key, value in learner.items() if key not in NOT_THE_LEARNERS}
    kind = get_class(arguments.pop("_target_"))
    return kind(network=network, loss=LOSSES[settings["loss"]], norm=norm, **arguments)


def build_network(settings: Mapping[str, Any], learner: Mapping[str, Any], initial_weights: bool = True) -> nn.Module:
    """The network of the group ``model``, or the learner's own where its configuration has one under ``network``.

    Args:
        settings: the whole configuration, resolved.
        learner: the group ``learner``.
        initial_weights: as of `build_learner`.

    Raises:
        MetasegError: on an unknown network or value.
    """
    own = learner.get("network")
    if own is None:
        model = {key: value for key, value in settings["model"].items() if key not in NOT_THE_NETWORKS}
        return build(**model, seed=settings["seed"], initial_weights=initial_weights)
    arguments = dict(own)
    kind = get_class(arguments.pop("_target_"))
    if not initial_weights and "encoder_weights" in arguments:
        arguments["encoder_weights"] = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings["seed"])
        network: nn.Module = kind(**arguments)
    return network

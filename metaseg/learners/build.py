"""Build a learner and its network from settings."""

import inspect
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, get_type_hints

import torch
from hydra.utils import get_class
from torch import Tensor, nn

from metaseg.errors import MetasegError, reason
from metaseg.learners.base import Learner
from metaseg.meta.losses import LOSSES, Loss
from metaseg.networks.build import build
from metaseg.networks.stages import require_multiples
from metaseg.runs import schema, validation
from metaseg.runs.schema import Run, Trained

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def build_learner(
    settings: Run | Trained, learner: schema.Learner | None = None, initial_weights: bool = True
) -> Learner:
    """Build a learner with its network at the initial weights.

    Args:
        settings: of the run.
        learner: a learner to build instead of the run's, for comparison.
        initial_weights: False skips loading pre-trained weights, if they will be replaced anyway.

    Raises:
        MetasegError: on an unknown network, a class that is no learner, an argument that it does not take or lacks, or
            an image size that the network cannot halve as often as it must.
    """
    learner = settings.learner if learner is None else learner
    network = build_network(settings, learner, initial_weights)
    if (stride := getattr(network, "stride", None)) is not None:
        require_multiples(network.label, stride, settings.data.size, settings.data.size)  # type: ignore[arg-type]
    kind = _learner_class(learner.target_)
    groups = {"adapt": learner.adapt, "optimizer": learner.optimizer, "inner": learner.inner}
    shared: dict[str, Any] = {key: group for key, group in groups.items() if group is not None}
    shared |= {
        "channels_last": learner.channels_last,
        "network": network,
        "loss": _of_masks(LOSSES[settings.loss]),
        "norm": settings.model.norm.model_dump(),
    }
    return kind(**shared, **fitting(kind, learner.others, "learner", shared.keys()))


def _of_masks(loss: Loss) -> Loss:
    """The loss, refusing the logits of a network that do not have the shape of the masks."""

    def value(logits: Tensor, masks: Tensor) -> Tensor:
        if logits.shape != masks.shape:
            raise MetasegError(
                f"Expected logits of shape {tuple(masks.shape)}, as the masks, found {tuple(logits.shape)}: a network "
                "must return one logit for each pixel."
            )
        return loss.value(logits, masks)

    return replace(loss, value=value)


def build_network(settings: Run | Trained, learner: schema.Learner, initial_weights: bool = True) -> nn.Module:
    """The network of the group ``model``, or the learner's own if its configuration has ``network``.

    Args:
        settings: of the run.
        learner: the learner.
        initial_weights: as in `build_learner`.

    Raises:
        MetasegError: on an unknown network or value.
    """
    if learner.network is None:
        model = settings.model.model_dump(exclude={"norm", "recipe"}, exclude_unset=True)
        return build(**model, seed=settings.seed, initial_weights=initial_weights)
    kind = _class(learner.network.target_)
    arguments = fitting(kind, learner.network.others, "learner.network")
    if not initial_weights and "encoder_weights" in arguments:
        arguments["encoder_weights"] = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network: nn.Module = kind(**arguments)
    return network


def _learner_class(target: str) -> type[Learner]:
    kind = _class(target)
    if not issubclass(kind, Learner):
        raise MetasegError(
            f"Expected a learner as learner._target_, found {target}: derive it from metaseg.learners.base.Learner."
        )
    if kind.trains and kind.meta_gradient is Learner.meta_gradient:
        raise MetasegError(f"{target} trains, but has no meta_gradient: define it, or set trains = False.")
    return kind


def _class(target: str) -> type:
    try:
        return get_class(target)
    except Exception as error:  # Hydra's and those of the module
        raise MetasegError(
            f"Expected a class as _target_ of a learner or its network, but {target} cannot be loaded "
            f"({reason(error.__cause__ or error)}): correct the name, or the file."
        ) from error


def fitting(kind: type, values: Mapping[str, Any], group: str, elsewhere: Collection[str] = ()) -> dict[str, Any]:
    """Constructor arguments, checked and converted by the types in its signature.

    Args:
        kind: a class; arguments of its base classes' constructors are accepted too.
        values: key → value.
        group: prefix of the keys in error messages.
        elsewhere: arguments that are given besides.

    Raises:
        MetasegError: on a key no constructor takes, one of `elsewhere`, a value of the wrong type, or a missing one.
    """
    known: dict[str, Any] = {}
    for one in reversed(kind.__mro__):
        if "__init__" in vars(one):
            hints = get_type_hints(one.__init__, include_extras=True)  # type: ignore[misc]
            parameters = inspect.signature(one.__init__).parameters  # type: ignore[misc]
            known |= {name: hints.get(name, Any) for name, one in parameters.items() if one.kind in _BY_NAME}
    known.pop("self", None)
    for key in values.keys() - known.keys():
        near = validation.nearest(f"{group}.{key}", (f"{group}.{name}" for name in known))
        raise MetasegError(
            f"{kind.__name__} has no setting {group}.{key}, found {values[key]!r}: {near or 'leave it out.'}"
        )
    if taken := sorted(set(elsewhere) & values.keys()):
        raise MetasegError(f"{group}.{taken[0]} is set elsewhere, found {values[taken[0]]!r}: leave it out.")
    for name, needed in inspect.signature(kind).parameters.items():
        if needed.kind in _BY_NAME and needed.default is needed.empty and name not in {*values, *elsewhere}:
            raise MetasegError(f"{kind.__name__} needs {group}.{name}, found nothing: set it.")
    return {key: validation.fitted(known[key], f"{group}.{key}", value) for key, value in values.items()}

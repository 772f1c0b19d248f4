"""The settings behind the results: what all runs share, what a learner's runs share, and what one run has of its own;
and runs that differ in their initial weights alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaseg.reporting.runs import Run
from metaseg.runs.settings import leaves, within
from metaseg.runs.tables import identity

# Shown in columns of their own, or no setting that a reader compares.
_ELSEWHERE = (
    *("seed", "shots", "learner.name", "learner._target_", "logger", "ckpt_path", "data.root", "trainer.progress"),
    *("protocol", "pair.pools", "pair.target"),
)
_INITIAL = (
    *("model.name", "model.init", "model.init_path", "model.arch", "model.encoder", "model.encoder_weights"),
    *("model.features", "learner.network", "learner.name"),
)


@dataclass(frozen=True)
class Settings:
    """Path → value as text: of all runs, of each learner's runs, of single runs by name; each path once for a run."""

    common: dict[str, str]
    by_learner: dict[str, dict[str, str]]
    by_run: dict[str, dict[str, str]]


@dataclass(frozen=True)
class Initial:
    """Runs of one learner, whatever its name, at some shots that differ in their initial weights alone.

    Attributes:
        learner: its name, or its names, in the order of the alphabet, as "pretrained, scratch".
        shots: K.
        variants: description of network and weights → runs, of the same seeds each.
    """

    learner: str
    shots: int
    variants: dict[str, list[Run]]


def settings_of(runs: Sequence[Run]) -> Settings:
    """Sort every setting into what is common to all, to a learner, or to a run."""
    known = {run.name: _shown(run.settings) for run in runs}
    common = _shared(list(known.values()))
    by_learner = {}
    for learner in sorted({run.learner for run in runs}):
        shared = _shared([known[run.name] for run in runs if run.learner == learner])
        by_learner[learner] = {path: value for path, value in shared.items() if path not in common}
    by_run = {
        run.name: {
            path: value
            for path, value in known[run.name].items()
            if path not in common and path not in by_learner[run.learner]
        }
        for run in runs
    }
    return Settings(common, by_learner, by_run)


def initial_weights(runs: Sequence[Run]) -> list[Initial]:
    """Groups of runs whose settings are equal but for their initial weights or network, of the seeds that all have."""
    groups: dict[Any, dict[str, list[Run]]] = {}
    for run in runs:
        # Another network or start may come with another name of the learner, but not with another learner.
        skipped = _INITIAL if run.outer_steps else (*_INITIAL, "pair", "tasks")
        key = tuple(sorted((path, repr(value)) for path, value in identity(run.settings, skipped).items()))
        groups.setdefault(key, {}).setdefault(described(run.settings), []).append(run)
    found = []
    for variants in groups.values():
        seeds = set.intersection(*({run.settings["seed"] for run in some} for some in variants.values()))
        if len(variants) > 1 and seeds:
            of_all = {text: [run for run in some if run.settings["seed"] in seeds] for text, some in variants.items()}
            several = [run for some in of_all.values() for run in some]
            learner = ", ".join(sorted({run.learner for run in several}))
            found.append(Initial(learner, several[0].settings["shots"], of_all))
    return found


def described(settings: Mapping[str, Any]) -> str:
    """A run's network and initial weights in a few words."""
    network = settings["learner"].get("network")
    if network is not None:
        rest = ", ".join(Path(str(value)).name for key, value in leaves(network).items() if key != "_target_")
        return f"{str(network.get('_target_', 'own network')).rpartition('.')[2]}{f': {rest}' if rest else ''}"
    model = settings.get("model") or {}
    parts = [str(model.get(key)) for key in ("name", "arch", "encoder") if model.get(key) is not None]
    if model.get("features") is not None:
        parts.append(f"{model['features']} features")
    start = model.get("encoder_weights") or model.get("init") or "random"
    return f"{', '.join(parts)}: {start} weights"


def _shown(settings: Mapping[str, Any]) -> dict[str, str]:
    return {path: _text(value) for path, value in leaves(settings).items() if not within(path, _ELSEWHERE)}


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value)


def _shared(many: Sequence[Mapping[str, str]]) -> dict[str, str]:
    first = many[0] if many else {}
    return {path: value for path, value in first.items() if all(other.get(path) == value for other in many)}

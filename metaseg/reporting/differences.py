"""The settings behind the results: common to all runs, common to a learner's runs, or specific to one run.

Also groups runs that differ only in their initial weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaseg.reporting.runs import Run
from metaseg.runs.settings import leaves, within
from metaseg.runs.tables import identity

# Shown in separate columns, or not of interest to readers.
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
    """Path → value as text: common to all runs, per learner, and per run by name; each path applies once to a run."""

    common: dict[str, str]
    by_learner: dict[str, dict[str, str]]
    by_run: dict[str, dict[str, str]]


@dataclass(frozen=True)
class Initial:
    """Runs of one learner, under any name, at one number of shots, that differ in their initial weights alone.

    Attributes:
        learner: its names in alphabetical order, e.g. "pretrained, scratch".
        shots: K.
        variants: description of network and weights → runs, with the same seeds for each.
    """

    learner: str
    shots: int
    variants: dict[str, list[Run]]


def settings_of(runs: Sequence[Run]) -> Settings:
    """Sort the settings into those common to all runs, to a learner's runs, or specific to a run."""
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
    """Groups of runs with equal settings except initial weights or network, restricted to common seeds."""
    groups: dict[Any, dict[str, list[Run]]] = {}
    for run in runs:
        # A different network or start may come with a different learner name, but not with a different learner.
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

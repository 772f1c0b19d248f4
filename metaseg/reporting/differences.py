"""The settings behind the results: common to all runs, common to a learner's runs, or specific to one run.

Also groups runs that differ only in their initial weights, and names what runs of one table should share and do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaseg.reporting.cells import Block
from metaseg.reporting.runs import Run
from metaseg.runs.settings import leaves, within
from metaseg.runs.tables import identity, in_common, row_is_free

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
    """Runs of one learner, under any name, at one number of shots, that differ only in their initial weights.

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


def uneven(blocks: Sequence[Block]) -> list[str]:
    """What runs of a table should share and do not: a line for each setting that can change a score, for each dataset
    whose prepared images have different hashes, and for each seed whose runs began from the weights of different runs,
    with the usual value and the runs that have others."""
    known = {run.name: (cell.row, run) for block in blocks for cell in block.cells for run in cell.runs}
    settings = {name: _shown(run.settings, without=()) for name, (_, run) in known.items()}
    found: dict[str, dict[str, list[str]]] = {}
    for path in sorted({path for of_run in settings.values() for path in of_run}):
        values = {name: settings[name].get(path, "absent") for name, (row, _) in known.items() if in_common(row, path)}
        if any(value != settings[name]["shots"] for name, value in values.items()):  # the paper's Q follows K
            for name, value in values.items():
                found.setdefault(path, {}).setdefault(value, []).append(name)
    for name, (row, run) in known.items():
        pools = () if row_is_free(row) else run.settings["pair"].get("pools", ())
        used = {block.target for block in blocks} | set(pools)
        for dataset in sorted(used & set(run.result.data)):
            key = run.result.data[dataset].key[:8]
            found.setdefault(f"images of {dataset}", {}).setdefault(key, []).append(name)
        began = Path(run.result.start or "")
        # A row with another loss has a start of its own.
        if began.suffix == ".ckpt" and not row_is_free(row) and in_common(row, "loss"):
            where = f"start of seed {run.settings['seed']}"
            found.setdefault(where, {}).setdefault(began.parent.parent.name, []).append(name)
    return [_uneven(what, names) for what, names in found.items() if len(names) > 1]


def _uneven(what: str, names: Mapping[str, Sequence[str]]) -> str:
    usual = max(names, key=lambda value: len(names[value]))
    others = (f"{value} in {', '.join(some)}" for value, some in names.items() if value != usual)
    return f"{what}: {usual}, but {'; '.join(others)}"


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


def _shown(settings: Mapping[str, Any], without: Sequence[str] = _ELSEWHERE) -> dict[str, str]:
    return {path: _text(value) for path, value in leaves(settings).items() if not within(path, without)}


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value)


def _shared(many: Sequence[Mapping[str, str]]) -> dict[str, str]:
    first = many[0] if many else {}
    return {path: value for path, value in first.items() if all(other.get(path) == value for other in many)}

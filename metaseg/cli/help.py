"""The text of `--help`: every setting with its meaning, allowed values and current value."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from metaseg import configuration
from metaseg.runs.schema import CONFIGURATIONS
from metaseg.runs.settings import leaves
from metaseg.runs.validation import documented

_WIDTH = 120
_KEY = 28  # longer keys get a separate line
_LEFT_OUT = ("starts.learner.", "model.recipe.")  # derived from other settings


def text(config_name: str, arguments: Sequence[str] = ()) -> str:
    """The help of a command.

    Args:
        config_name: name of its configuration.
        arguments: the command line; values set there are shown in place of the defaults.
    """
    config = configuration.composed(
        config_name, [argument for argument in arguments if "=" in argument and argument[0] != "-"], with_hydra=True
    )
    said = config.hydra.help
    lines = [said.header.rstrip(), "", "Settings, as NAME=VALUE:", ""]
    choices = config.hydra.runtime.choices
    for group in (name for name in choices if isinstance(name, str) and (configuration.FOLDER / name).is_dir()):
        if not group.startswith("hydra/"):
            files = sorted(path.stem for path in (configuration.FOLDER / group).glob("[!_]*.yaml"))
            if len(files) > 1:
                lines += _row(group, f"one of {', '.join(files)}", choices[group])
    values = leaves(_plain(config))
    for one in documented(CONFIGURATIONS[config_name]):
        if one.key in values and not one.key.startswith(_LEFT_OUT) and not one.key.endswith("_target_"):
            lines += _row(one.key, f"{one.meaning} ({one.values})", _text(values.get(one.key)))
    own = [key for key in values if key.startswith(("learner.", "model.")) and key not in _documented(config_name)]
    own = [key for key in own if not key.startswith(_LEFT_OUT)]
    lines += [line for key in own for line in _row(key, "specific to this learner or model", _text(values[key]))]
    return "\n".join([*lines, "", said.footer.rstrip()]).rstrip()


def known_settings(config_name: str) -> list[str]:
    """Every key that the command accepts when composed without overrides."""
    return [*_documented(config_name), *leaves(_plain(configuration.composed(config_name, with_hydra=True)))]


def _documented(config_name: str) -> set[str]:
    return {one.key for one in documented(CONFIGURATIONS[config_name])}


def _plain(config: DictConfig) -> dict[str, Any]:
    """The settings without Hydra's own; required ones without a value are "???"."""
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    return OmegaConf.to_container(own, resolve=True)  # type: ignore[return-value]


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return "required" if value == "???" else str(value).replace("'", "")


def _row(key: str, meaning: str, value: str) -> Iterator[str]:
    first, *rest = textwrap.wrap(f"{meaning}  [{value}]", _WIDTH - _KEY - 4)
    if len(key) >= _KEY:
        yield f"  {key}"
        key = ""
    yield f"  {key:<{_KEY}}{first}"
    yield from (f"  {'':<{_KEY}}{line}" for line in rest)

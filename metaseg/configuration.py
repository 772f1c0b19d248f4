"""The shipped configuration: conf/ in a checkout, metaseg/conf in an installed package."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

_PACKAGE = Path(str(files("metaseg")))
FOLDER = next((place for place in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if place.is_dir()), _PACKAGE / "conf")
"""The configuration folder; metaseg/conf if neither exists."""


def names_its_folder() -> bool:
    """Whether the running command was given hydra.run.dir, whose default holds the time."""
    from hydra.core.hydra_config import HydraConfig

    return any(one.startswith("hydra.run.dir=") for one in HydraConfig.get().overrides.hydra)


def literally(key: str, value: str | Path) -> str:
    """`KEY=VALUE` for Hydra's command line, with any value taken as it stands."""
    # A backslash is an escape to Hydra before a quote or at the end, and to OmegaConf before an interpolation.
    value = re.sub(r"(\\*)(\$\{|'|$)", lambda found: found[1] * 2 + (f"\\{found[2]}" if found[2] else ""), str(value))
    return f"{key}='{value}'"


def composed(name: str, overrides: Sequence[str] = (), with_hydra: bool = False) -> DictConfig:
    """A command's configuration; also within a command, where Hydra is already in use.

    Args:
        name: name of its file in `FOLDER`, without .yaml.
        overrides: as on the command line.
        with_hydra: keep Hydra's own settings.
    """
    from hydra import compose, initialize_config_dir  # a third of a second
    from hydra.core.global_hydra import GlobalHydra
    from hydra.initialize import get_gh_backup, restore_gh_from_backup

    command = get_gh_backup()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(FOLDER), version_base="1.3"):
            return compose(name, list(overrides), return_hydra_config=with_hydra)
    finally:
        restore_gh_from_backup(command)

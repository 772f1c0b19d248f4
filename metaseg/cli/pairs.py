"""Lists of source datasets on the command line, `pair=[mine,ph2]`, in addition to the named pairs in conf/pair.

To Hydra, `pair` is a config group with one file per choice. A list is therefore registered as a new choice before Hydra
reads the command line: `pair=mine+ph2`, or `pair=mine+` for a single dataset. Run directories and results use that
name, and it can be typed directly. A list equal to a pair of conf/pair, in the same order, becomes that pair.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from hydra.core.config_store import ConfigStore

from metaseg import configuration
from metaseg.data import catalogue
from metaseg.documents import read_yaml
from metaseg.errors import MetasegError

FOLDER = configuration.FOLDER / "pair"
TARGET = ("isic",)
"""[D] Default target of such a pair, as in most tables; override with target=NAME."""
JOINT = "+"


def chosen(arguments: Sequence[str]) -> list[str]:
    """Register every list of datasets with Hydra and replace it by its name on the command line.

    Args:
        arguments: the command line, with any number of `pair=…`, each possibly with several values for a sweep.

    Raises:
        MetasegError: a list is empty, repeats a dataset or holds an invalid name.
    """
    return [
        f"pair={_values(argument.removeprefix('pair='))}" if argument.startswith("pair=") else argument
        for argument in arguments
    ]


def _values(text: str) -> str:
    named = {file.stem: _pools(file) for file in sorted(FOLDER.glob("*.yaml"))}

    def known(names: list[str], found: str) -> str:
        wrong = [name for name in names if not catalogue.NAME.fullmatch(name)]
        if not names or wrong or len(set(names)) < len(names):
            raise MetasegError(
                f"pair must list each source dataset once, as in pair=[ph2,kvasir], or be one of "
                f"{', '.join(named)}; found pair={found}."
            )
        for name, pools in named.items():
            if pools == names:
                return name
        choice = JOINT.join(names) if len(names) > 1 else names[0] + JOINT
        node = {"name": choice, "pools": names, "target": list(TARGET)}
        ConfigStore.instance().store(group="pair", name=choice, node=node, provider="metaseg")
        return choice

    def listed(match: re.Match[str]) -> str:
        names = [name.strip(" '\"") for name in match[1].split(",")]
        return known([] if names == [""] else names, match[0])

    text = re.sub(r"\[([^\[\]]*)\]", listed, text)
    for choice in re.split(r"[,()]", text):
        if JOINT in choice:  # the form in which a sweep starts its cells
            known(choice.strip(" '\"").removesuffix(JOINT).split(JOINT), choice)
    return text


def _pools(file: Path) -> list[str]:
    """The pools that a file names; empty if it is faulty, which is reported if it is chosen."""
    try:
        found = read_yaml(file)
    except (OSError, ValueError):
        return []
    pools = found.get("pools") if isinstance(found, dict) else None
    return pools if isinstance(pools, list) else []

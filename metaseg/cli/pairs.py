"""Source datasets named one by one on the command line: `pair=[mine,ph2]` beside the named pairs of conf/pair.

Hydra knows `pair` as a group with one file a choice. So a list becomes a choice of its own, `pair=mine+ph2`, or
`pair=mine+` where it is of one, made here before Hydra reads the command line; that is also its name in run directories
and results, and may be typed as well. A list that a file of conf/pair has, in its order, becomes that pair.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from hydra.core.config_store import ConfigStore

from metaseg import configuration
from metaseg.data import catalogue
from metaseg.errors import MetasegError

FOLDER = configuration.FOLDER / "pair"
TARGET = ("isic",)
"""[D] Target of such a pair, that of most tables; target=NAME names another."""
JOINT = "+"


def chosen(arguments: Sequence[str]) -> list[str]:
    """The command line with every list of datasets as a name that Hydra knows, and that name made known to Hydra.

    Args:
        arguments: the command line, with any number of `pair=…`, also with several values as for a sweep.

    Raises:
        MetasegError: a list that is empty or names a dataset twice, or something that is no name.
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
                f"pair={found} should name each source dataset once, as in pair=[ph2,kvasir]; or be one of "
                f"{', '.join(named)}."
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
        if JOINT in choice:  # as a sweep starts its cells
            known(choice.strip(" '\"").removesuffix(JOINT).split(JOINT), choice)
    return text


def _pools(file: Path) -> list[str]:
    return list(yaml.safe_load(file.read_text(encoding="utf-8"))["pools"])

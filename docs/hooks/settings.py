"""The page of settings: each key with its default and the comment beside it in conf/, and the values that it takes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from mkdocs.structure.files import File, Files

from metaseg.runs.schema import CONFIGURATIONS, Run
from metaseg.runs.validation import documented

CONF = Path(__file__).parents[2] / "conf"
LINE = re.compile(r"""^(?P<indent> *)(?P<key>[\w.]+):(?:\s+(?P<value>"[^"]*"|\S.*?))??(?:\s+\#\s*(?P<comment>.*))?$""")
INTRODUCTION = """# Settings

Every setting is `NAME=VALUE` on the command line, and `--cfg job --resolve` prints all of them as a run would see
them. A group (`learner`, `pair`, `model`, …) is a choice among files: `learner=maml`. Sources: [P] the paper, [A] its
author's public code, [D] our decision. `${…}` is the value of another setting.
"""
LEFT_OUT = ("hydra", "experiment", "dataset", "local")
"""Folders whose files are tables and datasets, not settings of a run."""
COMMANDS = {name: f"metaseg {'train' if name == 'config' else name}" for name in CONFIGURATIONS}


class Setting(NamedTuple):
    """A key, dotted from its file's root, with its default, what is said of it, and the values it takes."""

    key: str
    default: str
    meaning: str
    values: str = ""


class Choice(NamedTuple):
    """One file of conf/: its name, its heading comment, its settings."""

    name: str
    summary: str
    settings: list[Setting]


class Group(NamedTuple):
    """A folder of conf/, or the settings of a command."""

    title: str
    choices: list[Choice]
    default: str = ""


def on_files(files: Files, config: Any) -> Files:
    """Replace settings.md, which is for the repository's own view."""
    if stub := files.get_file_from_path("settings.md"):
        files.remove(stub)
    files.append(File.generated(config, "settings.md", content=page(read_settings())))
    return files


def read_settings() -> list[Group]:
    """What the page shows."""
    defaults = dict(re.findall(r"^  - (\w+): (\w+)", (CONF / "config.yaml").read_text(encoding="utf-8"), re.MULTILINE))
    groups = []
    for folder in sorted(path for path in CONF.iterdir() if path.is_dir() and path.name not in LEFT_OUT):
        choices = [choice(path, folder.name) for path in sorted(folder.glob("*.yaml"))]
        groups.append(Group(folder.name, choices, defaults.get(folder.name, "")))
    main, *others = (Group(command, [choice(CONF / f"{name}.yaml")]) for name, command in COMMANDS.items())
    return [main, *groups, *others]


def choice(path: Path, group: str = "") -> Choice:
    """A file's leading comment and its keys, as they are given on a command line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    heading = list(takewhile(lambda line: line.startswith("#"), lines))
    whole = [line for line in heading if "@package _global_" in line]
    found = settings(lines)
    named = [one._replace(key=f"{group}.{one.key}") for one in found] if group and not whole else list(found)
    known = {one.key: one for one in documented(Run if group else CONFIGURATIONS.get(path.stem, Run))}
    named = [
        one._replace(values=known[one.key].values, meaning=one.meaning or known[one.key].meaning)
        if one.key in known
        else one
        for one in named
    ]
    return Choice(path.stem, " ".join(line.lstrip("# ") for line in heading if line not in whole), named)


def settings(lines: list[str]) -> Iterator[Setting]:
    """The leaves of a YAML file of mappings, with the comments at the ends of their lines.

    A comment at a key without value is that of all keys below it. Hydra's own keys and lists of defaults are left out.
    """
    above: list[tuple[int, str, str]] = []  # indent, key, comment of the mappings that a line lies in
    for number, line in enumerate(lines):
        match = LINE.match(line)
        if match is None:
            continue
        indent, key, comment = len(match["indent"]), match["key"], match["comment"] or ""
        above = [one for one in above if one[0] < indent]
        path = ".".join([*(name for _, name, _ in above), key])
        if path.split(".")[0] in ("defaults", "hydra"):
            above.append((indent, key, comment))
            continue
        if match["value"] is None and number + 1 < len(lines) and _indent(lines[number + 1]) > indent:
            above.append((indent, key, comment))
            continue
        outer = "; ".join(said for _, _, said in above if said)
        yield Setting(path, match["value"] or "null", comment or outer)


def page(groups: list[Group]) -> str:
    """Markdown: a section a group, a table a choice."""
    text = [INTRODUCTION]
    for group in groups:
        text.append(f"## {group.title}\n")
        if group.default:
            text.append(f"Default: `{group.title}={group.default}`.\n")
        for one in group.choices:
            if len(group.choices) > 1:
                shared = one.name.startswith("_")
                text.append(f"### {f'Common to several: {one.name[1:]}' if shared else f'{group.title}={one.name}'}\n")
            if one.summary:
                text.append(f"{_escaped(one.summary)}\n")
            if one.settings:
                text.append("| setting | default | values | |\n|---|---|---|---|")
                text += [
                    f"| `{key}` | {_code(default)} | {_escaped(values)} | {_escaped(said)} |"
                    for key, default, said, values in one.settings
                ]
                text.append("")
    return "\n".join(text)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")


def _escaped(text: str) -> str:
    return re.sub(r"([|<*_\[\]])", r"\\\1", text)

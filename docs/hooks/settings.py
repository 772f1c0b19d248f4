"""The page of settings, from conf/: each key with its default and the comment that stands beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mkdocs.structure.files import File, Files

CONF = Path(__file__).parents[2] / "conf"
LINE = re.compile(r"^(?P<indent> *)(?P<key>[\w.]+):(?:\s+(?P<value>\S.*?))??(?:\s+#\s*(?P<comment>.*))?$")
INTRODUCTION = """# Settings

Every setting is `NAME=VALUE` on the command line, and `--cfg job` prints all of them as a run would see them. A group
(`learner`, `pair`, `model`, …) is a choice among files: `learner=maml`. Sources: [P] the paper, [A] its author's public
code, [D] our decision. `${…}` is the value of another setting.

`_global_` in the title of a choice means that its keys are those of the whole configuration.
"""
LEFT_OUT = ("hydra", "experiment", "dataset")
"""Folders whose files are no settings of a run, but tables and datasets."""
COMMANDS = {"config": "train.py", "adapt": "adapt.py", "app": "app.py", "pretrain": "pretrain.py"}


class Setting(NamedTuple):
    """A key, dotted from its file's root, with its default and what is said of it."""

    key: str
    default: str
    meaning: str


class Choice(NamedTuple):
    """One file of conf/: its name, its heading comment, its settings."""

    name: str
    summary: str
    settings: list[Setting]


class Group(NamedTuple):
    """A folder of conf/, or the settings of a command."""

    title: str
    choices: list[Choice]


def on_files(files: Files, config: Any) -> Files:
    """Add settings.md."""
    files.append(File.generated(config, "settings.md", content=page(read_settings())))
    return files


def read_settings() -> list[Group]:
    """What the page shows, from conf/; a typed schema would replace this function alone."""
    commands = [Group(script, [choice(CONF / f"{name}.yaml")]) for name, script in COMMANDS.items()]
    folders = sorted(path for path in CONF.iterdir() if path.is_dir() and path.name not in LEFT_OUT)
    groups = [Group(f"{folder.name}=", [choice(path) for path in sorted(folder.glob("*.yaml"))]) for folder in folders]
    return [*commands[:1], *groups, *commands[1:]]


def choice(path: Path) -> Choice:
    """A file's leading comment and its keys."""
    lines = path.read_text(encoding="utf-8").splitlines()
    heading = []
    for line in lines:
        if not line.startswith("#"):
            break
        if "@package" not in line:
            heading.append(line.lstrip("# "))
    return Choice(path.stem, " ".join(heading), list(settings(lines)))


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
        for one in group.choices:
            if len(group.choices) > 1:
                text.append(f"### {group.title}{one.name}\n")
            text += [f"{_escaped(one.summary)}\n"] * bool(one.summary)
            if one.settings:
                text.append("| setting | default | |\n|---|---|---|")
                text += [f"| `{key}` | {_code(default)} | {_escaped(said)} |" for key, default, said in one.settings]
                text.append("")
    return "\n".join(text)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")


def _escaped(text: str) -> str:
    return re.sub(r"([|<*_\[\]])", r"\\\1", text)

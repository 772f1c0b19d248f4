"""The output of a benchmark: a table on the terminal and in Markdown, all numbers in JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.setting import Setting
from metaseg.runs import provenance

_STATISTICS = {"support": "support set", "batch": "query set itself"}

PACKAGES = ("metaseg-implicit", "torch", "torchvision", "lightning", "torchopt", "higher", "functorch", "numpy")


@dataclass
class Report:
    """A finished benchmark.

    Attributes:
        name: name of the benchmark and its files.
        title: title of the table.
        setting: settings of the benchmark.
        columns: column headings.
        rows: cells of the table.
        notes: sentences below the table.
        numbers: all measurements, for JSON.
        subject: what was measured, for the heading; None: the attention U-Net and the task of the setting.
    """

    name: str
    title: str
    setting: Setting
    columns: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)
    subject: str | None = None

    def publish(self, folder: Path) -> None:
        """Print the table and write NAME_DEVICE.md and NAME_DEVICE.json."""
        commit, dirty = provenance.commit()
        machine = {
            "hardware": provenance.hardware(),
            "versions": provenance.versions(PACKAGES),
            "commit": commit,
            "dirty": dirty,
        }
        folder.mkdir(parents=True, exist_ok=True)
        stem = folder / f"{self.name}_{self.setting.device}"
        head = describe(self.setting, machine, self.subject)
        stem.with_suffix(".md").write_text(self._markdown(head), encoding="utf-8")
        content = {"benchmark": self.name, "setting": asdict(self.setting), "machine": machine, "notes": self.notes}
        stem.with_suffix(".json").write_text(
            json.dumps(content | {"numbers": self.numbers}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        self._print(head)
        print(f"written: {stem.with_suffix('.md')} and .json")

    def _markdown(self, head: list[str]) -> str:
        lines = [f"# {self.title}", "", *(f"- {line}" for line in head), ""]
        lines += ["| " + " | ".join(self.columns) + " |", "|" + "---|" * len(self.columns)]
        lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in self.rows]
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes)]) + "\n"

    def _print(self, head: list[str]) -> None:
        console = Console(highlight=False)
        if not console.is_terminal:
            console = Console(highlight=False, width=200)
        table = Table(title=self.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="right" if number else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(cell) for cell in row))
        for line in head:
            console.print(Text(line))
        console.print(table)
        for note in self.notes:
            console.print(Text(note))


def describe(setting: Setting, machine: dict[str, Any], subject: str | None = None) -> list[str]:
    """Machine, versions, and what was measured (None: the setting's task), one line each."""
    hardware, versions = machine["hardware"], machine["versions"]
    gpus = ", ".join(f"{gpu['name']} ({gpu['memory_mib']} MiB)" for gpu in hardware["gpus"]) or "none"
    commit = machine["commit"]
    state = "unknown" if commit is None else commit[:7] + (", with changes" if machine["dirty"] else "")
    return [
        f"CPU: {hardware['cpu']}, {hardware['cores']} cores; threads: {setting.threads}; GPU: {gpus}",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + f"; commit {state}",
        subject
        or f"Attention U-Net, {setting.features} features; {setting.shots} support + {setting.shots} query images of "
        f"{setting.size}×{setting.size}; query normalised by the {_STATISTICS[setting.norm]}; "
        f"{setting.inner_steps} inner steps of SGD at {setting.lr:g}, proximal; λ = {setting.lam:g}; "
        f"{setting.cg_steps} CG steps; on {setting.device}, {setting.dtype}"
        + (", TF32" if setting.tf32 else ""),
    ]

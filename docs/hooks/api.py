"""A page of the API for each package of metaseg, from its docstrings: whatever modules there are."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

PACKAGE = Path(__file__).parents[2] / "metaseg"
INTRODUCTION = """# API

`metaseg.load` and what it returns are meant to be called from programs; all else is what commands are made of, and may
change with any version. Usable without Lightning or Hydra: [`metaseg.meta`](metaseg.meta.md).

| package | | modules |
|---|---|---|
"""


def on_config(config: Any) -> Any:
    """Name the pages in the navigation."""
    for item in config.nav:
        if "API" in item:
            item["API"] = [{"Overview": "api/index.md"}, *(f"api/{name}.md" for name in pages())]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add a page for each package, and an index."""
    rows = []
    for name, modules in pages().items():
        text = [f"# {name}\n", *(f"::: {module}\n" for module in modules)]
        files.append(File.generated(config, f"api/{name}.md", content="\n".join(text)))
        inner = [one.rpartition(".")[2] for one in modules if one != name]
        rows.append(f"| [{name}]({name}.md) | {_summary(name)} | {', '.join(inner)} |")
    files.append(File.generated(config, "api/index.md", content=INTRODUCTION + "\n".join(rows) + "\n"))
    return files


def pages() -> dict[str, list[str]]:
    """The package of each page with its public modules, the package itself first where it has more than a name."""
    found = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if path.name == "__init__.py":
            parts = parts[:-1]
            if path.stat().st_size == 0:
                continue
        elif any(part.startswith("_") for part in parts):
            continue
        package = parts[:2] if (PACKAGE.parent / Path(*parts[:2])).is_dir() else parts[:1]
        found[".".join(package)].append(".".join(parts))
    return dict(found)


def _summary(package: str) -> str:
    """The first line of its docstring."""
    path = PACKAGE.parent / Path(*package.split(".")) / "__init__.py"
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) if path.is_file() else None
    return (said or "").partition("\n")[0]

"""Pages and pictures that the documentation links to outside of docs/ become part of the site.

A link to a Markdown file or a picture of the repository leads to its copy in the site, at the same path. One to any
other file (code, settings, results) becomes its path as code, since the site has no copy. A link to nothing stays, and
the build reports it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s#]+)(#[^()\s]*)?\)")
COPIED = {".md", ".png", ".jpg"}
PAGES = [
    "experiments/README.md",
    "experiments/recipes.md",
    "experiments/own_images.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
]
"""Files outside of docs/ that the navigation names."""


def on_files(files: Files, config: Any) -> Files:
    """Add what docs/ links to, and what that links to in turn."""
    waiting = [*PAGES]
    for file in files.documentation_pages():
        waiting += outside(Path(file.abs_src_path or "").read_text(encoding="utf-8"), f"docs/{file.src_uri}")
    while waiting:
        path = waiting.pop()
        if files.get_file_from_path(path) is not None:
            continue
        content = (ROOT / path).read_bytes()
        if path.endswith(".md"):
            text = content.decode("utf-8")
            waiting += outside(text, path)
            files.append(File.generated(config, path, content=text))
        else:
            files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links as they stand in the repository into those of the site."""
    uri = page.file.src_uri
    copied = (ROOT / uri).is_file() and not (ROOT / "docs" / uri).is_file()
    source = uri if copied else f"docs/{uri}"

    def replaced(match: re.Match[str]) -> str:
        picture, text, target, anchor = match.group(1), match.group(2), match.group(3), match.group(4) or ""
        path = resolved(source, target)
        if path is None:
            return match.group(0)
        uri = path.removeprefix("docs/")
        if files.get_file_from_path(uri) is not None:
            return f"{picture}[{text}]({posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or '.')}{anchor})"
        code = f"`{path}`"
        return code if text.strip("`").rstrip("/") in (path, posixpath.basename(path)) else f"{text} ({code})"

    return LINK.sub(replaced, markdown)


def outside(text: str, source: str) -> Iterator[str]:
    """Paths from the root of the Markdown files and pictures outside of docs/ that the text of `source` links to."""
    for match in LINK.finditer(text):
        path = resolved(source, match.group(3))
        if path is not None and not path.startswith("docs/") and posixpath.splitext(path)[1] in COPIED:
            yield path


def resolved(source: str, target: str) -> str | None:
    """The path from the root that a link in `source` means; None for addresses, and where nothing is there."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    return None if "://" in target or path.startswith("..") or not (ROOT / path).exists() else path

"""What docstrings mean where Markdown would read something else."""

from __future__ import annotations

from typing import Any

import griffe


class Brackets(griffe.Extension):
    """An interval followed by a source, `[-1, 1] [paper, section 3]`, is not a reference to a link."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Escape the second bracket."""
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("] [", "] \\[")

"""Where the shipped configuration lies: conf/ of a checkout, metaseg/conf of an installed package."""

from importlib.resources import files
from pathlib import Path

_PACKAGE = Path(str(files("metaseg")))
FOLDER = next((place for place in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if place.is_dir()), _PACKAGE / "conf")
"""The folder; the first of the two where neither is there."""

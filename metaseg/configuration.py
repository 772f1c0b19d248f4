"""Path of the shipped configuration: conf/ in a checkout, metaseg/conf in an installed package."""

from importlib.resources import files
from pathlib import Path

_PACKAGE = Path(str(files("metaseg")))
FOLDER = next((place for place in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if place.is_dir()), _PACKAGE / "conf")
"""The configuration folder; metaseg/conf if neither exists."""

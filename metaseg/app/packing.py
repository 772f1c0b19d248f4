"""The download: masks and a table in one zip file."""

from collections.abc import Sequence
from pathlib import Path
from zipfile import ZipFile

import pandas as pd

from metaseg.adapting.results import RESULTS, row
from metaseg.app.picture import Picture
from metaseg.errors import MetasegError


def table(pictures: Sequence[Picture]) -> pd.DataFrame:
    """One row per image with a mask: the columns of adapt.py's results.csv, and whose mask it is.

    Area and foreground describe the downloaded mask. Confidence is the network's, empty for a user's mask.
    """
    lines = []
    for picture in pictures:
        if picture.masked:
            mask = picture.mask().astype(float)
            line = row(picture.name, picture.source.path.name, picture.source.page, mask, None)
            lines.append(line | {"mask": "yours"})
        elif picture.line:
            lines.append(picture.line | {"mask": "predicted"})
    return pd.DataFrame(lines)


def packed(pictures: Sequence[Picture], path: Path) -> Path:
    """Write masks/NAME.png (0 and 255, at the image's size) of each image with a mask, and results.csv.

    Raises:
        MetasegError: if no image has a mask.
    """
    lines = table(pictures)
    if lines.empty:
        raise MetasegError("There are no masks yet.")
    with ZipFile(path, "w") as archive:  # PNGs are compressed already
        for picture in pictures:
            file = picture.best_file()
            if file is not None:
                archive.write(file, f"masks/{picture.name}.png")
        archive.writestr(RESULTS, lines.to_csv(index=False))
    return path

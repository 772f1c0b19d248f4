"""`metaseg suggest`: which images of a folder to annotate."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from metaseg.cli.arguments import Parser
from metaseg.errors import MetasegError
from metaseg.progress import Progress


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the names of images to annotate, the most useful first."""
    parser = Parser(prog="metaseg suggest", description=__doc__)
    parser.add_argument("images", type=Path, help="folder of images")
    parser.add_argument("--count", type=int, default=5, help="how many to name; default: 5")
    parser.add_argument("--annotated", type=Path, help="folder of images that are annotated already")
    options = parser.parse_args(arguments)
    for path in suggested(options.images, options.count, options.annotated):
        print(path)


def suggested(folder: Path, count: int, annotated: Path | None = None) -> list[str]:
    """Images to annotate: each differs most from those before it.

    Args:
        folder: of images.
        count: how many, from 1 to the number of images.
        annotated: folder of images that are annotated already, from which the first should differ.

    Raises:
        MetasegError: on a missing folder, too few readable images, or a count out of range.
    """
    from metaseg.adapting.arrays import shrunk
    from metaseg.adapting.files import images_in
    from metaseg.adapting.loading import load
    from metaseg.adapting.suggest import farthest, image_features

    new, known = images_in(folder), [] if annotated is None else images_in(annotated)
    model = load()
    names, pictures, start = [], [], 0
    for number, source in enumerate([*known, *new]):
        try:
            # Shrunk at once, because a folder of whole images may fill the memory.
            pictures.append(shrunk(source.read(), (model.size, model.size)))
        except MetasegError as error:
            print(f"warning: {error}", file=sys.stderr)
            continue
        names.append(source.path.name if source.page is None else f"{source.path.name}, page {source.page}")
        start += number < len(known)
    if not 1 <= count <= len(names) - start:
        raise MetasegError(f"Expected --count from 1 to the {len(names) - start} images in {folder}, found {count}.")
    with Progress("comparing", len(pictures), "images") as progress:
        points = image_features(model, pictures, progress.update)
    return [names[index] for index in farthest(points, count, range(start))]

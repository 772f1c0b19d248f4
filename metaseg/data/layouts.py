"""From a folder on disk to pairs of files, and from files to arrays.

An id is what stands for `{stem}` in the layout. Hidden files (among them macOS' `._` twins) and files that are no
images are passed over, so licences and attributions may lie beside the images.
"""

from __future__ import annotations

import re
import struct
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from metaseg.data.catalogue import PLAIN, Dataset, Layout
from metaseg.errors import MetasegError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
THRESHOLD = 127  # Kvasir-SEG's masks are JPEG with grey edges; its authors' code thresholds there too


class Pair(NamedTuple):
    """One image and its mask."""

    id: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class Listing:
    """What lies in a dataset's folder under one layout: pairs in natural order, and the files that make no pair."""

    folder: Path
    layout: Layout
    pairs: tuple[Pair, ...]
    images_without_mask: tuple[Path, ...]
    masks_without_image: tuple[Path, ...]
    ambiguous: tuple[Path, ...]  # files of one stem that differ in their suffix only

    @property
    def faults(self) -> int:
        """How many files cannot be used."""
        return len(self.images_without_mask) + len(self.masks_without_image) + len(self.ambiguous)


def find(dataset: Dataset, root: str | Path) -> list[Pair]:
    """The dataset's pairs under root, in natural order of their ids (2 before 10). Raises as `complete` does."""
    return list(complete(dataset, root).pairs)


def complete(dataset: Dataset, root: str | Path) -> Listing:
    """`scan`, where nothing is out of place.

    Raises MetasegError where the dataset is missing (naming the folders looked in and how to get it) and where any file
    lacks its partner: leaving such images out would silently change the dataset.
    """
    listing = scan(dataset, root)
    if listing.faults:
        parts = [
            f"{len(files)} {what} (such as {files[0].name})"
            for files, what in (
                (listing.images_without_mask, "without a mask"),
                (listing.masks_without_image, "masks without an image"),
                (listing.ambiguous, "files that share a stem"),
            )
            if files
        ]
        raise MetasegError(
            f"{dataset.name}: expected one mask for every image in {listing.folder}, found {', '.join(parts)}: add or "
            f"remove files; `python -m metaseg.data check {dataset.name} --root {root}` lists them all"
        )
    return listing


def scan(dataset: Dataset, root: str | Path) -> Listing:
    """List the first folder and layout that hold pairs; where none does, the one that holds most of the files.

    Raises MetasegError where none holds a file.
    """
    root = Path(root).expanduser()
    looked_in = [root / folder for folder in dataset.folders]
    incomplete: list[Listing] = []
    for folder in looked_in:
        # images/ and masks/ directly under data.root could be any dataset's: the plain layout needs a folder's name.
        layouts = [layout for layout in dataset.layouts if folder != root or layout != PLAIN]
        for layout in layouts if folder.is_dir() else ():
            listing = _list(folder, layout)
            if listing.pairs:
                return listing
            if listing.faults:
                incomplete.append(listing)
    if incomplete:
        return max(incomplete, key=lambda listing: listing.faults)
    present = [folder for folder in looked_in if folder.is_dir() and folder != root]
    patterns = " or ".join(f"{layout.images}.* with {layout.masks}.*" for layout in dataset.layouts)
    state = (
        f"{', '.join(map(str, present))} holds no images laid out as {patterns}"
        if present
        else f"none of the folders {', '.join(dataset.folders)} holds it"
        if root.is_dir()
        else f"the folder {root} does not exist"
    )
    raise MetasegError(
        f"{dataset.name} ({dataset.title}) was not found under {root.resolve()}: {state}. To get it: {dataset.how} "
        f"({dataset.url}); or name another folder by data.root=DIR or METASEG_DATA; or use its synthetic twin by "
        f"data=synthetic"
    )


def _list(folder: Path, layout: Layout) -> Listing:
    images, masks = _match(folder, layout.images), _match(folder, layout.masks)
    ambiguous = [path for files in (images, masks) for paths in files.values() if len(paths) > 1 for path in paths]
    ids = sorted(images.keys() | masks.keys(), key=natural_key)
    return Listing(
        folder=folder,
        layout=layout,
        pairs=tuple(Pair(i, images[i][0], masks[i][0]) for i in ids if len(images[i]) == len(masks[i]) == 1),
        images_without_mask=tuple(path for i in ids if not masks[i] for path in images[i]),
        masks_without_image=tuple(path for i in ids if not images[i] for path in masks[i]),
        ambiguous=tuple(ambiguous),
    )


def _match(folder: Path, pattern: str) -> defaultdict[str, list[Path]]:
    """Files of a layout's pattern by what stands for {stem}, which must be the same wherever it occurs."""
    first, *rest = (re.escape(part) for part in pattern.split("{stem}"))
    expression = re.compile(first + "(?P<stem>[^/]+)" + "(?P=stem)".join(rest))
    found: defaultdict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.glob(pattern.replace("{stem}", "*") + ".*")):
        match = expression.fullmatch(path.relative_to(folder).with_suffix("").as_posix())
        if match and path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            found[match["stem"]].append(path)
    return found


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Key that sorts numbers inside text by value: 2 before 10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", text) if part]


# What Pillow raises for files that are truncated or damaged; which of them depends on the format.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except _DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise MetasegError(f"cannot read {path}: {reason}; replace it by a fresh copy or remove the pair") from error


def open_image(path: Path, at_least: int | None = None) -> tuple[Image.Image, tuple[int, int]]:
    """The image as an 8-bit RGB Pillow image, rotated as its EXIF entry says, and (width, height) of the file's.

    at_least: a JPEG may be decoded at a half, quarter or eighth of its size (averaged in the frequency domain, and much
    faster), as long as both sides keep so many pixels. Raises MetasegError naming the file if it is damaged.
    """
    with _opened(path) as image:
        width, height = image.size
        size = (height, width) if image.getexif().get(0x0112, 1) in (5, 6, 7, 8) else (width, height)
        if at_least:
            image.draft(None, (at_least, at_least))
        image.load()
        # In place, and not converted where it is RGB: the copies would cost a tenth of preparing a dataset.
        ImageOps.exif_transpose(image, in_place=True)
        return (image if image.mode == "RGB" else _rgb(image)), size


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("L", "P", "CMYK", "YCbCr", "1"):
        return image.convert("RGB")
    if image.mode in ("RGBA", "LA", "PA"):
        # Transparent pixels have no colour of their own; black is what every one of these cameras puts there.
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "black"), image).convert("RGB")
    return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")


def read_image(path: Path) -> np.ndarray:
    """The image as uint8 (H, W, 3), RGB, 0 to 255. Raises MetasegError naming the file if it is damaged."""
    return np.array(open_image(path)[0])


def read_mask(path: Path) -> np.ndarray:
    """The mask as bool (H, W), True on the lesion. Raises MetasegError naming the file if it is damaged.

    A pixel is foreground where `grey_mask` is above 127.
    """
    return grey_mask(path) > THRESHOLD


def grey_mask(path: Path) -> np.ndarray:
    """The mask as uint8 (H, W), 0 to 255, before the threshold.

    - 1 bit, or no value above 1: 0 and 1 become 0 and 255.
    - 16 bits: scaled to 0 to 255.
    - Colours, with or without a palette: the brightest channel, so red on black is foreground.
    - Transparency that varies: where the colour does not, transparency is the mask; else colours are laid over black.
    """
    with _opened(path) as image:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode in ("P", "PA", "LA", "RGBA") and (image.mode != "P" or "transparency" in image.info):
            rgba = np.asarray(image.convert("RGBA"))
            colour, alpha = rgba[..., :3].max(axis=-1), rgba[..., 3]
            if np.ptp(alpha) == 0:
                grey = colour
            elif np.ptp(colour) == 0:
                grey = alpha
            else:
                grey = (colour.astype(np.uint16) * alpha // 255).astype(np.uint8)
        elif image.mode in ("P", "RGB", "CMYK", "YCbCr"):
            grey = np.asarray(image.convert("RGB")).max(axis=-1)
        else:
            grey = _eight_bits(np.asarray(image))
    return grey * np.uint8(255) if grey.max(initial=0) <= 1 else grey


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Grey values of any depth as uint8: 1 bit as 0 and 1, more than 8 bits as the highest 8 of 16."""
    if values.dtype == np.uint8 or values.dtype == bool:
        return values.astype(np.uint8)
    scaled = values / 257.0 if values.max(initial=0) > 255 else values
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)

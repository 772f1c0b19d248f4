"""Users' folders → images and their masks: what is found, and what belongs together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metaseg.adapting.formats import READABLE, instance, pages, read, read_mask, segmented, stem, suffix
from metaseg.adapting.masks import RawMask
from metaseg.data.layouts import natural_key
from metaseg.errors import MetasegError, listed, plural, require_text

_NOTES = (".txt", ".md", ".csv", ".tsv", ".xlsx", ".json", ".xml", ".yaml", ".html", ".db", ".ini")
_LONGEST = 255  # bytes of a file's name
MASK_ENDINGS = ("_mask", "-mask", "_segmentation", "_seg", "_lesion", "_label")
"""Suffixes of a mask's stem if image and mask are in one folder."""


@dataclass(frozen=True)
class Source:
    """One image or mask: a file, or a page or slice of it.

    Attributes:
        name: stem of its outputs; unique within a folder.
        path: the file.
        page: from 0; None for a single-page file.
    """

    name: str
    path: Path
    page: int | None = None

    @property
    def stem(self) -> str:
        """The name without its page."""
        return self.name if self.page is None else self.name[: -len(_numbered("", self.page))]

    def read(self) -> np.ndarray:
        """The image, uint8 (H, W, 3).

        Raises:
            MetasegError: if the file is damaged or its library is missing.
        """
        return read(self.path, self.page)

    def read_mask(self) -> RawMask:
        """The mask, not interpreted yet. Errors as for `read`."""
        return read_mask(self.path, self.page)


@dataclass(frozen=True)
class Annotated:
    """An image with its mask."""

    image: Source
    mask: Source


def images_in(folder: Path) -> list[Source]:
    """All images directly in a folder, in natural order; each page of a TIFF and slice of a NIfTI file is an image.

    Masks beside their images, such as a_mask.png beside a.jpg, do not count as images.

    Raises:
        MetasegError: if the folder does not exist or has no images.
    """
    paths = _files(folder)
    masks = _masks_among(paths)
    paths = [path for path in paths if path not in masks]
    if not paths:
        raise MetasegError(f"Expected images in {folder}, found none of {', '.join(READABLE)}{_meant(folder)}")
    stems = Counter(stem(path).casefold() for path in paths)
    found: list[Source] = []
    for path in paths:
        # a.jpg and a.png, or A.png on a case-insensitive file system, must not overwrite each other's outputs.
        found += _of_file(path, stem(path) if stems[stem(path).casefold()] == 1 else path.name)
    _require_names(found, folder)
    return found


def _meant(folder: Path) -> str:
    """What else the folder holds, for the end of a sentence."""
    if (folder / "images").is_dir():
        return f"; did you mean {folder / 'images'}?"
    bare = [path.name for path in folder.iterdir() if path.is_file() and not path.suffix and path.name[0] != "."]
    if bare:
        return f", but {plural(len(bare), 'file')} without a suffix ({listed(bare, 2)}); rename DICOM files to .dcm."
    below = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    return f", but the folder {below[0]}; give the folder that holds the images." if below else "."


def _require_names(sources: Sequence[Source], folder: Path) -> None:
    """Refuse images whose results would have the same name, or one that is too long for a file."""
    names = Counter(source.name.casefold() for source in sources)
    for source in sources:
        if names[source.name.casefold()] > 1:
            raise MetasegError(
                f"Expected images with distinct stems in {folder}, found two whose results would be {source.name}.png; "
                f"rename {source.path.name}."
            )
        if len(f"{source.name}.png".encode()) > _LONGEST:
            raise MetasegError(
                f"Expected names of at most {_LONGEST - 4} bytes for the results, found {source.name}; rename "
                f"{source.path.name}."
            )


def _of_file(path: Path, name: str) -> list[Source]:
    count = pages(path)
    return [Source(name, path)] if count == 1 else [Source(_numbered(name, page), path, page) for page in range(count)]


def _numbered(name: str, page: int) -> str:
    return f"{name}_{page:04d}"


def passed_over(folder: Path) -> list[str]:
    """Warnings about files that are neither readable images nor notes, and about masks beside their images."""
    masks = [path.name for path in _masks_among(_files(folder))]
    others = [
        path.name
        for path in sorted(folder.iterdir(), key=lambda path: natural_key(path.name))
        if path.is_file() and not path.name.startswith(".") and suffix(path) not in (*READABLE, *_NOTES)
    ]
    return [
        f"{folder} contains {what}, which are ignored ({listed(names, 3)}){advice}."
        for what, names, advice in (
            ("files of unsupported formats", others, "; save them as PNG"),
            ("masks beside their images", masks, ""),
        )
        if names
    ]


def _masks_among(paths: Sequence[Path]) -> dict[Path, None]:
    """The masks beside their images."""
    stems = {stem(path): path for path in paths}
    return {path: None for path in paths if image_of_mask(stem(path), stems) is not None}


def annotated_in(folder: Path) -> list[Annotated]:
    """Images with their masks: images/ and masks/ with matching stems, or one folder with a.jpg and a_mask.png.

    Of a volume, a stack of pages, or a series with a DICOM-SEG file, the slices with foreground are annotated.

    Raises:
        MetasegError: if the folder has neither layout, or an image or a mask has no partner.
    """
    if not folder.is_dir():
        raise MetasegError(f"Expected a folder of annotated images, found none at {folder}.")
    if (folder / "images").is_dir() and (folder / "masks").is_dir():
        images, masks = (list(_unique(_files(folder / name))) for name in ("images", "masks"))
    else:
        paths = list(_unique(_files(folder)))
        beside = _masks_among(paths)
        images, masks = [path for path in paths if path not in beside], list(beside)
        if not masks:
            raise MetasegError(
                f"Expected annotated images in {folder}: folders images and masks with matching stems, or pairs such "
                f"as a.jpg and a_mask.png; found {plural(len(paths), 'file')} and no mask among them."
            )
    sources = [source for path in images for source in _of_file(path, stem(path))]
    _require_names(sources, folder)
    found = masks_for(masks, sources)
    used = {mask.path for mask in found.values()}
    lonely = [f"{path.name} has no image" for path in masks if path not in used]
    if not any(segmented(mask.path) for mask in found.values() if mask.page is not None):  # else a part of a series
        lonely = [f"{source.path.name} has no mask" for source in sources if source.name not in found] + lonely
    if lonely or not sources:
        raise MetasegError(f"Expected a mask for each image in {folder}, found {listed(lonely, 3) or 'no images'}.")
    pairs = [Annotated(source, found[source.name]) for source in sources if source.name in found]
    kept = [one for one in pairs if one.mask.page is None or one.mask.read_mask().values.any()]
    if not kept:
        raise MetasegError(f"Expected foreground in a slice of the masks in {folder}, found {len(pairs)} empty slices.")
    return kept


def truth_in(folder: Path, images: Sequence[Source]) -> dict[str, Source]:
    """Image name → its true mask, for images that have one.

    Raises:
        MetasegError: if the folder does not exist, or none of its masks belongs to an image.
    """
    found = masks_for(_unique(_files(folder)), images)
    if not found:
        raise MetasegError(f"Expected masks with the images' stems in {folder}, found none.")
    return found


def masks_for(paths: Iterable[Path], images: Sequence[Source]) -> dict[str, Source]:
    """Image name → its mask, for images that have one, by stem; a DICOM-SEG file names its images itself.

    Raises:
        MetasegError: if a mask has another number of pages than its image, or an image has two masks.
    """
    by_name = {image.name: [image] for image in images}
    by_stem: dict[str, list[Source]] = {}
    for image in images:
        by_stem.setdefault(image.stem, []).append(image)
    known = by_name | by_stem
    by_instance: dict[str | None, Source] | None = None
    found: dict[str, Source] = {}
    for path in paths:
        of = partner(stem(path), known)
        slices = segmented(path)
        if slices and (of is None or len(slices) > 1):
            by_instance = {instance(image.path): image for image in images} if by_instance is None else by_instance
            pairs = [(by_instance[place], page) for page, place in enumerate(slices) if place in by_instance]
            new = {image.name: Source(stem(path), path, page) for image, page in pairs}
        elif of is not None:
            belonging, masks = known[of], _of_file(path, stem(path))
            if len(belonging) != len(masks):
                raise MetasegError(
                    f"Expected a mask of as many slices as its image, {len(belonging)}, found {len(masks)} in {path}."
                )
            new = {image.name: mask for image, mask in zip(belonging, masks, strict=True)}
        else:
            continue
        if twice := sorted(found.keys() & new.keys()):
            raise MetasegError(
                f"Expected one mask for each image, found {found[twice[0]].path.name} and {path.name} for {twice[0]}; "
                "move one away."
            )
        found |= new
    return dict(sorted(found.items(), key=lambda one: natural_key(one[0])))


def image_of_mask(stem: str, images: Mapping[str, object]) -> str | None:
    """The image that a mask's stem names before an ending of `MASK_ENDINGS`: a for a_mask; None if there is none."""
    bases = (stem.removesuffix(ending) for ending in MASK_ENDINGS if stem.endswith(ending))
    return next((base for base in bases if base in images), None)


def partner(stem: str, images: Mapping[str, object]) -> str | None:
    """The image a mask belongs to, by its stem, e.g. a or a_mask; None if there is none."""
    # Its own name comes first, even where a part of it is another image's.
    return stem if stem in images else image_of_mask(stem, images)


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise MetasegError(f"Expected a folder of images, found none at {folder}.")
    paths = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    readable = [path for path in paths if suffix(path) in READABLE]
    for path in readable:
        require_text(path.name)
    return sorted(readable, key=lambda path: natural_key(path.name))


def _unique(paths: Sequence[Path]) -> Iterator[Path]:
    seen: dict[str, Path] = {}
    for path in paths:
        other = seen.setdefault(stem(path), path)
        if other is not path:
            raise MetasegError(
                f"Expected one file per stem, found {other.name} and {path.name} in {path.parent}; move one away."
            )
        yield path

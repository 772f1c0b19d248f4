"""Users' files → arrays: any picture that Pillow reads, DICOM by pydicom, multi-page TIFF by tifffile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from metaseg.data.layouts import SUFFIXES, natural_key, read_image, read_mask
from metaseg.errors import MetasegError

PICTURES = (*SUFFIXES, ".webp", ".gif", ".ppm", ".pgm", ".jp2")
DICOM = (".dcm", ".dicom", ".ima")
TIFF = (".tif", ".tiff")
_NOTES = (".txt", ".md", ".csv", ".tsv", ".xlsx", ".json", ".xml", ".yaml", ".html", ".db", ".ini")
MASK_ENDINGS = ("_mask", "-mask", "_segmentation", "_seg", "_lesion", "_label")
"""Suffixes of a mask's stem if image and mask are in one folder."""


@dataclass(frozen=True)
class Source:
    """One image: a file or a page of it.

    Attributes:
        name: stem of its outputs; unique within a folder.
        path: the file.
        page: from 0; None for a single-page file.
    """

    name: str
    path: Path
    page: int | None = None

    def read(self) -> np.ndarray:
        """uint8 (H, W, 3).

        Raises:
            MetasegError: if the file is damaged or its library is missing.
        """
        if self.path.suffix.lower() in DICOM:
            return _dicom(self.path)
        if self.page is not None:
            return _page(self.path, self.page)
        return read_image(self.path)


@dataclass(frozen=True)
class Annotated:
    """An image with its mask file."""

    image: Source
    mask: Path

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """uint8 (H, W, 3) and bool (H, W)."""
        return self.image.read(), read_mask(self.mask)


def images_in(folder: Path) -> list[Source]:
    """All images directly in a folder, in natural order; each page of a TIFF is an image.

    Raises:
        MetasegError: if the folder does not exist or has no images.
    """
    paths = _files(folder)
    if not paths:
        meant = f"; did you mean {folder / 'images'}?" if (folder / "images").is_dir() else "."
        raise MetasegError(f"Expected images in {folder}, found none of {', '.join((*PICTURES, *DICOM))}{meant}")
    stems = Counter(path.stem.casefold() for path in paths)
    found: list[Source] = []
    for path in paths:
        # a.jpg and a.png, or A.png on a case-insensitive file system, must not overwrite each other's outputs.
        name = path.stem if stems[path.stem.casefold()] == 1 else path.name
        pages = _pages(path) if path.suffix.lower() in TIFF else 1
        found += (
            [Source(name, path)] if pages == 1 else [Source(f"{name}_{page:04d}", path, page) for page in range(pages)]
        )
    names = Counter(source.name.casefold() for source in found)
    for source in found:
        if names[source.name.casefold()] > 1:
            raise MetasegError(
                f"Expected images with distinct stems in {folder}, found two whose results would be {source.name}.png; "
                f"rename {source.path.name}."
            )
    return found


def passed_over(folder: Path) -> list[str]:
    """A warning about files that are neither readable images nor notes, if there are any."""
    others = [
        path.name
        for path in sorted(folder.iterdir(), key=lambda path: natural_key(path.name))
        if path.is_file() and not path.name.startswith(".") and path.suffix.lower() not in (*PICTURES, *DICOM, *_NOTES)
    ]
    if not others:
        return []
    named = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
    return [f"{folder} contains files of unsupported formats, which are ignored ({named}); save them as PNG."]


def annotated_in(folder: Path) -> list[Annotated]:
    """Images with their masks: images/ and masks/ with matching stems, or one folder with a.jpg and a_mask.png.

    Raises:
        MetasegError: if the folder has neither layout, or an image or a mask has no partner.
    """
    if not folder.is_dir():
        raise MetasegError(f"Expected a folder of annotated images, found none at {folder}.")
    if (folder / "images").is_dir() and (folder / "masks").is_dir():
        images = {path.stem: path for path in _unique(_files(folder / "images"))}
        masks = {_without_ending(path.stem, images): path for path in _unique(_files(folder / "masks"))}
    else:
        paths = {path.stem: path for path in _unique(_files(folder))}
        masks = {}
        for stem in paths:
            of = _without_ending(stem, paths)
            if of != stem:
                masks[of] = paths[stem]
        images = {stem: path for stem, path in paths.items() if path not in masks.values()}
        if not masks:
            raise MetasegError(
                f"Expected annotated images in {folder}: folders images and masks with matching stems, or pairs such "
                f"as a.jpg and a_mask.png; found {len(paths)} files and no mask among them."
            )
    lonely = [f"{path.name} has no mask" for stem, path in images.items() if stem not in masks]
    lonely += [f"{path.name} has no image" for stem, path in masks.items() if stem not in images]
    if lonely or not images:
        what = "; ".join(lonely[:3]) + (f" and {len(lonely) - 3} more" if len(lonely) > 3 else "")
        raise MetasegError(f"Expected a mask for each image in {folder}, found {what or 'no images'}.")
    found = []
    for stem in sorted(images, key=natural_key):
        if images[stem].suffix.lower() in TIFF and _pages(images[stem]) > 1:
            raise MetasegError(
                f"Expected single-page annotated images, found several pages in {images[stem]}; split the file."
            )
        found.append(Annotated(Source(stem, images[stem]), masks[stem]))
    return found


def truth_in(folder: Path, images: Sequence[Source]) -> dict[str, Path]:
    """Image name → its true mask, for images that have one.

    Raises:
        MetasegError: if the folder does not exist, or none of its masks belongs to an image.
    """
    names = {source.name: source for source in images}
    found = {_without_ending(path.stem, names): path for path in _unique(_files(folder))}
    kept = {name: path for name, path in found.items() if name in names}
    if not kept:
        raise MetasegError(f"Expected masks with the images' stems in {folder}, found none.")
    return kept


def partner(stem: str, images: Mapping[str, object]) -> str | None:
    """The image a mask belongs to, by its stem, e.g. a or a_mask; None if there is none."""
    found = _without_ending(stem, images)
    return found if found in images else None


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise MetasegError(f"Expected a folder of images, found none at {folder}.")
    paths = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    return sorted(
        (path for path in paths if path.suffix.lower() in (*PICTURES, *DICOM)), key=lambda path: natural_key(path.name)
    )


def _unique(paths: Sequence[Path]) -> Iterator[Path]:
    seen: dict[str, Path] = {}
    for path in paths:
        other = seen.setdefault(path.stem, path)
        if other is not path:
            raise MetasegError(
                f"Expected one file per stem, found {other.name} and {path.name} in {path.parent}; move one away."
            )
        yield path


def _without_ending(stem: str, images: Mapping[str, object]) -> str:
    if stem in images and not any(stem.endswith(ending) and stem[: -len(ending)] in images for ending in MASK_ENDINGS):
        return stem
    for ending in MASK_ENDINGS:
        if stem.endswith(ending) and stem[: -len(ending)] in images:
            return stem[: -len(ending)]
    return stem


def _pages(path: Path) -> int:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return getattr(image, "n_frames", 1)
    except (OSError, SyntaxError, ValueError):
        return 1  # e.g. floats in several channels: reading it reports the problem


def _page(path: Path, page: int) -> np.ndarray:
    tifffile = _library("tifffile", path)
    try:
        values = tifffile.imread(path, key=page)
    except Exception as error:  # damaged files raise errors of any type
        raise MetasegError(f"cannot read page {page} of {path}: {error}; replace it with a fresh copy") from error
    return _scaled(values, path)


def _dicom(path: Path) -> np.ndarray:
    """The image as a DICOM viewer shows it: rescaled, windowed, inverted if its photometric interpretation says so."""
    pydicom = _library("pydicom", path)
    from pydicom.pixels import apply_modality_lut, apply_voi_lut, convert_color_space

    try:
        dataset = pydicom.dcmread(path)
        if int(getattr(dataset, "NumberOfFrames", 1) or 1) > 1:
            raise MetasegError(
                f"Expected a single-frame DICOM file, found several frames in {path}; save them one by one."
            )
        values = dataset.pixel_array
        kind = str(getattr(dataset, "PhotometricInterpretation", ""))
        if values.ndim == 3:
            return _scaled(convert_color_space(values, kind, "RGB") if kind.startswith("YBR") else values, path)
        values = apply_voi_lut(apply_modality_lut(values, dataset), dataset)
    except MetasegError:
        raise
    except Exception as error:  # damaged files and unsupported encodings raise errors of any type
        raise MetasegError(f"cannot read {path}: {error}; replace it with a fresh copy, or save it as PNG") from error
    grey = _stretched(np.asarray(values, np.float64))
    return _scaled(255 - grey if kind == "MONOCHROME1" else grey, path)


def _scaled(values: np.ndarray, path: Path) -> np.ndarray:
    from metaseg.adapting.arrays import rgb

    if values.ndim == 3 and values.shape[2] not in (1, 3, 4):
        raise MetasegError(f"Expected an image with 1, 3 or 4 channels in {path}, found {values.shape[2]}.")
    known = values.dtype in (np.uint8, np.uint16, bool)
    return rgb(values if known else _stretched(values.astype(np.float64)), str(path))


def _stretched(values: np.ndarray) -> np.ndarray:
    """Values of any range, stretched to 0 to 255."""
    low, high = values.min(), values.max()
    return np.rint((values - low) * (255 / (high - low or 1))).astype(np.uint8)


def _library(name: str, path: Path) -> ModuleType:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MetasegError(f"{path} needs the library {name}: pip install 'metaseg-implicit[medical]'.") from error

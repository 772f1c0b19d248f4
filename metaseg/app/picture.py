"""One uploaded image with its masks, kept as files in a folder so that hundreds need little memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from metaseg.adapting.arrays import shrunk
from metaseg.adapting.files import Source
from metaseg.adapting.results import fitting, resized_mask
from metaseg.plots.overlays import PREDICTION_COLOUR, overlay

FRAME = (720, 960)
"""(H, W) of the canvas for every image: finer than hand precision and fast in a browser. One size for all, as gradio
6.31 misplaces paint when an image follows one of another size."""
_BESIDE = 32  # of 255: grey around the image
SMALL = 128
"""Side in pixels of the images that are compared with one another."""
TILE = 480  # pixels of a gallery image
_OPACITY = 128  # of 255: paint is translucent to show the lesion below


@dataclass
class Picture:
    """An image of a session.

    Attributes:
        source: its file.
        folder: where its files go.
        size: (H, W) of the image.
        small: uint8 (`SMALL`, `SMALL`, 3), for the comparison of images.
        annotated: whether the user gave a mask.
        changes: number of masks given so far; shows whether a network has seen the latest.
        line: of results.csv, for the prediction; None without one.
    """

    source: Source
    folder: Path
    size: tuple[int, int]
    small: np.ndarray
    annotated: bool = False
    changes: int = 0
    line: dict[str, Any] | None = None
    _drawn: int = field(default=0, repr=False)
    _tile: Path | None = field(default=None, repr=False)

    @classmethod
    def of(cls, source: Source, pixels: np.ndarray, folder: Path) -> Picture:
        """Store an image.

        Args:
            source: its file.
            pixels: uint8 (H, W, 3).
            folder: an empty folder.
        """
        height, width = pixels.shape[:2]
        kept = cls(source, folder, (height, width), shrunk(pixels, (SMALL, SMALL)))
        frame = np.full((*FRAME, 3), _BESIDE, np.uint8)
        frame[kept.within] = np.asarray(
            Image.fromarray(pixels).resize(kept.drawn_size[::-1], Image.Resampling.BILINEAR)
        )
        Image.fromarray(frame).save(kept.shown)
        return kept

    @property
    def name(self) -> str:
        """Unique in its session."""
        return self.source.name

    @property
    def shown(self) -> Path:
        """The framed image to paint on."""
        return self.folder / "shown.png"

    @property
    def mask_file(self) -> Path:
        """The user's mask."""
        return self.folder / "mask.png"

    @property
    def prediction_file(self) -> Path:
        """The network's mask."""
        return self.folder / "prediction.png"

    @property
    def drawn_size(self) -> tuple[int, int]:
        """(H, W) of the image in the frame."""
        scale = min(FRAME[0] / self.size[0], FRAME[1] / self.size[1])
        return round(self.size[0] * scale), round(self.size[1] * scale)

    @property
    def within(self) -> tuple[slice, slice]:
        """The image's position in the frame, centred."""
        (height, width), (rows, columns) = FRAME, self.drawn_size
        top, left = (height - rows) // 2, (width - columns) // 2
        return slice(top, top + rows), slice(left, left + columns)

    def best_file(self) -> Path | None:
        """The user's mask, else the network's, else None."""
        return self.mask_file if self.annotated else self.prediction_file if self.line else None

    def mask(self) -> np.ndarray:
        """The user's mask, else the network's, else an empty one: bool (H, W)."""
        path = self.best_file()
        return np.zeros(self.size, bool) if path is None else _read(path)

    def drawn_mask(self) -> np.ndarray:
        """`mask` in the frame: bool, of the shape of FRAME."""
        frame = np.zeros(FRAME, bool)
        frame[self.within] = resized_mask(self.mask(), self.drawn_size[::-1])
        return frame

    def reduced(self, longest: int) -> tuple[np.ndarray, np.ndarray]:
        """The image, uint8 (h, w, 3), and its mask, bool (h, w), with no side longer than `longest`."""
        size = fitting(self.size, longest)
        image = Image.fromarray(self.source.read()).resize(size, Image.Resampling.BILINEAR)
        return np.asarray(image), resized_mask(self.mask(), size)

    def annotate(self, mask: np.ndarray) -> None:
        """Store the user's mask, bool (H, W)."""
        _write(mask, self.mask_file)
        self.annotated = True
        self.changes += 1
        self._tile = None

    def forget_mask(self) -> None:
        """Remove the user's mask."""
        self.mask_file.unlink(missing_ok=True)
        self.annotated = False
        self.changes += 1
        self._tile = None

    def predicted(self, mask: np.ndarray, line: dict[str, Any]) -> None:
        """Store the network's mask, bool (H, W), and its line of results.csv."""
        _write(mask, self.prediction_file)
        self.line = line
        self._tile = None

    def painted_over(self, painted: np.ndarray, fill: bool) -> np.ndarray:
        """A painting as a mask at the image's original size, bool (H, W).

        Unchanged areas keep the full resolution of the mask that was painted on.

        Args:
            painted: bool, of the shape of FRAME, started from `drawn_mask`; paint outside the image is ignored.
            fill: whether to fill closed outlines, except holes that existed before.
        """
        before, painted = self.drawn_mask()[self.within], painted[self.within]
        if fill:
            holes = ndimage.binary_fill_holes(painted) & ~painted
            painted = painted | (holes & ~(ndimage.binary_fill_holes(before) & ~before))
        size = self.size[::-1]
        return np.where(resized_mask(painted != before, size), resized_mask(painted, size), self.mask())

    def paint(self) -> Path:
        """The mask as an RGBA paint layer, from which a painting starts."""
        layer = np.zeros((*FRAME, 4), np.uint8)
        layer[self.drawn_mask()] = (*PREDICTION_COLOUR, _OPACITY)
        path = self._fresh("paint", "png")
        Image.fromarray(layer).save(path)
        return path

    def tile(self) -> Path:
        """The image with outlines: the user's mask wide and blue, the network's thin and yellow."""
        if self._tile is not None:
            return self._tile
        with Image.open(self.shown) as shown:
            image = Image.fromarray(np.asarray(shown)[self.within])
        pixels = np.asarray(image.resize(fitting(self.size, TILE), Image.Resampling.BILINEAR))
        size = (pixels.shape[1], pixels.shape[0])
        mask = resized_mask(_read(self.mask_file), size) if self.annotated else None
        prediction = resized_mask(_read(self.prediction_file), size) if self.line else None
        path = self._fresh("tile", "jpg")
        Image.fromarray(overlay(pixels, mask, prediction)).save(path, quality=90, subsampling=0)
        self._tile = path
        return path

    def _fresh(self, stem: str, suffix: str) -> Path:
        """A new file name that no browser has cached; removes the previous file."""
        self._drawn += 1
        for path in self.folder.glob(f"{stem}-*"):
            path.unlink(missing_ok=True)
        return self.folder / f"{stem}-{self._drawn}.{suffix}"


def _read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("L")) > 127


def _write(mask: np.ndarray, path: Path) -> None:
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)

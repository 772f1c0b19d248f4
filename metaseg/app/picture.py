"""One uploaded image, with what is known about it: files in a folder, so that hundreds need little memory."""

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
"""(H, W) of what is painted on, for every image: finer than a hand, and quick in a browser. Of one size, as gradio 6.31
puts paint beside its place when an image follows one of another size."""
_BESIDE = 32  # of 255: grey around the image
TILE = 480  # of what the gallery shows
_OPACITY = 128  # of 255: of paint, so that the lesion is seen below it


@dataclass
class Picture:
    """An image of a session.

    Attributes:
        source: its file.
        folder: where its own files go.
        size: (H, W) of the image.
        small: uint8 (S, S, 3), what the network sees.
        annotated: whether a mask was given.
        changes: how often it was; tells whether a network has seen the last.
        line: of results.csv, as of the prediction; None where there is none.
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
    def of(cls, source: Source, pixels: np.ndarray, folder: Path, size: int) -> Picture:
        """Keep an image.

        Args:
            source: where it is from.
            pixels: uint8 (H, W, 3).
            folder: an empty one.
            size: S, the side at which the network sees it.
        """
        height, width = pixels.shape[:2]
        kept = cls(source, folder, (height, width), shrunk(pixels, size))
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
        """The image in its frame, as it is painted on."""
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
        """Where in the frame the image is: its middle."""
        (height, width), (rows, columns) = FRAME, self.drawn_size
        top, left = (height - rows) // 2, (width - columns) // 2
        return slice(top, top + rows), slice(left, left + columns)

    def best_file(self) -> Path | None:
        """The user's mask, else the network's, else None."""
        return self.mask_file if self.annotated else self.prediction_file if self.line else None

    def mask(self) -> np.ndarray:
        """The user's mask, else the network's, else nothing: bool (H, W)."""
        path = self.best_file()
        return np.zeros(self.size, bool) if path is None else _read(path)

    def drawn_mask(self) -> np.ndarray:
        """The same in the frame: bool, of the shape of FRAME."""
        frame = np.zeros(FRAME, bool)
        frame[self.within] = resized_mask(self.mask(), self.drawn_size[::-1])
        return frame

    def reduced(self, longest: int) -> tuple[np.ndarray, np.ndarray]:
        """The image, uint8 (h, w, 3), and its mask, bool (h, w), with no side longer than `longest`."""
        size = fitting(self.size, longest)
        image = Image.fromarray(self.source.read()).resize(size, Image.Resampling.BILINEAR)
        return np.asarray(image), resized_mask(self.mask(), size)

    def annotate(self, mask: np.ndarray) -> None:
        """Take a mask, bool (H, W)."""
        _write(mask, self.mask_file)
        self.annotated = True
        self.changes += 1
        self._tile = None

    def forget_mask(self) -> None:
        """As if no mask had been given."""
        self.mask_file.unlink(missing_ok=True)
        self.annotated = False
        self.changes += 1
        self._tile = None

    def predicted(self, mask: np.ndarray, line: dict[str, Any]) -> None:
        """Take the network's mask, bool (H, W), and its line of results.csv."""
        _write(mask, self.prediction_file)
        self.line = line
        self._tile = None

    def painted_over(self, painted: np.ndarray, fill: bool) -> np.ndarray:
        """What a painting means at the image's own size, bool (H, W).

        Where nothing was changed, the mask that was painted on stays as fine as it was.

        Args:
            painted: bool, of the shape of FRAME, which started as `drawn_mask`; beside the image it does not count.
            fill: also what a closed outline surrounds, unless it was a hole before.
        """
        before, painted = self.drawn_mask()[self.within], painted[self.within]
        if fill:
            holes = ndimage.binary_fill_holes(painted) & ~painted
            painted = painted | (holes & ~(ndimage.binary_fill_holes(before) & ~before))
        size = self.size[::-1]
        return np.where(resized_mask(painted != before, size), resized_mask(painted, size), self.mask())

    def paint(self) -> Path:
        """The mask as a layer of paint, RGBA: what a painting starts from."""
        layer = np.zeros((*FRAME, 4), np.uint8)
        layer[self.drawn_mask()] = (*PREDICTION_COLOUR, _OPACITY)
        path = self._fresh("paint", "png")
        Image.fromarray(layer).save(path)
        return path

    def tile(self) -> Path:
        """The image with outlines: of the user's mask wide and blue, of the network's thin and yellow."""
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
        """A name that no browser has in its cache; the one before goes."""
        self._drawn += 1
        for path in self.folder.glob(f"{stem}-*"):
            path.unlink(missing_ok=True)
        return self.folder / f"{stem}-{self._drawn}.{suffix}"


def _read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("L")) > 127


def _write(mask: np.ndarray, path: Path) -> None:
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)

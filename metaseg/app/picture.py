"""One uploaded image with its masks, kept as files in a folder so that hundreds need little memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from metaseg.adapting.arrays import resized_mask
from metaseg.adapting.checks import look
from metaseg.adapting.files import Source
from metaseg.adapting.results import reduced_size
from metaseg.app import outlines

FRAME = (720, 960)
"""(H, W) of the canvas for every image: finer than hand precision and fast in a browser. One size for all, as gradio
6.31 misplaces paint when an image follows one of another size."""
_BESIDE = 32  # of 255: grey around the image
TILE = 360  # pixels of a gallery image, which is shown at less than half of that
FULL = 4096
"""Longer side in pixels of the image that is looked at closely, if it has as many."""
INSIDE, OUTSIDE = 1, 2
"""Marks on a painting, which is 0 elsewhere."""
PAINTS = {INSIDE: (255, 235, 0), OUTSIDE: (230, 0, 255)}
"""Colours of the marks: distinguished by their blue, also where one is painted over the other."""
OPACITY = 0.5
"""Of paint, to show what is below."""
_UNMARKED = 128  # of 255, in the file of a scribble


@dataclass
class Picture:
    """An image of a session.

    Attributes:
        source: its file.
        folder: where its files go.
        size: (H, W) of the image.
        look: as `metaseg.adapting.checks.look` describes it.
        annotated: whether the user gave a mask, or scribbles.
        scribbled: whether these are scribbles: strokes inside and outside, with the rest unmarked.
        changes: number of masks given so far; shows whether a network has seen the latest.
        line: of results.csv, for the prediction; None without one.
    """

    source: Source
    folder: Path
    size: tuple[int, int]
    look: np.ndarray
    annotated: bool = False
    scribbled: bool = False
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
        kept = cls(source, folder, (height, width), look(pixels))
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
    def masked(self) -> bool:
        """Whether the user gave a whole mask."""
        return self.annotated and not self.scribbled

    @property
    def mask_file(self) -> Path:
        """The user's mask or scribbles."""
        return self.folder / "mask.png"

    @property
    def _next_file(self) -> Path:
        return self.folder / "next.png"

    @property
    def _next_mask_file(self) -> Path:
        return self.folder / "next-mask.png"

    @property
    def prediction_file(self) -> Path:
        """The network's mask."""
        return self.folder / "prediction.png"

    @property
    def drawn_size(self) -> tuple[int, int]:
        """(H, W) of the image in the frame, at least 1 each."""
        scale = min(FRAME[0] / self.size[0], FRAME[1] / self.size[1])
        return max(1, round(self.size[0] * scale)), max(1, round(self.size[1] * scale))

    @property
    def within(self) -> tuple[slice, slice]:
        """The image's position in the frame, centred."""
        (height, width), (rows, columns) = FRAME, self.drawn_size
        top, left = (height - rows) // 2, (width - columns) // 2
        return slice(top, top + rows), slice(left, left + columns)

    def best_file(self) -> Path | None:
        """The user's mask, else the network's, else None. Scribbles are not a mask."""
        return self.mask_file if self.masked else self.prediction_file if self.line else None

    def mask(self) -> np.ndarray:
        """The user's mask, else the network's, else an empty one: bool (H, W)."""
        path = self.best_file()
        return np.zeros(self.size, bool) if path is None else _read(path) > _UNMARKED

    def yours(self) -> np.ndarray | None:
        """The user's mask, bool (H, W); None without one."""
        return _read(self.mask_file) > _UNMARKED if self.masked else None

    def prediction(self) -> np.ndarray | None:
        """The network's mask, bool (H, W); None without one."""
        return _read(self.prediction_file) > _UNMARKED if self.line else None

    def marks(self) -> np.ndarray:
        """What a painting starts from, uint8 (H, W): the scribbles, or `mask` as `INSIDE`."""
        if not self.scribbled:
            return self.mask().astype(np.uint8)
        grey = _read(self.mask_file)
        return np.select([grey > _UNMARKED, grey < _UNMARKED], [np.uint8(INSIDE), np.uint8(OUTSIDE)], np.uint8(0))

    def drawn(self) -> np.ndarray:
        """`marks` in the frame: uint8, of the shape of FRAME."""
        frame = np.zeros(FRAME, np.uint8)
        frame[self.within] = _resized(self.marks(), self.drawn_size[::-1])
        return frame

    def reduced(self, longest: int) -> tuple[np.ndarray, np.ndarray]:
        """The image, uint8 (h, w, 3), and its mask, int8 (h, w), -1 if unmarked; no side is longer than `longest`."""
        size = reduced_size(self.size, longest)
        image = Image.fromarray(self.source.read()).resize(size, Image.Resampling.BILINEAR)
        marks = _resized(self.marks(), size).astype(np.int8)
        if self.scribbled:
            marks = np.select([marks == INSIDE, marks == OUTSIDE], [np.int8(1), np.int8(0)], np.int8(-1))
        return np.asarray(image), marks

    def annotate(self, mask: np.ndarray) -> None:
        """Store the user's mask, bool (H, W)."""
        self._annotate(mask.astype(np.uint8) * 255, scribbled=False)

    def scribble(self, marks: np.ndarray) -> None:
        """Store the user's scribbles: uint8 (H, W) of marks."""
        self._annotate(np.array([_UNMARKED, 255, 0], np.uint8)[marks], scribbled=True)

    def _annotate(self, grey: np.ndarray, scribbled: bool) -> None:
        if self.annotated and self.scribbled == scribbled and np.array_equal(_read(self.mask_file), grey):
            return
        Image.fromarray(grey).save(self._next_mask_file)
        self._next_mask_file.replace(self.mask_file)  # a full disk leaves the earlier one
        self.annotated, self.scribbled = True, scribbled
        self.changes += 1
        self._tile = None

    def forget_mask(self) -> None:
        """Remove the user's mask or scribbles."""
        self.mask_file.unlink(missing_ok=True)
        self.annotated = self.scribbled = False
        self.changes += 1
        self._tile = None

    def foresee(self, mask: np.ndarray) -> None:
        """Keep the network's mask, bool (H, W), beside the earlier one until `predicted`."""
        Image.fromarray(mask.astype(np.uint8) * 255).save(self._next_file)

    def predicted(self, line: dict[str, Any]) -> None:
        """Make the mask of `foresee` the network's, with its line of results.csv."""
        self._next_file.replace(self.prediction_file)
        self.line = line
        self._tile = None

    def painted_over(self, painted: np.ndarray, fill: bool) -> np.ndarray:
        """A painting as marks at the image's original size, uint8 (H, W).

        Unchanged areas keep the full resolution of the mask that was painted on.

        Args:
            painted: marks, of the shape of FRAME, started from `drawn`; paint outside the image is ignored.
            fill: whether to fill closed outlines, except holes that existed before; scribbles are never filled.
        """
        before, painted = self.drawn()[self.within], np.uint8(painted[self.within])
        if fill and not (painted == OUTSIDE).any():
            painted = painted | (_holes(painted) & ~_holes(before))
        changed = resized_mask(painted != before, self.size) > 0
        return np.where(changed, _resized(painted, self.size[::-1]), self.marks())

    def paint(self) -> Path:
        """The marks as an RGBA paint layer, from which a painting starts."""
        layer, marks = np.zeros((*FRAME, 4), np.uint8), self.drawn()
        for mark, colour in PAINTS.items():
            layer[marks == mark] = (*colour, round(255 * OPACITY))
        path = self._fresh("paint", "png")
        Image.fromarray(layer).save(path)
        return path

    def tile(self) -> Path:
        """The image with outlines, and with scribbles as they are painted."""
        if self._tile is not None:
            return self._tile
        with Image.open(self.shown) as shown:
            image = Image.fromarray(np.asarray(shown)[self.within])
        pixels = np.asarray(image.resize(reduced_size(self.drawn_size, TILE), Image.Resampling.BILINEAR))
        size = (pixels.shape[1], pixels.shape[0])
        if self.scribbled:
            marks = _resized(self.marks(), size)
            for mark, colour in PAINTS.items():
                pixels = np.where((marks == mark)[..., None], np.array(colour, np.uint8), pixels)
        for mask, dashed in ((self.yours(), False), (self.prediction(), True)):
            if mask is not None:
                pixels = outlines.drawn(pixels, resized_mask(mask, pixels.shape[:2]), dashed)
        path = self._fresh("tile", "jpg")
        Image.fromarray(pixels).save(path, quality=90, subsampling=0)
        self._tile = path
        return path

    def full(self) -> Path:
        """The image at full resolution, up to `FULL`, for a browser."""
        path = self.folder / "full.jpg"
        if not path.is_file():
            image = Image.fromarray(self.source.read())
            image.resize(reduced_size(self.size, FULL), Image.Resampling.BILINEAR).save(path, quality=95, subsampling=0)
        return path

    def _fresh(self, stem: str, suffix: str) -> Path:
        """A new file name that no browser has cached; removes the previous file."""
        self._drawn += 1
        for path in self.folder.glob(f"{stem}-*"):
            path.unlink(missing_ok=True)
        return self.folder / f"{stem}-{self._drawn}.{suffix}"


def _read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("L"))


def _resized(marks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 (H, W) resized to (width, height) by nearest neighbour."""
    return np.asarray(Image.fromarray(marks).resize(size, Image.Resampling.NEAREST))


def _holes(marks: np.ndarray) -> np.ndarray:
    """What `INSIDE` encloses, bool of the same shape."""
    inside = marks == INSIDE
    return ndimage.binary_fill_holes(inside) & ~inside

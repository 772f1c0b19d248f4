"""Contact sheets of images with their masks outlined, to check at a glance that masks fit their images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from metaseg.errors import MetasegError
from metaseg.plots.overlays import overlay
from metaseg.system import replacing

_GAP, _LINE, _HEADING = 8, 18, 30  # pixels between images, for an image's name below it, and for a dataset's title
_INK, _PAPER = (230, 230, 230), (40, 40, 40)  # the outlines' colours stand out on a dark background


@dataclass(frozen=True)
class SheetSection:
    """One dataset's part of a sheet: a title, images uint8 (N, S, S, 3), masks (N, S, S) in {0, 1}, and their ids."""

    title: str
    images: np.ndarray
    masks: np.ndarray
    ids: Sequence[str]


def contact_sheet(sections: Sequence[SheetSection], path: Path, columns: int = 6) -> Path:
    """Draw all images, each with the outline of its mask and its id, in rows of `columns`.

    An empty mask is noted instead of outlined.

    Args:
        sections: drawn from top to bottom; images within a section have the same size.
        path: output file, .png, .jpg or .pdf.
        columns: images per row, at least 1.

    Raises:
        MetasegError: no image; an unknown suffix; the file cannot be written.
    """
    if not sections or not all(len(section.images) for section in sections):
        raise MetasegError("a contact sheet needs at least one image of each dataset, found none")
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".pdf"):
        raise MetasegError(f"--out should be a .png, .jpg or .pdf file, not {path.name}: correct it")
    blocks = [_block(section, columns) for section in sections]
    width = max(block.width for block in blocks)
    sheet = Image.new("RGB", (width, sum(block.height for block in blocks)), _PAPER)
    top = 0
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height
    with replacing(path) as temporary:
        sheet.save(temporary)
    return path


def _block(section: SheetSection, columns: int) -> Image.Image:
    pictures = [
        overlay(image, mask if mask.any() else None, None)
        for image, mask in zip(section.images, section.masks, strict=True)
    ]
    side, columns = pictures[0].shape[0], min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    cell = side + _GAP
    size = (columns * cell + _GAP, _HEADING + rows * (cell + _LINE) + _GAP)
    block = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(block)
    pen.text((_GAP, _GAP), _fitting(section.title, size[0] - 2 * _GAP, 15), fill=_INK, font=_font(15))
    for index, picture in enumerate(pictures):
        left, top = _GAP + index % columns * cell, _HEADING + index // columns * (cell + _LINE)
        block.paste(Image.fromarray(picture), (left, top))
        note = "" if section.masks[index].any() else " (empty mask)"
        pen.text((left, top + side + 2), _fitting(section.ids[index], side, 11, note), fill=_INK, font=_font(11))
    return block


def _font(size: int) -> ImageFont.FreeTypeFont:
    # matplotlib's font, because Pillow's lacks the ² of PH².
    from matplotlib import font_manager

    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)


def _fitting(text: str, width: int, size: int, end: str = "") -> str:
    """The text followed by `end`; the middle of the text is elided if it is too wide."""
    font, kept = _font(size), len(text)
    shown = text
    while font.getlength(shown + end) > width and kept > 2:
        kept -= 1
        shown = f"{text[: kept // 2]}…{text[-(kept - kept // 2) :]}"
    return shown + end

"""Find and report every problem in a dataset folder in one pass.

An error prevents a dataset from being prepared. A warning does not: real copies of these datasets differ from the
published ones in harmless ways (a few images missing, a photograph twice).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
from PIL import Image

from metaseg.data import duplicates
from metaseg.data.catalogue import Dataset
from metaseg.data.images import LOSSY, THRESHOLD, grey_mask, open_image
from metaseg.data.layouts import Listing, Pair, scan
from metaseg.errors import MetasegError, plural
from metaseg.system import cores

if TYPE_CHECKING:
    from rich.console import Group

Item = TypeVar("Item")
Result = TypeVar("Result")
Kind = Literal[
    "unpaired",
    "absent",
    "ambiguous",
    "unreadable",
    "size",
    "empty mask",
    "not binary",
    "count",
    "frame number",
    "near-duplicate",
]

DECODE_SIDE = 512
"""Minimum side at which large JPEGs are decoded; the side for hashes, which do not depend on the working size."""

_GREY = (32, 223)  # values that JPEG compression alone never produces in a black or white area
_JPEG_BLOCK = 8  # pixels; the farthest that compression smears the edge of a mask
_GREY_SHARE = 0.001


@dataclass(frozen=True)
class Fault:
    """One problem: the affected images (ids or file names) and a message."""

    kind: Kind
    severity: Literal["error", "warning"]
    images: tuple[str, ...]
    message: str


@dataclass(frozen=True)
class Inspected:
    """One decoded pair; image and mask are None if there was a fault of severity error."""

    image: Image.Image | None
    mask: np.ndarray | None
    bits: np.ndarray
    details: np.ndarray
    foreground: float
    faults: tuple[Fault, ...]


@dataclass(frozen=True)
class Report:
    """The result of a check. `groups` are int (N,) over the readable pairs, named by `ids`."""

    dataset: Dataset
    listing: Listing
    ids: tuple[str, ...]
    groups: np.ndarray
    foreground: float
    faults: tuple[Fault, ...] = field(repr=False)

    @property
    def errors(self) -> list[Fault]:
        """Faults that prevent the dataset from being prepared."""
        return [fault for fault in self.faults if fault.severity == "error"]

    @property
    def warnings(self) -> list[Fault]:
        """Faults with which the dataset can still be used."""
        return [fault for fault in self.faults if fault.severity == "warning"]

    def table(self) -> Group:
        """A rich renderable: a summary and, if there are any, a table of all faults."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        dataset, layout = self.dataset, self.listing.layout
        known = "" if dataset.foreground is None else f" (catalogue: {100 * dataset.foreground:.1f} %)"
        summary = (
            f"{dataset.title}: {len(self.listing.pairs)} pairs"
            f"{'' if dataset.count is None else f' of {dataset.count} published'}, "
            f"{len(np.unique(self.groups))} {self._grouping()}, foreground {100 * self.foreground:.1f} %{known}, "
            f"{plural(len(self.errors), 'error')}, {plural(len(self.warnings), 'warning')}\n  in "
            f"{self.listing.folder}, {f'laid out as {layout.images}, {layout.masks}' if layout else dataset.pairs}"
        )
        if not self.faults:
            return Group(Text(summary))
        table = Table("severity", "kind", "images", "what", show_edge=False, pad_edge=False)
        for fault in sorted(self.faults, key=lambda fault: (fault.severity, fault.kind)):
            colour = "red" if fault.severity == "error" else "yellow"
            table.add_row(
                Text(fault.severity, style=colour), fault.kind, Text(", ".join(fault.images)), Text(fault.message)
            )
        return Group(Text(summary), table)

    def _grouping(self) -> str:
        if self.listing.grouped:
            return "groups as named"
        if self.dataset.sequence_starts:
            return "video sequences"
        return "blocks of consecutive frames" if self.dataset.blocks else "groups of near-duplicates or single images"


def check(dataset: Dataset, root: str | Path) -> Report:
    """Read every file of the dataset and report all faults. Raises MetasegError only if no file is found."""
    listing = scan(dataset, root)
    return summarise(dataset, listing, list(for_each(listing.pairs, lambda pair: light(inspect(pair)))))


def light(found: Inspected) -> Inspected:
    """The same without the pixels, small enough to keep thousands."""
    return Inspected(None, None, found.bits, found.details, found.foreground, found.faults)


def for_each(items: Sequence[Item], work: Callable[[Item], Result], threads: int | None = None) -> Iterator[Result]:
    """Map `work` over all items with `threads` threads (default: one per core), in order, buffering 8 per thread.

    Threads suffice because Pillow releases the GIL while decoding and resizing. Stopping early waits only for the items
    in progress.
    """
    threads = threads or cores()
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= 8 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def inspect(pair: Pair, side: int = DECODE_SIDE) -> Inspected:
    """Decode one pair and check it in isolation: readable, equal sizes, binary mask, non-empty foreground.

    Large JPEGs are decoded at `side` pixels or more, or at `DECODE_SIDE`.
    """
    faults: list[Fault] = []

    def note(kind: Kind, severity: Literal["error", "warning"], message: str) -> None:
        faults.append(Fault(kind, severity, (pair.id,), message))

    image, grey = None, None
    try:
        image, size = open_image(pair.image, at_least=max(side, DECODE_SIDE))
    except MetasegError as error:
        note("unreadable", "error", str(error))
    try:
        grey = grey_mask(pair.mask)
    except MetasegError as error:
        note("unreadable", "error", str(error))

    if grey is not None:
        mask = grey > THRESHOLD
        if share := _grey_share(grey, mask):
            note(
                "not binary",
                "error",
                f"{100 * share:.1f} % of {pair.mask.name} is grey away from its edges: expected black and white; it "
                f"may be an image, or a map of probabilities or labels",
            )
        elif not mask.any() and grey.max() > 0 and pair.mask.suffix.lower() not in LOSSY:
            note(
                "not binary",
                "error",
                f"{pair.mask.name} has no value above {THRESHOLD}, its largest is {grey.max()}: expected black and "
                f"white; if its values are labels, set those of the foreground to 255, else all to 0",
            )
        elif not mask.any():
            note(
                "empty mask",
                "warning",
                f"{pair.mask.name} has no foreground (largest value {grey.max()}), so nothing can be learnt from it",
            )
        if image is not None and size != grey.shape[::-1]:
            width, height = size
            note(
                "size",
                "error",
                f"{pair.mask.name} has {grey.shape[1]}×{grey.shape[0]} pixels, its image {width}×{height}: expected "
                f"equal sizes; it may belong to another image",
            )
    if image is None or grey is None or any(fault.severity == "error" for fault in faults):
        bits = np.zeros(duplicates.BITS, dtype=bool)
        return Inspected(None, None, bits, np.zeros(duplicates.DETAILS, np.float32), float("nan"), tuple(faults))
    hashed = image if side <= DECODE_SIDE else open_image(pair.image, at_least=DECODE_SIDE)[0]
    bits, details = duplicates.perceptual_hash(hashed)
    return Inspected(image, mask, bits, details, float(mask.mean()), tuple(faults))


def _grey_share(grey: np.ndarray, mask: np.ndarray) -> float:
    """Share of pixels that are grey beyond JPEG artefacts at the edges of a mask; 0 if negligible."""
    between = (grey >= _GREY[0]) & (grey <= _GREY[1])
    if between.mean() <= _GREY_SHARE:
        return 0.0
    from scipy.ndimage import maximum_filter, minimum_filter

    side = 2 * _JPEG_BLOCK + 1
    near_edge = maximum_filter(mask, side) != minimum_filter(mask, side)
    share = float((between & ~near_edge).mean())
    return share if share > _GREY_SHARE else 0.0


def summarise(dataset: Dataset, listing: Listing, found: Sequence[Inspected]) -> Report:
    """The report on a whole dataset from its inspected pairs, in the order of the listing."""
    faults = [
        *_files(listing.images_without_mask, "unpaired", "this image has no mask"),
        *_files(listing.masks_without_image, "unpaired", "this mask has no image"),
        *_files(
            listing.ambiguous,
            "ambiguous",
            f"another {'file has the same stem' if listing.layout else 'line has the same id'}: keep one of them",
        ),
        *_files(listing.absent, "absent", f"listed in {dataset.pairs}, but missing"),
    ]
    if dataset.count is not None and len(listing.pairs) != dataset.count:
        faults.append(
            Fault(
                "count", "warning", (), f"{len(listing.pairs)} pairs found, {dataset.count} published ({dataset.url})"
            )
        )
    faults += [fault for one in found for fault in one.faults]

    readable = [not np.isnan(one.foreground) for one in found]
    pairs = [pair for pair, good in zip(listing.pairs, readable, strict=True) if good]
    ids = [pair.id for pair in pairs]
    kept = [one for one, good in zip(found, readable, strict=True) if good]
    bits = np.array([one.bits for one in kept], dtype=bool).reshape(len(kept), duplicates.BITS)
    details = np.array([one.details for one in kept], dtype=np.float32).reshape(len(kept), duplicates.DETAILS)
    try:
        groups = duplicates.groups(dataset, ids, bits, details, [pair.group for pair in pairs])
    except MetasegError as error:
        faults.append(Fault("frame number", "error", (), str(error)))
        groups = np.arange(len(ids))
    if not (dataset.sequence_starts or dataset.blocks or listing.grouped):
        for group in np.flatnonzero(np.bincount(groups) > 1):
            alike = tuple(ids[index] for index in np.flatnonzero(groups == group))
            faults.append(
                Fault("near-duplicate", "warning", alike, "nearly identical images: kept on one side of every split")
            )
    foreground = float(np.mean([one.foreground for one in kept])) if kept else float("nan")
    return Report(dataset, listing, tuple(ids), groups, foreground, tuple(faults))


def _files(paths: Iterable[Path], kind: Kind, message: str) -> list[Fault]:
    return [Fault(kind, "error", (f"{path.parent.name}/{path.name}",), message) for path in paths]

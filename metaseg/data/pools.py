"""Pools: a dataset as arrays at the working size, decoded once and then memory-mapped."""

from __future__ import annotations

import mmap
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from metaseg.data import cache, check, duplicates
from metaseg.data.catalogue import Dataset
from metaseg.data.layouts import Listing, Pair, complete
from metaseg.errors import MetasegError, expanded, plural
from metaseg.progress import Progress

FORMAT = 1
"""Increment when reading, resizing or grouping of images changes; this rebuilds every prepared dataset."""

SMALLEST, LARGEST = 8, 1024


@dataclass(frozen=True)
class Pool:
    """N images of one dataset with their masks, in natural order of their ids. Arrays are read-only.

    images: uint8 (N, H, W, 3), RGB, 0 to 255. masks: uint8 (N, H, W), 0 or 1. groups: int64 (N,); images of one group
    (a video sequence, near-duplicates) must stay on one side of a split. blocks: the groups are blocks of one video.
    key: hash of the source files and settings; empty for arrays in memory.
    """

    name: str
    ids: tuple[str, ...]
    images: np.ndarray
    masks: np.ndarray
    groups: np.ndarray
    blocks: bool = False
    key: str = ""

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Copies of K images and masks, in the order of `indices`: uint8 (K, H, W, 3) and (K, H, W)."""
        chosen = np.asarray(indices, dtype=np.int64)
        # As plain arrays: taking from an np.memmap gives an np.memmap, which would have to be copied again.
        return np.asarray(self.images).take(chosen, axis=0), np.asarray(self.masks).take(chosen, axis=0)

    def __reduce__(self) -> tuple[Callable[..., Pool], tuple[Any, ...]]:
        # Workers that are not forked receive the pool by pickle: send paths of memory maps, not their contents.
        arrays = _or_path(self.images), _or_path(self.masks), self.groups
        return _unpickle, (self.name, self.ids, *arrays, self.blocks, self.key)


def _or_path(array: np.ndarray) -> np.ndarray | Path:
    """The .npy file if the array maps all of it, else the array."""
    whole = isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap)
    return Path(str(array.filename)) if whole else array  # type: ignore[attr-defined]


def _unpickle(
    name: str,
    ids: tuple[str, ...],
    images: np.ndarray | Path,
    masks: np.ndarray | Path,
    groups: np.ndarray,
    blocks: bool,
    key: str,
) -> Pool:
    def opened(array: np.ndarray | Path) -> np.ndarray:
        return np.load(array, mmap_mode="r") if isinstance(array, Path) else _frozen(array)

    return Pool(name, ids, opened(images), opened(masks), _frozen(groups), blocks, key)


def prepare(
    dataset: Dataset,
    root: str | Path,
    size: int,
    cache_dir: str | Path | None = None,
    threads: int | None = None,
) -> Pool:
    """The dataset under root at size×size pixels, from the cache if it is up to date.

    Images are resized with Pillow's bilinear filter, which averages over the area when shrinking, masks by nearest
    neighbour; the aspect ratio is not kept. The cache folder is cache_dir, else METASEG_CACHE, else
    root/.metaseg_cache, or ~/.cache/metaseg (XDG_CACHE_HOME) if that is not writable. `threads` decode, by default one
    per core.

    Raises MetasegError: dataset missing or unpaired; files damaged, masks of a different size or not binary (counted,
    the first one named); disk full, or no writable folder.
    """
    if not SMALLEST <= size <= LARGEST:
        raise MetasegError(f"data.size should be {SMALLEST} to {LARGEST} pixels, not {size}: change it")
    if threads is not None and threads < 1:
        raise MetasegError(f"--threads should be at least 1, not {threads}: omit it for one thread per core")
    root = expanded(root)
    listing = complete(dataset, root)
    candidates = cache.places(root, cache_dir)
    settings = {
        "format": FORMAT,
        "size": size,
        "decoded at": max(size, check.DECODE_SIDE),
        "sequence_starts": dataset.sequence_starts,
        "blocks": dataset.blocks,
        "duplicates": [duplicates.SURE_BITS, duplicates.LIKELY_BITS, duplicates.LIKELY_CORRELATION],
    }
    if listing.grouped or listing.layout is None:
        settings["pairs"] = [[pair.id, pair.group] for pair in listing.pairs]
    files = [path for pair in listing.pairs for path in (pair.image, pair.mask)]
    known = cache.recall(candidates, dataset.name)
    with Progress(f"hashing the files of {dataset.title}", len(files), "files", brief=True) as progress:
        key, fresh = cache.content_key(files, listing.folder, settings, known, progress.advance)
    entry = cache.Entry(dataset.name, size, key, source=str(listing.folder.resolve()))
    cached = cache.obtain(entry, candidates, lambda target: _build(dataset, root, listing, size, threads, target))
    if fresh:
        cache.remember(cached.folder.parent, dataset.name, known | fresh)
    groups = _frozen(np.array(cached.meta["groups"], dtype=np.int64))
    ids = tuple(cached.meta["ids"])
    return Pool(dataset.name, ids, cached.images, cached.masks, groups, dataset.blocks > 0 and not listing.grouped, key)


def decode(
    pairs: Sequence[Pair], size: int, threads: int | None = None
) -> Iterator[tuple[check.Inspected, np.ndarray, np.ndarray]]:
    """The inspection of each pair, its image uint8 (S, S, 3) and mask uint8 (S, S), {0, 1}; in order, on all cores.

    A pair with an error has empty arrays.
    """

    def one(pair: Pair) -> tuple[check.Inspected, np.ndarray, np.ndarray]:
        found = check.inspect(pair, size)
        if found.image is None or found.mask is None:
            return check.light(found), np.empty((0, 0, 3), np.uint8), np.empty((0, 0), np.uint8)
        image = found.image.resize((size, size), Image.Resampling.BILINEAR)
        mask = Image.fromarray(found.mask.astype(np.uint8)).resize((size, size), Image.Resampling.NEAREST)
        return check.light(found), np.asarray(image), np.asarray(mask)

    return check.for_each(pairs, one, threads)


def _build(
    dataset: Dataset, root: Path, listing: Listing, size: int, threads: int | None, target: Path
) -> dict[str, Any]:
    """Decode all pairs into target; returns their fields for meta.json."""
    began = time.perf_counter()
    count = len(listing.pairs)
    found: list[check.Inspected] = []
    with (
        cache.ArrayWriter(target / "images.npy", (count, size, size, 3)) as images,
        cache.ArrayWriter(target / "masks.npy", (count, size, size)) as masks,
        Progress(f"preparing {dataset.title} at {size}×{size}", count, "images", brief=True) as progress,
    ):
        for one, image, mask in decode(listing.pairs, size, threads):
            images.write(image)
            masks.write(mask)
            found.append(one)
            progress.advance()

    report = check.summarise(dataset, listing, found)
    command = f"`metaseg data check {dataset.name} --root {root}`"
    if report.errors:
        first = report.errors[0]
        raise MetasegError(
            f"{dataset.name} cannot be prepared: {len(report.errors)} of its {count} pairs are faulty, the first being "
            f"{first.images[0]}: {first.message}. {command} lists them all"
        )
    warnings = f", {plural(len(report.warnings), 'warning')}: see {command}" if report.warnings else ""
    print(
        f"prepared {dataset.title}: {count} images at {size}×{size} in {time.perf_counter() - began:.1f} s{warnings}",
        file=sys.stderr,
    )
    return {"ids": list(report.ids), "groups": report.groups.tolist()}


def prepare_arrays(
    name: str,
    images: np.ndarray,
    masks: np.ndarray,
    ids: Sequence[str] | None = None,
    groups: np.ndarray | None = None,
    blocks: bool = False,
) -> Pool:
    """A pool from arrays in memory, such as the synthetic twins: uint8 (N, H, W, 3), and (N, H, W) bool or of 0 and 1.

    Default ids are 0000, 0001, …; by default every image is a group by itself; `blocks` as in `Pool`.
    """
    count = len(images)
    ids = [f"{index:04d}" for index in range(count)] if ids is None else ids
    groups = np.arange(count) if groups is None else np.asarray(groups)
    masks, groups = masks.astype(np.uint8), groups.astype(np.int64)
    return Pool(name, tuple(ids), _frozen(images), _frozen(masks), _frozen(groups), blocks)


def split_by_group(pool: Pool, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices (train, held out), int64; about `fraction` (0 to 1) of the images are held out, whole groups only.

    Groups are drawn at random by seed; one that would overshoot the fraction is skipped, unless nothing would be held
    out otherwise. The blocks of one video (KvasirCapsule-SEG) are groups, so the held-out frames are contiguous.

    Raises MetasegError if there is only one group.
    """
    groups, sizes = np.unique(pool.groups, return_counts=True)
    if len(groups) < 2:
        raise MetasegError(
            f"{pool.name} cannot be split: its {len(pool)} images form a single group (one video or near-duplicates)"
        )
    order = np.random.default_rng(seed).permutation(len(groups))
    wanted, taken = round(fraction * len(pool)), 0
    chosen: list[np.int64] = []
    for index in order:
        if taken + sizes[index] <= wanted and len(chosen) < len(groups) - 1:
            chosen.append(index)
            taken += sizes[index]
    if not chosen:
        chosen = [order[np.argmin(sizes[order])]]
    held_out = np.isin(pool.groups, groups[chosen])
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _frozen(array: np.ndarray) -> np.ndarray:
    """A read-only view, since an accidental write into a pool would change every later episode."""
    view = array.view()
    view.flags.writeable = False
    return view

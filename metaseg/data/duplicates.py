"""Near-duplicates by perceptual hash, and the groups of images that no split may separate.

Two images are near-duplicates if their perceptual hashes (16×16 DCT coefficients, 256 bits) differ in at most 40 bits,
or in at most 60 bits if their fine structure also correlates by 0.85 or more.

Measured on the real datasets at 256×256: ISIC-2018 has 14 pairs within 40 bits. Those inspected, and judging by their
correlation all, are one photograph under two names with different colours and crop; so are, by eye, 6 of the 7 pairs
that the second rule adds. Kvasir-SEG and PH² have no pair within 40 bits (the nearest, unrelated, are 42 and 56 apart);
the second rule adds two pairs of similar nevi in PH². A false pair only keeps two images together; a missed one leaks.

The rule is not used if a dataset's YAML, layout or CSV file defines the groups: the dark frame of an endoscope makes
unrelated scenes of CVC-ClinicDB differ in as few as 28 bits, and merging them would chain a third of its sequences into
one group.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from metaseg.data.catalogue import Dataset
from metaseg.errors import MetasegError

_HASH_SIDE = 16
SURE_BITS = 40
LIKELY_BITS = 60
LIKELY_CORRELATION = 0.85
_DETAIL_SIDE, _DETAIL_BORDER, _DETAIL_SIGMA = 32, 3, 2.0
BITS = _HASH_SIDE**2
DETAILS = (_DETAIL_SIDE - 2 * _DETAIL_BORDER) ** 2


def perceptual_hash(image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """An RGB image's perceptual hash, bool (256,), and fine structure, float32 (676,) of zero mean and unit norm."""
    import imagehash
    from scipy.ndimage import gaussian_filter

    image = image.convert("L")
    bits = imagehash.phash(image, hash_size=_HASH_SIDE).hash.ravel()
    small = image.resize((_DETAIL_SIDE, _DETAIL_SIDE), Image.Resampling.BILINEAR)
    grey = np.asarray(small, dtype=np.float32)
    detail = grey - gaussian_filter(grey, _DETAIL_SIGMA)
    # Drop the border, where two crops of one photograph differ most.
    detail = detail[_DETAIL_BORDER:-_DETAIL_BORDER, _DETAIL_BORDER:-_DETAIL_BORDER].ravel()
    detail = detail - detail.mean()
    return bits, (detail / max(float(np.linalg.norm(detail)), 1e-6)).astype(np.float32)


def near_duplicates(bits: np.ndarray, details: np.ndarray) -> list[tuple[int, int]]:
    """All pairs (i, j), i < j, of near-duplicates among N hashes: bool (N, 256) and float32 (N, 676)."""
    signs = np.where(bits, 1, -1).astype(np.float32)
    pairs: list[tuple[int, int]] = []
    rows = 1024  # keeps a block of rows × N distances below some tens of MB for 10,000 images
    for start in range(0, len(signs), rows):
        distance = (signs.shape[1] - signs[start : start + rows] @ signs.T) / 2
        first, second = np.nonzero(distance <= LIKELY_BITS)
        above = first + start < second
        first, second = first[above], second[above]
        correlation = np.einsum("nd,nd->n", details[first + start], details[second])
        same = (distance[first, second] <= SURE_BITS) | (correlation >= LIKELY_CORRELATION)
        pairs += zip((first[same] + start).tolist(), second[same].tolist(), strict=True)
    return pairs


def merge(count: int, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """Group numbers int64 (count,), equal for images linked by a chain of pairs, numbered by first appearance."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first, second = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    links = coo_array((np.ones(len(first), dtype=np.int8), (first, second)), shape=(count, count))
    labels = connected_components(links, directed=False)[1]
    _, where, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(where))[inverse].astype(np.int64)


def groups(
    dataset: Dataset,
    ids: Sequence[str],
    bits: np.ndarray,
    details: np.ndarray,
    named: Sequence[str | None] = (),
) -> np.ndarray:
    """Group numbers int64 (N,), from 0; images of one group must stay on one side of every split.

    Taken from `named` if any image has a name there (None: a group by itself), else from the catalogue's video
    sequences or blocks, else from near-duplicates. Raises MetasegError if sequences are given and an id is not a frame
    number or precedes the first sequence.
    """
    if any(name is not None for name in named):
        group_of: dict[tuple[str | None, int], int] = {}
        keys = [(name, -1 if name is not None else index) for index, name in enumerate(named)]
        return np.array([group_of.setdefault(key, len(group_of)) for key in keys], dtype=np.int64)
    if dataset.blocks:
        sizes = [len(block) for block in np.array_split(np.arange(len(ids)), dataset.blocks)]
        return np.repeat(np.arange(dataset.blocks), sizes)
    if dataset.sequence_starts:
        return _sequences(dataset, ids)
    return merge(len(ids), near_duplicates(bits, details))


def _sequences(dataset: Dataset, ids: Sequence[str]) -> np.ndarray:
    start = dataset.sequence_starts[0]
    if strange := [i for i in ids if not i.isdecimal() or int(i) < start]:
        raise MetasegError(
            f"{dataset.name}: expected images named by frame number, from {start}, found {strange[0]}: frames are "
            f"assigned to video sequences by number, so keep the published names"
        )
    frames = np.array([int(i) for i in ids], dtype=np.int64)
    sequence = np.searchsorted(np.array(dataset.sequence_starts), frames, side="right")
    return np.unique(sequence, return_inverse=True)[1].astype(np.int64)

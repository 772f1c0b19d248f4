"""Lower-grade glioma in brain MRI, the pre-training data of the U-Net that initialises the paper's networks.

The data are those of Buda et al. 2019 (arXiv 1906.03720), as published on Kaggle under kaggle_3m: 110 patients, 3929
axial slices, three sequences as the channels of an image (pre-contrast, FLAIR, post-contrast), masks of the FLAIR
abnormality. A patient's slices form one volume. [B] marks what follows the authors' public code
(github.com/mateuszbuda/brain-segmentation-pytorch), [D] our decisions.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from metaseg.data import layouts
from metaseg.data.catalogue import PLAIN, Dataset, Layout
from metaseg.data.check import for_each
from metaseg.data.images import read_image, read_mask
from metaseg.data.layouts import Pair
from metaseg.errors import MetasegError

FOLDERS = ("lgg_brain_mri", "kaggle_3m", "lgg-mri-segmentation/kaggle_3m")
"""Folders tried under data.root, in this order."""
PATIENTS = "patients.csv"
"""Next to images/ and masks/, with columns stem and patient."""
PERCENTILES = (10, 99)
"""Percentiles to which the intensities of a volume are clipped [B]."""
DARK = 0.1
"""Share of a volume's largest value below which a pixel counts as outside the head [B]."""

_DATASET = Dataset(
    name="lgg_brain_mri",
    title="brain MRI of lower-grade glioma",
    folders=FOLDERS,
    layouts=(Layout("{group}/{stem}", "{group}/{stem}_mask"), PLAIN),
    how="get kaggle_3m from https://www.kaggle.com/datasets/mateuszbuda/lgg-mri-segmentation; or try the synthetic "
    "twin with data=synthetic",
)


class Scan(NamedTuple):
    """One patient's slices as files, in numerical order."""

    patient: str
    slices: tuple[Pair, ...]


@dataclass(frozen=True)
class Volume:
    """One patient's slices, cropped to the head and resized.

    Attributes:
        patient: the patient's name.
        images: uint8 (N, S, S, 3): N slices in order, channels pre-contrast, FLAIR, post-contrast.
        masks: uint8 {0, 1} (N, S, S).
        clip: 10th and 99th percentile of all intensities of the volume.
        mean: (3,) mean of each channel of the clipped volume.
        deviation: (3,) standard deviation of each channel of the clipped volume.
    """

    patient: str
    images: np.ndarray
    masks: np.ndarray
    clip: tuple[float, float]
    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, patient: str, images: np.ndarray, masks: np.ndarray) -> "Volume":
        """A volume of slices that are already cropped and resized, with its intensity statistics.

        Raises:
            MetasegError: if the intensities do not vary.
        """
        low, high = (float(value) for value in np.percentile(images, PERCENTILES))
        if low == high:
            raise MetasegError(
                f"The slices of patient {patient} should show a head, but 89 % of their pixels have the same value "
                f"{low:g}; replace them with fresh copies, or remove the patient."
            )
        clipped = np.clip(images, low, high, dtype=np.float32)
        mean = clipped.mean(axis=(0, 1, 2), dtype=np.float64)
        deviation = clipped.std(axis=(0, 1, 2), dtype=np.float64)
        # A channel without contrast becomes 0 everywhere instead of dividing by zero [D].
        return cls(patient, images, masks, (low, high), mean, np.asarray(np.where(deviation > 0, deviation, 1)))

    def normalised(self, slices: Sequence[int] | slice = slice(None)) -> np.ndarray:
        """The slices as float32 (B, S, S, 3): clipped, then mean 0 and deviation 1 per channel over the volume [B]."""
        clipped = np.clip(self.images[slices], *self.clip, dtype=np.float32)
        clipped -= self.mean.astype(np.float32)
        clipped /= self.deviation.astype(np.float32)
        return clipped


def find(root: str | Path) -> list[Scan]:
    """The scans under `root`, sorted by patient, laid out as published or as images/, masks/ and patients.csv.

    Raises:
        MetasegError: if there are none, or an image lacks its mask or patient, or a mask its image.
    """
    listing = layouts.scan(_DATASET, root)
    if listing.faults:
        raise MetasegError(f"Brain MRI: {listing.unpaired()}; add the missing files or remove the extra ones.")
    patients = _patients(listing.folder / PATIENTS) if listing.layout == PLAIN else {}
    scans: dict[str, list[Pair]] = {}
    for pair in listing.pairs:
        patient = pair.group or patients.get(pair.id)
        if patient is None:
            missing = [pair.id for pair in listing.pairs if pair.id not in patients]
            raise MetasegError(
                f"Each image in {listing.folder} needs one patient, but there are {len(missing)} images not in "
                f"{PATIENTS} (such as {missing[0]}); add them."
            )
        scans.setdefault(patient, []).append(pair)
    return [Scan(patient, tuple(scans[patient])) for patient in sorted(scans)]


def _patients(table: Path) -> dict[str, str]:
    """Each image's patient, by stem."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            return {row["stem"]: row["patient"] for row in csv.DictReader(file) if row["patient"]}
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise MetasegError(
            f"{table} should give each image's patient in columns stem and patient, but cannot be read "
            f"({type(error).__name__}: {error}); create it, since otherwise slices of one patient could fall on both "
            "sides of the split."
        ) from error


def read(scans: Sequence[Scan], size: int) -> list[Volume]:
    """Decode, crop and resize all scans, on all cores.

    Raises:
        MetasegError: if a file is damaged, or a patient's images and masks differ in size; all faults are counted.
    """
    found = list(for_each(scans, lambda scan: _attempt(scan, size)))
    faults = [fault for fault in found if isinstance(fault, str)]
    if faults:
        more = f" ({len(faults) - 1} more patients are unusable)" if len(faults) > 1 else ""
        raise MetasegError(f"{faults[0]}{more}")
    return [volume for volume in found if isinstance(volume, Volume)]


def _attempt(scan: Scan, size: int) -> Volume | str:
    try:
        return read_volume(scan, size)
    except MetasegError as error:
        return str(error)


def read_volume(scan: Scan, size: int) -> Volume:
    """One patient's volume at size×size.

    As in [B], the first and last slice are dropped, as are slices outside the head at either end; the crop to the head
    is padded to a square. Volumes of fewer than three slices are kept whole [D].

    Raises:
        MetasegError: if a file is damaged, or images and masks differ in size.
    """
    images = [read_image(pair.image) for pair in scan.slices]
    masks = [read_mask(pair.mask) for pair in scan.slices]
    for pair, image, mask in zip(scan.slices, images, masks, strict=True):
        if image.shape != images[0].shape or mask.shape != images[0].shape[:2]:
            raise MetasegError(
                f"All slices and masks of patient {scan.patient} should have the same size, {_side(images[0])} as in "
                f"{scan.slices[0].image.name}, but {pair.id} has an image of {_side(image)} and a mask of "
                f"{_side(mask)}; replace them with fresh copies."
            )
    inner = slice(1, -1) if len(images) > 2 else slice(None)
    volume, truth = crop(np.stack(images)[inner], np.stack(masks)[inner].astype(np.uint8))
    return Volume.of(scan.patient, *resize(volume, truth, size))


def _side(array: np.ndarray) -> str:
    return f"{array.shape[1]}×{array.shape[0]}"


def crop(images: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Blacken pixels below a tenth of the brightest value, and crop to the bounding box of the rest [B].

    Args:
        images: uint8 (N, H, W, 3).
        masks: (N, H, W).

    Returns:
        The cropped images and masks, padded to a square with black.
    """
    images = np.where(images < images.max() * DARK, 0, images).astype(images.dtype)
    lit = images.any(axis=3)
    if not lit.any():
        return images, masks  # all black: `Volume.of` raises
    box = tuple(slice(int(used.min()), int(used.max()) + 1) for used in np.nonzero(lit))
    images, masks = images[box], masks[box]
    height, width = masks.shape[1:]
    missing = [(0, 0), *((side // 2, side - side // 2) for side in (max(width - height, 0), max(height - width, 0)))]
    return np.pad(images, [*missing, (0, 0)]), np.pad(masks, missing)


def resize(images: np.ndarray, masks: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Resize slices to size×size: images bilinearly, averaging when shrinking [D]; masks by nearest neighbour [B]."""

    def each(slices: np.ndarray, how: Image.Resampling) -> np.ndarray:
        return np.stack([np.asarray(Image.fromarray(one).resize((size, size), how)) for one in slices])

    return each(images, Image.Resampling.BILINEAR), each(masks, Image.Resampling.NEAREST)


def split(volumes: Sequence[Volume], validation: int | str, seed: int) -> tuple[list[Volume], list[Volume]]:
    """Training and validation volumes: whole patients, drawn at random by seed.

    Args:
        volumes: all volumes.
        validation: number of patients; "auto": 10 [B] if that is at most a tenth, else a tenth of them, at least 1.
        seed: seed of the draw.

    Raises:
        MetasegError: if the number is out of range.
    """
    count = min(10, max(1, len(volumes) // 10)) if validation == "auto" else validation
    if not isinstance(count, int) or not 1 <= count < len(volumes):
        raise MetasegError(
            f"data.validation must be auto or a number of patients from 1 to {len(volumes) - 1} (one fewer than "
            f"available), found {validation!r}."
        )
    chosen = set(np.random.default_rng(seed).permutation(len(volumes))[:count].tolist())
    parts: tuple[list[Volume], list[Volume]] = ([], [])
    for index, volume in enumerate(volumes):
        parts[index in chosen].append(volume)
    return parts

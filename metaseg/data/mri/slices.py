"""Batches of brain-MRI slices for pre-training, and whole volumes for validation.

A batch is a pure function of (seed, epoch, step), so a run can be resumed within an epoch, with any number of workers.
[B] marks what follows Buda et al.'s public code, [D] our decisions.
"""

from collections.abc import Sequence

import cv2
import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from metaseg.data.batches import ResumableLoader, mask_tensor, step_loader
from metaseg.data.module import batches_so_far, worker_count
from metaseg.data.mri import twin as brain_twin
from metaseg.data.mri import volumes as brain_mri
from metaseg.data.mri.volumes import Volume
from metaseg.data.synthetic.twins import TWIN_SEED
from metaseg.errors import MetasegError
from metaseg.runs.schema import SliceAugmentation, Slices

FLOOR = 0.1
"""Sampling weight spread evenly over a volume's slices, relative to the weight by tumour area [B]."""

Batch = tuple[Tensor, Tensor]
"""Images float32 (B, 3, S, S), z-scored over their volumes, and masks float32 {0, 1} (B, 1, S, S)."""


def slice_weights(masks: np.ndarray) -> np.ndarray:
    """Sampling probability of each slice of a volume, (N,): proportional to tumour area, plus a tenth evenly [B].

    Args:
        masks: {0, 1} (N, S, S). If all are empty, slices are equally likely [D: in [B] 0/0].
    """
    area = masks.sum(axis=(1, 2), dtype=np.float64)
    if not area.any():
        return np.full(len(masks), 1 / len(masks))
    return (area + FLOOR * area.mean()) / ((1 + FLOOR) * area.sum())


def augment(
    image: np.ndarray, mask: np.ndarray, settings: SliceAugmentation, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Scale by up to ± `scale`, rotate by up to ± `rotation` degrees, flip horizontally with probability `flip`.

    Pixels from outside the frame are 0, the mean of the volume [B]. Scaling and rotation are one resampling [D: in [B]
    two], bilinear for the image, nearest neighbour for the mask.

    Args:
        image: float32 (S, S, 3), normalised.
        mask: uint8 (S, S).
        settings: scale, rotation, flip.
        rng: source of randomness.
    """
    scale = rng.uniform(1 - settings.scale, 1 + settings.scale)
    angle = rng.uniform(-settings.rotation, settings.rotation)
    flip = rng.uniform() < settings.flip
    side = len(mask)
    if (scale, angle) != (1, 0):
        turn = cv2.getRotationMatrix2D(((side - 1) / 2, (side - 1) / 2), angle, scale)
        image = cv2.warpAffine(image, turn, (side, side), flags=cv2.INTER_LINEAR)
        mask = cv2.warpAffine(mask, turn, (side, side), flags=cv2.INTER_NEAREST)
    return (image[:, ::-1], mask[:, ::-1]) if flip else (image, mask)


class SliceBatches(Dataset[Batch]):
    """Batches of slices, by key (epoch, step).

    Each slice is drawn independently: a patient uniformly, then one of the patient's slices by `slice_weights` [B].

    Args:
        volumes: training volumes.
        batch: slices in a batch, B.
        steps: batches in an epoch; None: the number of full batches in all slices [B].
        augmentation: scale, rotation, flip, as for `augment`.
        seed: seed of all random draws.

    Raises:
        MetasegError: if the batch is larger than the number of slices.
    """

    def __init__(
        self, volumes: Sequence[Volume], batch: int, steps: int | None, augmentation: SliceAugmentation, seed: int
    ) -> None:
        slices = sum(len(volume.masks) for volume in volumes)
        if not 1 <= batch <= slices:
            raise MetasegError(f"data.batch must be from 1 to {slices}, the number of training slices, found {batch}.")
        self.volumes, self.batch, self.augmentation, self.seed = volumes, batch, augmentation, seed
        self.steps = slices // batch if steps is None else steps
        self.weights = [slice_weights(volume.masks) for volume in volumes]

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self.steps

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        """Batch ``key = (epoch, step)``."""
        rng = np.random.default_rng([self.seed, *key])
        pairs = []
        for _ in range(self.batch):
            chosen = int(rng.integers(len(self.volumes)))
            number = int(rng.choice(len(self.weights[chosen]), p=self.weights[chosen]))
            volume = self.volumes[chosen]
            pairs.append(augment(volume.normalised([number])[0], volume.masks[number], self.augmentation, rng))
        images, masks = (np.stack(part) for part in zip(*pairs, strict=True))
        return channels_first(images), mask_tensor(masks)


def channels_first(images: np.ndarray) -> Tensor:
    """float32 (B, S, S, 3) → (B, 3, S, S)."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


class WholeVolumes(Dataset[Batch]):
    """One volume per item: all its slices in order, not augmented."""

    def __init__(self, volumes: Sequence[Volume]) -> None:
        self.volumes = volumes

    def __len__(self) -> int:
        """Number of volumes."""
        return len(self.volumes)

    def __getitem__(self, index: int) -> Batch:
        """Images (N, 3, S, S) and masks (N, 1, S, S) of volume `index`."""
        volume = self.volumes[index]
        return channels_first(volume.normalised()), mask_tensor(volume.masks)


class BrainMRI(L.LightningDataModule):
    """Training batches and validation volumes of the brain-MRI slices, or of their synthetic twin.

    Args:
        settings: the group ``data`` of conf/pretrain.yaml.
        seed: the run's seed.

    Raises:
        MetasegError: if a setting is out of range, or files are missing or faulty.
    """

    def __init__(self, settings: Slices, seed: int) -> None:
        super().__init__()
        size = settings.size
        self.workers = settings.workers
        if settings.source == "synthetic":
            volumes = brain_twin.twin(brain_twin.PATIENTS, size, TWIN_SEED)
        else:
            volumes = brain_mri.read(brain_mri.find(settings.root), size)
        self.training, self.validation = brain_mri.split(volumes, settings.validation, seed)
        self.batches = SliceBatches(self.training, settings.batch, settings.steps, settings.augment, seed)

    def train_dataloader(self) -> ResumableLoader:
        """The epoch's batches, from the current position of training."""
        trainer = self.trainer
        assert trainer is not None
        device = trainer.strategy.root_device.type
        workers = worker_count(self.workers, "standard", device == "cpu")
        return step_loader(self.batches, lambda: batches_so_far(trainer), workers, device == "cuda")

    def val_dataloader(self) -> DataLoader:
        """The validation volumes, one at a time."""
        return DataLoader(WholeVolumes(self.validation), batch_size=None)

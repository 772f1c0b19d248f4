"""Episodes as tensors, and the loaders that deliver them to the trainer."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from metaseg.data.augment import augment, cropped, one_thread, recolour
from metaseg.data.episodes import EpisodePlan, Stream
from metaseg.data.pools import Pool
from metaseg.meta.losses import UNMARKED


class Episode(NamedTuple):
    """One task as tensors: images float32 (B, 3, H, W) in [-1, 1], masks float32 (B, 1, H, W) in {0, 1}.

    ``unlabelled``: an image (1, 3, H, W) of a target dataset, for learners that use one (``learner.unlabelled``).
    """

    support_images: Tensor
    support_masks: Tensor
    query_images: Tensor
    query_masks: Tensor
    unlabelled: Tensor | None = None


class RawEpisode(NamedTuple):
    """One task as stored: images uint8 (B, H, W, 3), masks uint8 {0, 1} (B, H, W).

    Sent from the workers to the training process and on to the device: a quarter of the bytes of an ``Episode``.
    """

    support_images: Tensor
    support_masks: Tensor
    query_images: Tensor
    query_masks: Tensor
    unlabelled: Tensor | None = None

    def normalised(self, dtype: torch.dtype = torch.float32) -> Episode:
        """The ``Episode`` that learners take, on the same device; ``dtype`` other than float32 is for checks."""
        return Episode(
            image_tensor(self.support_images).to(dtype),
            mask_tensor(self.support_masks).to(dtype),
            image_tensor(self.query_images).to(dtype),
            mask_tensor(self.query_masks).to(dtype),
            None if self.unlabelled is None else image_tensor(self.unlabelled).to(dtype),
        )


def image_tensor(images: np.ndarray | Tensor) -> Tensor:
    """uint8 (B, H, W, 3) → float32 (B, 3, H, W) in [-1, 1] [paper, section 3]."""
    pixels = _tensor(images).permute(0, 3, 1, 2)
    # One pass to transpose and convert, then two in place: the fastest order on a CPU.
    return torch.empty(pixels.shape, device=pixels.device).copy_(pixels).div_(127.5).sub_(1)


def mask_tensor(masks: np.ndarray | Tensor) -> Tensor:
    """uint8 (B, H, W) → float32 (B, 1, H, W) of the same values; the paper's [-1, 1] would make BCE unbounded below."""
    return _tensor(masks).unsqueeze(1).float()


def _tensor(array: np.ndarray | Tensor) -> Tensor:
    return array if isinstance(array, Tensor) else torch.from_numpy(np.ascontiguousarray(array))


class EpisodeDataset(Dataset[RawEpisode | list[RawEpisode]]):
    """Episodes of a plan, by key (epoch, index).

    Args:
        pools: the pools that the plan's indices refer to.
        plan: the plan.
        augmentation: name for ``augment``; applied to support and query. Use "none" for validation.
        unlabelled: pools with the indices of images that may be used without masks; each episode gets one such image.
            Empty: none.
        recolour: share of the tasks that are recoloured (`metaseg.data.augment.recolour`).
    """

    def __init__(
        self,
        pools: Sequence[Pool],
        plan: EpisodePlan,
        augmentation: str,
        unlabelled: Sequence[tuple[Pool, np.ndarray]] = (),
        recolour: float = 0.0,
    ) -> None:
        self.pools = pools
        self.plan = plan
        self.augmentation = augmentation
        self.unlabelled = unlabelled
        self.recolour = recolour

    def __getitem__(self, key: tuple[int, int]) -> RawEpisode:
        """The episode ``key = (epoch, index)``."""
        epoch, index = key
        parts = self.plan.episode(epoch, index)
        support = [self.pools[part.pool].take(part.support) for part in parts]
        query = [self.pools[part.pool].take(part.query) for part in parts]
        seed = (self.plan.seed, Stream.AUGMENT, self.plan.stream, epoch, index)
        support_images, support_masks = self._augmented(support, (*seed, 0))
        query_images, query_masks = self._augmented(query, (*seed, 1))
        support_images, query_images = recolour([support_images, query_images], self.recolour, (*seed, 2))
        return RawEpisode(
            torch.from_numpy(support_images),
            torch.from_numpy(support_masks),
            torch.from_numpy(query_images),
            torch.from_numpy(query_masks),
            self._without_mask(epoch, index),
        )

    def _without_mask(self, epoch: int, index: int) -> Tensor | None:
        if not self.unlabelled:
            return None
        generator = np.random.default_rng([self.plan.seed, Stream.UNLABELLED, epoch, index])
        pool, indices = self.unlabelled[int(generator.integers(len(self.unlabelled)))]
        return torch.from_numpy(pool.take([generator.choice(indices)])[0])

    def _augmented(
        self, pairs: list[tuple[np.ndarray, np.ndarray]], seed: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        images, masks = pairs[0] if len(pairs) == 1 else map(np.concatenate, zip(*pairs, strict=True))
        return augment(self.augmentation, images, masks, seed)


class OuterSteps(Dataset[list[RawEpisode]]):
    """The episodes of outer steps: key (epoch, step) → the list of this rank's episodes.

    Args:
        episodes: of all steps.
        per_step: episodes in an outer step over all ranks.
        rank: rank of this process.
        world: number of ranks; must divide ``per_step``.
    """

    def __init__(self, episodes: EpisodeDataset, per_step: int, rank: int, world: int) -> None:
        self.episodes, self.per_step, self.rank, self.world = episodes, per_step, rank, world

    def __len__(self) -> int:
        """Outer steps in an epoch."""
        return self.episodes.plan.count // self.per_step

    def __getitem__(self, key: tuple[int, int]) -> list[RawEpisode]:
        """This rank's share of outer step ``key = (epoch, step)``."""
        epoch, step = key
        first = step * self.per_step
        indices = range(first + self.rank, first + self.per_step, self.world)
        return [self.episodes[epoch, index] for index in indices]


class ResumableSteps(Sampler[tuple[int, int]]):
    """Yields (epoch, step) from the current position of training, read from the trainer's count of batches.

    Args:
        steps: outer steps in an epoch.
        position: returns the number of outer steps so far in the whole run, skipped ones included.
    """

    def __init__(self, steps: int, position: Callable[[], int]) -> None:
        self.steps = steps
        self.position = position

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """The rest of the current epoch."""
        epoch, first = divmod(self.position(), self.steps)
        return ((epoch, step) for step in range(first, self.steps))

    def __len__(self) -> int:
        """Steps of a whole epoch; the trainer accounts for those already taken."""
        return self.steps


class ResumableLoader(DataLoader):
    """A loader that Lightning can resume within an epoch; stateless, because its sampler finds the position."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: see ``ResumableSteps``."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing: see ``ResumableSteps``."""


def step_loader(
    steps: Dataset[Any], position: Callable[[], int], workers: int, pin_memory: bool = False
) -> ResumableLoader:
    """A loader of steps (by their key, epoch and step) from ``position()`` on.

    ``workers`` processes prefetch them and persist between epochs. Each worker is two outer steps ahead: with two
    workers and 80 images of 256×256 per step, 84 MB of shared memory.
    """
    return ResumableLoader(
        steps,
        batch_size=None,
        sampler=ResumableSteps(len(steps), position),  # type: ignore[arg-type]  # torch declares no length
        num_workers=workers,
        worker_init_fn=one_thread,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
    )


@dataclass(frozen=True, eq=False)
class SupportSet:
    """The labelled images of a target dataset that a learner adapts to.

    Attributes:
        images: uint8 (K, H, W, 3).
        masks: uint8 {0, 1} (K, H, W), with `UNMARKED` where nothing is known.
        augmentation: name for ``augment``, used only while adapting.
        seed: seed of the augmentation.
        crop: side in pixels of the random square crops to adapt to, see `metaseg.data.augment.cropped`; None: whole
            images.
    """

    images: np.ndarray
    masks: np.ndarray
    augmentation: str
    seed: int
    crop: int | None = None

    @property
    def scribbled(self) -> bool:
        """Whether some pixels are unmarked."""
        return bool((self.masks == UNMARKED).any())

    @property
    def constant(self) -> bool:
        """Whether every step sees the same pixels."""
        return self.augmentation == "none" and self.crop is None

    def only(self, chosen: np.ndarray) -> "SupportSet":
        """The subset of images with the given indices."""
        return replace(self, images=self.images[chosen], masks=self.masks[chosen])

    def plain(self) -> "SupportSet":
        """The set without augmentation or crops."""
        return replace(self, augmentation="none", crop=None)

    def clean(self) -> tuple[Tensor, Tensor]:
        """Images (K, 3, H, W) and masks (K, 1, H, W), not augmented."""
        return image_tensor(self.images), mask_tensor(self.masks)

    def augmented(self, step: int, rows: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
        """The same, freshly augmented (and cropped) for adaptation step ``step``; only images ``rows`` if given."""
        seed = (self.seed, Stream.AUGMENT, step)
        rows = np.arange(len(self.images)) if rows is None else rows
        images, masks = self.images[rows], self.masks[rows]
        if self.crop is not None:
            images, masks = cropped(images, masks, self.crop, (self.seed, Stream.CROP, step), rows)
        images, masks = augment(self.augmentation, images, masks, seed, rows)
        return image_tensor(images), mask_tensor(masks)

"""Fine-tuning on a target's support set: the interpolation between θ and φ, and the fold ensemble.

Fine-tuning leads from the meta-parameters θ to φ, which after many steps overfits the few images. The target is
therefore segmented at θ + α (φ - θ) [Wortsman et al. 2022, there between a pre-trained and a fine-tuned classifier].
The fewer images there are, the smaller is the best α (`FineTuning.share_of`). It also depends on the target: it is 1 if
all images are alike, less if they vary. With folds it is therefore chosen by cross-validation on the support set: each
fold is segmented after fine-tuning on the other folds, and the smallest α within one standard error of the best wins.
The fold networks are kept: averaging the predictions of the full-support network and the fold networks is often
better than any one of them [Breiman 1996, bagging; its use here is our decision].

All networks are fine-tuned in parallel, on several threads if available; images are augmented once per step for all of
them. Leading stages held at θ with frozen norm layers also run once per step for all.
"""

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from metaseg.data.batches import SupportSet
from metaseg.data.episodes import Stream
from metaseg.evaluation.scores import THRESHOLD, dice
from metaseg.learners.side_by_side import SideBySide
from metaseg.learners.strengths import Strengths
from metaseg.meta.inner_loop import InnerLoop, by_autograd, descend
from metaseg.meta.losses import UNMARKED, over_marked
from metaseg.meta.vectors import Parameters, detach, interpolate
from metaseg.networks.functional import MOMENTUM, Statistics, forward, running_statistics
from metaseg.networks.norms import Norms
from metaseg.networks.rates import HeldStages, Rates
from metaseg.networks.segmenter import VIEWS, AdaptedNetwork, Ensemble, Followed, Segmenter

SHARES = (0.5, 0.75, 1.0)
"""Candidates for α, none below one half: fold networks see few images, which biases the choice towards smaller α."""


@dataclass(frozen=True)
class Stage:
    """A point of the fine-tuning path.

    Attributes:
        phi: the parameters.
        running: running norm statistics.
    """

    phi: Parameters
    running: Statistics


@dataclass(frozen=True)
class FineTuning:
    """Fine-tuning on a support set, and the segmenter it results in.

    Attributes:
        network: the architecture; its own parameters are not used.
        loss: the segmentation loss, (logits, target) → scalar; with unmarked pixels it runs over the others alone.
        norms: normalisation statistics used for predictions.
        loop: the optimisation loop; its ``rates`` are ignored.
        rates: step-size multipliers by part.
        batch: most images of a step, see `turns`; None: all.
        share: α; None: chosen on the held-out images, or `share_of` if there are none.
        folds: number of folds of the support set, each held out once; each adds a network to the ensemble, and together
            they choose α; 0: φ alone.
        flips: whether to average predictions over an image and its mirror images.
        device: where to compute.
        memory_format: of images and activations.
        strengths: learned proximal strengths; None: ``loop.lam``.
        start_worth: how many images θ is worth, ≥ 0, see `share_of`.
    """

    network: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    norms: Norms
    loop: InnerLoop
    rates: Rates
    folds: int
    flips: bool
    device: torch.device
    memory_format: torch.memory_format
    strengths: Strengths | None = None
    batch: int | None = None
    share: float | None = None
    start_worth: float = 0.0

    def run(
        self,
        theta: Parameters,
        support: SupportSet,
        steps: Sequence[int],
        progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> Iterator[tuple[int, Segmenter]]:
        """Fine-tune from θ, and yield (step, segmenter) at each step number in ``steps`` (0: the network at θ alone).

        Args:
            theta: all meta-parameters θ.
            support: the target's annotated images.
            steps: step numbers; beyond ``loop.steps`` only with a constant step size.
            progress: called after each step with (steps taken, total steps).
        """
        if support.scribbled:
            yield from replace(self, loss=over_marked(self.loss))._run(theta, support, steps, progress)
        else:
            yield from self._run(theta, support, steps, progress)

    def _run(
        self, theta: Parameters, support: SupportSet, steps: Sequence[int], progress: Callable[[int, int], None]
    ) -> Iterator[tuple[int, Segmenter]]:
        last = max(steps, default=0)
        parts = held_out(len(support.images), self.folds) if last else []
        everything = np.arange(len(support.images))
        members = [everything, *(np.setdiff1d(everything, part) for part in parts)]
        clean = self._there(support.clean())
        if 0 in steps:
            yield 0, self._adapted(theta, Stage(theta, running_statistics(self.network)), 0.0, clean[0])
        with _Batches(self, theta, support, members) as batches, SideBySide(len(members), self.device) as side_by_side:
            # A network supports one call at a time.
            networks = [self.network, *(copy.deepcopy(self.network) for _ in parts)]
            descents = [self._descent(network, theta, batches, number, last) for number, network in enumerate(networks)]
            advances = [partial(next, descent) for descent in descents]
            for step in range(1, last + 1):
                batches.draw(step - 1)
                stages = side_by_side(advances)
                progress(step, last)
                if step in steps:
                    followed = self._followed(theta, stages[1:], members[1:], parts, clean)
                    yield step, self._segmenter(theta, stages, followed, clean[0], parts)

    def passes(self, images: int) -> tuple[float, int]:
        """Of `run` on so many images: images of a step, over all networks, and forward passes per predicted image."""
        members = sizes(images, self.folds)
        of_step = sum(images_per_step(one, self.batch) for one in members)
        return of_step, len(members) * (len(VIEWS) if self.flips else 1)

    def share_of(self, images: int) -> float:
        """α for K images, none held out: K / (K + ``start_worth``), as if θ had been learnt from further images.

        With a proximal term, which holds φ near θ already, it is 1.
        """
        if self.share is not None:
            return self.share
        held = self.strengths is not None or self.loop.lam > 0
        return 1.0 if held else images / (images + self.start_worth)

    def _descent(
        self, network: nn.Module, theta: Parameters, batches: "_Batches", member: int, last: int
    ) -> Iterator[Stage]:
        """The stage after each step of one member.

        After an early stop at the tolerance, the last stage repeats.
        """
        moving = {name: value for name, value in theta.items() if batches.moves(name)}
        steps = last if self.loop.schedule == "constant" else self.loop.steps
        # Parameters that only fine-tuning moves are free: nothing has learned how strongly to hold them.
        strengths = None if self.strengths is None else self.strengths.vector(moving, of_others=0.0)
        loop = replace(self.loop, steps=steps, rates=self.rates.vector(moving), strengths=strengths)
        running = running_statistics(network)

        def objective(parameters: Parameters) -> tuple[Tensor, Statistics]:
            inputs, masks, found = batches.of(network, member)
            logits, statistics = forward(network, parameters, inputs, first=batches.first)
            return self.loss(logits, masks), found | statistics

        for step in descend(by_autograd(objective), moving, loop):
            running = _moved(running, step.before.found)
            stage = Stage({**theta, **step.parameters}, running)
            yield stage
        while True:
            yield stage

    def _followed(
        self,
        theta: Parameters,
        stages: Sequence[Stage],
        members: Sequence[np.ndarray],
        parts: Sequence[np.ndarray],
        clean: tuple[Tensor, Tensor],
    ) -> Followed:
        """The α chosen on held-out images, see `chosen_share`.

        Args:
            theta: θ.
            stages: of the fold networks.
            members: the images each is fine-tuned on.
            parts: the images each holds out.
            clean: images and masks of the support set.
        """
        images, masks = clean
        if self.share is not None or not parts:
            return Followed(self.share_of(len(images)))
        scores = []
        for share in SHARES:
            values = []
            for stage, rows, part in zip(stages, members, parts, strict=True):
                found = self._adapted(theta, stage, share, images[rows])(images[part])
                values.append(dice((found > THRESHOLD) & (masks[part] != UNMARKED), masks[part] == 1))
            scores.append(np.concatenate(values))
        means = {share: float(one.mean()) for share, one in zip(SHARES, scores, strict=True)}
        return Followed(chosen_share(np.stack(scores)), means)

    def _segmenter(
        self,
        theta: Parameters,
        stages: Sequence[Stage],
        followed: Followed,
        images: Tensor,
        parts: Sequence[np.ndarray],
    ) -> Segmenter:
        """The mean prediction of all members, each normalised with all support images, held out or not."""
        networks = tuple(self._adapted(theta, stage, followed.share, images) for stage in stages)
        if len(networks) == 1 and not self.flips:
            return networks[0]
        alone = networks[0] if followed.share == 1 else self._adapted(theta, stages[0], 1.0, images)
        return Ensemble(networks, self.flips, alone, followed, (np.empty(0, int), *parts))

    def _adapted(self, theta: Parameters, stage: Stage, share: float, images: Tensor) -> AdaptedNetwork:
        """The network at θ + α (φ - θ), with the norm statistics of these images there."""
        parameters = detach(interpolate(theta, stage.phi, share))
        with torch.no_grad():
            found = forward(self.network, parameters, images)[1] if self.norms.any("support") else {}
        return AdaptedNetwork(self.network, parameters, self.norms.given(found, stage.running))

    def _there(self, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        images, masks = pair
        return images.to(self.device, memory_format=self.memory_format), masks.to(self.device)


class _Batches:
    """The images of each step, augmented during the previous one, and the outputs of the held stages."""

    def __init__(
        self, tuning: FineTuning, theta: Parameters, support: SupportSet, members: Sequence[np.ndarray]
    ) -> None:
        self._tuning, self._support = tuning, support
        self._held: HeldStages | None = tuning.rates.held(tuning.network)
        self.first = None if self._held is None else self._held.next
        names = frozenset[str]() if self._held is None else self._held.names
        self._parameters = {name: value for name, value in theta.items() if name in names}
        self._turns = [turns(rows, tuning.batch, (support.seed, number)) for number, rows in enumerate(members)]
        self._thread = ThreadPoolExecutor(max_workers=1)

    def __enter__(self) -> "_Batches":
        self._ahead = self._submitted(0)
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def moves(self, name: str) -> bool:
        """Whether a parameter belongs to a stage that each step runs."""
        return name not in self._parameters

    def draw(self, step: int) -> None:
        """Move on to step number ``step``; called with 0, 1, 2, ..."""
        if step and self._support.constant and self._tuning.batch is None:
            return  # images and outputs of the held stages are those of the first step
        (self._rows, augmented), self._ahead = self._ahead, self._submitted(step + 1)
        self._images, self._masks = self._tuning._there(augmented.result())
        self._outputs = self._run(self._tuning.network, self._images)

    def of(self, network: nn.Module, member: int) -> tuple[Any, Tensor, Statistics]:
        """The input of the first moving stage, the masks, and the norm statistics of the stages before it.

        Args:
            network: the member's, not used by any other thread.
            member: its number.
        """
        rows = self._rows[member]
        outputs, found = self._outputs
        if found:  # normalised by the batch, so outputs differ between members
            outputs, found = self._run(network, self._images[rows])
        else:
            outputs = pytree.tree_map(lambda one: one[rows], outputs)
        return outputs, self._masks[rows], found

    def _run(self, network: nn.Module, images: Tensor) -> tuple[Any, Statistics]:
        """The outputs of the held stages; the images themselves if there are none."""
        if self._held is None:
            return images, {}
        with torch.no_grad():
            return forward(network, self._parameters, images, last=self._held.last)

    def _submitted(self, step: int) -> tuple[list[np.ndarray], Future[tuple[Tensor, Tensor]]]:
        """Each member's images as positions among the step's images, and the latter, being augmented."""
        chosen = [next(turn) for turn in self._turns]
        union = np.unique(np.concatenate(chosen))
        augmented = self._thread.submit(self._support.augmented, step, union)
        return [np.searchsorted(union, rows) for rows in chosen], augmented


def turns(rows: np.ndarray, batch: int | None, seed: tuple[int, ...]) -> Iterator[np.ndarray]:
    """The images of step 0, 1, 2, ...: all of ``rows`` in order, or in random order and batches of equal size.

    Args:
        rows: a member's images.
        batch: most images of a step; sizes differ by at most one. None: all.
        seed: of the order, which is new each time all images have been used.
    """
    if batch is None or batch >= len(rows):
        yield from itertools.repeat(rows)
    assert batch is not None
    generator = np.random.default_rng([*seed, Stream.BATCHES])
    while True:
        yield from np.array_split(generator.permutation(rows), -(-len(rows) // batch))


def images_per_step(images: int, batch: int | None) -> float:
    """Images in a step of `turns`, on average."""
    return images / (1 if batch is None else -(-images // batch))


def chosen_share(scores: np.ndarray) -> float:
    """The smallest of `SHARES` within one standard error of the best [Breiman et al. 1984].

    On five images the candidates differ by tenths of a point, so the highest mean alone would be arbitrary.

    Args:
        scores: Dice (shares, images) of the same held-out images at each share.
    """
    best = scores[np.argmax(scores.mean(1))]
    behind = best - scores
    error = behind.std(1, ddof=1) / np.sqrt(behind.shape[1])
    return SHARES[int(np.argmax(behind.mean(1) <= error))]


def held_out(count: int, folds: int) -> list[np.ndarray]:
    """Image indices of each of ``folds`` folds of ``count`` images; at most one fold per image.

    Folds are contiguous, so that consecutive images, which may be frames of one video, stay together.
    """
    return np.array_split(np.arange(count), min(folds, count)) if folds and count > 1 else []


def sizes(images: int, folds: int) -> list[int]:
    """Images that each network of an ensemble is fine-tuned on: all, then all without each fold."""
    return [images, *(images - len(part) for part in held_out(images, folds))]


def _moved(running: Statistics, found: Statistics) -> Statistics:
    # Encoders from libraries contain layers that are never run.
    return running | {
        layer: (mean.lerp(found[layer][0].detach(), MOMENTUM), variance.lerp(found[layer][1].detach(), MOMENTUM))
        for layer, (mean, variance) in running.items()
        if layer in found
    }

"""Fine-tuning on the support set of a target: how far to follow it, and who has a say at its end.

The descent leads from the meta-parameters θ to φ, which after many steps knows a few images by heart. The target is
segmented at θ + α (φ - θ) [Wortsman et al. 2022, there between a pre-trained and a fine-tuned classifier]. Which α
serves best differs between targets: 1 where all images are alike, less where they vary. The support set says it: each
part of it is segmented by the same descent on the other parts, and the smallest α that is not told from the best
counts. These descents are not thrown away: each ends somewhere else, and the mean of what they and the descent on all
images say is better than what each says alone [Breiman 1996, bagging; that it is done here is our decision].

All descents go side by side, on several threads where there are any: images are augmented once a step for all of them.
Where leading stages of the network are held at θ with frozen norm layers, these run once a step for all of them too.
"""

import copy
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
from metaseg.evaluation.scores import THRESHOLD, dice
from metaseg.learners.side_by_side import SideBySide
from metaseg.learners.strengths import Strengths
from metaseg.meta.inner_loop import InnerLoop, by_autograd, descend
from metaseg.meta.losses import Loss
from metaseg.meta.vectors import Parameters, detach, interpolate
from metaseg.networks.functional import Statistics, forward, running_statistics
from metaseg.networks.norms import Norms
from metaseg.networks.rates import HeldStages, Rates
from metaseg.networks.segmenter import AdaptedNetwork, Ensemble, Followed, Segmenter

SHARES = (0.5, 0.75, 1.0)
"""The values of α to choose from. None is below one half: parts of the support set are few images, and ask for less."""

OF_ONE_IMAGE = 0.5
"""α with a single support image, which cannot be held out [Wortsman et al. 2022: where nothing is known]."""


@dataclass(frozen=True)
class Stage:
    """A point of the descent.

    Attributes:
        phi: the parameters.
        running: running norm statistics.
    """

    phi: Parameters
    running: Statistics


@dataclass(frozen=True)
class FineTuning:
    """The descent on a support set, and what segments the target after it.

    Attributes:
        network: the architecture; its own parameters are not used.
        loss: the segmentation loss.
        norms: statistics that predictions are normalised with.
        loop: the descent; its ``rates`` are not looked at.
        rates: multipliers of its step size by part.
        folds: parts of the support set, each held out once, which makes as many further members of an ensemble and
            chooses their α; 0: φ alone, with α = 1.
        flips: whether predictions are averaged over an image and its mirror images.
        device: where to compute.
        memory_format: of images and activations.
        strengths: learned proximal strengths, in place of ``loop.lam``; None: that.
    """

    network: nn.Module
    loss: Loss
    norms: Norms
    loop: InnerLoop
    rates: Rates
    folds: int
    flips: bool
    device: torch.device
    memory_format: torch.memory_format
    strengths: Strengths | None = None

    def run(
        self,
        theta: Parameters,
        support: SupportSet,
        steps: Sequence[int],
        progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> Iterator[tuple[int, Segmenter]]:
        """Descend from θ, and yield (step, segmenter) at each step number in ``steps`` (0: the network at θ, alone).

        Args:
            theta: θ, all of it.
            support: the target's annotated images.
            steps: step numbers; beyond ``loop.steps`` only with a constant step size.
            progress: called after each step with (steps taken, of how many).
        """
        last = max(steps, default=0)
        parts = held_out(len(support.images), self.folds) if last else []
        everything = np.arange(len(support.images))
        members = [everything, *(np.setdiff1d(everything, part) for part in parts)]
        clean = self._there(support.clean())
        if 0 in steps:
            yield 0, self._adapted(theta, Stage(theta, running_statistics(self.network)), 0.0, clean[0])
        with _Batches(self, theta, support) as batches, SideBySide(len(members), self.device) as side_by_side:
            # A network lends itself to one call at a time.
            networks = [self.network, *(copy.deepcopy(self.network) for _ in parts)]
            descents = [
                self._descent(network, theta, batches, rows, last)
                for network, rows in zip(networks, members, strict=True)
            ]
            advances = [partial(next, descent) for descent in descents]
            for step in range(1, last + 1):
                batches.draw(step - 1)
                stages = side_by_side(advances)
                progress(step, last)
                if step in steps:
                    followed = self._followed(theta, stages[1:], members[1:], parts, clean)
                    yield step, self._segmenter(theta, stages, followed, clean[0])

    def _descent(
        self, network: nn.Module, theta: Parameters, batches: "_Batches", rows: np.ndarray, last: int
    ) -> Iterator[Stage]:
        """The points of the descent of one member, which sees the images in ``rows``, after each step.

        A descent that stops early, at its tolerance, stays where it is.
        """
        moving = {name: value for name, value in theta.items() if batches.moves(name)}
        steps = last if self.loop.schedule == "constant" else self.loop.steps
        strengths = None if self.strengths is None else self.strengths.vector(moving)
        loop = replace(self.loop, steps=steps, rates=self.rates.vector(moving), strengths=strengths)
        running = running_statistics(network)

        def objective(parameters: Parameters) -> tuple[Tensor, Statistics]:
            inputs, masks, found = batches.of(network, rows)
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
        """The α that held-out images ask for, see `chosen_share`.

        Args:
            theta: θ.
            stages: of the members that hold a part out.
            members: the images that they see.
            parts: those that they do not.
            clean: images and masks of the support set.
        """
        if not self.folds:
            return Followed(1.0)
        if not parts:
            return Followed(OF_ONE_IMAGE)
        images, masks = clean
        scores = []
        for share in SHARES:
            values = []
            for stage, rows, part in zip(stages, members, parts, strict=True):
                found = self._adapted(theta, stage, share, images[rows])(images[part])
                values.append(dice(found > THRESHOLD, masks[part]))
            scores.append(np.concatenate(values))
        means = {share: float(one.mean()) for share, one in zip(SHARES, scores, strict=True)}
        return Followed(chosen_share(np.stack(scores)), means)

    def _segmenter(self, theta: Parameters, stages: Sequence[Stage], followed: Followed, images: Tensor) -> Segmenter:
        """The mean of what all members say; one that held images out is still normalised with all of them."""
        networks = tuple(self._adapted(theta, stage, followed.share, images) for stage in stages)
        if len(networks) == 1 and not self.flips:
            return networks[0]
        alone = networks[0] if followed.share == 1 else self._adapted(theta, stages[0], 1.0, images)
        return Ensemble(networks, self.flips, alone, followed)

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
    """The support set augmented for each step, while the step before it is taken; and what held stages make of it."""

    def __init__(self, tuning: FineTuning, theta: Parameters, support: SupportSet) -> None:
        self._tuning, self._support = tuning, support
        self._held: HeldStages | None = tuning.rates.held(tuning.network)
        self.first = None if self._held is None else self._held.next
        names = frozenset[str]() if self._held is None else self._held.names
        self._parameters = {name: value for name, value in theta.items() if name in names}
        self._ahead: tuple[int, Future[tuple[Tensor, Tensor]]] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1)

    def __enter__(self) -> "_Batches":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def moves(self, name: str) -> bool:
        """Whether a parameter belongs to a stage that steps run through."""
        return name not in self._parameters

    def draw(self, step: int) -> None:
        """Go on to step number ``step``, from 0."""
        if step and self._support.augmentation == "none":
            return  # the images, and what held stages make of them, are those of the first step
        self._images, self._masks = self._tuning._there(self._augmented(step))
        self._outputs = self._run(self._tuning.network, self._images)

    def of(self, network: nn.Module, rows: np.ndarray) -> tuple[Any, Tensor, Statistics]:
        """What the first stage that moves is given, the masks, and norm statistics of the stages before it.

        Args:
            network: the member's, which no other thread calls.
            rows: the member's images.
        """
        outputs, found = self._outputs
        if found:  # the images of a batch normalise one another, so each member has outputs of its own
            outputs, found = self._run(network, self._images[rows])
        else:
            outputs = pytree.tree_map(lambda one: one[rows], outputs)
        return outputs, self._masks[rows], found

    def _run(self, network: nn.Module, images: Tensor) -> tuple[Any, Statistics]:
        """The held stages; images as they are where there are none."""
        if self._held is None:
            return images, {}
        with torch.no_grad():
            return forward(network, self._parameters, images, last=self._held.last)

    def _augmented(self, step: int) -> tuple[Tensor, Tensor]:
        if self._support.augmentation == "none":
            return self._support.clean()
        known = self._ahead is not None and self._ahead[0] == step
        batch = self._ahead[1].result() if known and self._ahead else self._support.augmented(step)
        self._ahead = step + 1, self._thread.submit(self._support.augmented, step + 1)
        return batch


def chosen_share(scores: np.ndarray) -> float:
    """The smallest of `SHARES` that is not told from the best: one standard error towards θ [Breiman et al. 1984].

    Five images tell the shares apart by tenths of a point, and the highest mean alone would be a toss of a coin.

    Args:
        scores: Dice (shares, images) of the same held-out images at each share.
    """
    best = scores[np.argmax(scores.mean(1))]
    behind = best - scores
    error = behind.std(1, ddof=1) / np.sqrt(behind.shape[1])
    return SHARES[int(np.argmax(behind.mean(1) <= error))]


def held_out(count: int, folds: int) -> list[np.ndarray]:
    """Numbers of the images in each of ``folds`` parts of ``count`` images, or of as many parts as there are images.

    The parts are runs of images in their order: what lies side by side may be frames of one film, and stays together.
    """
    return np.array_split(np.arange(count), min(folds, count)) if folds and count > 1 else []


def _moved(running: Statistics, found: Statistics, momentum: float = 0.1) -> Statistics:
    # Encoders of libraries have layers that no feature passes through.
    return running | {
        layer: (mean.lerp(found[layer][0].detach(), momentum), variance.lerp(found[layer][1].detach(), momentum))
        for layer, (mean, variance) in running.items()
        if layer in found
    }

"""How far to follow fine-tuning: the Dice of each α, and the regret of rules for it, where no table tests.

    python -m experiments.shares RUN --episodes 20 --folds 5 learner.adapt.steps=40
    python -m experiments.shares RUN --target cvc --episodes 4 shots=1

A learner is fine-tuned on the support set of validation episodes of its pair, or of draws of a dataset that no table
tests on, and segments the query images, or 60 others, at every candidate α. The regret of a rule is the Dice of the
best α, less that of the α which the rule chooses. RUN is a run directory; settings after it replace the run's.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from metaseg.cli.arguments import fail
from metaseg.data.batches import EpisodeDataset, SupportSet
from metaseg.data.module import EpisodicData
from metaseg.evaluation.metatest import drawn, segment
from metaseg.evaluation.scores import dice
from metaseg.learners.build import build_learner
from metaseg.learners.checkpoints import load_weights
from metaseg.learners.fine_tuning import SHARES, FineTuning
from metaseg.networks.segmenter import Followed
from metaseg.progress import Progress
from metaseg.runs import schema, validation
from metaseg.runs.directory import RunDirectory
from metaseg.runs.tables import NUMBERS, load_table

RULES = {
    "1: the network as fine-tuned": lambda followed: 1.0,
    "0.75: the mean of the candidates": lambda followed: 0.75,
    "highest mean of the held-out Dice": lambda followed: max(followed.held_out, key=followed.held_out.get),
    "smallest within one standard error of it": lambda followed: followed.share,
}
IMAGES = 60
"""Images segmented in each draw of a dataset."""


@dataclass(frozen=True)
class AtEveryShare(FineTuning):
    """Fine-tuning that yields a segmenter for each α, with the choice on held-out images, in place of one."""

    def _segmenter(self, theta: Any, stages: Any, followed: Followed, images: Any, parts: Any) -> Any:
        at = {
            share: super(AtEveryShare, self)._segmenter(theta, stages, Followed(share), images, parts)
            for share in candidates(self.folds)
        }
        return at, followed


def candidates(folds: int) -> tuple[float, ...]:
    """The values of α that are compared."""
    return SHARES if folds else (0.25, *SHARES)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m experiments.shares", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("overrides", nargs="*", help="settings that replace the run's")
    parser.add_argument("--episodes", type=int, default=20, help="episodes, or draws of the dataset")
    parser.add_argument("--folds", type=int, default=0)
    parser.add_argument("--target", help="a dataset that no table tests on; none: the validation episodes")
    options = parser.parse_intermixed_args(arguments)
    tested = sorted({column for number in NUMBERS for column in load_table(number).columns})
    if options.target in tested:
        fail(
            f"Expected a dataset that no table tests on, found --target {options.target}: a choice of alpha must not "
            f"see {', '.join(tested)}."
        )
    torch.set_num_threads(1)
    directory = RunDirectory(options.run)
    changes = [f"target=[{options.target or ''}]", *options.overrides, f"evaluation.limit={IMAGES}"]
    found = OmegaConf.merge(OmegaConf.load(directory.config), OmegaConf.from_dotlist(changes))
    settings = validation.read(schema.Run, found)  # type: ignore[arg-type]
    data, learner = EpisodicData(settings), build_learner(settings)
    data.prepare_data()
    data.setup()
    load_weights(learner, directory.best)
    usual = learner.with_adaptation(folds=options.folds).fine_tuning()
    tuning = AtEveryShare(**{field.name: getattr(usual, field.name) for field in fields(usual)})
    tasks = draws(data, settings, options.episodes) if options.target else episodes(data, settings, options.episodes)
    scores, chosen = [], []
    with Progress("episodes", options.episodes, "episodes") as progress:
        for number, (support, images, masks) in enumerate(tasks):
            ((_, (at, followed)),) = tuning.run(learner.start(support), support, [tuning.loop.steps])
            scores.append([float(dice(segment(one, images, 32), masks).mean()) for one in at.values()])
            if options.folds:
                chosen.append([list(at).index(float(rule(followed))) for rule in RULES.values()])
            progress.update(number + 1)
    _print(np.array(scores), np.array(chosen), candidates(options.folds))


def episodes(data: EpisodicData, settings: schema.Run, count: int) -> Iterator[tuple[SupportSet, Any, Any]]:
    """Support set, query images and masks of validation episodes of the pair."""
    found = EpisodeDataset(data.pools, replace(data.validation_plan, count=count), "none")
    for number in range(count):
        raw = found[0, number]
        support = SupportSet(raw.support_images.numpy(), raw.support_masks.numpy(), settings.data.augment, number)
        yield support, raw.query_images.numpy(), raw.query_masks.numpy()


def draws(data: EpisodicData, settings: schema.Run, count: int) -> Iterator[tuple[SupportSet, Any, Any]]:
    """Support set, other images and their masks of draws of the dataset, as in a run's results."""
    (target,) = data.targets.values()
    for number in range(count):
        support, others = drawn(target, settings, number)
        yield target.support_set(support, settings.data.augment, settings.seed + number), *target.pool.take(others)


def _print(scores: np.ndarray, chosen: np.ndarray, shares: Sequence[float]) -> None:
    """The tables: scores (episodes, shares), chosen (episodes, rules) as positions of shares, empty without folds."""
    print("| α | Dice | standard deviation |\n|---|---|---|")
    for share, values in zip(shares, 100 * scores.T, strict=True):
        print(f"| {share:g} | {values.mean():.1f} | {values.std(ddof=1):.1f} |")
    if not len(chosen):
        return
    print("\n| rule | regret, points | standard error | worst |\n|---|---|---|---|")
    for rule, places in zip(RULES, chosen.T, strict=True):
        regret = 100 * (scores.max(1) - np.take_along_axis(scores, places[:, None], 1)[:, 0])
        print(f"| {rule} | {regret.mean():.2f} | {regret.std(ddof=1) / len(regret) ** 0.5:.2f} | {regret.max():.1f} |")


if __name__ == "__main__":
    main()

"""Rules for α, how far fine-tuning is followed, by their regret on the validation episodes of a run's pair.

    python -m experiments.shares RUN --episodes 20 --folds 5 learner.adapt.steps=40

A learner is fine-tuned on each episode's support set at every candidate α of `metaseg.learners.fine_tuning.SHARES`. The
regret of a rule is the query Dice of the best α, less that of the α which the rule chooses by held-out support images.
No target is looked at. RUN is a run directory; settings after it replace the run's.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from metaseg.data.batches import EpisodeDataset, SupportSet
from metaseg.data.module import EpisodicData
from metaseg.evaluation.metatest import segment
from metaseg.evaluation.scores import dice
from metaseg.learners.build import build_learner
from metaseg.learners.checkpoints import load_weights
from metaseg.learners.fine_tuning import SHARES, FineTuning
from metaseg.networks.segmenter import Followed, Segmenter
from metaseg.progress import Progress
from metaseg.runs import schema
from metaseg.runs.directory import RunDirectory

RULES = {
    "1: the network as fine-tuned": lambda followed: 1.0,
    "0.75: the mean of the candidates": lambda followed: 0.75,
    "highest mean of the held-out Dice": lambda followed: max(followed.held_out, key=followed.held_out.get),
    "smallest within one standard error of it": lambda followed: followed.share,
}


@dataclass(frozen=True)
class AtEveryShare(FineTuning):
    """Fine-tuning that yields a segmenter for each α, with the choice on held-out images, in place of one."""

    def _segmenter(self, theta: Any, stages: Any, followed: Followed, images: Any, parts: Any) -> Any:
        at = {
            share: super(AtEveryShare, self)._segmenter(theta, stages, Followed(share), images, parts)
            for share in SHARES
        }
        return at, followed


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m experiments.shares", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("overrides", nargs="*", help="settings that replace the run's")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--folds", type=int, default=5)
    options = parser.parse_intermixed_args(arguments)
    torch.set_num_threads(1)
    directory = RunDirectory(options.run)
    found = OmegaConf.merge(OmegaConf.load(directory.config), OmegaConf.from_dotlist(options.overrides))
    settings = schema.read(schema.Run, found)  # type: ignore[arg-type]
    data, learner = EpisodicData(settings), build_learner(settings)
    data.prepare_data()
    data.setup()
    load_weights(learner, directory.checkpoints / "best.ckpt")
    usual = learner.with_adaptation(folds=options.folds).fine_tuning()
    tuning = AtEveryShare(**{field.name: getattr(usual, field.name) for field in fields(usual)})
    scores, chosen = [], []
    episodes = EpisodeDataset(data.pools, replace(data.validation_plan, count=options.episodes), "none")
    with Progress("episodes", options.episodes, "episodes") as progress:
        for number in range(options.episodes):
            raw = episodes[0, number]
            support = SupportSet(raw.support_images.numpy(), raw.support_masks.numpy(), settings.data.augment, number)
            ((_, (at, followed)),) = tuning.run(learner.theta(), support, [tuning.loop.steps])
            scores.append([_query_dice(at[share], raw) for share in SHARES])
            chosen.append([SHARES.index(float(rule(followed))) for rule in RULES.values()])
            progress.update(number + 1)
    _print(np.array(scores), np.array(chosen))


def _query_dice(segmenter: Segmenter, raw: Any) -> float:
    return float(dice(segment(segmenter, raw.query_images.numpy(), batch=32), raw.query_masks.numpy()).mean())


def _print(scores: np.ndarray, chosen: np.ndarray) -> None:
    """The table: scores (episodes, shares), chosen (episodes, rules) as positions of shares."""
    print("| α | query Dice |\n|---|---|")
    for share, mean in zip(SHARES, scores.mean(0), strict=True):
        print(f"| {share:g} | {100 * mean:.1f} |")
    print("\n| rule | regret, points | standard error | worst |\n|---|---|---|---|")
    for rule, places in zip(RULES, chosen.T, strict=True):
        regret = 100 * (scores.max(1) - np.take_along_axis(scores, places[:, None], 1)[:, 0])
        print(f"| {rule} | {regret.mean():.2f} | {regret.std(ddof=1) / len(regret) ** 0.5:.2f} | {regret.max():.1f} |")


if __name__ == "__main__":
    main()

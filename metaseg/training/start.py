"""What learners begin from: the initial weights of their model, a checkpoint, or one training run that all share.

A comparison of learners that begin from different weights compares the weights as well. So ``start=joint`` gives all of
them the same: joint training on the pair, a run of its own that is made once for a pair, a model and a seed, by whoever
needs it first. Each learner then takes its own steps with its own whole schedule. Joint training goes on for as long.
"""

import hashlib
import json
import logging
from pathlib import Path

from filelock import FileLock
from lightning.pytorch.utilities import rank_zero_only

from metaseg import tracking
from metaseg.data.module import EpisodicData
from metaseg.errors import MetasegError
from metaseg.learners.base import Learner
from metaseg.learners.build import build_learner
from metaseg.learners.checkpoints import load_weights
from metaseg.runs.directory import RunDirectory
from metaseg.runs.schema import Run, checked
from metaseg.runs.settings import WITHOUT_EFFECT, leaves, within
from metaseg.training.fitting import fit

_NO_PART = (
    *WITHOUT_EFFECT,
    *("target", "pair.name", "pair.target", "evaluation", "adapt", "learner.adapt", "model.recipe", "protocol"),
    *("scale", "starts", "experiment", "table"),
)
"""Settings that a shared start does not depend on."""

log = logging.getLogger(__name__)


def starting_point(settings: Run, learner: Learner) -> str:
    """What ``start`` means for a learner: "model", "joint", or a checkpoint's path.

    ``start=auto`` is the protocol's for learners that train the model's network on the pair. Those that train on the
    support set alone or on the target, or that bring a network of their own, begin from their model.

    Args:
        settings: the resolved configuration.
        learner: the learner it describes.

    Raises:
        MetasegError: if there is no such checkpoint, or the learner's network is another one than the shared start's.
    """
    start, chosen = settings.start, settings.learner
    own, of_target = chosen.network is not None, chosen.train_on == "target"
    if start == "auto":
        return settings.protocol.start if learner.trains and not (own or of_target) else "model"
    if start == "joint" and (own or of_target):
        reason = "has a network of its own" if own else "trains on the target"
        raise MetasegError(
            f"start=joint gives a learner the model's weights after joint training on the pair, found learner="
            f"{chosen.name}, which {reason}: set start=model."
        )
    if start in ("model", "joint"):
        return start
    path = Path(start)
    path = RunDirectory(path).checkpoints / "best.ckpt" if path.is_dir() else path
    if not path.is_file():
        raise MetasegError(
            "start must be auto, model, joint, or lead to a run's directory or a checkpoint that is there, "
            f"found {start!r}."
        )
    return str(path)


def go_to(start: str, settings: Run, learner: Learner) -> None:
    """Give a learner the weights that `starting_point` named; joint training is done first where nobody has yet.

    Raises:
        MetasegError: if the checkpoint is of another network.
    """
    if start == "model":
        return
    load_weights(learner, _joint(settings) if start == "joint" else Path(start))


def joint_settings(settings: Run) -> Run:
    """The settings of the joint training that learners with these settings share."""
    plain = settings.plain
    shared, learner = plain["starts"], plain["learner"]
    joint = {
        **plain,
        "learner": {
            **shared["learner"],
            "train_images": learner.get("train_images"),
        },
        "shots": shared["shots"],
        "tasks": {**plain["tasks"], "query": shared["query"]},
        "trainer": {**plain["trainer"], "max_epochs": shared["epochs"], "max_passes": None},
        "logger": {**plain["logger"], "wandb": False},
        "start": "model",
        "target": [],
        "train": True,
        "ckpt_path": None,
    }
    return checked(Run, joint)


def directory_of(settings: Run) -> Path:
    """Where the joint training of `joint_settings` lies: its name tells the settings that could change it."""
    known = {path: value for path, value in leaves(settings.plain).items() if not within(path, _NO_PART)}
    key = hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()[:10]
    return Path(settings.starts.dir) / f"{settings.pair.name}-seed{settings.seed}-{key}"


def _joint(settings: Run) -> Path:
    """The best checkpoint of the shared joint training, which is done, or gone on with, if need be."""
    settings = joint_settings(settings)
    directory = RunDirectory(directory_of(settings))
    best = directory.checkpoints / "best.ckpt"
    directory.path.mkdir(parents=True, exist_ok=True)
    first = getattr(rank_zero_only, "rank", 0) == 0
    lock = FileLock(directory.path / ".start.lock")
    if first:
        lock.acquire()  # another cell of the sweep may be at it
    try:
        if directory.trained.is_file():
            log.info("All learners of this comparison begin from %s, which is there.", best)
            return best
        log.info("All learners of this comparison begin from joint training: %s.", directory.path)
        last = directory.checkpoints / "last.ckpt"
        resumed = last if last.is_file() else None
        if first:
            directory.write_config(settings.plain)
        data = EpisodicData(settings)
        data.setup()
        learner = build_learner(settings)
        loggers = tracking.build_loggers(settings.logger, directory, settings.plain, resume=resumed is not None)
        fit(settings, learner, data, loggers, directory, resumed)
        return best
    finally:
        lock.release()

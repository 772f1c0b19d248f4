"""Starting points of learners: the model's initial weights, a checkpoint, or a shared training run.

Comparing learners that start from different weights also compares the weights. ``start=joint`` therefore starts all of
them from joint training on the pair: a separate run, made once per pair, model and seed by the first run that needs it.
Each learner then trains with its own full schedule; the learner joint trains for just as long.
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
from metaseg.training.last_checkpoint import latest

_NO_PART = (
    *WITHOUT_EFFECT,
    *("target", "pair.name", "pair.target", "evaluation", "adapt", "learner.adapt", "model.recipe", "protocol"),
    *("scale", "starts", "experiment", "table"),
)
"""Settings a shared start does not depend on."""

log = logging.getLogger(__name__)


def starting_point(settings: Run, learner: Learner, resumed: bool = False) -> str:
    """Resolve ``start`` for a learner: "model", "joint", or a checkpoint's path.

    ``start=auto`` follows the protocol for learners that train the model's network on the pair. Learners that train on
    the support set alone or on the target, or have their own network, start from their model.

    Args:
        settings: the resolved configuration.
        learner: the learner it describes.
        resumed: whether the run goes on from a checkpoint of its own, so that the one it started from may be gone.

    Raises:
        MetasegError: if the checkpoint does not exist, or the learner's network differs from the shared start's.
    """
    start, chosen = settings.start, settings.learner
    own, of_target = chosen.network is not None, chosen.train_on == "target"
    if start == "auto":
        return settings.protocol.start if learner.trains and not (own or of_target) else "model"
    if start == "joint" and (own or of_target):
        reason = "has its own network" if own else "trains on the target"
        raise MetasegError(
            f"start=joint loads the model's weights after joint training on the pair, found learner={chosen.name}, "
            f"which {reason}; set start=model."
        )
    if start in ("model", "joint"):
        return start
    path = Path(start)
    path = RunDirectory(path).checkpoints / "best.ckpt" if path.is_dir() else path
    if not (path.is_file() or resumed):
        raise MetasegError(
            f"start must be auto, model, joint, or an existing run directory or checkpoint, found {start!r}."
        )
    return str(path)


def go_to(start: str, settings: Run, learner: Learner) -> None:
    """Load the weights named by `starting_point` into a learner; runs joint training first if needed.

    Raises:
        MetasegError: if the checkpoint belongs to another network.
    """
    if start == "model":
        return
    load_weights(learner, _joint(settings) if start == "joint" else Path(start))


def joint_settings(settings: Run) -> Run:
    """The settings of the joint training shared by learners with these settings."""
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
    """The directory of the joint training of `joint_settings`; its name encodes the settings it depends on."""
    known = {path: value for path, value in leaves(settings.plain).items() if not within(path, _NO_PART)}
    key = hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()[:10]
    return Path(settings.starts.dir) / f"{settings.pair.name}-seed{settings.seed}-{key}"


def _joint(settings: Run) -> Path:
    """The best checkpoint of the shared joint training, which is started or resumed if needed."""
    settings = joint_settings(settings)
    directory = RunDirectory(directory_of(settings))
    best = directory.checkpoints / "best.ckpt"
    directory.path.mkdir(parents=True, exist_ok=True)
    first = getattr(rank_zero_only, "rank", 0) == 0
    lock = FileLock(directory.path / ".start.lock")
    if first:
        lock.acquire()  # another run of the sweep may be training it
    try:
        if directory.trained.is_file():
            log.info("All learners of this comparison start from %s, which exists already.", best)
            return best
        log.info("All learners of this comparison start from joint training: %s.", directory.path)
        resumed = latest(directory)
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

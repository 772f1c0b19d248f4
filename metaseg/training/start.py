"""Starting points of learners: the model's initial weights, a checkpoint, or a shared training run.

Comparing learners that start from different weights also compares the weights. ``start=joint`` therefore starts all of
them from joint training on the pair: a separate run, made once by the first of the runs that agree in all settings it
depends on (all but `_NO_PART`), such as pair, model, tasks and seed. Each learner then trains with its own full
schedule; the learner joint trains for just as long.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import lightning as L
from filelock import FileLock, Timeout
from lightning.pytorch.utilities import rank_zero_only

from metaseg import tracking
from metaseg.data.module import EpisodicData
from metaseg.documents import read_json
from metaseg.errors import MetasegError
from metaseg.learners.base import Learner
from metaseg.learners.build import build_learner
from metaseg.learners.checkpoints import read_checkpoint, restore
from metaseg.runs.directory import RunDirectory, write_json
from metaseg.runs.schema import Run
from metaseg.runs.settings import WITHOUT_EFFECT, leaves, within
from metaseg.runs.validation import checked
from metaseg.training.fitting import fit
from metaseg.training.last_checkpoint import latest
from metaseg.training.process import connected

_NO_PART = (
    *WITHOUT_EFFECT,
    *("target", "pair.name", "pair.target", "evaluation", "adapt", "learner.adapt", "model.recipe", "protocol"),
    *("scale", "starts"),
)
"""Settings a shared start does not depend on."""

log = logging.getLogger(__name__)


def starting_point(settings: Run, learner: Learner | type[Learner], resumed: bool = False) -> str:
    """Resolve ``start`` for a learner: "model", "joint", or a checkpoint's path.

    ``start=auto`` follows the protocol for learners that train the model's network on the pair. Learners that train on
    the support set alone or on the target, or have their own network, start from their model, as does ``train=false``.

    Args:
        settings: the resolved configuration.
        learner: the learner it describes, or its class.
        resumed: whether the run goes on from a checkpoint of its own, so that the one it started from may be gone.

    Raises:
        MetasegError: if the checkpoint does not exist, or the learner's network differs from the shared start's.
    """
    start, chosen = settings.start, settings.learner
    own, of_target = chosen.network is not None, chosen.train_on == "target"
    if start == "auto":
        trains = settings.train and learner.trains
        return settings.protocol.start if trains and not (own or of_target) else "model"
    if start == "joint" and (own or of_target):
        reason = "has its own network" if own else "trains on the target"
        raise MetasegError(
            f"start=joint loads the model's weights after joint training on the pair, found learner={chosen.name}, "
            f"which {reason}; set start=model."
        )
    if start in ("model", "joint"):
        return start
    path = Path(start)
    path = RunDirectory(path).best if path.is_dir() else path
    if not (path.is_file() or resumed):
        raise MetasegError(
            f"start must be auto, model, joint, or an existing run directory or checkpoint, found {start!r}."
        )
    return str(path)


def data_of(start: str, settings: Run, data: EpisodicData) -> EpisodicData | None:
    """The data that a shared start is trained on; None: the run has none.

    Args:
        start: the result of `starting_point`.
        settings: the resolved configuration.
        data: of the run itself, with the same images.

    Raises:
        MetasegError: if there are too few images for the start's shots and query images.
    """
    if start != "joint":
        return None
    shared = data.under(joint_settings(settings))
    try:
        shared.setup()
    except MetasegError as error:
        raise MetasegError(f"The shared start takes starts.shots and starts.query images: {error}") from error
    return shared


def load_start(start: str, learner: Learner, data: EpisodicData | None) -> None:
    """Load the weights named by `starting_point` into a learner; runs joint training first if needed.

    Args:
        start: the result of `starting_point`.
        learner: the learner to load them into.
        data: the result of `data_of`.

    Raises:
        MetasegError: if the checkpoint belongs to another network, or the shared start was trained on other images.
    """
    if start == "model":
        return
    checkpoint = read_checkpoint(Path(start) if data is None else _joint(data))
    restore(learner, learner.as_start(checkpoint))


def recorded(start: str, settings: Run) -> str:
    """The result of `starting_point` for result.json: of "joint" the checkpoint, whose path tells its settings."""
    return str(RunDirectory(directory_of(joint_settings(settings))).best) if start == "joint" else start


def joint_settings(settings: Run) -> Run:
    """The settings of the joint training shared by learners with these settings."""
    plain = settings.plain
    shared, learner = plain["starts"], plain["learner"]
    joint = {
        **plain,
        "learner": {**shared["learner"], "train_images": learner.get("train_images")},
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


def _joint(data: EpisodicData) -> Path:
    """The best checkpoint of the shared joint training, which is started or resumed if needed."""
    settings = data.settings
    images, directory = data.state_dict(), RunDirectory(directory_of(settings))
    directory.path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory.start_lock)
    try:
        trained = _is_trained(directory, lock, connected(settings.trainer))
        _require_images(directory, images)
        if trained:
            log.info("All learners of this comparison start from %s, which exists already.", directory.best)
            return directory.best
        log.info("All learners of this comparison start from joint training: %s.", directory.path)
        resumed = latest(directory)
        if _is_first():
            directory.write_config(settings.plain)
            write_json(directory.images, images)
        learner = build_learner(settings)
        loggers = tracking.build_loggers(settings.logger, directory, settings.plain, resume=resumed is not None)
        fit(settings, learner, data, loggers, directory, resumed)
        return directory.best
    finally:
        lock.release()


def _require_images(directory: RunDirectory, images: Mapping[str, str]) -> None:
    """Refuse a start that was trained, in part or in whole, on other images under the same names.

    Raises:
        MetasegError: if it was.
    """
    # Without a record it is new, or was made before images were recorded.
    trained_on = read_json(directory.images) if directory.images.is_file() else images
    if changed := sorted(name for name in images if images[name] != trained_on.get(name)):
        raise MetasegError(
            f"{directory.path} was trained on other images of {', '.join(changed)} than those in data.root now; delete "
            "that folder to train the start again, or keep both with another starts.dir."
        )


def _is_first() -> bool:
    return bool(getattr(rank_zero_only, "rank", 0) == 0)


def _is_trained(directory: RunDirectory, lock: FileLock, ranks: L.Fabric | None) -> bool:
    """Whether the start exists, once no other run of the sweep is training it; rank zero then holds the lock.

    All ``ranks`` get the answer of rank zero, because a start that another run finishes exists for some ranks only, if
    each looks when it arrives. Ranks that `fit` launches arrive while rank zero trains, so they find what it has found.
    """
    if ranks is None:
        if _is_first():
            lock.acquire()
        return directory.trained.is_file()
    found = None
    while found is None:  # in turns of a second, as connections time out and a rank that waits hears no signal
        if _is_first():
            with suppress(Timeout):
                lock.acquire(timeout=1)
                found = directory.trained.is_file()
        found = ranks.broadcast(found)
    return found

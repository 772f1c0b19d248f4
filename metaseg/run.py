"""One run: train a learner on the episodes of a pair, meta-test it on each target, leave a directory of results."""

import json
import logging
import time
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_class
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from torch import nn

from metaseg import provenance, tracking
from metaseg.callbacks import callbacks
from metaseg.data.module import EpisodicData
from metaseg.errors import MetasegError
from metaseg.evaluation import metatest
from metaseg.evaluation.work import watcher
from metaseg.learners.base import Learner
from metaseg.meta.losses import LOSSES
from metaseg.networks.build import build
from metaseg.process import interruptible, prepare_process
from metaseg.progress import Progress
from metaseg.reporting.figures import adaptation_curve, learning_curves
from metaseg.reporting.overlays import OverlayRow, best_median_worst, overlay, overlay_sheet
from metaseg.reporting.summary import print_summary
from metaseg.rundir import RunDirectory, replacing
from metaseg.settings import leaves
from metaseg.watching import WatchedImages

NOT_THE_LEARNERS = ("name", "train_on", "train_images", "unlabelled", "network")
"""Keys of a learner's configuration that its constructor does not take."""

NOT_THE_NETWORKS = ("norm", "recipe")
"""Keys of a model's configuration that say how it is used."""

FROM_SCRATCH = " from scratch"
"""What is added to a target's name where the learner that trains on the support set alone is meant."""


def run(config: DictConfig) -> dict[str, Any] | None:
    """Carry out a composed configuration.

    Returns:
        What was written to result.json; None on ranks other than zero.

    Raises:
        MetasegError: on settings, data or checkpoints that do not fit.
    """
    started = time.monotonic()
    quieten()
    settings: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    directory, checkpoint = prepare(settings)
    targets = [settings["target"]] if isinstance(settings["target"], str) else list(settings["target"])
    data = EpisodicData(
        pools=settings["pair"]["pools"],
        targets=targets,
        data=settings["data"],
        tasks=settings["tasks"],
        shots=settings["shots"],
        seed=settings["seed"],
        train_on=settings["learner"]["train_on"],
        train_images=settings["learner"].get("train_images"),
        unlabelled=settings["learner"].get("unlabelled", 0.0),
    )
    learner = build_learner(settings, settings["learner"])
    learner.settings = settings
    if settings["train"] and learner.trains:
        data.require_training_data()
    if checkpoint is not None:
        load_weights(learner, checkpoint)
    # Whatever could be refused has been by now: nothing was written, nothing of an earlier run is lost.
    with directory.held() if getattr(rank_zero_only, "rank", 0) == 0 else nullcontext():
        return carry_out(settings, learner, data, directory, checkpoint, started)


def carry_out(
    settings: dict[str, Any],
    learner: Learner,
    data: EpisodicData,
    directory: RunDirectory,
    checkpoint: Path | None,
    started: float,
) -> dict[str, Any] | None:
    """Train, test and write down; as `run`, once all is built. `started`: time.monotonic() at the start."""
    resumed = settings["train"] and checkpoint is not None
    begin(directory, settings, resumed)
    place = tracking.place(settings)
    loggers = tracking.build_loggers(
        settings["logger"],
        directory,
        settings | {"cell": place.cell},
        group=place.group,
        tags=place.tags,
        name=f"{settings['learner']['name']}-{settings['shots']}shot-seed{settings['seed']}",
        job_type=settings["learner"]["name"],
        resume=resumed,
    )
    try:
        rank = fit(settings, learner, data, loggers, directory, checkpoint)
        if rank != 0:
            return None
        result = test(settings, learner, data, directory, loggers)
        result["settings"], result["data"] = settings, data.provenance()
        if learner.strengths is not None:
            result["lambda"] = learner.strengths.table()
        result["weights"] = None if learner.weights is None else learner.weights.to_dict()
        result["wall_seconds"] = time.monotonic() - started
        result["peak_memory_mib"] = provenance.peak_memory_mib()
        result["versions"], result["hardware"] = provenance.versions(), provenance.hardware()
        result["commit"], result["dirty"] = provenance.commit()
        directory.write_result(result)
        if settings["logger"]["artifacts"] and settings["train"] and learner.trains:
            tracking.log_checkpoint(loggers, place.model, directory, tracking.about_model(result, place.cell))
    except BaseException:
        tracking.finish(loggers, exit_code=1)
        raise
    tracking.finish(loggers)
    print_summary(result, directory)
    return result


def prepare(settings: Mapping[str, Any]) -> tuple[RunDirectory, Path | None]:
    """Set up the process for a run of train.py or pretrain.py; nothing is written.

    Returns:
        The run's directory, and the checkpoint it starts from.

    Raises:
        MetasegError: on a GPU that this torch has no kernels for, or a checkpoint that is not there.
    """
    directory = RunDirectory(Path(HydraConfig.get().runtime.output_dir))
    if settings["trainer"]["accelerator"] != "cpu":
        provenance.check_gpu()
    prepare_process(settings["trainer"]["tf32"])
    checkpoint = find_checkpoint(settings["ckpt_path"], directory)
    L.seed_everything(settings["seed"], workers=True, verbose=False)
    return directory, checkpoint


def quieten() -> None:
    """Leave out what the libraries say that no user of this program can act on."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated.*")
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # some networks stay so


def build_learner(settings: Mapping[str, Any], learner: Mapping[str, Any], initial_weights: bool = True) -> Learner:
    """The learner that a configuration describes, with its network at the initial weights.

    Args:
        settings: the whole configuration, resolved.
        learner: the group ``learner``, of this run or of another learner that is compared with it.
        initial_weights: False leaves pre-trained initial weights out, for when others take their place anyway.

    Raises:
        MetasegError: on an unknown loss, network or value.
    """
    if settings["loss"] not in LOSSES:
        raise MetasegError(f"loss must be one of {', '.join(LOSSES)}, found {settings['loss']!r}.")
    network = build_network(settings, learner, initial_weights)
    norm = settings["model"]["norm"]
    arguments = {key: value for key, value in learner.items() if key not in NOT_THE_LEARNERS}
    kind = get_class(arguments.pop("_target_"))
    return kind(network=network, loss=LOSSES[settings["loss"]], norm=norm, **arguments)


def build_network(settings: Mapping[str, Any], learner: Mapping[str, Any], initial_weights: bool = True) -> nn.Module:
    """The network of the group ``model``, or the learner's own where its configuration has one under ``network``.

    Args:
        settings: the whole configuration, resolved.
        learner: the group ``learner``.
        initial_weights: as of `build_learner`.

    Raises:
        MetasegError: on an unknown network or value.
    """
    own = learner.get("network")
    if own is None:
        model = {key: value for key, value in settings["model"].items() if key not in NOT_THE_NETWORKS}
        return build(**model, seed=settings["seed"], initial_weights=initial_weights)
    arguments = dict(own)
    kind = get_class(arguments.pop("_target_"))
    if not initial_weights and "encoder_weights" in arguments:
        arguments["encoder_weights"] = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings["seed"])
        network: nn.Module = kind(**arguments)
    return network


def find_checkpoint(ckpt_path: str | None, directory: RunDirectory) -> Path | None:
    """The checkpoint that ``ckpt_path`` names: "last" is that of the run directory.

    Raises:
        MetasegError: if there is none.
    """
    if ckpt_path is None:
        return None
    path = directory.checkpoints / "last.ckpt" if ckpt_path == "last" else Path(ckpt_path)
    if not path.is_file():
        remedy = "; set hydra.run.dir to the directory of the run to continue" if ckpt_path == "last" else ""
        raise MetasegError(f"ckpt_path={ckpt_path} should lead to a checkpoint, but {path} does not exist{remedy}.")
    return path


def load_weights(learner: L.LightningModule, path: Path) -> None:
    """Load a checkpoint's parameters into a learner, or into what pre-trains; nothing in the file is executed.

    Raises:
        MetasegError: if the file is no checkpoint, or one of another architecture.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise MetasegError(f"{path} should be a checkpoint of metaseg, but cannot be read: {error}.") from error
    learner.on_load_checkpoint(state)
    learner.load_state_dict(state["state_dict"])


def fit(
    settings: Mapping[str, Any],
    learner: Learner,
    data: EpisodicData,
    loggers: list[Logger],
    directory: RunDirectory,
    checkpoint: Path | None,
) -> int:
    """Train, and leave the learner with the weights of the best validation loss; returns this process' rank."""
    if not (settings["train"] and learner.trains):
        return 0
    chosen, shown = settings["trainer"], settings["logger"]
    end = json.dumps([chosen[key] for key in ("max_epochs", "patience", "min_delta")])
    if settings["ckpt_path"] == "last" and directory.trained.is_file() and directory.trained.read_text() == end:
        load_weights(learner, directory.checkpoints / "best.ckpt")  # stopped by the same rule, and killed while testing
        return 0
    watching = callbacks(chosen, directory)
    if shown["overlay_every"] and tracking.draws(loggers):
        watching.append(WatchedImages(data, loggers, shown["overlay_every"], shown["overlay_images"]))
    trainer = L.Trainer(
        accelerator=chosen["accelerator"],
        devices=chosen["devices"],
        strategy=chosen["strategy"],
        precision=chosen["precision"],
        max_epochs=chosen["max_epochs"],
        logger=loggers,
        callbacks=watching,
        enable_progress_bar=False,  # one of the callbacks shows it
        enable_model_summary=False,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        inference_mode=False,
    )
    data.require_even_shares(trainer.world_size)
    with interruptible():
        trainer.fit(learner, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    if trainer.is_global_zero and (directory.checkpoints / "best.ckpt").is_file():
        load_weights(learner, directory.checkpoints / "best.ckpt")
        with replacing(directory.trained) as path:
            path.write_text(end)
    return trainer.global_rank


def test(
    settings: Mapping[str, Any],
    learner: Learner,
    data: EpisodicData,
    directory: RunDirectory,
    loggers: list[Logger],
) -> dict[str, Any]:
    """Meta-test on every target, beside training from scratch and the trivial baselines; writes scores and figures."""
    how = how_to_test(settings)
    learners, folds = {"": learner}, {"": settings["learner"]["adapt"].get("folds", 0)}
    if settings["evaluation"]["scratch"]["compare"] and learner.trains:
        learners[FROM_SCRATCH] = scratch_learner(settings)
        folds[FROM_SCRATCH] = settings["protocol"]["adapt"]["folds"]
    parts = {
        f"{name}{label}": metatest.work(one, target, how, folds[label])
        for name, target in data.targets.items()
        for label, one in learners.items()
    }
    device = "cuda" if settings["trainer"]["accelerator"] != "cpu" and torch.cuda.is_available() else "cpu"
    result: dict[str, Any] = {"targets": {}, "scratch": {}}
    rows: list[Mapping[str, Any]] = []
    total = sum(part.total for part in parts.values())
    with Progress("testing", total, "%", shown=settings["trainer"]["progress"]) as progress:
        for name, target in data.targets.items():
            scores = {
                label: metatest.score_target(one.to(device), target, how, watcher(progress, parts, f"{name}{label}"))
                for label, one in learners.items()
            }
            progress.note(f"{name}, trivial baselines")
            result["targets"][name] = metatest.summarise(scores[""], how.seed) | {
                "trivial": metatest.trivial_baselines(target, how)
            }
            rows += metatest.per_image_rows(name, target, scores[""])
            if FROM_SCRATCH in scores:
                of_scratch = metatest.summarise(scores[FROM_SCRATCH], how.seed)
                result["scratch"][name] = of_scratch["dsc"] | {"curve": of_scratch["curve"]}
            progress.note(f"{name}, figures")
            draw_figures(name, data, scores[""], result, directory, loggers)
        progress.update(total)
    directory.write_per_image(rows, settings["evaluation"]["compress"])
    if directory.metrics.is_file():
        learning_curves(directory.metrics, directory.learning_curves)
    tracking.log_table(loggers, "per_image", list(rows[0]), [list(row.values()) for row in rows])
    tracking.log_summary(loggers, tracking.final_numbers(result))
    tracking.log_rows(loggers, tracking.adaptation_points(result))
    return result


def how_to_test(settings: Mapping[str, Any]) -> metatest.Settings:
    """What a configuration says of testing."""
    chosen = settings["evaluation"]
    return metatest.Settings(
        shots=settings["shots"],
        seed=settings["seed"],
        draws=chosen["draws"],
        limit=chosen["limit"],
        batch=chosen["batch"],
        curve=tuple(chosen["curve"]),
        curve_limit=chosen["curve_limit"],
        augmentation=settings["data"]["augment"],
    )


def scratch_learner(settings: Mapping[str, Any]) -> Learner:
    """The learner of conf/learner/scratch.yaml, from the same initial weights as the run's."""
    learner = {
        "_target_": "metaseg.learners.scratch.Scratch",
        "adapt": settings["protocol"]["adapt"],
        "channels_last": settings["protocol"]["channels_last"],
    }
    return build_learner(settings, learner)


def draw_figures(
    name: str,
    data: EpisodicData,
    scores: metatest.Scores,
    result: Mapping[str, Any],
    directory: RunDirectory,
    loggers: list[Logger],
) -> None:
    """Overlays of the best, median and worst image, and the adaptation curve of one target."""
    pool = data.targets[name].pool
    sheet, pictures = [], []
    scored = np.flatnonzero(~np.isnan(scores.after[0]))
    for label, position in best_median_worst(scores.after[0, scored]).items():
        index = int(scored[position])
        (image,), (mask,) = pool.take([index])
        before, after = (metatest.picture(scores, when, index, mask.shape[1]) for when in ("before", "after"))
        title = f"{label}: {pool.ids[index]}, Dice {100 * scores.after[0, index]:.1f} %"
        sheet.append(OverlayRow(image, mask, before, after, title))
        pictures.append(overlay(image, mask, after))
    overlay_sheet(sheet, directory.overlays(name), name)
    tracking.log_images(loggers, f"overlays/{name}", pictures, [row.title for row in sheet])
    numbers = result["targets"][name]
    curves = {"trained": numbers["curve"]}
    if name in result["scratch"]:
        curves["from scratch"] = result["scratch"][name]["curve"]
    if numbers["curve"]["steps"]:
        adaptation_curve(curves, directory.adaptation_curve(name), numbers["trivial"], name)


@rank_zero_only
def begin(directory: RunDirectory, settings: Mapping[str, Any], resumed: bool) -> None:
    """Make the directory and write config.yaml; on resuming, print which settings changed. The new ones are used."""
    directory.create()
    if resumed and directory.config.is_file():
        old, new = leaves(OmegaConf.to_container(OmegaConf.load(directory.config))), leaves(settings)
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key) and key != "ckpt_path":
                print(f"resuming with {key}={new.get(key)} (was {old.get(key)})")
    with replacing(directory.config) as path:
        OmegaConf.save(OmegaConf.create(dict(settings)), path)

"""One run: train a learner on the episodes of a pair, meta-test it on each target, write the run directory."""

import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from metaseg import configuration, tracking
from metaseg.data.module import EpisodicData
from metaseg.errors import MetasegError, expanded, listed
from metaseg.evaluation import metatest
from metaseg.evaluation.sharing import Share
from metaseg.evaluation.work import reporter
from metaseg.learners.base import Learner
from metaseg.learners.build import build_learner
from metaseg.learners.checkpoints import load_weights
from metaseg.plots.figures import adaptation_curve, learning_curves
from metaseg.plots.overlays import OverlayRow, best_median_worst, overlay, overlay_sheet
from metaseg.progress import Progress
from metaseg.runs import provenance, schema, validation
from metaseg.runs.directory import PER_IMAGE_COLUMNS, RunDirectory
from metaseg.runs.result import VERSION, FromScratch, Result, TargetScores, Weights
from metaseg.runs.settings import CHANGEABLE, changed
from metaseg.runs.summary import print_summary, trivial_name
from metaseg.training.fitting import fit
from metaseg.training.last_checkpoint import latest
from metaseg.training.process import connected, device_of_tests, prepare_process, require_devices
from metaseg.training.start import data_of, load_start, recorded, starting_point

FROM_SCRATCH = " from scratch"
"""Suffix of a target's name for the learner trained on the support set alone."""


def run(config: DictConfig) -> Result | None:
    """Run a composed configuration.

    Returns:
        The content of result.json; None on ranks other than zero.

    Raises:
        MetasegError: on invalid settings, data or checkpoints.
    """
    started = time.monotonic()
    settings = validation.read(schema.Run, config)
    chosen = HydraConfig.get().runtime.choices.get("learner")
    if settings.learner.name != chosen:  # a copied file, say, whose results would fill the rows of another learner
        raise MetasegError(
            f"learner.name must be {chosen}, as its file in conf/learner, found {settings.learner.name}."
        )
    if settings.adapt.recipe == "quick" and settings.protocol.name == "paper":
        raise MetasegError(
            "adapt.recipe=quick chooses among the network's recipes, but protocol=paper has its own; set learner.adapt "
            "or protocol=tuned."
        )
    directory, checkpoint = prepare(settings)
    data = EpisodicData(settings)
    learner = build_learner(settings)  # before images are decoded, which can take minutes
    data.prepare_data()
    data.setup()
    if settings.evaluation.scratch.compare and learner.trains:
        # Check the requirements of testing before training.
        build_learner(settings, scratch_settings(settings), initial_weights=False)
    for target in data.targets.values():
        for draw in range(settings.evaluation.draws):
            metatest.drawn(target, settings, draw)
    if settings.train and learner.trains:
        data.require_training_data()
    if checkpoint is not None:
        load_weights(learner, checkpoint)
    resumed = is_own(directory, checkpoint)
    start = starting_point(settings, learner, resumed) if checkpoint is None or resumed else str(checkpoint)
    of_start = data_of(start, settings, data) if checkpoint is None else None
    # All checks have passed; nothing has been written yet, so a refused run leaves earlier results intact.
    with directory.held() if getattr(rank_zero_only, "rank", 0) == 0 else nullcontext():
        return train_and_test(settings, learner, data, directory, checkpoint, start, of_start, started)


def train_and_test(
    settings: schema.Run,
    learner: Learner,
    data: EpisodicData,
    directory: RunDirectory,
    checkpoint: Path | None,
    start: str,
    of_start: EpisodicData | None,
    started: float,
) -> Result | None:
    """Train, test and write results, like `run` after setup.

    Args:
        settings: the resolved configuration.
        learner: with the weights of the checkpoint or of its model.
        data: training and test data.
        directory: the run directory.
        checkpoint: to resume training from.
        start: where the weights come from: the result of `starting_point`, or the checkpoint of another run.
        of_start: the result of `data_of`.
        started: time.monotonic() at the start.
    """
    resumed = settings.train and checkpoint is not None
    begin(directory, settings, resumed)
    labels = tracking.labels_of(settings)
    loggers = tracking.build_loggers(
        settings.logger,
        directory,
        settings.plain | {"cell": labels.cell},
        group=labels.group,
        tags=labels.tags,
        name=labels.name,
        job_type=settings.learner.name,
        resume=resumed,
    )
    try:
        if checkpoint is None:
            load_start(start, learner, of_start)
        device = device_of_tests(settings.trainer, fit(settings, learner, data, loggers, directory, checkpoint))
        parts = score(settings, learner, data, device, Share.here())
        if parts is None:
            return None
        targets, scratch = summarise(settings, parts, data, directory, loggers)
        learned: dict[str, Any] = {} if learner.strengths is None else {"lambda": learner.strengths.table()}
        result = Result(
            version=VERSION,
            targets=targets,
            scratch=scratch,
            data=data.provenance(),
            settings=settings.plain,
            compute=directory.read_compute(),
            start=recorded(start, settings),
            weights=None if learner.weights is None else Weights.model_validate(learner.weights.to_dict()),
            **learned,
            **provenance.of_run(started),
        )
        directory.write_result(result)
        tracking.log_summary(loggers, tracking.summary_of(result))
        tracking.log_rows(loggers, tracking.adaptation_points(result))
        if settings.logger.artifacts and settings.train and learner.trains:
            tracking.log_checkpoint(
                loggers, labels.name, directory, tracking.about_model(settings, result, labels.cell)
            )
    except BaseException:
        tracking.finish(loggers, exit_code=1)
        raise
    tracking.finish(loggers)
    print_summary(result, directory)
    return result


def prepare(settings: schema.Run | schema.Pretraining) -> tuple[RunDirectory, Path | None]:
    """Set up the process for a run of train.py or pretrain.py, without writing anything.

    Returns:
        The run directory, and the checkpoint to start from.

    Raises:
        MetasegError: on too few GPUs, a GPU this torch has no kernels for, a checkpoint that is missing or not this
            run's, or a directory that holds another run.
    """
    directory = RunDirectory(Path(HydraConfig.get().runtime.output_dir))
    if settings.trainer.accelerator not in ("cpu", "mps"):
        provenance.check_gpu()
    require_devices(settings.trainer)
    prepare_process(settings.trainer.tf32)
    ranks = connected(settings.trainer)
    if ranks is not None and ranks.world_size > 1 and not configuration.names_its_folder():
        raise MetasegError(
            f"{ranks.world_size} processes must share a folder, but the default holds the time, which differs between "
            "them: set hydra.run.dir."
        )
    checkpoint = find_checkpoint(settings.ckpt_path, directory)
    if checkpoint is not None and (isinstance(settings, schema.Pretraining) or settings.train):
        require_resumable(directory, checkpoint, settings)
    refuse_another(directory, checkpoint)
    L.seed_everything(settings.seed, workers=True, verbose=False)
    return directory, checkpoint


def require_resumable(directory: RunDirectory, checkpoint: Path, settings: schema.Run | schema.Pretraining) -> None:
    """Refuse to train on from anything but the run's own state, with its own settings.

    Epochs, optimiser and best loss would be another run's, and the result would name settings that were not in force
    all the time. How long training lasts and how it is tested may change (`CHANGEABLE`).

    Raises:
        MetasegError: if the checkpoint is that of another run, holds the best weights alone, or was trained with other
            settings.
    """
    if not is_own(directory, checkpoint) or checkpoint.name == "best.ckpt":
        raise MetasegError(
            f"ckpt_path resumes the run in hydra.run.dir, so it must be last, found {checkpoint}; in metaseg "
            f"train, start={checkpoint} begins a new run from its weights, and train=false tests them."
        )
    if not directory.config.is_file():
        return
    if apart := changed(directory.read_config(), settings.plain, CHANGEABLE):
        raise MetasegError(
            f"ckpt_path=last resumes the run with its own settings, but found {listed(apart, 3)}; leave these out, or "
            "choose another hydra.run.dir."
        )


@rank_zero_only
def refuse_another(directory: RunDirectory, checkpoint: Path | None) -> None:
    """Refuse to write over a run that is not continued or tested from a checkpoint of its own.

    Raises:
        MetasegError: if the directory holds one.
    """
    if is_own(directory, checkpoint):
        return
    found = next((path for path in (directory.result, directory.last, directory.best) if path.is_file()), None)
    if found is not None:
        # Saved just before the first last.ckpt: the run was killed in between.
        way = (
            "delete that file, from which no run can be resumed"
            if found == directory.best
            else "continue it with ckpt_path=last"
        )
        raise MetasegError(
            f"{directory.path} holds another run ({found.relative_to(directory.path)}): {way}, or choose another "
            "hydra.run.dir."
        )


def is_own(directory: RunDirectory, checkpoint: Path | None) -> bool:
    """Whether a checkpoint is one of this run's."""
    return checkpoint is not None and checkpoint.resolve().parent == directory.checkpoints.resolve()


def find_checkpoint(ckpt_path: str | None, directory: RunDirectory) -> Path | None:
    """The checkpoint named by ``ckpt_path``; "last" is the run directory's, or the one before if that is damaged.

    Raises:
        MetasegError: if there is none.
    """
    if ckpt_path is None:
        return None
    path = latest(directory) if ckpt_path == "last" else expanded(ckpt_path)
    if path is None:
        raise MetasegError(
            f"ckpt_path=last must find a checkpoint, but {directory.last} does not exist; set hydra.run.dir to the "
            "directory of the run to resume."
        )
    path = RunDirectory(path).best if path.is_dir() else path
    if not path.is_file():
        raise MetasegError(f"ckpt_path={ckpt_path} must name a checkpoint or a run, but {path} does not exist.")
    return path


def score(
    settings: schema.Run, learner: Learner, data: EpisodicData, device: str, share: Share
) -> dict[str, metatest.Scores] | None:
    """Meta-test on every target, and likewise from scratch, shared by the processes that trained together.

    Args:
        settings: the resolved configuration.
        learner: the trained learner.
        data: with the targets.
        device: where to compute.
        share: of this process.

    Returns:
        Target, with `FROM_SCRATCH` appended for training from scratch → scores; None on ranks other than zero.
    """
    learners = {"": learner}
    if settings.evaluation.scratch.compare and learner.trains:
        learners[FROM_SCRATCH] = build_learner(settings, scratch_settings(settings))
    parts = {
        f"{name}{label}": metatest.work(one, target, settings)
        for name, target in data.targets.items()
        for label, one in learners.items()
    }
    total = sum(part.total for part in parts.values())
    found = {}
    with Progress("testing", total, "%", shown=settings.trainer.progress and not share.rank) as progress:
        for name, target in data.targets.items():
            for label, one in learners.items():
                report = reporter(progress, parts, f"{name}{label}")
                found[f"{name}{label}"] = metatest.score_target(one.to(device), target, settings, report, share)
        if share.of > 1:
            progress.note("waiting for the other processes")
        gathered = share.gathered(found)
        progress.update(total)
    if share.rank:
        return None
    return {name: metatest.Scores.whole([one[name] for one in gathered]) for name in found}


def summarise(
    settings: schema.Run,
    scores: Mapping[str, metatest.Scores],
    data: EpisodicData,
    directory: RunDirectory,
    loggers: list[Logger],
) -> tuple[dict[str, TargetScores], dict[str, FromScratch]]:
    """The results of `score` with the trivial baselines; writes scores and figures."""
    found: dict[str, TargetScores] = {}
    scratch: dict[str, FromScratch] = {}
    rows: list[Mapping[str, Any]] = []
    for name, target in data.targets.items():
        own, beside = scores[name], scores.get(f"{name}{FROM_SCRATCH}")
        found[name] = metatest.summarise(own, target, settings.seed, metatest.trivial_baselines(target, settings))
        rows += metatest.per_image_rows(name, target, own)
        if beside is not None:
            scratch[name] = metatest.from_scratch(beside, target, settings.seed)
        draw_figures(name, data, own, found[name], scratch.get(name), directory, loggers)
    directory.write_per_image(rows, settings.evaluation.compress)
    if directory.metrics.is_file():
        learning_curves(directory.metrics, directory.learning_curves)
    cells = [[row[column] for column in PER_IMAGE_COLUMNS] for row in rows]
    tracking.log_table(loggers, "per_image", PER_IMAGE_COLUMNS, cells)
    return found, scratch


def scratch_settings(settings: schema.Run) -> schema.Learner:
    """The learner of conf/learner/scratch.yaml under the run's protocol; its start is worth no images."""
    protocol = settings.protocol
    return schema.Learner(
        _target_="metaseg.learners.scratch.Scratch",
        name="scratch",
        train_on="source",
        adapt=protocol.adapt.model_copy(update={"start_worth": 0.0}),
        channels_last=protocol.channels_last,
    )


def draw_figures(
    name: str,
    data: EpisodicData,
    scores: metatest.Scores,
    summary: TargetScores,
    scratch: FromScratch | None,
    directory: RunDirectory,
    loggers: list[Logger],
) -> None:
    """Draw one target's best, median and worst image as overlays, and its adaptation curve."""
    pool = data.targets[name].pool
    sheet, pictures = [], []
    scored = np.flatnonzero(~np.isnan(scores.after[0]))
    for label, position in best_median_worst(scores.after[0, scored]).items():
        index = int(scored[position])
        (image,), (mask,) = pool.take([index])
        before = metatest.picture(scores, "before", index, mask.shape[1]) if scores.pictures["before"] else None
        after = metatest.picture(scores, "after", index, mask.shape[1])
        title = f"{label}: {pool.ids[index]}, Dice {100 * scores.after[0, index]:.1f} %"
        sheet.append(OverlayRow(image, mask, before, after, title))
        pictures.append(overlay(image, mask, after))
    overlay_sheet(sheet, directory.overlays(name), name)
    tracking.log_images(loggers, f"overlays/{name}", pictures, [row.title for row in sheet])
    curves = {"trained": summary.curve}
    if scratch is not None:
        curves["from scratch"] = scratch.curve
    if summary.curve.steps:
        measured, whole = (np.count_nonzero(~np.isnan(one[0])) for one in (*scores.curve.values(), scores.after)[-2:])
        title = name if measured == whole else f"{name}: curves of {measured} images, grey lines of {whole}"
        trivial = {trivial_name(key): value for key, value in summary.trivial.items()}
        adaptation_curve(curves, directory.adaptation_curve(name), trivial, title)


@rank_zero_only
def begin(directory: RunDirectory, settings: schema.Run | schema.Pretraining, resumed: bool) -> None:
    """Create the directory and write config.yaml; on resuming, print changed settings, which are `CHANGEABLE`."""
    directory.create()
    if resumed and directory.config.is_file():
        for one in changed(directory.read_config(), settings.plain, ("ckpt_path",)):
            print(f"resuming with {one}")
    directory.write_config(settings.plain)

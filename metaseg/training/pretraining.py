"""Pre-training: the U-Net without attention gates on brain MRI, saved in torch hub's layout for model.init=brain_mri.

Settings and procedure are those of Buda et al. 2019 (arXiv 1906.03720) and their public code [B]; [D] marks our
decisions. The network is trained on MRI with intensities z-scored per volume and later receives photographs in [-1, 1],
as in the paper, whose networks start from the authors' file.
"""

import re
import shlex
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig
from scipy import ndimage
from torch import Tensor

from metaseg import tracking
from metaseg.data.mri.slices import Batch, BrainMRI, WholeVolumes
from metaseg.data.mri.volumes import Volume
from metaseg.errors import MetasegError
from metaseg.evaluation import scores
from metaseg.interruption import Interruption
from metaseg.learners.checkpoints import load_weights, read_checkpoint, restore
from metaseg.meta.losses import dice
from metaseg.networks.attention_unet import UNet
from metaseg.networks.brain_mri import save_in_hub_layout
from metaseg.networks.build import build
from metaseg.networks.functional import forward, running_statistics, update_running
from metaseg.plots.figures import learning_curves
from metaseg.progress import Progress
from metaseg.runs import provenance, schema, validation
from metaseg.runs.directory import RunDirectory
from metaseg.runs.result import PretrainingResult, SliceScores, VolumeScores
from metaseg.training.callbacks import callbacks
from metaseg.training.network_module import NetworkModule
from metaseg.training.process import trainer_of
from metaseg.training.run import begin, prepare

MONITOR = "validation/dice"


def run(config: DictConfig) -> PretrainingResult:
    """Run a composed configuration of conf/pretrain.yaml.

    Returns:
        The content of result.json.

    Raises:
        MetasegError: on invalid settings, data or checkpoints.
    """
    started = time.monotonic()
    settings = validation.read(schema.Pretraining, config)
    directory, checkpoint = prepare(settings)
    module = Pretraining(
        build(name="unet", features=settings.model.features, seed=settings.seed), settings.optimizer.lr
    )
    if checkpoint is not None:
        load_weights(module, checkpoint)
    data = BrainMRI(settings.data, settings.seed)
    # All checks have passed; nothing has been written yet, so a refused run leaves earlier results intact.
    with directory.held():
        return train_and_save(settings, module, data, directory, checkpoint, started)


def train_and_save(
    settings: schema.Pretraining,
    module: "Pretraining",
    data: BrainMRI,
    directory: RunDirectory,
    checkpoint: Path | None,
    started: float,
) -> PretrainingResult:
    """Train, test and write results, like `run` after setup. `started`: time.monotonic() at the start."""
    begin(directory, settings, checkpoint is not None)
    name = f"unet{settings.model.features}-seed{settings.seed}"
    loggers = tracking.build_loggers(
        settings.logger, directory, settings.plain, "brain_mri", name=name, job_type="pretrain", resume=bool(checkpoint)
    )
    try:
        epoch = fit(settings, module, data, loggers, directory, checkpoint)
        result = PretrainingResult(
            weights=save_in_hub_layout(module.network, directory.path).name,
            validation=VolumeScores(**evaluate(module, data.validation, settings.trainer.progress), epoch=epoch),
            training=SliceScores(
                patients=len(data.training),
                slices=sum(len(volume.masks) for volume in data.training),
                steps_per_epoch=len(data.batches),
            ),
            **provenance.of_run(started),
            settings=settings.plain,
        )
        directory.write_result(result)
        learning_curves(directory.metrics, directory.learning_curves)
        tracking.log_summary(loggers, {"validation/best_dice": result.validation.dice})
    except BaseException:
        tracking.finish(loggers, exit_code=1)
        raise
    tracking.finish(loggers)
    print_summary(result.validation, directory.path / result.weights, settings.model.features, directory)
    return result


class Pretraining(NetworkModule):
    """Supervised training of a U-Net on brain-MRI slices; validation by volume.

    Training normalises by the batch and updates the running statistics, which validation uses [B] and the saved file
    contains: it loads into `nn.BatchNorm2d` in evaluation mode as well as into this project's layers.

    Args:
        network: the U-Net.
        lr: Adam's learning rate.
    """

    network: UNet

    def __init__(self, network: torch.nn.Module, lr: float) -> None:
        super().__init__()
        assert isinstance(network, UNet)
        self.network = network
        self.lr = lr
        self._scores: list[dict[str, float]] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam [B]."""
        return torch.optim.Adam(self.network.parameters(), lr=self.lr)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch (B, 3, S, S)."""
        images, masks = batch
        logits, statistics = forward(self.network, {}, images)
        update_running(self.network, statistics)
        loss = batch_dice_loss(logits, masks)
        if not torch.isfinite(loss):
            raise MetasegError(f"The loss of step {self.global_step} is not finite; lower optimizer.lr.")
        self.log("train/loss", loss, batch_size=1)
        self.log("loss", loss, prog_bar=True, logger=False, batch_size=1)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Segment and score one volume (N, 3, S, S)."""
        images, masks = batch
        logits = self.segment(images)
        self._scores.append(
            score_volume((logits > 0).cpu().numpy(), masks.cpu().numpy() > 0)
            | {"loss": batch_dice_loss(logits, masks).item()}
        )

    def on_validation_epoch_end(self) -> None:
        """Log the mean over the validation patients."""
        mean = pd.DataFrame(self._scores).mean()
        self._scores.clear()
        self.log_dict({f"validation/{name}": value for name, value in mean.items()})
        self.log("dice", mean["dice"], prog_bar=True, logger=False)

    @torch.no_grad()
    def segment(self, images: Tensor, at_once: int = 16) -> Tensor:
        """Logits (N, 1, S, S) of slices (N, 3, S, S) with the running statistics, ``at_once`` slices at a time."""
        statistics = running_statistics(self.network)
        return torch.cat([forward(self.network, {}, part, statistics)[0] for part in images.split(at_once)])


def batch_dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Dice loss with smoothing 1 over all pixels of a batch [B].

    Per slice, as in the losses of train.py, the two thirds of slices without tumour would outweigh the others.
    """
    return dice(logits.reshape(1, -1), masks.reshape(1, -1))


def score_volume(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Dice of one volume, bool (N, 1, S, S) each: fractions in [0, 1].

    Returns:
        dice: over all voxels, of the prediction's largest 3-D connected component only [B]; dice_unfiltered: likewise
            for the whole prediction; dice_slices: mean Dice per slice over slices with tumour, unfiltered, NaN if there
            are none. 1 if both are empty.
    """
    prediction, truth = prediction[:, 0], truth[:, 0]
    shown = truth.any(axis=(1, 2))
    return {
        "dice": scores.pooled_dice(largest_component(prediction), truth),
        "dice_unfiltered": scores.pooled_dice(prediction, truth),
        "dice_slices": float(scores.dice(prediction[shown], truth[shown]).mean()) if shown.any() else float("nan"),
    }


def largest_component(voxels: np.ndarray) -> np.ndarray:
    """The largest face-connected component of voxels (N, S, S); all False if there is none."""
    labels, count = ndimage.label(voxels)
    if count < 2:
        return voxels
    return labels == 1 + np.bincount(labels.ravel())[1:].argmax()


def evaluate(module: Pretraining, volumes: list[Volume], shown: bool = False) -> dict[str, Any]:
    """Scores of the current network: means over the volumes, and Dice per patient.

    Args:
        module: holds the network.
        volumes: at least one.
        shown: whether to show progress.
    """
    items = WholeVolumes(volumes)
    found = []
    with Progress("scoring", len(items), "patients", shown=shown) as progress:
        for index in range(len(items)):
            images, masks = items[index]
            found.append(score_volume((module.segment(images.to(module.device)) > 0).cpu().numpy(), masks.numpy() > 0))
            progress.update(len(found))
    by_patient = {volume.patient: one["dice"] for volume, one in zip(volumes, found, strict=True)}
    return pd.DataFrame(found).mean().to_dict() | {"patients": by_patient}


def fit(
    settings: schema.Pretraining,
    module: Pretraining,
    data: BrainMRI,
    loggers: list[Any],
    directory: RunDirectory,
    checkpoint: Path | None,
) -> int:
    """Train, load the weights with the best validation Dice, and return their epoch, from 0.

    Raises:
        KeyboardInterrupt: if the user interrupts; no weights should be written then.
    """
    chosen = settings.trainer
    interruption = Interruption()
    trainer = trainer_of(chosen, loggers, callbacks(chosen, directory, interruption, MONITOR, "max"))
    with interruption.heeded():
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    # Back from trainer.precision=64-true, and from the CPU, to which Lightning moves it at the end.
    module.float().to(trainer.strategy.root_device)
    best = read_checkpoint(directory.best)
    restore(module, best)
    return int(best["epoch"])


def print_summary(found: VolumeScores, path: Path, features: int, directory: RunDirectory) -> None:
    """Print the validation Dice, the paths, and the command that trains from the weights."""
    by_slice = "unknown" if found.dice_slices is None else f"{100 * found.dice_slices:.1f} %"
    print(
        f"validation Dice of {len(found.patients)} patients: {100 * found.dice:.1f} % by volume, {by_slice} by slice "
        f"with tumour (best epoch: {found.epoch})"
    )
    print(f"weights     {path}\nresult      {directory.result}")
    print(f"next: {next_command(path, features)}")


def next_command(path: Path, features: int) -> str:
    """The command that trains from the weights, ready to paste into a shell."""
    # Hydra needs quotes around values with =, commas or blanks, as in sweep folders; the shell strips one layer.
    plain = re.fullmatch(r"[\w./-]+", str(path))
    argument = f"model.init_path={path}" if plain else shlex.quote(f"model.init_path='{path}'")
    return f"metaseg train model.init=brain_mri {argument} model.features={features}"

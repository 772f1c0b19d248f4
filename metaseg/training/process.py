"""Process-wide settings: memory allocation, TF32, devices, Lightning's trainer."""

import ctypes
import os
import signal
import sys
from contextlib import suppress
from datetime import timedelta
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.strategies import DDPStrategy as FabricDDP
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy

from metaseg.errors import MetasegError
from metaseg.runs import schema

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""Parameters of glibc's mallopt (malloc.h)."""

_PARENT_DEATH_SIGNAL = 1
"""An option of Linux' prctl (sys/prctl.h)."""

_TURNS = timedelta(hours=6)
"""How long a rank waits for the others: in the meta-test, one may adapt to a draw more than another."""


def prepare_process(tf32: bool) -> None:
    """Set up the process for training.

    Freed memory stays with the process: by default glibc returns it to the system, which zero-fills every page when it
    is allocated again, so each training step would pay for its activations again (see docs/meta_gradients.md). No
    effect without glibc.

    Args:
        tf32: whether convolutions and matrix products on a GPU may round their inputs to TF32's 10 bits. PyTorch allows
            it for convolutions by default.
    """
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            library = ctypes.CDLL(None)
            # 32 MiB is glibc's maximum; larger blocks are rare.
            for parameter, value in ((_TRIM_THRESHOLD, 2**31 - 1), (_MMAP_THRESHOLD, 2**25), (_TOP_PAD, 2**26)):
                library.mallopt(parameter, value)
            if int(os.environ.get("LOCAL_RANK", 0)) and "TORCHELASTIC_RUN_ID" not in os.environ:
                # Started by rank zero: end with it, however it ends, instead of waiting for it and holding a GPU.
                library.prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def require_devices(chosen: schema.AnyTrainer) -> None:
    """Refuse GPUs that do not exist.

    Raises:
        MetasegError: with the number of available GPUs.
    """
    kind, wanted, there = chosen.accelerator, chosen.devices, _gpus(chosen.accelerator)
    named = isinstance(wanted, list)
    needed = max(wanted) + 1 if isinstance(wanted, list) else 1 if wanted == "auto" else wanted
    # Without GPUs, auto means the CPU, with one process per device.
    if there < needed and (named or kind not in ("auto", "cpu") or (kind == "auto" and there)):
        raise MetasegError(
            f"trainer.accelerator={kind} with trainer.devices={wanted} needs {needed} GPUs that torch can use, found "
            f"{there}; set trainer=cpu, trainer=auto or other devices."
        )


def _gpus(kind: str) -> int:
    """How many GPUs an accelerator can use."""
    nvidia, apple = torch.cuda.device_count(), int(torch.backends.mps.is_available())
    return {"cpu": 0, "cuda": nvidia, "mps": apple}.get(kind, nvidia or apple)


def strategy_of(chosen: schema.AnyTrainer, ddp: type[DDPStrategy] | type[FabricDDP] = DDPStrategy) -> Any:
    """The strategy for Lightning's Trainer, or for its Fabric, whose class is another.

    Lightning's own choice for several devices is ddp as well, but its ranks wait for half an hour only.
    """
    wanted = chosen.devices
    count = len(wanted) if isinstance(wanted, list) else _gpus(chosen.accelerator) if wanted == "auto" else wanted
    return ddp(timeout=_TURNS) if chosen.strategy == "ddp" or count > 1 else chosen.strategy


def trainer_of(chosen: schema.AnyTrainer, loggers: list[Logger], called: list[Callback]) -> L.Trainer:
    """Lightning's trainer with the settings of the group ``trainer``, these loggers and callbacks."""
    return L.Trainer(
        accelerator=chosen.accelerator,
        devices=chosen.devices,
        strategy=strategy_of(chosen),
        precision=chosen.precision,
        max_epochs=chosen.max_epochs,
        logger=loggers,
        callbacks=called,
        enable_progress_bar=False,  # a callback shows it
        enable_model_summary=False,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        inference_mode=False,  # validation has an inner loop
    )


def connected(chosen: schema.AnyTrainer) -> L.Fabric | None:
    """The ranks of this run, connected, if torchrun, srun or the like launched them; None if only `fit` does.

    Raises:
        MetasegError: if there are not as many ranks as devices, on one machine.
    """
    strategy = strategy_of(chosen, FabricDDP)
    fabric = L.Fabric(accelerator=chosen.accelerator, devices=chosen.devices, strategy=strategy)
    environment = getattr(fabric.strategy, "cluster_environment", None)
    if environment is None or isinstance(environment, LightningEnvironment):
        return None
    if os.environ.get("LOCAL_WORLD_SIZE") not in (None, os.environ.get("WORLD_SIZE")):
        raise MetasegError("Expected all ranks on one machine, found ranks of torchrun on several; start them on one.")
    try:
        fabric.launch()
    except ValueError as error:  # of an environment with another number of ranks
        raise MetasegError(
            f"Expected a rank for each of trainer.devices={chosen.devices}, on one machine: {error}"
        ) from error
    return fabric


def local_rank() -> int:
    """This process's rank on its machine; 0 if it is alone."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0)))


def device_of_tests(chosen: schema.AnyTrainer, rank: int = 0) -> str:
    """The device of the meta-test: this process's GPU of training, or the CPU.

    Args:
        chosen: the group ``trainer`` of the configuration.
        rank: of this process on its machine, among those that train together.
    """
    if chosen.accelerator in ("cpu", "mps") or not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{chosen.devices[rank]}" if isinstance(chosen.devices, list) else f"cuda:{rank}"

"""Shared helpers: the program run as users run it."""

import os
import runpy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

ROOT = Path(__file__).parents[1]

TINY = [
    "shots=3",
    "tasks.query=3",
    "data=synthetic",
    "data.size=32",
    "model.features=2",
    "trainer=cpu",
    "trainer.max_epochs=1",
    "trainer.progress=false",
    "tasks.count=4",
    "tasks.validation=1",
    "learner.adapt.steps=2",
    "evaluation.draws=2",
    "evaluation.limit=8",
    "evaluation.curve=[0,1]",
    "evaluation.curve_limit=4",
    "evaluation.scratch.compare=false",
    "logger=csv",
]
"""Settings of a run that takes seconds."""

TINY_PRETRAINING = [
    "data=synthetic",
    "data.size=32",
    "model.features=2",
    "optimizer.lr=1e-2",
    "trainer=cpu",
    "trainer.max_epochs=1",
    "trainer.progress=false",
]
"""The same for pretrain.py."""


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """As many threads in this process as in those it starts: another number gives sums of another order."""
    import torch

    torch.set_num_threads(1)


def environment(**changes):
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "HYDRA_", "METASEG_"))}
    return kept | {"OMP_NUM_THREADS": "1"} | changes


@dataclass(frozen=True)
class Finished:
    """How a run of an entry point ended."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def program(tmp_path, capfd, monkeypatch):
    """Run an entry point with overrides in this process, as its command line would."""
    for key in [key for key in os.environ if key.startswith(("WANDB_", "HYDRA_", "METASEG_"))]:
        monkeypatch.delenv(key)
    monkeypatch.chdir(tmp_path)

    def call(script, *overrides, directory, **variables):
        for key, value in variables.items():
            monkeypatch.setenv(key, value)
        monkeypatch.setattr(sys, "argv", [script, f"hydra.run.dir={directory}", *overrides])
        capfd.readouterr()
        status = 0
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as end:
            status = end.code or 0
        finally:
            GlobalHydra.instance().clear()
        return Finished(status, *capfd.readouterr())

    return call


@pytest.fixture(scope="session")
def vgg16_weights(tmp_path_factory):
    """A file in the layout of VGG16's published weights, of small random numbers."""
    import torch
    from safetensors.torch import save_file

    from metaseg.networks.vgg import VGG16

    torch.manual_seed(0)
    tensors = {name: value.half() for name, value in VGG16().state_dict().items() if name.startswith("features.")}
    path = tmp_path_factory.mktemp("weights") / "vgg16.safetensors"
    save_file(tensors, path)
    return path


@pytest.fixture
def train(program, tmp_path):
    """Run train.py with overrides in this process; ``directory`` is the run's directory.

    What a fresh process alone can show (signals, ranks, imports) is run by ``train_process``.
    """

    def call(*overrides, directory=tmp_path / "run", **variables):
        return program("train.py", *TINY, *overrides, directory=directory, **variables)

    return call


@pytest.fixture
def pretrain(program, tmp_path):
    """Run pretrain.py with overrides in this process; ``directory`` is the run's directory."""

    def call(*overrides, directory=tmp_path / "pretrained", **variables):
        return program("pretrain.py", *TINY_PRETRAINING, *overrides, directory=directory, **variables)

    return call


@pytest.fixture
def train_process(tmp_path):
    """Run train.py with overrides in a process of its own."""

    def call(*overrides, directory=tmp_path / "run", **variables):
        command = [sys.executable, str(ROOT / "train.py"), *TINY, f"hydra.run.dir={directory}", *overrides]
        return subprocess.run(
            command,
            cwd=tmp_path,
            env=environment(**variables),
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    return call

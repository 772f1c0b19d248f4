"""Shared helpers: the program run as users run it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

TINY = [
    "shots=3",
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
    "evaluation.scratch=null",
    "logger=csv",
]
"""Settings of a run that takes seconds."""


def environment(**changes):
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "HYDRA_", "METASEG_"))}
    return kept | {"OMP_NUM_THREADS": "1"} | changes


@pytest.fixture
def train(tmp_path):
    """Run train.py with overrides; returns the finished process. ``directory`` is the run's directory."""

    def call(*overrides, directory=tmp_path / "run", env=None, tiny=True, **options):
        command = [
            sys.executable,
            str(ROOT / "train.py"),
            *(TINY if tiny else []),
            f"hydra.run.dir={directory}",
            *overrides,
        ]
        return subprocess.run(
            command, cwd=tmp_path, env=env or environment(), capture_output=True, text=True, check=False, **options
        )

    return call

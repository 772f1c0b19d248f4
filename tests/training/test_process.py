from contextlib import nullcontext
from datetime import timedelta

import lightning as L
import pytest
from conftest import TINY, settings_of

from metaseg.errors import MetasegError
from metaseg.training.process import FabricDDP, connected, device_of_tests, require_devices, strategy_of


@pytest.mark.parametrize(
    ("accelerator", "devices", "there", "fits"),
    [
        ("cpu", 2, 0, True),
        ("cpu", [0], 4, False),
        ("auto", 2, 0, True),
        ("auto", 2, 1, False),
        ("auto", [1], 2, True),
        ("auto", "auto", 0, True),
        ("gpu", "auto", 0, False),
        ("gpu", 1, 1, True),
        ("cuda", [0, 3], 4, True),
        ("cuda", [0, 4], 4, False),
        ("mps", 1, 0, False),
    ],
)
def test_refuses_missing_devices(monkeypatch, accelerator, devices, there, fits):
    monkeypatch.setattr("torch.cuda.device_count", lambda: there)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    chosen = settings_of(*TINY).trainer.model_copy(update={"accelerator": accelerator, "devices": devices})
    with nullcontext() if fits else pytest.raises(MetasegError, match=r"trainer\.devices"):
        require_devices(chosen)


@pytest.mark.parametrize(
    ("accelerator", "devices", "device"),
    [("cpu", 1, "cpu"), ("mps", 1, "cpu"), ("auto", 1, "cuda:0"), ("gpu", 2, "cuda:0"), ("cuda", [2, 3], "cuda:2")],
)
def test_tests_run_on_the_first_gpu_of_training(monkeypatch, accelerator, devices, device):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    chosen = settings_of(*TINY).trainer.model_copy(update={"accelerator": accelerator, "devices": devices})
    assert device_of_tests(chosen) == device


@pytest.mark.parametrize(("devices", "device"), [(4, "cuda:1"), ([2, 3], "cuda:3")])
def test_further_processes_test_on_their_own_gpu(monkeypatch, devices, device):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    chosen = settings_of(*TINY).trainer.model_copy(update={"accelerator": "gpu", "devices": devices})
    assert device_of_tests(chosen, rank=1) == device


@pytest.mark.parametrize(
    ("strategy", "devices", "there", "waits"),
    [
        ("auto", 1, 4, False),
        ("auto", 2, 0, True),
        ("auto", [0], 4, False),
        ("auto", [0, 1], 4, True),
        ("auto", "auto", 0, False),
        ("auto", "auto", 1, False),
        ("auto", "auto", 4, True),
        ("ddp", 1, 0, True),
    ],
)
def test_ranks_wait_for_hours_wherever_there_are_several(monkeypatch, strategy, devices, there, waits):
    """Lightning's default is half an hour."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: there)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    chosen = settings_of(*TINY).trainer.model_copy(
        update={"accelerator": "auto", "devices": devices, "strategy": strategy}
    )
    for found in (strategy_of(chosen), strategy_of(chosen, FabricDDP)):
        assert getattr(found, "_timeout", None) == (timedelta(hours=6) if waits else None)


def test_ranks_that_torchrun_launched_wait_as_long(monkeypatch):
    launched = []
    monkeypatch.setattr(L.Fabric, "launch", lambda fabric: launched.append(fabric))
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "GROUP_RANK": 0, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    fabric = connected(settings_of(*TINY, "trainer.devices=2").trainer)
    assert launched == [fabric]
    assert fabric.strategy._timeout == timedelta(hours=6)


@pytest.mark.parametrize(("ranks", "here"), [(4, 2), (2, 1), (4, 4)])
def test_ranks_of_several_machines_or_more_than_devices_are_refused(monkeypatch, ranks, here):
    given = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": ranks, "GROUP_RANK": 0, "LOCAL_WORLD_SIZE": here}
    for name, value in given.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    with pytest.raises(MetasegError, match="on one machine"):
        connected(settings_of(*TINY, "trainer.devices=2").trainer)

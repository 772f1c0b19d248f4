from contextlib import nullcontext

import pytest
from conftest import TINY, settings_of

from metaseg.errors import MetasegError
from metaseg.training.process import device_of_tests, require_devices


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

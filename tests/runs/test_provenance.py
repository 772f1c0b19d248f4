import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch

from metaseg.errors import MetasegError
from metaseg.runs import provenance

CUDA_13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
CUDA_12_6 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]


def test_versions_are_those_of_the_imported_packages():
    found = provenance.versions(("torch", "numpy", "no-such-package"))
    assert found["torch"] == torch.__version__.split("+")[0]
    assert found["numpy"] == numpy.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert "no-such-package" not in found


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_commit_and_dirty_flag_follow_the_code(tmp_path, monkeypatch):
    for name in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"):
        monkeypatch.delenv(name, raising=False)
    source = tmp_path / "metaseg" / "provenance.py"
    source.parent.mkdir()
    source.write_text("x = 1\n")
    assert provenance.commit(source) == (None, None)
    git(tmp_path, "init", "--quiet")
    assert provenance.commit(source) == (None, None)  # an environment inside some repository: not tracked
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    # What a git hook exports must not make another repository answer.
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    revision, dirty = provenance.commit(source)
    assert len(revision) == 40
    assert dirty is False
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "result.json").write_text("{}")
    assert provenance.commit(source) == (revision, False)
    (source.parent / "new.py").write_text("")
    assert provenance.commit(source) == (revision, True)
    (source.parent / "new.py").unlink()
    source.write_text("x = 2\n")
    assert provenance.commit(source) == (revision, True)


def test_commit_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance.commit() == (None, None)


def test_hardware_of_this_machine():
    found = provenance.hardware()
    assert found["cpu"]
    assert found["cores"] >= 1
    assert len(found["gpus"]) == torch.cuda.device_count()


def test_cpu_model_is_read_from_cpuinfo(tmp_path):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Some CPU @ 2.00GHz\n\nmodel name\t: other\n")
    assert provenance._cpu_model(tmp_path / "cpuinfo") == "Some CPU @ 2.00GHz"
    (tmp_path / "cpuinfo").write_text("processor : 0\nFeatures : fp\n")
    assert provenance._cpu_model(tmp_path / "cpuinfo")


@pytest.mark.long
def test_peak_memory_counts_what_was_allocated():
    program = (
        "from metaseg.runs.provenance import peak_memory_mib\n"
        "before = peak_memory_mib()['process']\n"
        "block = bytearray(b'1') * (300 * 2**20)\n"
        "del block\n"
        "after = peak_memory_mib()\n"
        "print(before, after['process'], 'cuda' in after)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    ).stdout.split()
    before, after = float(answer[0]), float(answer[1])
    assert before < 100  # not the peak of the process that started it
    assert 295 < after - before < 320
    assert answer[2] == "False"
    assert provenance.peak_memory_mib()["largest_child"] >= 295


@pytest.mark.parametrize(
    ("capability", "built"),
    [
        ((7, 0), CUDA_12_6),
        ((7, 5), CUDA_13),
        ((8, 9), CUDA_13),  # no sm_89: sm_86 runs on it, same major version
        ((9, 0), CUDA_13),
        ((7, 0), ["sm_60", "compute_60"]),  # PTX is compiled for the newer device
        ((12, 0), ["sm_90", "compute_90"]),
        ((9, 0), ["sm_90a"]),
        ((10, 3), ["sm_100f"]),
    ],
)
def test_kernels_that_run(capability, built):
    provenance.require_kernels(capability, built)


@pytest.mark.parametrize(
    ("capability", "built", "remedy"),
    [
        ((7, 0), CUDA_13, "TORCH=v100"),
        ((6, 1), CUDA_13, "TORCH=v100"),
        ((7, 0), ["sm_75", "compute_75"], "TORCH=v100"),  # neither code nor PTX runs on an older device
        ((12, 0), CUDA_12_6, "newer torch"),
        ((8, 0), ["sm_75", "sm_86"], "newer torch"),
        ((10, 3), ["sm_100a"], "newer torch"),  # `a`: that very device only
        ((12, 0), ["sm_100f"], "newer torch"),
        ((7, 0), [], "TORCH=v100"),
    ],
)
def test_kernels_that_do_not_run(capability, built, remedy):
    with pytest.raises(MetasegError, match=remedy) as caught:
        provenance.require_kernels(capability, built, "Tesla Something")
    assert "Tesla Something needs torch kernels for sm_{}{}".format(*capability) in str(caught.value)


def test_check_gpu_asks_every_device(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: [(8, 0), (7, 0)][index])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: ["A100", "V100"][index])
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: CUDA_13)
    with pytest.raises(MetasegError, match="V100 needs torch kernels for sm_70"):
        provenance.check_gpu()
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: CUDA_12_6)
    provenance.check_gpu()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: CUDA_13)
    provenance.check_gpu()

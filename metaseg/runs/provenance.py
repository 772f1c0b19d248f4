"""The provenance of a result: versions, commit, hardware, peak memory; and whether torch supports the GPU."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from metaseg.errors import MetasegError
from metaseg.system import RSS_PER_MIB, cores, resident

PACKAGES = (
    "metaseg-implicit",
    "torch",
    "torchvision",
    "lightning",
    "hydra-core",
    "omegaconf",
    "segmentation-models-pytorch",
    "albumentations",
    "torchmetrics",
    "numpy",
    "scipy",
    "pandas",
    "pillow",
    "wandb",
)

# Files that affect results. Run directories and notes in the repository do not make the code dirty.
_CODE = ("metaseg", "conf", "requirements", "*.py", "pyproject.toml")


def of_run(started: float) -> dict[str, Any]:
    """The provenance of a run for its result; `started`: time.monotonic() at the start."""
    revision, dirty = commit()
    return {
        "wall_seconds": time.monotonic() - started,
        "peak_memory_mib": peak_memory_mib(),
        "commit": revision,
        "dirty": dirty,
        "versions": versions(),
        "hardware": hardware(),
    }


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of Python and of the installed `packages`, read from metadata without importing them."""
    found = {package: _version(package) for package in packages}
    return {"python": platform.python_version()} | {name: value for name, value in found.items() if value is not None}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def commit(source: Path = Path(__file__)) -> tuple[str | None, bool | None]:
    """Git hash of the repository that tracks `source`, and whether its code differs from that commit.

    (None, None) outside a repository, without git, before the first commit, and if the package is installed into an
    environment that merely lies inside another repository.
    """
    folder = source.resolve().parent
    if _git(folder, "ls-files", "--error-unmatch", source.name) is None:
        return None, None
    revision, top = _git(folder, "rev-parse", "HEAD"), _git(folder, "rev-parse", "--show-toplevel")
    if revision is None or top is None:
        return None, None
    changes = _git(Path(top), "status", "--porcelain", "--untracked-files=all", "--", *_CODE)
    return revision, None if changes is None else bool(changes)


def _git(folder: Path, *arguments: str) -> str | None:
    # Git hooks export GIT_DIR etc., which would select the hook's repository instead of the code's.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        answer = subprocess.run(
            ["git", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def hardware() -> dict[str, Any]:
    """CPU model, cores available to this process, and each visible GPU's name, memory (MiB) and compute capability."""
    import torch

    gpus = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        device = torch.cuda.get_device_properties(index)
        gpus.append(
            {
                "name": device.name,
                "memory_mib": device.total_memory // 2**20,
                "capability": f"{device.major}.{device.minor}",
            }
        )
    return {"cpu": _cpu_model(), "cores": cores(), "gpus": gpus}


def _cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    if cpuinfo.exists():
        model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(errors="replace"), re.MULTILINE)
        if model:
            return model.group(1).strip()
    return platform.processor() or platform.machine()


def peak_memory_mib() -> dict[str, float]:
    """Peak memory in MiB since the start: `process`, `largest_child` and, if CUDA is in use, `cuda`.

    `process` and `largest_child` are resident host memory; of all ended children, the system records only the largest.
    `cuda` is torch's peak tensor memory, summed over devices.
    """
    peak = {"process": resident("VmHWM"), "largest_child": 0.0}
    if os.name == "posix":
        import resource

        peak["largest_child"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / RSS_PER_MIB
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        devices = range(torch.cuda.device_count())
        peak["cuda"] = sum(torch.cuda.max_memory_allocated(device) for device in devices) / 2**20
    return {name: round(value, 1) for name, value in peak.items()}


def require_kernels(capability: tuple[int, int], arch_list: Sequence[str], name: str = "the GPU") -> None:
    """Refuse a GPU for which this build of torch has no kernels.

    Args:
        capability: the device's compute capability, e.g. (7, 0) for a V100.
        arch_list: the build's architectures, from torch.cuda.get_arch_list(). `sm_XY` is machine code that runs on
            devices of the same major version and an equal or higher minor one, `sm_XYa` only on that exact version,
            `sm_XYf` like `sm_XY`. `compute_XY` is PTX, which the driver compiles for any newer device.
        name: the device's name, for the message.

    Raises:
        MetasegError: no entry runs on the device; the message names the remedy.
    """
    if any(_runs(entry, capability) for entry in arch_list):
        return
    major, minor = capability
    built = ", ".join(arch_list) or "none"
    oldest = min((found for found in map(_parse, arch_list) if found), default=None)
    if oldest is None or capability < oldest[1]:
        # CUDA 13 builds start at sm_75; torch 2.7.1 is built for CUDA 12.6 and starts at sm_50.
        remedy = "make a new environment with `make install TORCH=v100`"
    else:
        remedy = "install a newer torch with `make install`"
    raise MetasegError(
        f"{name} needs torch kernels for sm_{major}{minor}, but this build has {built}: {remedy}, "
        "or run on the CPU with trainer=cpu"
    )


def _parse(entry: str) -> tuple[str, tuple[int, int], str] | None:
    parts = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", entry)
    return (parts[1], (int(parts[2]), int(parts[3])), parts[4]) if parts else None


def _runs(entry: str, capability: tuple[int, int]) -> bool:
    parsed = _parse(entry)
    if parsed is None:
        return False
    kind, built, suffix = parsed
    if suffix == "a":
        return built == capability
    if kind == "compute" and not suffix:
        return capability >= built
    return capability[0] == built[0] and capability[1] >= built[1]


def check_gpu() -> None:
    """Call `require_kernels` for every visible GPU; a no-op without one or on a ROCm build."""
    import torch

    if torch.version.cuda is None or not torch.cuda.is_available():
        return
    for index in range(torch.cuda.device_count()):
        require_kernels(
            torch.cuda.get_device_capability(index), torch.cuda.get_arch_list(), torch.cuda.get_device_name(index)
        )

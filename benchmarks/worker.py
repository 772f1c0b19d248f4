"""One measurement in a process of its own, so that no other leaves memory or threads behind.

    python -m benchmarks.worker MODULE:FUNCTION SETTING [ARGUMENT ...]

calls the function with the setting (JSON) and the arguments (strings), and prints what it returns as one line of JSON.
"""

import json
import os
import subprocess
import sys
import warnings
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.methods.base import MissingError
from benchmarks.setting import Setting

LIVE_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
"""Settings of glibc by which every tensor that is freed goes back to the system at once.

Resident memory is then the tensors that live; without them it depends on what was allocated before in which order.
"""


def in_fresh_process(function: str, setting: Setting, *arguments: str, live_memory: bool = False) -> Any:
    """Call ``module:function`` in a new interpreter.

    Args:
        function: where it is.
        setting: its first argument.
        arguments: its others.
        live_memory: start the process with `LIVE_MEMORY`.

    Raises:
        MissingError: if it failed; the message is its last line on standard error.
    """
    command = [sys.executable, "-m", "benchmarks.worker", function, json.dumps(asdict(setting)), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": str(setting.threads), **(LIVE_MEMORY if live_memory else {})}
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise MissingError(lines[-1] if lines else f"the process ended with status {done.returncode}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main(function: str, setting: str, *arguments: str) -> None:
    """See the module."""
    quieten()
    chosen = Setting(**json.loads(setting))
    chosen.apply()
    module, name = function.split(":")
    try:
        print(json.dumps(getattr(import_module(module), name)(chosen, *arguments)))
    except MissingError as error:
        sys.exit(str(error))


def quieten() -> None:
    """Leave out that TorchOpt and `higher` call parts of torch by their old names."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


if __name__ == "__main__":
    main(*sys.argv[1:])

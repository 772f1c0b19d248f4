"""Run one measurement in a fresh process, unaffected by memory or threads of others.

    python -m benchmarks.worker MODULE:FUNCTION SETTING [ARGUMENT ...]

calls the function with the setting (JSON) and the arguments (strings), and prints the result as one line of JSON.
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
"""glibc settings that return every freed tensor to the system at once.

Resident memory then equals the live tensors; otherwise it depends on the history of allocations.
"""


def in_fresh_process(function: str, setting: Setting, *arguments: str, live_memory: bool = False) -> Any:
    """Call ``module:function`` in a new interpreter.

    Args:
        function: ``module:function``.
        setting: its first argument.
        arguments: its further arguments.
        live_memory: start the process with `LIVE_MEMORY`.

    Raises:
        MissingError: it failed; the message is its last line on standard error.
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
    """Entry point, see the module's docstring."""
    quieten()
    chosen = Setting(**json.loads(setting))
    chosen.apply()
    module, name = function.split(":")
    try:
        print(json.dumps(getattr(import_module(module), name)(chosen, *arguments)))
    except MissingError as error:
        sys.exit(str(error))


def quieten() -> None:
    """Silence warnings about the deprecated torch names used by TorchOpt and `higher`."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


if __name__ == "__main__":
    main(*sys.argv[1:])

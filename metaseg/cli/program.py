"""The console command `metaseg`: one subcommand for each thing to do."""

import importlib
import importlib.util
import sys

from metaseg.cli.entry import fail

COMMANDS = {
    "train": "train a learner on a pair of datasets, test it on others",
    "adapt": "segment images from a few annotated ones",
    "app": "the same as a web page on this machine",
    "pretrain": "pre-train a U-Net on brain MRI",
    "data": "the datasets: list, download, check, prepare, show, paint",
    "report": "the paper's tables from a folder of runs",
    "dashboard": "a saved report at Weights & Biases",
    "bench": "time, memory and error of meta-gradients; from a checkout",
}
_CONFIGURED = ("train", "adapt", "app", "pretrain")


def main() -> None:
    """Run the subcommand that the command line names; exits with its status."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in ("-h", "--help"):
        print("usage: metaseg COMMAND …\n")
        print("\n".join(f"  {command:<10} {text}" for command, text in COMMANDS.items()))
        print("\n`metaseg COMMAND --help` has the rest.")
        return
    if name not in COMMANDS:
        found = f"found {name!r}" if name else "found none"
        fail(f"Expected one of the commands {', '.join(COMMANDS)}, {found}; `metaseg --help` says what they do.")
    sys.argv[:2] = [f"metaseg {name}"]
    if name in _CONFIGURED:
        getattr(importlib.import_module("metaseg.cli.commands"), name)()
    elif name == "bench":
        _bench()
    else:
        sys.exit(importlib.import_module(f"metaseg.cli.{name}").main())


def _bench() -> None:
    if importlib.util.find_spec("benchmarks") is None:
        fail("The benchmarks are not installed: run `python -m benchmarks` in a checkout of the project.")
    importlib.import_module("benchmarks.__main__").main()

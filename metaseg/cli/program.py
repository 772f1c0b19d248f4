"""The console command `metaseg` and its subcommands."""

import importlib
import sys

from metaseg import __version__
from metaseg.cli.arguments import fail
from metaseg.errors import MetasegError

COMMANDS = {
    "train": "train a learner on a pair of datasets and test it on others",
    "adapt": "adapt a trained run to a few annotated images and segment others",
    "suggest": "name the images of a folder that are most worth annotating",
    "app": "annotate, adapt and segment in a local web app",
    "pretrain": "pre-train a U-Net on brain MRI",
    "models": "list the built-in model and trained runs to adapt",
    "data": "list, download, check, prepare, show or paint datasets",
    "status": "show the progress of a sweep",
    "report": "build the paper's tables from a folder of runs",
    "dashboard": "save a report on Weights & Biases",
}
_CONFIGURED = ("train", "adapt", "app", "pretrain")


def main() -> None:
    """Run the subcommand named on the command line and exit with its status."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in ("-h", "--help"):
        print("usage: metaseg COMMAND …\n")
        print("\n".join(f"  {command:<10} {text}" for command, text in COMMANDS.items()))
        print("\nRun `metaseg COMMAND --help` for details.")
        return
    if name == "--version":
        print(f"metaseg {__version__}")
        return
    if name not in COMMANDS:
        found = f"found {name!r}" if name else "found none"
        fail(f"Expected one of the commands {', '.join(COMMANDS)}, {found}; see `metaseg --help`.")
    sys.argv[:2] = [f"metaseg {name}"]
    if name in _CONFIGURED:
        getattr(importlib.import_module("metaseg.cli.commands"), name)()
        return
    try:
        sys.exit(importlib.import_module(f"metaseg.cli.{name}").main())
    except MetasegError as error:
        fail(str(error))

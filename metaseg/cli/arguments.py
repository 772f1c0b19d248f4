"""The argument parser of the commands that Hydra does not configure, and how commands fail."""

import argparse
import sys
from typing import NoReturn

from metaseg.errors import MetasegError


class Parser(argparse.ArgumentParser):
    """Raises MetasegError where argparse would print its usage and exit with status 2."""

    def error(self, message: str) -> NoReturn:
        """Report a mistake on the command line.

        Raises:
            MetasegError: always.
        """
        program = " ".join(self.prog.split()[:2])  # a subparser's prog also names its command
        raise MetasegError(f"{message}; see `{program} --help`")


def fail(sentence: str, status: int = 1) -> NoReturn:
    """Print one sentence to standard error and exit."""
    tell(sentence)
    sys.exit(status)


def tell(sentence: str) -> None:
    """Print one sentence to standard error."""
    sys.stdout.flush()
    print(f"error: {sentence}", file=sys.stderr)

"""The argument parser of the commands that Hydra does not configure."""

import argparse
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

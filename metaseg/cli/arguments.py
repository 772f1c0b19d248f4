"""Command lines other than settings, whose mistakes end like all others."""

import argparse
from typing import NoReturn

from metaseg.errors import MetasegError


class Parser(argparse.ArgumentParser):
    """Raises where argparse would print its usage and exit with status 2."""

    def error(self, message: str) -> NoReturn:
        """Tell what is wrong with the command line.

        Raises:
            MetasegError: always.
        """
        program = " ".join(self.prog.split()[:2])  # without the command that a subparser is of
        raise MetasegError(f"{message}; `{program} --help` shows what is understood")

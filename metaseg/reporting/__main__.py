"""`python -m metaseg.reporting`, the same as `metaseg report`."""

import sys

from metaseg.cli.report import main

if __name__ == "__main__":
    sys.exit(main())

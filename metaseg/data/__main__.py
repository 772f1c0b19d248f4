"""`python -m metaseg.data`, the same as `metaseg data`."""

import sys

from metaseg.cli.data import main

if __name__ == "__main__":
    sys.exit(main())

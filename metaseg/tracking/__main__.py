"""`python -m metaseg.tracking`, the same as `metaseg dashboard`."""

import sys

from metaseg.cli.dashboard import main

if __name__ == "__main__":
    sys.exit(main())

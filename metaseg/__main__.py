"""`python -m metaseg`, the same as `metaseg`."""

from metaseg.cli.program import main

if __name__ == "__main__":
    main()

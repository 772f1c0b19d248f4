"""Command-line entry points: the `metaseg` program, argument parsing, Hydra start-up."""

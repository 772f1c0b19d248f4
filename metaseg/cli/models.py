"""`metaseg models`: the models that `metaseg adapt`, `metaseg app` and `metaseg.load` can start from."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from metaseg.cli.entry import fail
from metaseg.errors import MetasegError
from metaseg.runs.directory import RunDirectory
from metaseg.runs.result import read


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the built-in model's card and the trained runs; returns the exit status."""
    parser = argparse.ArgumentParser(prog="metaseg models", description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, help="folders with runs of metaseg train; default: runs")
    options = parser.parse_args(arguments)
    try:
        print(card())
        for folder in options.folders or [Path("runs")]:
            if options.folders and not folder.is_dir():
                raise MetasegError(f"Expected a folder with runs, found none at {folder}.")
            print("".join(f"\n{line}" for line in trained(folder)), end="")
        print()
    except MetasegError as error:
        fail(str(error))
    return 0


def card() -> str:
    """What the built-in model is, was trained on, and may be used for."""
    from metaseg.adapting.loading import load

    model = load(None, "cpu")
    network = model.learner.network
    weights = model.learner.weights
    assert weights is not None
    label = getattr(network, "label", type(network).__name__)
    parameters = sum(value.numel() for value in network.parameters())
    recipes = model.settings.model.recipe
    adapt = None if recipes is None else recipes.adapt.default
    assert adapt is not None
    return "\n".join(
        (
            "built-in    no name is needed",
            f"  network   {label}, {parameters / 1e6:.1f} million parameters",
            f"  encoder   {weights.name} ({weights.source}), trained on {weights.trained_on}",
            f"  licence   {weights.licence} (the encoder's weights)",
            f"  SHA-256   {weights.sha256}",
            "  decoder   random: all it knows of medical images it learns from yours",
            f"  adapts    {adapt.steps} steps of {adapt.optimizer}, step size {adapt.lr:g}, encoder at "
            f"{adapt.rates.encoder if adapt.rates else 1:g} of it",
            "  scores    docs/quickstart.md, experiments/README.md",
            "  for       research, not diagnosis",
        )
    )


def trained(folder: Path) -> Iterator[str]:
    """A line for each finished run with a checkpoint in a folder: its path, learner and scores."""
    for path in sorted(folder.rglob("result.json")):
        directory = RunDirectory(path.parent)
        if not (directory.checkpoints / "best.ckpt").is_file():
            continue
        try:
            result = read(path)
        except MetasegError as error:
            yield f"{path.parent}: {error}"
            continue
        scores = ", ".join(f"{name} {100 * (one.dsc.mean or 0):.1f}" for name, one in result.targets.items())
        settings = result.settings
        yield f"{path.parent}: {settings['learner']['name']}, {settings['shots']} shots, Dice in %: {scores}"

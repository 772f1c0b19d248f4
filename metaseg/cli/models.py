"""`metaseg models`: the models that `metaseg adapt`, `metaseg app` and `metaseg.load` can start from.

`metaseg models build FILE [SETTINGS]` makes one from your own copy of the datasets: it trains on four of them, or those
of `pair=[…]`, as `metaseg train` with these settings, and writes the result in half precision.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from metaseg.cli.arguments import Parser
from metaseg.cli.commands import train
from metaseg.configuration import literally
from metaseg.data import catalogue
from metaseg.errors import MetasegError, expanded
from metaseg.runs.directory import RunDirectory
from metaseg.runs.result import read


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the built-in model's card, model files and trained runs, or build a model."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["build"]:
        build(given[1:])
        return
    parser = Parser(prog="metaseg models", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="folders with models and runs; default: runs")
    options = parser.parse_args(given)
    print(card())
    for folder in options.folders or [Path("runs")]:
        if options.folders and not folder.is_dir():
            raise MetasegError(f"Expected a folder with runs, found none at {folder}.")
        print("".join(f"\n{line}" for line in [*built(folder), *trained(folder)]), end="")
    print()


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
            "  scores    docs/quickstart.md, experiments/own_images.md",
            "  for       research, not diagnosis",
        )
    )


BUILD = ("learner=joint", "model=pretrained", "target=[]", "trainer=auto", "logger=csv")
"""[D] How `build` trains by default: the comparison has not found a meta-learner ahead of joint training."""

_TASKS = 25
"""Tasks of a dataset in an epoch, as of a pair's [D]."""


def build(arguments: Sequence[str]) -> None:
    """Train on the published datasets, or those of `pair=[…]`, and write the model.

    The run is kept beside the file, as FILE.run. Without settings, the model of a finished run there is written again.

    Args:
        arguments: the file, and settings of `metaseg train`.
    """
    from metaseg.adapting import model_file

    file, *settings = arguments or [""]
    path = expanded(file)
    if "=" in file or path.suffix != model_file.SUFFIX:
        raise MetasegError(
            f"Expected the name of a {model_file.SUFFIX} file first, as in `metaseg models build "
            f"my-model{model_file.SUFFIX} data.root=DIR`, found {file or 'nothing'}."
        )
    if path.exists() and not model_file.is_one(path):
        raise MetasegError(f"Expected a new file or a model of metaseg, found another file, {path}; name another.")
    directory = RunDirectory(path.with_suffix(".run"))
    if not directory.result.is_file():
        _train(directory.path, settings)
    elif settings:
        raise MetasegError(
            f"Expected no finished run in {directory.path}, found one that these settings would not change; leave "
            "them out to write its model again, or name another file."
        )
    model_file.write(directory, path)
    print(f"\nmodel       {path}", *model_file.lines(path), sep="\n")
    print(f"next: metaseg adapt checkpoint={path} support=DIR images=DIR out=DIR")


def _train(directory: Path, settings: Sequence[str]) -> None:
    chosen = dict(setting.split("=", 1) for setting in settings if "=" in setting)
    # Without KvasirCapsule-SEG: its frames, all from one video, show one polyp and are too few for episodes.
    several = [name for name in catalogue.published() if not catalogue.get(name).blocks]
    pair = chosen.get("pair", f"[{','.join(several)}]")
    defaults = [f"pair={pair}", *BUILD]
    if pair.startswith("["):
        defaults.append(f"tasks.count={_TASKS * len(pair.split(','))}")
    missing = [setting for setting in defaults if setting.partition("=")[0] not in chosen]
    sys.argv = ["metaseg train", *missing, *settings, literally("hydra.run.dir", directory)]
    train()


def built(folder: Path) -> Iterator[str]:
    """The card of each model file in a folder."""
    from metaseg.adapting import model_file

    for path in sorted(folder.rglob(f"*{model_file.SUFFIX}")):
        if model_file.is_one(path):
            try:
                yield "\n".join([str(path), *model_file.lines(path)])
            except MetasegError as error:
                yield f"{path}: {error}"


def trained(folder: Path) -> Iterator[str]:
    """A line for each finished run with a checkpoint in a folder: its path, learner and scores."""
    for path in sorted(folder.rglob("result.json")):
        directory = RunDirectory(path.parent)
        if not directory.best.is_file():
            continue
        try:
            result = read(path)
        except MetasegError as error:
            yield f"{path.parent}: {error}"
            continue
        scores = ", ".join(f"{name} {100 * (one.dsc.mean or 0):.1f}" for name, one in result.targets.items())
        settings = result.settings
        yield f"{path.parent}: {settings['learner']['name']}, {settings['shots']} shots, Dice in %: {scores}"

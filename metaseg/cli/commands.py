"""What can be configured and run: train, adapt, app, pretrain; the scripts of these names call the same functions.

torch and its friends are loaded only when there is something to run.
"""

from omegaconf import DictConfig

from metaseg.cli.entry import entry


def train() -> None:
    """Train a learner on a pair of datasets, test it on others; conf/config.yaml has the settings."""
    entry(_train, program=("-m", "metaseg", "train"))


def adapt() -> None:
    """Segment images from a few annotated ones; conf/adapt.yaml has the settings."""
    entry(
        _adapt,
        "adapt",
        "Interrupted; what was written stays, the same command with overwrite=true starts again.",
        paths=("checkpoint", "support", "images", "out", "truth"),
        program=("-m", "metaseg", "adapt"),
    )


def app() -> None:
    """Serve a web page for segmenting images, until Ctrl+C; conf/app.yaml has the settings."""
    entry(
        _app,
        "app",
        "Stopped before the page was there.",
        paths=("checkpoint",),
        program=("-m", "metaseg", "app"),
    )


def pretrain() -> None:
    """Pre-train a U-Net on brain MRI, for model.init=brain_mri; conf/pretrain.yaml has the settings."""
    entry(_pretrain, "pretrain", program=("-m", "metaseg", "pretrain"))


def _train(config: DictConfig) -> None:
    from metaseg.training.run import run

    run(config)


def _adapt(config: DictConfig) -> None:
    from metaseg.adapting.command import run

    run(config)


def _app(config: DictConfig) -> None:
    from metaseg.app.command import run

    run(config)


def _pretrain(config: DictConfig) -> None:
    from metaseg.training.pretraining import run

    run(config)

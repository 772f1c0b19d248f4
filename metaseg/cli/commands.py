"""The commands that Hydra configures: train, adapt, app, pretrain. The scripts of the same names call these functions.

Heavy imports such as torch are deferred until a command actually runs.
"""

from omegaconf import DictConfig

from metaseg.cli.entry import entry


def train() -> None:
    """Train a learner on a pair of datasets and test it on others; settings in conf/config.yaml."""
    entry(_train, "train")


def adapt() -> None:
    """Adapt a trained run to a few annotated images and segment others; settings in conf/adapt.yaml."""
    entry(
        _adapt,
        "adapt",
        "Interrupted; what was written before is kept. Add overwrite=true to start again.",
        paths=("checkpoint", "support", "images", "out", "truth"),
    )


def app() -> None:
    """Serve the web app until Ctrl+C; settings in conf/app.yaml."""
    entry(_app, "app", "Interrupted before the page was ready.", paths=("checkpoint",))


def pretrain() -> None:
    """Pre-train a U-Net on brain MRI for model.init=brain_mri; settings in conf/pretrain.yaml."""
    entry(_pretrain, "pretrain")


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

"""Segment images from a few annotated ones: python adapt.py checkpoint=RUN support=DIR images=DIR out=DIR"""

from omegaconf import DictConfig

from metaseg.cli import entry


def main(config: DictConfig) -> None:
    """One call; see conf/adapt.yaml for every setting."""
    from metaseg.adapting.command import run  # torch and its friends are loaded only when there is something to run

    run(config)


if __name__ == "__main__":
    entry(
        main,
        "adapt",
        "Interrupted; what was written stays, the same command with overwrite=true starts again.",
        paths=("checkpoint", "support", "images", "out", "truth"),
    )

"""A web page for segmenting images from a few annotated ones: python app.py checkpoint=RUN"""

from omegaconf import DictConfig

from metaseg.cli import entry


def main(config: DictConfig) -> None:
    """Serve the page until Ctrl+C; see conf/app.yaml for every setting."""
    from metaseg.app.command import run  # torch and its friends are loaded only when there is something to run

    run(config)


if __name__ == "__main__":
    entry(main, "app", "Stopped before the page was there.", paths=("checkpoint",))

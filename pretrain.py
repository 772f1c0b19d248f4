"""Pre-train a U-Net on brain MRI, for model.init=brain_mri of train.py: python pretrain.py model.features=8"""

from omegaconf import DictConfig

from metaseg.cli import entry


def main(config: DictConfig) -> None:
    """One run; see conf/pretrain.yaml for every setting."""
    from metaseg.pretraining import run  # torch and its friends are loaded only when there is something to run

    run(config)


if __name__ == "__main__":
    entry(main, "pretrain")

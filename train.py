"""Train a learner on a pair of datasets, test it on a third: python train.py learner=imaml shots=20 pair=ph2_kvasir"""

from omegaconf import DictConfig

from metaseg.cli import entry


def main(config: DictConfig) -> None:
    """One run; see conf/config.yaml for every setting."""
    from metaseg.run import run  # torch and its friends are loaded only when there is something to run

    run(config)


if __name__ == "__main__":
    entry(main)

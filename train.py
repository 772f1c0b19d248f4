"""Train a learner on some datasets and test it on others: python train.py learner=imaml shots=20 pair=ph2_kvasir"""

from metaseg.cli.commands import train

if __name__ == "__main__":
    train()

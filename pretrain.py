"""Pre-train a U-Net on brain MRI, for model.init=brain_mri of train.py: python pretrain.py model.features=8"""

from metaseg.cli.commands import pretrain

if __name__ == "__main__":
    pretrain()

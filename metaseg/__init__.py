"""Few-shot medical image segmentation by meta-learning with implicit gradients."""

__version__ = "0.1.0"

"""Rescale images in [-1, 1] to the input range of a pre-trained encoder."""

from typing import Any

import torch
from torch import Tensor

IMAGENET: dict[str, Any] = {
    "input_space": "RGB",
    "input_range": [0, 1],
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}
"""Input range of torchvision's weights."""


def rescaling(trained_on: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Order, scale and offset of the channels, (3,) each, that map RGB in [-1, 1] to an encoder's input range.

    Args:
        trained_on: smp's preprocessing parameters: input_space "RGB" or "BGR", input_range (0, 1) or (0, 255), mean (3)
            and std (3) in that order and range.
    """
    order = torch.tensor([2, 1, 0] if trained_on["input_space"] == "BGR" else [0, 1, 2])
    half = max(trained_on["input_range"]) / 2
    mean, deviation = torch.tensor(trained_on["mean"]), torch.tensor(trained_on["std"])
    return order, half / deviation, (half - mean) / deviation

"""Random tensors, and weight files."""

import torch
from safetensors.torch import save_file


def drawn(*shape, seed=0):
    """Normal values in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def saved(path, tensors, metadata=None):
    """A weight file of the format that its suffix names; returns its path."""
    if path.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata)
    else:
        torch.save(tensors, path)
    return path

"""Build the network described by the settings group `model`."""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from metaseg.errors import MetasegError
from metaseg.networks.attention_unet import AttentionUNet, UNet
from metaseg.networks.brain_mri import load_brain_mri

log = logging.getLogger(__name__)

_UNETS = {"attention_unet": AttentionUNet, "unet": UNet}


def build(
    *,
    name: Literal["attention_unet", "unet", "smp", "pretrained"] = "attention_unet",
    seed: int = 0,
    features: int = 32,
    init: Literal["random", "brain_mri"] = "random",
    init_path: str | Path | None = None,
    arch: str = "Unet",
    encoder: str = "resnet18",
    encoder_weights: str | None = None,
    widths: Sequence[int] = (),
    initial_weights: bool = True,
) -> nn.Module:
    """Build a network: images (B, 3, H, W) in [-1, 1] → logits (B, 1, H, W).

    Pre-trained weights are recorded in the network's attribute `weights`. The arguments are the keys of
    conf/model/*.yaml; those that do not apply to the chosen network are ignored. The global random state is unchanged.

    Args:
        name: "attention_unet", "unet" (the same without attention gates), "smp" (segmentation-models-pytorch), or
            "pretrained" (`EncoderUNet`).
        seed: seed of the random initial weights.
        features: width of the first level, ≥ 1 (attention_unet, unet).
        init: "random" (PyTorch's initialisation), or "brain_mri" (attention_unet, unet; gates stay random).
        init_path: file with the brain-MRI weights; None: torch hub's.
        arch: architecture (smp), such as "Unet", "FPN", "DeepLabV3Plus".
        encoder: encoder (smp, pretrained), such as "resnet18", or "tu-<name>" for one of timm.
        encoder_weights: pre-trained weights of the encoder (smp, pretrained): a name such as "imagenet", to be
            downloaded, "package", or the path of a file (see `load_encoder`). None: random.
        widths: channels of the decoder's levels, coarsest first (pretrained).
        initial_weights: False ignores `init` and `encoder_weights`, if a checkpoint will overwrite the weights.

    Raises:
        MetasegError: an unknown name, features < 1, incompatible values, or initial weights that cannot be loaded.
    """
    if init_path is not None and init != "brain_mri":
        raise MetasegError(
            f"Expected model.init_path only together with model.init=brain_mri, found model.init={init} and "
            f"model.init_path={init_path}: set model.init=brain_mri, or omit the path."
        )
    # Only the CPU's generator is used, so only its state is restored.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name in ("smp", "pretrained"):
            if init != "random":
                raise MetasegError(
                    f"Expected model.init=random with model={name}, found {init}: set pre-trained weights of the "
                    "encoder with model.encoder_weights."
                )
            weights = encoder_weights if initial_weights else None
            # Deferred, because importing the library takes seconds.
            if name == "pretrained":
                from metaseg.networks.encoder_unet import EncoderUNet

                return EncoderUNet(encoder, weights, widths)
            from metaseg.networks.smp import LibraryNetwork

            return LibraryNetwork(arch, encoder, weights)
        if name not in _UNETS or features < 1:
            raise MetasegError(
                f"Expected a network out of {', '.join(_UNETS)}, smp, pretrained, and model.features from 1 upwards, "
                f"found {name!r} and {features}: correct them."
            )
        network = _UNETS[name](features)
    if init == "brain_mri" and initial_weights:
        network.weights = load_brain_mri(network, "hub" if init_path is None else init_path)
        log.info("Initial weights: %s.", network.weights.sentence())
    return network


def fingerprint(network: nn.Module) -> str:
    """The architecture in one line: label, number of parameters, hash of its tensors' names and shapes.

    Stored in checkpoints; a checkpoint with a different fingerprint does not fit the network.
    """
    parameters = sum(parameter.numel() for parameter in network.parameters())
    tensors = sorted((name, tuple(tensor.shape)) for name, tensor in network.state_dict().items())
    digest = hashlib.sha256(repr(tensors).encode()).hexdigest()[:8]
    return f"{getattr(network, 'label', type(network).__name__)}, {parameters:,} parameters, layout {digest}"

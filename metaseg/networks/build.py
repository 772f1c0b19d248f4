"""The network that a configuration's group `model` describes."""

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

    One that begins from pre-trained weights says so in its attribute `weights`.

    The arguments are the keys of conf/model/*.yaml; those that the chosen network does not have are not looked at. The
    state of the global random generators stays as it is.

    Args:
        name: "attention_unet", "unet" (the same without gates), or "smp" (segmentation-models-pytorch).
        seed: of the random initial weights: equal seeds give equal weights.
        features: width of the first level, ≥ 1 (attention_unet, unet).
        init: "random" (PyTorch's own initialisation), or "brain_mri" (attention_unet, unet): the gates stay random.
        init_path: file with the brain-MRI weights; None: torch hub's.
        arch: architecture (smp), such as "Unet", "FPN", "DeepLabV3Plus".
        encoder: encoder (smp), such as "resnet18", or "tu-<name>" for one of timm's.
        encoder_weights: pre-trained weights of the encoder (smp): such as "imagenet", which are downloaded, "package",
            or the path of a file (see `load_encoder`). None: random.
        widths: channels of the decoder's levels, coarsest first (pretrained).
        initial_weights: False leaves out `init` and `encoder_weights`, for when a checkpoint overwrites them anyway.

    Raises:
        MetasegError: on values that do not go together, or initial weights that cannot be loaded.
    """
    if init_path is not None and init != "brain_mri":
        raise MetasegError(
            f"Expected model.init_path only together with model.init=brain_mri, found model.init={init} and "
            f"model.init_path={init_path}: set model.init=brain_mri, or leave the path out."
        )
    # Only the CPU's generator is used and so only it is put back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name in ("smp", "pretrained"):
            if init != "random":
                raise MetasegError(
                    f"Expected model.init=random with model={name}, found {init}: pre-trained weights of its encoder "
                    "are chosen by model.encoder_weights."
                )
            weights = encoder_weights if initial_weights else None
            # Imported here because the library takes seconds to load.
            if name == "pretrained":
                from metaseg.networks.encoder_unet import EncoderUNet

                return EncoderUNet(encoder, weights, widths)
            from metaseg.networks.smp import LibraryNetwork

            return LibraryNetwork(arch, encoder, weights)
        network = {"attention_unet": AttentionUNet, "unet": UNet}[name](features)
    if init == "brain_mri" and initial_weights:
        report = load_brain_mri(network, "hub" if init_path is None else init_path)
        network.weights = report.record()
        log.info("Initial weights: %s.", report)
    return network


def fingerprint(network: nn.Module) -> str:
    """The architecture in one line: what it is, its number of parameters, a hash of its tensors' names and shapes.

    Checkpoints carry it; one with another fingerprint does not fit the network.
    """
    parameters = sum(parameter.numel() for parameter in network.parameters())
    tensors = sorted((name, tuple(tensor.shape)) for name, tensor in network.state_dict().items())
    digest = hashlib.sha256(repr(tensors).encode()).hexdigest()[:8]
    return f"{getattr(network, 'label', type(network).__name__)}, {parameters:,} parameters, layout {digest}"

"""The task on which all methods are compared: attention U-Net, drawn images, equal initial weights."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from metaseg.data.batches import Episode
from metaseg.meta.losses import LOSSES
from metaseg.meta.vectors import Parameters, detach
from metaseg.networks.build import build
from metaseg.networks.functional import forward
from metaseg.networks.normalisation import EpisodicBatchNorm2d
from metaseg.networks.pointwise import Pointwise2d

LOSS = "bce_log_cosh_dice"


@dataclass(frozen=True)
class Setting:
    """The settings of a benchmark; the defaults are those of the smallest published figures.

    Attributes:
        features: width of the attention U-Net's first level.
        size: side of the images in pixels, a multiple of 16.
        shots: images in the support set, and as many in the query set.
        inner_steps: K, SGD steps on L(φ) + λ/2 ‖φ - θ‖².
        cg_steps: maximum (or forced) number of conjugate gradient steps.
        lam: λ.
        lr: learning rate of the inner steps; they diverge unless it is below 2 / (λ + largest curvature).
        device: "cpu" or "cuda".
        threads: torch threads on the CPU.
        seed: seed of the initial weights and of the images.
        dtype: "float32" or "float64".
        tf32: allow TF32 in convolutions and matrix products on a GPU.
        norm: statistics that normalise the query images: "support", as in training, or "batch".
    """

    features: int = 8
    size: int = 64
    shots: int = 10
    inner_steps: int = 5
    cg_steps: int = 5
    lam: float = 100.0
    lr: float = 0.01
    device: str = "cpu"
    threads: int = 1
    seed: int = 0
    dtype: str = "float32"
    tf32: bool = False
    norm: str = "support"

    def miniature(self) -> "Setting":
        """A tiny task of the same kind, to trigger everything that is loaded at first use."""
        return replace(self, size=min(self.size, 32), shots=2, inner_steps=min(self.inner_steps, 1), cg_steps=1)

    def paper(self) -> "Setting":
        """The same with the paper's network and image size."""
        return replace(self, features=32, size=256)

    def apply(self) -> None:
        """Set torch's global switches."""
        torch.set_num_threads(self.threads)
        torch.backends.cudnn.allow_tf32 = self.tf32
        torch.backends.cuda.matmul.allow_tf32 = self.tf32


@dataclass(frozen=True)
class Problem:
    """The task of a setting.

    Attributes:
        setting: its setting.
        network: the attention U-Net with torch's own layers (``nn.BatchNorm2d`` with batch statistics, ``nn.Conv2d``
            even for 1x1) at the initial weights.
        episodic: the same network with metaseg's layers, which can normalise the query by the support set.
        theta: its parameters, detached.
        episode: support and query set.
    """

    setting: Setting
    network: nn.Module
    episodic: nn.Module
    theta: Parameters
    episode: Episode

    def loss(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Binary cross-entropy + log cosh Dice, the paper's loss."""
        return LOSSES[LOSS](logits, masks)

    def support_loss(self, parameters: Parameters) -> Tensor:
        """L(φ; S), a pure function of φ."""
        return self.loss(self.support_logits(parameters), self.episode.support_masks)

    def support_logits(self, parameters: Parameters) -> Tensor:
        """Logits of the support set, normalised by its own statistics."""
        return torch.func.functional_call(self.network, parameters, (self.episode.support_images,))

    def query_loss(self, parameters: Parameters) -> Tensor:
        """L(φ; Q), normalised by the statistics of ``Setting.norm``; by the support set, it takes a pass over both."""
        if self.setting.norm == "support":
            found = forward(self.episodic, parameters, self.episode.support_images)[1]
            logits = forward(self.episodic, parameters, self.episode.query_images, found)[0]
        else:
            logits = torch.func.functional_call(self.network, parameters, (self.episode.query_images,))
        return self.loss(logits, self.episode.query_masks)


def make_problem(setting: Setting) -> Problem:
    """The task of a setting. Weights and images are drawn in float32 on the CPU, whatever the device and dtype."""
    episodic, network = (
        build(name="attention_unet", features=setting.features, seed=setting.seed).to(
            setting.device, getattr(torch, setting.dtype)
        )
        for _ in range(2)
    )
    network = plain_layers(network).to(setting.device, getattr(torch, setting.dtype)).train()
    return Problem(setting, network, episodic, detach(dict(network.named_parameters())), make_episode(setting))


def make_episode(setting: Setting, index: int = 0) -> Episode:
    """Support and query set number `index`: `shots` images each of bright discs on noise."""
    generator = torch.Generator().manual_seed(1000 * setting.seed + index)
    support = _pictures(setting, generator)
    query = _pictures(setting, generator)
    return Episode(*(part.to(setting.device, getattr(torch, setting.dtype)) for part in (*support, *query)))


def _pictures(setting: Setting, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    count, side = setting.shots, setting.size
    at = torch.arange(side, dtype=torch.float32)
    centre = side * (0.3 + 0.4 * torch.rand(count, 2, 1, 1, generator=generator))
    radius = side * (0.15 + 0.15 * torch.rand(count, 1, 1, generator=generator))
    inside = (at[:, None] - centre[:, 0]) ** 2 + (at[None, :] - centre[:, 1]) ** 2 < radius**2
    masks = inside[:, None].float()
    images = 0.5 * torch.randn(count, 3, side, side, generator=generator) + 0.8 * masks - 0.4
    return images.clamp(-1, 1), masks


def plain_layers(module: nn.Module) -> nn.Module:
    """Replace our layers (batch norm with batch statistics, 1x1 convolution) by torch's own, keeping parameters."""
    for name, child in module.named_children():
        if isinstance(child, Pointwise2d):
            convolution = nn.Conv2d(child.in_channels, child.out_channels, 1, bias=child.bias is not None)
            convolution.load_state_dict(child.state_dict())
            setattr(module, name, convolution)
        elif isinstance(child, EpisodicBatchNorm2d):
            layer = nn.BatchNorm2d(child.num_features, child.eps, track_running_stats=False)
            layer.load_state_dict({key: value.detach() for key, value in child.named_parameters()})
            setattr(module, name, layer)
        else:
            plain_layers(child)
    return module

"""One task on one network, the same for every method: the attention U-Net, drawn images, equal initial weights."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from metaseg.data.batches import Episode
from metaseg.meta.losses import LOSSES
from metaseg.meta.vectors import Parameters, detach
from metaseg.networks.build import build
from metaseg.networks.normalisation import EpisodicBatchNorm2d
from metaseg.networks.pointwise import Pointwise2d

LOSS = "bce_log_cosh_dice"


@dataclass(frozen=True)
class Setting:
    """What a benchmark is run with; the defaults are those of the smallest figures in docs and issues.

    Attributes:
        features: width of the attention U-Net's first level.
        size: side of the images in pixels, a multiple of 16.
        shots: images in the support set, and as many in the query set.
        inner_steps: K, SGD steps on L(φ) + λ/2 ‖φ - θ‖².
        cg_steps: steps of conjugate gradient where they are forced.
        lam: λ.
        lr: learning rate of the inner steps; below 2 / (λ + largest curvature), or they diverge.
        device: "cpu" or "cuda".
        threads: threads of torch on the CPU.
        seed: of the initial weights and of the images.
        dtype: "float32" or "float64".
        tf32: whether convolutions and products of matrices on a GPU may round to TF32.
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

    def miniature(self) -> "Setting":
        """The same kind of task at next to no cost: loads whatever is loaded at first use."""
        return replace(self, size=min(self.size, 32), shots=2, inner_steps=min(self.inner_steps, 1), cg_steps=1)

    def apply(self) -> None:
        """Set the switches of torch that are global."""
        torch.set_num_threads(self.threads)
        torch.backends.cudnn.allow_tf32 = self.tf32
        torch.backends.cuda.matmul.allow_tf32 = self.tf32


@dataclass(frozen=True)
class Problem:
    """A setting made real.

    Attributes:
        setting: what it was made from.
        network: the attention U-Net of torch's own layers (``nn.BatchNorm2d`` that normalises by its batch,
            ``nn.Conv2d`` also where it is 1x1), at the initial weights.
        theta: its parameters, cut from any graph.
        episode: support and query set.
    """

    setting: Setting
    network: nn.Module
    theta: Parameters
    episode: Episode

    def loss(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Binary cross-entropy + log cosh Dice, the paper's loss."""
        return LOSSES[LOSS](logits, masks)

    def support_loss(self, parameters: Parameters) -> Tensor:
        """L(φ; S), a pure function of φ."""
        return self.loss(self.support_logits(parameters), self.episode.support_masks)

    def support_logits(self, parameters: Parameters) -> Tensor:
        """Logits of the support set, normalised by the support set."""
        return torch.func.functional_call(self.network, parameters, (self.episode.support_images,))

    def query_loss(self, parameters: Parameters) -> Tensor:
        """L(φ; Q), normalised by the query set (batch statistics: the transductive variant)."""
        logits = torch.func.functional_call(self.network, parameters, (self.episode.query_images,))
        return self.loss(logits, self.episode.query_masks)


def make_problem(setting: Setting) -> Problem:
    """The task of a setting. Weights and images are drawn in float32 on the CPU, so no device or dtype changes them."""
    network = plain_layers(build(name="attention_unet", features=setting.features, seed=setting.seed))
    network = network.to(setting.device, getattr(torch, setting.dtype)).train()
    return Problem(setting, network, detach(dict(network.named_parameters())), make_episode(setting))


def make_episode(setting: Setting, index: int = 0) -> Episode:
    """Support and query set number `index`: bright discs on noise, `shots` each."""
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
    """Swap the layers of ours for torch's own (batch norm, by batch statistics; 1x1 convolution); parameters stay."""
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

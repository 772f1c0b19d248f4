"""Networks in stages: the parts encoder, decoder and head that settings refer to.

Every network of the project has these three parts. Step sizes and norm statistics are set per part, and the output of
leading stages that are frozen within a task is computed once.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import nn

from metaseg.errors import MetasegError
from metaseg.networks.weights_record import WeightsRecord

PARTS = ("encoder", "decoder", "head")
"""Parts of a network in the order of the forward pass."""


class StagedNetwork(nn.Module):
    """A network whose parts run in sequence, so that a forward pass can start or end between two of them.

    Images (B, 3, H, W) in [-1, 1] → encoder → decoder → head → logits (B, 1, H, W).
    """

    weights: WeightsRecord | None = None
    """Pre-trained initial weights."""
    staged = True
    """Whether a pass may start or end between parts."""
    modules_of: Mapping[str, tuple[str, ...]]
    """Part → name prefixes of its modules; everything else belongs to the decoder."""

    def forward(self, hidden: Any, first: str = PARTS[0], last: str = PARTS[-1]) -> Any:
        """Run the stages from `first` to `last`.

        Args:
            hidden: images, or the output of the stage before `first`.
            first: a name in `PARTS`.
            last: likewise, not before `first`.

        Returns:
            The output of `last`: logits, or nested tensors.
        """
        for part in PARTS[PARTS.index(first) : PARTS.index(last) + 1]:
            hidden = self.stage(part, hidden)
        return hidden

    @abstractmethod
    def stage(self, part: str, hidden: Any) -> Any:
        """The output of one stage, given that of the preceding stage (for the encoder: images)."""


def part_of(network: nn.Module, name: str) -> str:
    """The part of a parameter or layer, by its dotted name.

    Without ``modules_of``, parts are the modules named "encoder" and "head"; the rest is the decoder.
    """
    declared = getattr(network, "modules_of", {"encoder": ("encoder",), "head": ("head",)})
    for part, prefixes in declared.items():
        if any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes):
            return str(part)
    return "decoder"


def output_bias(network: nn.Module) -> str | None:
    """The name of the bias that is added to the logits; None: the network has none."""
    biases = [name for name, value in network.named_parameters() if name.endswith("bias") and value.numel() == 1]
    return next((name for name in reversed(biases) if part_of(network, name) == "head"), None)


def require_multiples(label: str, stride: int, height: int, width: int) -> None:
    """Refuse images whose sides are not multiples of the stride.

    Raises:
        MetasegError: the height or width is not a multiple.
    """
    if height % stride or width % stride:
        raise MetasegError(
            f"Expected images whose height and width are multiples of {stride} for {label}, found {height}x{width}: "
            "choose another data.size."
        )

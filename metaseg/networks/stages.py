"""Networks in stages, and the parts that settings speak of: encoder, decoder, head.

Every network of the project has these three parts. A step size or the kind of norm statistics is chosen for each of
them, and stages that do not move within a task are run once for it.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from metaseg.networks.weights_record import WeightsRecord

PARTS = ("encoder", "decoder", "head")
"""In the order in which images pass through them."""


class StagedNetwork(nn.Module):
    """A network whose parts run one after the other, so that a pass can end or begin between two of them.

    Images (B, 3, H, W) in [-1, 1] → encoder → decoder → head → logits (B, 1, H, W).
    """

    weights: WeightsRecord | None = None
    """Pre-trained weights that it began from."""
    staged = True
    """Whether passes may end and begin between parts."""
    modules_of: Mapping[str, tuple[str, ...]]
    """Part → prefixes of the names of its modules; what is in no other part belongs to the decoder."""

    def forward(self, hidden: Any, first: str = PARTS[0], last: str = PARTS[-1]) -> Any:
        """Run the stages from `first` to `last`.

        Args:
            hidden: images, or what the stage before `first` returned.
            first: a name of `PARTS`.
            last: likewise, not before `first`.

        Returns:
            What `last` returns: logits, or a nest of tensors.
        """
        for part in PARTS[PARTS.index(first) : PARTS.index(last) + 1]:
            hidden = self.stage(part, hidden)
        return hidden

    @abstractmethod
    def stage(self, part: str, hidden: Any) -> Any:
        """The output of one stage, given that of the stage before it (of the encoder: images)."""


def part_of(network: nn.Module, name: str) -> str:
    """The part that a parameter or a layer belongs to, by its dotted name.

    Networks that declare no ``modules_of`` are told by the names of their modules: "encoder", "head", else decoder.
    """
    declared = getattr(network, "modules_of", {"encoder": ("encoder",), "head": ("head",)})
    for part, prefixes in declared.items():
        if any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes):
            return str(part)
    return "decoder"


def by_part(network: nn.Module, parameters: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Parameters by part, each part in the order in which they came; all three parts are there, if empty."""
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
    for name, value in parameters.items():
        parts[part_of(network, name)][name] = value
    return parts

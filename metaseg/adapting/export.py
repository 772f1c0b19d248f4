"""Export of an adapted segmenter to ONNX or torch.export's format, with normalisation included."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from metaseg.adapting.model import Adapted
from metaseg.errors import MetasegError, needs
from metaseg.networks.normalisation import plain_batch_norm
from metaseg.networks.segmenter import AdaptedNetwork, Ensemble, Segmenter, averaged
from metaseg.system import replacing

FORMATS = ("onnx", "torch")


class Exported(nn.Module):
    """Images uint8 (N, h, w, 3), RGB → foreground probabilities float32 (N, h, w) in [0, 1].

    Args:
        networks: those of an ensemble, or one network; each a plain module: images (N, 3, h, w) in [-1, 1] →
            logits (N, 1, h, w).
        flips: as in `Ensemble`.
    """

    def __init__(self, networks: Sequence[nn.Module], flips: bool = False) -> None:
        super().__init__()
        self.flips = flips
        self.networks = nn.ModuleList(networks)
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (N, h, w, 3) → float32 (N, h, w)."""
        normalised = images.permute(0, 3, 1, 2).float() / 127.5 - 1
        probabilities = [lambda images, network=network: torch.sigmoid(network(images)) for network in self.networks]
        return averaged(probabilities, normalised, self.flips)[:, 0]


def export(adapted: Adapted, folder: Path, formats: Sequence[str]) -> list[Path]:
    """Write segmenter.onnx and segmenter.pt2, as requested; both take 1 to 1024 images at a time.

    Returns:
        The paths.

    Raises:
        MetasegError: if the learner compares images instead of adapting a network, or normalises by the batch, or the
            ONNX libraries are missing.
    """
    if not formats:
        return []
    module = exportable(adapted)
    example = torch.zeros(2, *adapted.plan.shape, 3, dtype=torch.uint8)
    number = torch.export.Dim("images", min=1, max=1024)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporters' internals
        program = torch.export.export(module, (example,), dynamic_shapes={"images": {0: number}})
        written = []
        for name in dict.fromkeys(formats):
            path = folder / ("segmenter.onnx" if name == "onnx" else "segmenter.pt2")
            with replacing(path) as temporary:
                if name == "onnx":
                    _onnx(program, temporary)
                else:
                    torch.export.save(program, temporary)
            written.append(path)
    return written


def exportable(adapted: Adapted) -> Exported:
    """The segmenter as a plain module on the CPU.

    Raises:
        MetasegError: as for `export`.
    """
    segmenter = adapted.segmenter
    if isinstance(segmenter, Ensemble):
        return Exported([_plain(member) for member in segmenter.members], segmenter.flips)
    return Exported([_plain(segmenter)])


def _plain(segmenter: Segmenter) -> nn.Module:
    """The network with its parameters and statistics baked in, on the CPU."""
    if not isinstance(segmenter, AdaptedNetwork):
        raise MetasegError(
            "Export needs an adapted network, but this learner compares images with annotated ones; "
            "use a run of imaml, maml, joint or similar."
        )
    if segmenter.by_batch():
        raise MetasegError(
            "A network with model.norm=batch cannot be exported, because its predictions depend on one another; train "
            "with model.norm=support."
        )
    network = copy.deepcopy(segmenter.network).cpu()
    network.load_state_dict({name: value.cpu() for name, value in segmenter.parameters.items()}, strict=False)
    statistics = {name: (mean.cpu(), variance.cpu()) for name, (mean, variance) in segmenter.statistics.items()}
    return plain_batch_norm(network, statistics)


def _onnx(program: torch.export.ExportedProgram, path: Path) -> None:
    try:
        import onnxscript  # noqa: F401 (torch.onnx needs it)
    except ImportError as error:
        raise MetasegError(needs("export=[onnx]", "onnx and onnxscript", "onnx")) from error
    found = torch.onnx.export(
        program, input_names=["images"], output_names=["probabilities"], dynamo=True, verbose=False, external_data=False
    )
    assert found is not None
    found.save(path, external_data=False)

"""U²-Net-p, which outlines what stands out in an image without a single annotation of its kind.

Qin et al. 2020, "U²-Net: Going deeper with nested U-structure for salient object detection" (weights: Apache-2.0), from
the extra `unannotated`. Of that package only the file of weights is used.
"""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 320
"""Side of the images it was trained on, in pixels."""

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Network = Callable[[np.ndarray], np.ndarray]
"""(1, 3, 320, 320) → saliency (1, 1, 320, 320)."""


def network() -> Network | None:
    """U²-Net-p; None if the extra is not installed."""
    package = importlib.util.find_spec("rembg")
    file = Path(package.origin).with_name("u2netp.onnx") if package and package.origin else None
    if file is None or not file.is_file():
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def salient(images: Sequence[np.ndarray], network: Network) -> list[np.ndarray]:
    """Masks of what stands out.

    Args:
        images: uint8 RGB (H, W, 3), of any sizes.
        network: the network.

    Returns:
        bool (H, W) each, at half of the range of an image's saliency.
    """
    masks = []
    for image in images:
        small = np.asarray(Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.LANCZOS), np.float32)
        scaled = (small / max(1.0, small.max()) - _MEAN) / _STD
        found = network(scaled.transpose(2, 0, 1)[None].astype(np.float32))[0, 0]
        found = (found - found.min()) / max(1e-8, found.max() - found.min())
        whole = Image.fromarray(found.astype(np.float32)).resize(image.shape[1::-1], Image.Resampling.BILINEAR)
        masks.append(np.asarray(whole) > 0.5)
    return masks

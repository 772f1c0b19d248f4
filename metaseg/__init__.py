"""Few-shot medical image segmentation by meta-learning with implicit gradients.

model = metaseg.load("runs/…")                  # a run directory or its checkpoint
segmenter = model.adapt(images, masks)          # a few annotated images of any size
predicted = segmenter.segment(new_images)       # one bool mask per image, at the image's size
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metaseg.adapting.model import load

__all__ = ["load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Lazy: importing torch takes a second, and `metaseg.errors` does not need it.
    if name == "load":
        from metaseg.adapting.model import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Few-shot medical image segmentation by meta-learning with implicit gradients.

model = metaseg.load("runs/…")                  # a run directory or its checkpoint
segmenter = model.adapt(images, masks)          # a few annotated images of any size
predicted = segmenter.segment(new_images)       # one bool mask per image, at the image's size
metaseg.save(segmenter, "polyps.safetensors")   # and metaseg.load_segmenter to use it again
metaseg.learning_curve(segmenter)               # whether more annotated images would help
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metaseg.adapting.learning_curve import learning_curve
    from metaseg.adapting.loading import load
    from metaseg.adapting.saved import load_segmenter, save

__all__ = ["learning_curve", "load", "load_segmenter", "save"]
__version__ = "0.1.0"

_PLACES = {"learning_curve": "learning_curve", "load": "loading", "load_segmenter": "saved", "save": "saved"}


def __getattr__(name: str) -> Any:
    # Lazy: importing torch takes a second, and `metaseg.errors` does not need it.
    if name in _PLACES:
        return getattr(import_module(f"metaseg.adapting.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

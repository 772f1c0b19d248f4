"""Small datasets on disk for the tests of the data package: painted, unlike each other, in any layout."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from metaseg.data import check
from metaseg.data.catalogue import get

STEMS = ["a", "b", "c", "d", "e", "f"]
KVASIR = replace(get("kvasir"), count=len(STEMS))
"""A Kvasir-SEG of six."""


def picture(seed, width=96, height=72):
    """A smooth random image and, on it, a bright ellipse: (RGB Pillow image, bool mask (H, W))."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 160, size=(6, 8, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).copy()
    y, x = np.mgrid[:height, :width]
    cy, cx = rng.uniform(0.35, 0.65, 2) * (height, width)
    mask = ((y - cy) / (0.2 * height)) ** 2 + ((x - cx) / (0.25 * width)) ** 2 < 1
    image[mask] += 80
    return Image.fromarray(image), mask


def save(image, path):
    """Save, making the folders; JPEG at high quality."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **({"quality": 95} if path.suffix in (".jpg", ".jpeg") else {}))


def write_dataset(folder, stems, images="images/{stem}.jpg", masks="masks/{stem}.png", first_seed=0):
    """One painted pair for each stem; images and masks are paths inside folder. Returns the bool masks by stem."""
    truth = {}
    for seed, stem in enumerate(stems, start=first_seed):
        image, mask = picture(seed)
        save(image, Path(folder) / images.format(stem=stem))
        save(Image.fromarray(mask.astype(np.uint8) * 255), Path(folder) / masks.format(stem=stem))
        truth[stem] = mask
    return truth


def truncate(path, keep=0.5):
    """Cut the end off a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])


def folders(place):
    """Names in a cache that are datasets or leftovers, without the locks."""
    return sorted(path.name for path in place.iterdir() if path.is_dir())


def forbid_decoding(monkeypatch):
    """Let a test fail if an image is decoded from now on."""

    def inspect(pair, size):
        raise AssertionError(f"{pair.id} was decoded again")

    monkeypatch.setattr(check, "inspect", inspect)

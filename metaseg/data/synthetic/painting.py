"""Shared tools for painting skin and mucosa: random generators, smooth noise, outlines, strokes.

Coordinates x (to the right) and y (downwards) span [-1, 1]² at any image size S, and random numbers are drawn
independently of S, so a scene is the same at every size. Images are float32 (S,S,3) in about [0, 1].
"""

import zlib
from dataclasses import dataclass

import cv2
import numpy as np

Array = np.ndarray
Frame = tuple[Array, Array]
"""Image float (S,S,3), to be clipped to [0, 1], and its mask bool (S,S)."""

MELANIN = np.array([0.45, 1.0, 1.45], np.float32)
"""Absorption of red, green, blue per unit of pigment; from the ratio of lesion to skin in the real PH2 images."""
BLOOD = np.array([0.12, 0.95, 0.85], np.float32)
"""The same for blood, which barely absorbs red."""

_CANVAS = 256  # side at which strokes are drawn before averaging: they are thinner than a pixel of a small image
_QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
_SHARES = {  # foreground shares of the real masks at these quantiles, measured at 128×128 with extremes trimmed
    "ph2": (0.03, 0.10, 0.14, 0.23, 0.47, 0.69, 0.95),
    "isic": (0.005, 0.025, 0.05, 0.14, 0.32, 0.52, 0.95),
    "kvasir": (0.006, 0.034, 0.059, 0.114, 0.209, 0.319, 0.75),
    "cvc": (0.004, 0.02, 0.036, 0.068, 0.127, 0.201, 0.49),
}


def generator(name: str, seed: int, *key: int) -> np.random.Generator:
    """Return the generator of one image or scene: independent streams for different names, seeds and keys."""
    sequence = np.random.SeedSequence((seed, zlib.crc32(name.encode())), spawn_key=key)
    return np.random.Generator(np.random.PCG64(sequence))


def draw_share(rng: np.random.Generator, name: str) -> float:
    """Draw a foreground share from the distribution in the real dataset."""
    return float(np.interp(rng.uniform(), _QUANTILES, _SHARES[name]))


def grid(size: int) -> tuple[Array, Array]:
    """Return the coordinates x and y of the pixel centres, float32 (S,S) each."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    x, y = np.meshgrid(axis, axis)
    return x, y


def noise(rng: np.random.Generator, size: int, cells: int, octaves: int = 1) -> Array:
    """Return a smooth random field (S,S) of about unit variance: `cells` bumps per side, plus finer octaves."""
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        coarse = rng.standard_normal((cells << octave,) * 2, dtype=np.float32)
        total += cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC) * 0.5**octave
    return total * np.float32(1.2 / np.sqrt(sum(0.25**octave for octave in range(octaves))))


def smoothstep(value: Array, low: float, high: float) -> Array:
    """Return 0 below `low`, 1 above `high`, and a cubic in between."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def absorb(pigment: Array, spectrum: Array) -> Array:
    """Return the transmission (S,S,3) of a layer of pigment (S,S), clipped at 0: exp(-pigment · spectrum)."""
    return np.exp(-np.maximum(pigment, 0)[..., None] * spectrum).astype(np.float32)


def over(image: Array, colour: tuple[float, ...] | Array, alpha: Array) -> Array:
    """Composite a colour or an image over an image with opacity alpha (S,S)."""
    return image + alpha[..., None] * (np.asarray(colour, np.float32) - image)


def grain(rng: np.random.Generator, image: Array, strength: float) -> Array:
    """Add sensor noise. Must draw from `rng` last, since it draws one number per pixel."""
    return image + rng.standard_normal(image.shape, dtype=np.float32) * np.float32(strength)


def strokes(curves: list[Array], thickness: int, size: int) -> Array:
    """Draw polylines (points, 2), about `thickness`/256 of the image wide; return their coverage (S,S) in [0, 1]."""
    canvas = np.zeros((_CANVAS, _CANVAS), np.uint8)
    points = [np.asarray((curve + 1) * (_CANVAS / 2) * 16, np.int32) for curve in curves]
    cv2.polylines(canvas, points, False, 255, thickness, cv2.LINE_AA, shift=4)
    return cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


@dataclass
class Outline:
    """A star-shaped region whose log-radius is a Fourier series of the angle, stretched to an ellipse.

    Attributes:
        centre: (x, y).
        stretch: square root of the ratio of the ellipse's half axes.
        angle: orientation of the ellipse, radians.
        amplitudes: (16,) of the harmonics 2, 3, … 17.
        phases: (16,) of the same, radians.
    """

    centre: tuple[float, float]
    stretch: float
    angle: float
    amplitudes: Array
    phases: Array

    @classmethod
    def draw(cls, rng: np.random.Generator, spread: float, roughness: float, decay: float) -> "Outline":
        """Draw an outline.

        Args:
            rng: source of randomness.
            spread: standard deviation of the centre around the middle of the frame.
            roughness: roughness of the border; 0 gives an ellipse.
            decay: exponent by which harmonics decay; smaller is more ragged.
        """
        orders = np.arange(2, 18)
        x, y = np.clip(rng.normal(0, spread, 2), -0.8, 0.8)
        return cls(
            centre=(float(x), float(y)),
            stretch=float(np.exp(rng.normal(0, 0.22))),
            angle=float(rng.uniform(0, np.pi)),
            amplitudes=roughness * rng.normal(0, 1, orders.size) / (orders - 1.0) ** decay,
            phases=rng.uniform(0, 2 * np.pi, orders.size),
        )

    def depth(self, x: Array, y: Array, share: float, visible: Array) -> Array:
        """Return the depth of each pixel inside the border, (S,S): 1 at the centre, 0 on the border, negative outside.

        The outline is scaled so that a `share` of all pixels is both inside and `visible` (bool (S,S)): at least 4
        pixels, at most 97 % of the visible ones.
        """
        turn = np.linspace(0, 2 * np.pi, 181)
        waves = np.cos(np.multiply.outer(turn, np.arange(2, 18)) + self.phases)
        radius = np.exp((self.amplitudes * waves).sum(1))
        dx, dy = x - self.centre[0], y - self.centre[1]
        along = (np.cos(self.angle) * dx + np.sin(self.angle) * dy) * self.stretch
        across = (np.cos(self.angle) * dy - np.sin(self.angle) * dx) / self.stretch
        ratio = np.hypot(along, across) / np.interp(np.arctan2(across, along) + np.pi, turn, radius)
        candidates = ratio[visible]
        pixels = int(np.clip(round(share * x.size), 4, 0.97 * candidates.size))
        return (1 - ratio / np.partition(candidates, pixels)[pixels]).astype(np.float32)

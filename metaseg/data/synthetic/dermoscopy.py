"""Painted dermoscopy: the twins of PH2 and ISIC-2018.

Skin and lesion are one absorbing layer (Beer-Lambert): melanin and blood are fields over the image, and the colour is
the light they transmit. Lesions are thus darker and browner than the surrounding skin, but no threshold separates a
faint lesion in pale skin from dark skin, and hairs, freckles, rulers and corners are as dark as lesions.
"""

from dataclasses import dataclass

import numpy as np

from metaseg.data.synthetic.painting import (
    BLOOD,
    MELANIN,
    Array,
    Frame,
    Outline,
    absorb,
    draw_share,
    generator,
    grain,
    grid,
    noise,
    over,
    smoothstep,
    strokes,
)


@dataclass(frozen=True)
class _Style:
    """The differences between the two datasets.

    Attributes:
        aperture: probability that the round field of view is visible.
        radius: range of its radius; 1 touches the image's edges.
        rim: start and end of its dark rim, in radii.
        darkness: mean and deviation of the logarithm of the lesion's pigment.
        softness: largest width of the border.
        tone: scale of the skin's pigment.
        tint: deviation of the logarithm of the camera's white balance.
        freckles: probability of freckles.
        hairs: probability of hairs, and their maximum number.
        artefacts: whether rulers, bubbles, patches and ink occur.
    """

    aperture: float
    radius: tuple[float, float]
    rim: tuple[float, float]
    darkness: tuple[float, float]
    softness: float
    tone: float
    tint: float
    freckles: float
    hairs: tuple[float, int]
    artefacts: bool


_STYLES = {
    "ph2": _Style(1.0, (1.12, 1.26), (0.85, 1.12), (-0.35, 0.45), 0.15, 0.07, 0.03, 0.3, (0.25, 9), False),
    "isic": _Style(0.25, (0.95, 1.25), (0.98, 1.02), (-0.35, 0.5), 0.28, 0.12, 0.07, 0.6, (0.35, 20), True),
}
_PATCHES = np.array([[0.95, 0.8, 0.2], [0.2, 0.6, 0.25], [0.25, 0.45, 0.8], [0.9, 0.45, 0.2]], np.float32)


def skin_lesion(name: str, seed: int, index: int, size: int) -> Frame:
    """Paint image `index` of ph2 or isic: skin with one lesion.

    Returns:
        image float (S,S,3), and mask bool (S,S), not empty.
    """
    rng, style = generator(name, seed, index), _STYLES[name]
    x, y = grid(size)
    radius = np.hypot(x - rng.normal(0, 0.04), (y - rng.normal(0, 0.04)) * rng.uniform(0.85, 1.0))
    aperture = rng.uniform(*style.radius) if rng.uniform() < style.aperture else np.inf
    visible = radius < aperture

    outline = Outline.draw(rng, 0.12, rng.uniform(0.04, 0.14), rng.uniform(0.8, 1.3))
    depth = outline.depth(x, y, draw_share(rng, name), visible)
    mask = (depth > 0) & visible
    body = smoothstep(depth, *(rng.uniform(0.03, style.softness) * np.array([-1, 1.2])))

    melanin = _skin_pigment(rng, style, size) + body * _lesion_pigment(rng, style, size)
    blood = rng.uniform(0, 0.22) + rng.uniform(0.01, 0.05) * noise(rng, size, 4, 4) + rng.normal(0.04, 0.1) * body
    white = np.array([0.9, 0.78, 0.72]) * np.exp(rng.normal(0, style.tint, 3))
    tilt = rng.normal(0, 0.07, 2)
    light = rng.uniform(0.9, 1.12) * (1 - rng.uniform(0.05, 0.3) * radius**2 + tilt[0] * x + tilt[1] * y)
    image = absorb(melanin, MELANIN) * absorb(blood, BLOOD) * white.astype(np.float32) * light[..., None]

    if rng.uniform() < style.hairs[0]:
        hairs = _hairs(rng, int(rng.integers(2, style.hairs[1])), size)
        image = over(image, (0.16, 0.1, 0.07), hairs * rng.uniform(0.5, 0.95))
    if style.artefacts:
        image = _artefacts(rng, image, x, y, mask)
    if np.isfinite(aperture):
        rim = smoothstep(radius, aperture * style.rim[0], aperture * style.rim[1])
        image = over(image, (0.1, 0.08, 0.07), rim * rng.uniform(0.6, 1))
    return grain(rng, image, rng.uniform(0.008, 0.02)), mask


def _skin_pigment(rng: np.random.Generator, style: _Style, size: int) -> Array:
    uneven = rng.uniform(0.01, 0.06) * noise(rng, size, 3, 5)
    freckles = rng.uniform(0, 0.6) * smoothstep(noise(rng, size, 11), 1.9, 2.6)
    return rng.gamma(1.5, style.tone) + uneven + freckles * (rng.uniform() < style.freckles)


def _lesion_pigment(rng: np.random.Generator, style: _Style, size: int) -> Array:
    mottle = 1 + rng.uniform(0.1, 0.35) * noise(rng, size, 5, 4)
    network = rng.uniform(0, 0.35) * np.abs(noise(rng, size, 30))
    pale = rng.uniform(0, 0.7) * smoothstep(noise(rng, size, 3), 0.3, 1.2)
    return np.exp(rng.normal(*style.darkness)) * np.clip(mottle + network, 0.15, 2.5) * (1 - pale)


def _hairs(rng: np.random.Generator, number: int, size: int) -> Array:
    """Return the coverage (S,S) of curved, roughly parallel hairs."""
    t = np.linspace(0, 1, 14)[:, None]
    heading = rng.uniform(0, np.pi)
    curves = []
    for _ in range(number):
        turn = heading + rng.normal(0, 0.5)
        chord = rng.uniform(0.5, 1.6) * np.array([np.cos(turn), np.sin(turn)])
        curves.append(rng.uniform(-1.1, 1.1, 2) + t * chord + t * (1 - t) * rng.normal(0, 0.7, 2))
    return strokes(curves, int(rng.integers(1, 3)), size)


def _ruler(rng: np.random.Generator, size: int) -> Array:
    start = np.array([rng.uniform(-0.8, -0.2), rng.uniform(0.55, 0.9)])
    tilt, step = rng.normal(0, 0.08), rng.uniform(0.06, 0.1)
    along, across = np.array([np.cos(tilt), np.sin(tilt)]), np.array([-np.sin(tilt), np.cos(tilt)])
    if rng.uniform() < 0.25:
        start, along, across = start[::-1] * [-1, 1], along[::-1], across[::-1]
    feet = [start + k * step * along for k in range(11)]
    ticks = [np.stack([foot, foot - (0.07 if k % 5 else 0.12) * across]) for k, foot in enumerate(feet)]
    return strokes([*ticks, np.stack([feet[0], feet[-1]])], 2, size)


def _artefacts(rng: np.random.Generator, image: Array, x: Array, y: Array, mask: Array) -> Array:
    """Draw a ruler, gel bubbles, a coloured patch and ink over the image, each with its own probability."""
    size = len(x)
    ruler, bubbles, patch, ink = rng.uniform(size=4) < (0.3, 0.25, 0.12, 0.1)
    if ruler:
        image = over(image, (0.15, 0.13, 0.13), _ruler(rng, size) * 0.9)
    if bubbles:
        for _ in range(rng.integers(2, 9)):
            ring = np.hypot(x - rng.uniform(-1, 1), y - rng.uniform(-1, 1)) / rng.uniform(0.04, 0.16)
            image = image + (0.22 * np.exp(-(((ring - 1) / 0.2) ** 2)) - 0.05 * (ring < 1))[..., None]
    if patch:
        side = rng.choice([-1.1, 1.1])
        disc = np.hypot(x - side, (y - rng.uniform(-0.6, 0.6)) * 0.7)
        image = over(image, rng.choice(_PATCHES), smoothstep(-disc, -0.42, -0.36) * ~mask)
    if ink:
        curves = [rng.uniform(-0.9, 0.9, 2) + rng.normal(0, 0.09, (9, 2)) for _ in range(rng.integers(2, 5))]
        image = over(image, (0.4, 0.2, 0.5), strokes(curves, 3, size) * 0.8 * ~mask)
    return image

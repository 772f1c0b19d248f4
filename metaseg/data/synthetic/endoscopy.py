"""Painted endoscopy: the twins of Kvasir-SEG, CVC-ClinicDB and KvasirCapsule-SEG.

The mucosa is a tube seen from inside: a dark lumen surrounded by folds, vessels and specular highlights. A polyp is a
bump: shaded by its relief, without vessels, finer in texture, and often better lit than the rest. But folds look
similar, and highlights and nearby mucosa are as bright, so a threshold does not find it.
"""

import cv2
import numpy as np

from metaseg.data.synthetic.painting import (
    BLOOD,
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

CVC_FRAMES = 10
"""Frames of one cvc sequence (in the real data: 612 frames in 29 sequences, about 21 each)."""
CAPSULE_BLOCK = 11
"""Consecutive frames of the capsule video in one group, as conf/dataset/kvasir_capsule.yaml cuts the real video."""

_BILE = np.array([0.03, 0.25, 1.2], np.float32)


def colonoscopy_image(name: str, seed: int, index: int, size: int) -> Frame:
    """Paint image `index` of kvasir: black corners, often text and a box at the lower left (sometimes green).

    Returns:
        image float (S,S,3), and mask bool (S,S), not empty.
    """
    rng = generator(name, seed, index)
    x, y = grid(size)
    box, screen, text, corners = rng.uniform(size=4) < (0.65, 0.4, 0.5, 0.85)
    left, top = rng.uniform(-0.5, -0.25), rng.uniform(0.3, 0.45)
    visible = _octagon(x, y, rng.uniform(0.3, 0.5) if corners else -1.0, rng.uniform(0.94, 1.0))
    visible = visible & ~(box & (x < left) & (y > top))
    outline = Outline.draw(rng, 0.33, rng.uniform(0.03, 0.16), 1.4)
    depth = outline.depth(x, y, draw_share(rng, name), visible)
    image = np.where(visible[..., None], _mucosa(rng, x, y, depth, outline.centre), np.float32(0.02))
    if box and screen:
        image = _green_screen(rng, image, x, y, left, top)
    if text:
        rows = rng.uniform(-0.75, 0.2) + 0.09 * np.arange(4)
        lines = [np.array([[-0.95, row], [-0.95 + rng.uniform(0.1, 0.35), row]]) for row in rows]
        image = over(image, (0.85, 0.85, 0.85), strokes(lines, 2, size) * 0.7)
    return grain(rng, image, 0.012), (depth > 0) & visible


def colonoscopy_frame(name: str, seed: int, index: int, size: int) -> Frame:
    """Paint frame `index` of cvc: one scene per sequence, seen by a slightly drifting camera; dark margins.

    Returns:
        image float (S,S,3), and mask bool (S,S), not empty.
    """
    scene = generator(name, seed, 0, index // CVC_FRAMES)
    x, y = grid(size)
    visible = _octagon(x, y, scene.uniform(0.2, 0.35), scene.uniform(0.76, 0.86)) & (np.abs(y) < 0.95)
    outline = Outline.draw(scene, 0.3, scene.uniform(0.03, 0.16), 1.4)
    # Well inside the frame, so that the drift never moves a small polyp out of view.
    outline.centre = (float(np.clip(outline.centre[0], -0.5, 0.5)), float(np.clip(outline.centre[1], -0.6, 0.6)))
    depth = outline.depth(x, y, draw_share(scene, name), visible)
    image = _mucosa(scene, x, y, depth, outline.centre) * np.array([0.88, 0.85, 0.8], np.float32)
    drift, turn = np.clip(scene.normal(0, 0.012, 2), -0.02, 0.02), float(np.clip(scene.normal(0, 0.8), -1.2, 1.2))

    rng = generator(name, seed, 1, index)
    step = index % CVC_FRAMES - CVC_FRAMES // 2
    view = cv2.getRotationMatrix2D((size / 2, size / 2), step * turn + rng.normal(0, 0.5), 1 + rng.normal(0, 0.015))
    view[:, 2] = view[:, 2] + (step * drift + rng.normal(0, 0.008, 2)) * size / 2
    image = cv2.warpAffine(image, view, (size, size), borderMode=cv2.BORDER_REFLECT_101)
    depth = cv2.warpAffine(depth, view, (size, size), borderMode=cv2.BORDER_REPLICATE)
    image = np.where(visible[..., None], image, np.float32(0.05))
    return grain(rng, image, 0.012), (depth > 0) & visible


def capsule_frame(name: str, seed: int, index: int, size: int) -> Frame:
    """Paint frame `index` of the single capsule video: a large pale polyp, 35 to 84 % of the frame, over dark debris.

    All motion is smooth in time, so neighbouring frames are alike.

    Returns:
        image float (S,S,3), and mask bool (S,S), not empty.
    """
    scene = generator(name, seed, 0)
    x, y = grid(size)
    visible = _octagon(x, y, scene.uniform(0.35, 0.45), 0.98) & (np.abs(y) < 0.98)
    outline = Outline.draw(scene, 0.02, 0.16, 1.3)
    periods = np.array([23, 9, 31, 17, 40, 13])  # frames; different, so that the video does not repeat
    grow, pulse, right, down, tilt, squeeze = np.sin(2 * np.pi * (index / periods + scene.uniform(0, 1, 6)))
    outline.phases = outline.phases + scene.normal(0, 0.15, outline.phases.size) * index
    outline.stretch *= float(np.exp(0.1 * squeeze))
    outline.centre = (0.1 + 0.1 * right, 0.1 * down)
    depth = outline.depth(x, y, float(np.clip(0.61 + 0.15 * grow + 0.09 * pulse, 0.35, 0.84)), visible)

    debris = _turning(scene, size, 6, 3, index / 5)
    furrow = _turning(scene, size, 3, 2, index / 15)
    strands = np.array([0.33, 0.24, 0.08], np.float32) * (0.75 + 0.45 * np.clip(debris, -1.2, 2))[..., None]
    shade = _relief(0.25 * _bump(depth) + 0.035 * furrow, np.array([0.3 * tilt, 0.25 * right, 1.0]))
    blood = 0.42 + 0.06 * furrow + 0.1 * np.exp(-((furrow / 0.2) ** 2)) + 0.05 * debris
    surface = absorb(blood, BLOOD) * np.array([0.95, 0.72, 0.46], np.float32)
    surface = surface * (shade * (0.75 + 0.3 * np.clip(depth, 0, 1)))[..., None]
    image = over(strands, surface, smoothstep(depth, -0.05, 0.08)) * (1.05 - 0.15 * (x**2 + y**2))[..., None]
    image = np.where(visible[..., None], image, np.float32(0.01))
    return grain(generator(name, seed, 1, index), image, 0.012), (depth > 0) & visible


def _turning(rng: np.random.Generator, size: int, cells: int, octaves: int, angle: float) -> Array:
    """Return noise that varies smoothly with `angle` at constant variance."""
    return np.cos(angle) * noise(rng, size, cells, octaves) + np.sin(angle) * noise(rng, size, cells, octaves)


def _octagon(x: Array, y: Array, corner: float, width: float) -> Array:
    return (np.abs(x) < width) & (np.abs(x) / width + np.abs(y) < 2 - corner)


def _bump(depth: Array) -> Array:
    return 1 - np.clip(1 - depth, 0, 1) ** 2.5


def _relief(height: Array, light: Array) -> Array:
    """Return the Lambert shading (S,S) of a height map under light from direction (x, y, towards the viewer)."""
    gy, gx = np.gradient(height, 2 / len(height))
    return (light[2] - light[0] * gx - light[1] * gy) / np.sqrt(1 + gx**2 + gy**2) / np.linalg.norm(light)


def _mucosa(rng: np.random.Generator, x: Array, y: Array, depth: Array, centre: tuple[float, float]) -> Array:
    """Paint mucosa, float32 (S,S,3), with a polyp around `centre` where `depth` > 0, without the frame around it."""
    inside = smoothstep(depth, -0.04, 0.08)
    bright = _brightness(rng, x, y, depth, inside, centre)
    colour = _colour(rng, inside)
    image = colour * (bright * rng.uniform(0.75, 1.05))[..., None]
    gloss = noise(rng, len(x), 20) + 1.5 * bright
    glints = smoothstep(gloss, rng.uniform(3.2, 4.2), 4.8) * (bright > 0.35)
    return over(image, (1.0, 0.97, 0.93), glints * 0.9).astype(np.float32)


def _brightness(
    rng: np.random.Generator, x: Array, y: Array, depth: Array, inside: Array, centre: tuple[float, float]
) -> Array:
    size = len(x)
    # The far end of the tube is dark and surrounded by folds.
    lumen = rng.uniform(-0.9, 0.9, 2)
    away = np.hypot(x - lumen[0], (y - lumen[1]) * rng.uniform(0.7, 1.4)) + 0.16 * noise(rng, size, 3, 2)
    dark = rng.uniform(0.2, 0.9) * (1 - smoothstep(away, 0.05, rng.uniform(0.3, 0.8)))
    phase = rng.uniform(8, 16) * np.sqrt(np.maximum(away, 0.02)) + rng.uniform(0, 6) + 0.7 * noise(rng, size, 4)
    folds = rng.uniform(0, 0.1) * np.sqrt(0.04 + np.sin(phase) ** 2)
    folds = folds + rng.uniform(0.01, 0.06) * noise(rng, size, 3, 3)

    # The polyp's height grows with its radius, so that small ones are no steeper; its base is shaded.
    radius = 2 * np.sqrt((depth > 0).mean() / np.pi)
    swelling = radius * rng.uniform(0.12, 0.4) * _bump(depth) * (1 + 0.12 * noise(rng, size, 5, 2))
    light = np.array([rng.normal(0, 0.45), rng.normal(0, 0.45), 1.0])
    height = cv2.GaussianBlur((folds * (1 - inside) + swelling).astype(np.float32), (0, 0), size / 100)
    shade = np.maximum(_relief(height, light), 0.2)
    foot = rng.uniform(0, 0.3) * np.exp(-((np.minimum(depth, 0) / 0.25) ** 2)) * (1 - inside)

    beam = np.asarray(centre) * rng.uniform(0, 1) + rng.normal(0, 0.3, 2)  # the examiner tends to light the polyp
    falloff = 1.15 * np.exp(-rng.uniform(0.15, 0.7) * ((x - beam[0]) ** 2 + (y - beam[1]) ** 2))
    return falloff * shade * (1 - foot) * (1 - dark * (1 - 0.8 * inside)) * (1 + rng.normal(0.2, 0.17) * inside)


def _colour(rng: np.random.Generator, inside: Array) -> Array:
    size = len(inside)
    veins = rng.uniform(0, 0.35) * np.exp(-((noise(rng, size, 6, 2) / rng.uniform(0.06, 0.14)) ** 2))
    pits = rng.normal(0.06, 0.16) + rng.uniform(0.03, 0.13) * noise(rng, size, 26)
    blood = rng.uniform(0.25, 0.6) + 0.05 * noise(rng, size, 5, 3) + veins * (1 - inside) + pits * inside
    bile = rng.uniform(0, 0.2) + 0.06 * noise(rng, size, 4, 2)
    return absorb(blood, BLOOD) * absorb(bile, _BILE) * np.array([0.92, 0.78, 0.7], np.float32)


def _green_screen(rng: np.random.Generator, image: Array, x: Array, y: Array, left: float, top: float) -> Array:
    """Paint the green box that shows the position of the endoscope."""
    area = (x > -0.97) & (x < left - 0.05) & (y > top + 0.06) & (y < 0.95)
    path = np.stack([rng.uniform(-0.93, left - 0.1, 6), np.linspace(top + 0.1, 0.9, 6)], 1)
    image = np.where(area[..., None], np.array([0.12, 0.45, 0.2], np.float32), image)
    return over(image, (0.75, 0.9, 0.75), strokes([path], 3, len(x)))

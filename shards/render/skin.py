"""Skin: the resting colour of the face, with beard, freckles and hollows, before any light."""

import numpy as np

from shards.render.face import Face
from shards.render.geometry import Grid
from shards.render.noise import cloud, smooth_noise
from shards.render.relief import blob


def skin_albedo(face: Face, grid: Grid) -> np.ndarray:
    """Linear-light albedo float32 [H, W, 3] of the relaxed face without eyes, brows or lips."""
    u, y = grid.axes()
    side = np.abs(u)
    rng = np.random.default_rng([0x5417, face.seed])
    tone = np.broadcast_to(np.asarray(face.skin, np.float32), (*grid.shape, 3)).copy()
    mottle = cloud(rng, grid.shape, cell=0.22 * grid.density)
    pores = smooth_noise(rng, grid.shape, cells=(1.4, 1.4))
    tone *= (1 + 0.035 * mottle + 0.022 * (0.5 + face.age) * pores)[..., None]
    _blush(face, tone, side, u, y)
    _hollows(face, tone, side, u, y)
    _spots(face, tone, rng, grid, side, y)
    _facial_hair(face, tone, rng, grid, u, y)
    return np.clip(tone, 0.002, 0.95)


def _tint(tone: np.ndarray, weight: np.ndarray, factor: tuple[float, float, float]) -> None:
    tone *= 1 + weight[..., None] * (np.asarray(factor, np.float32) - 1)


def _blush(face: Face, tone: np.ndarray, side: np.ndarray, u: np.ndarray, y: np.ndarray) -> None:
    red = (1.0 + 0.03 * face.redness, 0.80, 0.80)
    _tint(tone, 0.8 * face.redness * blob(side, y, (0.38, 0.28), (0.15, 0.13)), red)
    _tint(tone, 0.6 * face.redness * blob(u, y, (0, face.nose_length), (0.09, 0.07)), red)
    _tint(tone, 0.4 * face.redness * blob(u, y, (0, 0.88), (0.12, 0.08)), red)


def _hollows(face: Face, tone: np.ndarray, side: np.ndarray, u: np.ndarray, y: np.ndarray) -> None:
    # Ambient occlusion of a face is nearly constant, so it is part of the resting colour.
    dark = (0.66, 0.58, 0.56)
    spacing, tip, mouth = face.eye_spacing, face.nose_length, face.mouth_height
    deep = 0.72 + 0.16 * (1 - face.tone)
    _tint(tone, deep * blob(side, y, (spacing - 0.03, -0.015), (0.145, 0.085)), dark)
    _tint(tone, 0.55 * blob(side, y, (0.115, 0.00), (0.045, 0.07)), dark)
    _tint(tone, (0.25 + 0.4 * face.age) * blob(side, y, (spacing - 0.02, 0.10), (0.1, 0.03)), dark)
    _tint(tone, 0.22 * blob(u, y, (0, tip + 0.085), (face.nose_width * 0.9, 0.030)), dark)
    _tint(tone, 0.55 * blob(side, y, (face.nose_width * 1.30, tip + 0.01), (0.025, 0.05)), dark)
    _tint(tone, 0.45 * blob(u, y, (0, mouth + 0.135), (0.13, 0.035)), dark)
    _tint(tone, 0.30 * blob(side, y, (face.mouth_width * 1.06, mouth), (0.035, 0.03)), dark)
    _tint(tone, 0.60 * np.clip((y - 0.93) / 0.12, 0, 1) * np.ones_like(u), dark)
    hole = blob(side, y, (face.nose_width * 0.53, tip + 0.046), (0.027, 0.0150), 3.0)
    _tint(tone, 0.90 * hole, (0.16, 0.09, 0.08))


def _spots(
    face: Face,
    tone: np.ndarray,
    rng: np.random.Generator,
    grid: Grid,
    side: np.ndarray,
    y: np.ndarray,
) -> None:
    if face.freckles > 0:
        fine = smooth_noise(rng, grid.shape, cells=(2.2, 2.2))
        where = blob(side, y, (0.2, 0.2), (0.28, 0.14))
        _tint(tone, 0.7 * face.freckles * np.clip(fine - 1.0, 0, 1) * where, (0.75, 0.55, 0.42))
    u = grid.axes()[0]
    for _ in range(int(rng.integers(0, 4))):
        at = (float(rng.uniform(-0.5, 0.5)), float(rng.uniform(-0.35, 0.85)))
        size = float(rng.uniform(0.008, 0.014))
        _tint(tone, 0.8 * blob(u, y, at, (size, size), 4.0), (0.35, 0.25, 0.2))


def beard_cover(face: Face, u: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Where facial hair of this face grows, float32 [H, W] in [0, 1]."""
    side = np.abs(u)
    mouth, tip = face.mouth_height, face.nose_length
    lip_line = mouth - 0.085 + 0.10 * (side / 0.28) ** 2
    moustache = np.clip((0.285 - side) / 0.05, 0, 1) * np.clip(
        1 - np.abs(y - lip_line) / 0.055, 0, 1
    )
    cheek_line = mouth - 0.16 + 0.30 * np.clip((0.58 - side) / 0.40, 0, 1) ** 1.5
    full = np.clip((y - cheek_line) / 0.08, 0, 1)
    clear = blob(side, y, (0, mouth + 0.015), (face.mouth_width * 0.93, 0.085), 6.0)
    full = full * (1 - np.clip(1.6 * clear, 0, 1))
    goatee = full * np.clip((0.22 - side) / 0.05, 0, 1)
    if face.beard == "moustache":
        return np.clip(1.5 * moustache, 0, 1)
    if face.beard == "goatee":
        return np.clip(1.4 * moustache + 1.2 * goatee, 0, 1)
    shaved = np.clip((y - tip - 0.10) / 0.03, 0, 1) * np.clip((0.30 - side) / 0.05, 0, 1)
    return np.clip(np.maximum(full, np.maximum(moustache, shaved * (1 - clear))), 0, 1)


def _facial_hair(
    face: Face,
    tone: np.ndarray,
    rng: np.random.Generator,
    grid: Grid,
    u: np.ndarray,
    y: np.ndarray,
) -> None:
    strands = smooth_noise(rng, grid.shape, cells=(5.0, 1.4))
    stubble = smooth_noise(rng, grid.shape, cells=(1.2, 1.2))
    strength = {"none": 0.10, "stubble": 0.42}.get(face.beard, 0.90)
    if face.beard == "none" and face.masculine < 0.5:
        return
    grain = stubble if face.beard in ("none", "stubble") else strands
    cover = beard_cover(face, u, y) * np.clip(strength * (1 + 0.28 * grain), 0, 0.96)
    colour = np.asarray(face.brow_colour, np.float32) * (1 + 0.25 * grain)[..., None]
    tone += cover[..., None] * (np.clip(colour, 0, 1) - tone)

"""Relief of the face: the resting height field, and what each action unit adds to it.

Heights in head units above the smooth skull of `geometry`; flows say how far skin travels in the
texture plane. Landmarks and muscle directions follow the FACS descriptions. Knows no colour.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import cv2
import numpy as np

from shards.render.expression import ACTION_UNITS
from shards.render.face import Face
from shards.render.geometry import Grid
from shards.render.noise import smooth_noise

Point = tuple[float, float]

# Skin travel of the right half (u > 0) at full intensity: (u, y, spread u, spread y, du, dy).
# The left half mirrors it. Jaw units travel through `geometry.jaw_drop`.
_FLOWS: dict[int, tuple[tuple[float, float, float, float, float, float], ...]] = {
    1: ((0.13, -0.20, 0.12, 0.16, 0.0, -0.085), (0.12, -0.40, 0.15, 0.14, 0.0, -0.035)),
    2: ((0.40, -0.20, 0.14, 0.16, 0.0, -0.085), (0.38, -0.40, 0.16, 0.15, 0.0, -0.03)),
    4: ((0.13, -0.17, 0.13, 0.12, -0.035, 0.06), (0.34, -0.19, 0.14, 0.10, -0.015, 0.035)),
    6: ((0.37, 0.22, 0.17, 0.13, -0.015, -0.06),),
    7: ((0.30, 0.11, 0.14, 0.06, 0.0, -0.02),),
    9: (
        (0.12, 0.33, 0.09, 0.10, 0.01, -0.05),
        (0.10, 0.08, 0.08, 0.09, -0.01, -0.03),
        (0.13, -0.16, 0.13, 0.10, -0.02, 0.04),
        (0.16, 0.52, 0.12, 0.07, 0.0, -0.035),
    ),
    10: ((0.15, 0.51, 0.12, 0.08, 0.0, -0.05), (0.13, 0.37, 0.07, 0.07, 0.01, -0.025)),
    12: ((0.27, 0.58, 0.13, 0.13, 0.05, -0.07), (0.40, 0.36, 0.15, 0.14, 0.02, -0.045)),
    15: ((0.25, 0.68, 0.12, 0.12, 0.0, 0.055),),
    17: ((0.07, 0.87, 0.15, 0.10, 0.0, -0.045),),
    20: ((0.28, 0.66, 0.15, 0.15, 0.065, 0.015),),
    23: ((0.21, 0.63, 0.11, 0.10, -0.03, 0.0),),
    24: ((0.21, 0.63, 0.11, 0.10, -0.035, 0.0),),
}

# Folds of the right half: (path, half width, depth at full intensity). Depth < 0 is a ridge.
_FOLDS: dict[int, tuple[tuple[tuple[Point, ...], float, float], ...]] = {
    1: (
        (((-0.16, -0.36), (0.12, -0.37), (0.24, -0.34)), 0.014, 0.011),
        (((-0.16, -0.44), (0.13, -0.45), (0.26, -0.42)), 0.014, 0.009),
        (((-0.16, -0.29), (0.10, -0.30), (0.18, -0.28)), 0.012, 0.007),
    ),
    2: (
        (((0.20, -0.33), (0.34, -0.37), (0.50, -0.33)), 0.014, 0.010),
        (((0.22, -0.41), (0.36, -0.45), (0.50, -0.41)), 0.014, 0.008),
    ),
    4: (
        (((0.050, -0.25), (0.042, -0.16), (0.058, -0.06)), 0.014, 0.016),
        (((0.10, -0.22), (0.12, -0.14), (0.16, -0.12)), 0.030, -0.013),
    ),
    6: (
        (((0.46, 0.00), (0.54, -0.05)), 0.010, 0.008),
        (((0.46, 0.02), (0.56, 0.02)), 0.010, 0.009),
        (((0.45, 0.04), (0.54, 0.09)), 0.010, 0.008),
        (((0.14, 0.12), (0.27, 0.155), (0.40, 0.11)), 0.012, 0.010),
    ),
    7: ((((0.16, 0.09), (0.28, 0.115), (0.40, 0.085)), 0.010, 0.006),),
    9: (
        (((-0.16, -0.02), (0.07, -0.03)), 0.011, 0.012),
        (((-0.16, 0.04), (0.09, 0.03)), 0.011, 0.011),
        (((0.05, 0.14), (0.12, 0.07), (0.17, 0.06)), 0.011, 0.012),
        (((0.13, 0.31), (0.19, 0.36), (0.24, 0.46), (0.27, 0.58)), 0.022, 0.020),
        (((0.12, 0.11), (0.24, 0.15), (0.34, 0.12)), 0.012, 0.007),
    ),
    10: ((((0.14, 0.33), (0.20, 0.38), (0.27, 0.49), (0.30, 0.63)), 0.022, 0.021),),
    12: ((((0.15, 0.37), (0.22, 0.44), (0.31, 0.53), (0.365, 0.66)), 0.024, 0.024),),
    15: ((((0.255, 0.69), (0.285, 0.75), (0.285, 0.81)), 0.016, 0.015),),
    17: ((((-0.16, 0.775), (0.08, 0.785), (0.15, 0.825)), 0.015, 0.014),),
    20: ((((0.335, 0.61), (0.355, 0.68), (0.345, 0.76)), 0.015, 0.010),),
    23: ((((0.265, 0.62), (0.275, 0.66)), 0.012, 0.008),),
    24: ((((0.255, 0.62), (0.265, 0.67)), 0.012, 0.008),),
    26: ((((0.28, 0.62), (0.32, 0.74)), 0.018, 0.006),),
    27: ((((0.27, 0.60), (0.30, 0.74)), 0.018, 0.008),),
}

# Bulges of the right half: (u, y, spread u, spread y, height at full intensity).
_BULGES: dict[int, tuple[tuple[float, float, float, float, float], ...]] = {
    4: ((0.11, -0.13, 0.06, 0.05, 0.012),),
    6: ((0.34, 0.20, 0.13, 0.07, 0.038),),
    9: ((0.16, 0.24, 0.06, 0.07, 0.012),),
    10: ((0.23, 0.36, 0.07, 0.08, 0.014),),
    12: ((0.37, 0.32, 0.13, 0.10, 0.050),),
    17: ((0.06, 0.85, 0.10, 0.06, 0.014),),
    23: ((0.10, 0.54, 0.08, 0.03, 0.008), (0.10, 0.73, 0.08, 0.03, 0.010)),
    24: ((0.10, 0.54, 0.10, 0.03, 0.010), (0.10, 0.73, 0.10, 0.03, 0.012)),
}


@dataclass(frozen=True)
class UnitRelief:
    """For every (unit, side): heights [K, h, w] over `window`, flows [K, 2, hq, wq] over the same.

    K = len(ACTION_UNITS) · 2, sides (left, right) innermost; flows are at a quarter of the size.
    """

    window: tuple[slice, slice]
    heights: np.ndarray
    flows: np.ndarray


def blob(
    u: np.ndarray, y: np.ndarray, at: Point, spread: tuple[float, float], power: float = 2.0
) -> np.ndarray:
    """exp(-½ r^power): 1 at `at`, falling over `spread`."""
    ru = (u - np.float32(at[0])) / np.float32(spread[0])
    ry = (y - np.float32(at[1])) / np.float32(spread[1])
    square = ru * ru + ry * ry
    if power != 2.0:
        square = square ** np.float32(power / 2)
    return np.exp(np.float32(-0.5) * square)


def path_distance(
    u: np.ndarray, y: np.ndarray, path: tuple[Point, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Distance of every texel to a polyline in head units, and how far along it [0, 1]."""
    best = np.full(np.broadcast_shapes(u.shape, y.shape), np.inf, np.float32)
    along = np.zeros_like(best)
    pieces = len(path) - 1
    for piece, ((u0, y0), (u1, y1)) in enumerate(pairwise(path)):
        du, dy = u1 - u0, y1 - y0
        t = np.clip(((u - u0) * du + (y - y0) * dy) / (du * du + dy * dy), 0, 1)
        square = (u - u0 - t * du) ** 2 + (y - y0 - t * dy) ** 2
        nearer = square < best
        np.copyto(best, square, where=nearer)
        np.copyto(along, (t + piece) / pieces, where=nearer)
    return np.sqrt(best), along


def fold(
    u: np.ndarray, y: np.ndarray, path: tuple[Point, ...], width: float, depth: float
) -> np.ndarray:
    """A crease with raised banks along `path`, fading at both ends (a ridge for a depth < 0)."""
    distance, along = path_distance(u, y, path)
    d = distance / np.float32(width)
    bank = np.exp(np.float32(-0.5) * ((d - 2.2) / 1.1) ** 2)
    fade = np.clip(np.float32(5) * along * (1 - along), 0, 1)
    return np.float32(depth) * fade * (np.float32(0.22) * bank - np.exp(np.float32(-0.5) * d * d))


def resting_relief(face: Face, grid: Grid) -> np.ndarray:
    """Height field of the relaxed face, float32 [H, W]."""
    u, y = grid.axes()
    side = np.abs(u)
    h = 0.030 * (0.6 + 0.8 * face.masculine) * blob(side, y, (0.22, -0.15), (0.26, 0.065))
    h = h - 0.070 * blob(side, y, (face.eye_spacing - 0.01, 0.0), (0.150, 0.095))
    h += 0.040 * blob(side, y, (face.eye_spacing, 0.0), (0.100, 0.070))
    h += 0.034 * face.cheekbone * blob(side, y, (0.40, 0.19), (0.16, 0.12))
    h -= 0.020 * face.cheekbone * blob(side, y, (0.44, 0.50), (0.12, 0.16))
    h -= 0.020 * blob(side, y, (0.60, -0.12), (0.10, 0.14))
    h += 0.045 * blob(u, y, (0, face.mouth_height), (0.25, 0.15))
    h -= 0.028 * blob(u, y, (0, face.mouth_height + 0.145), (0.12, 0.035))
    h += (0.046 + 0.02 * face.masculine) * blob(u, y, (0, 0.885), (0.115, 0.075))
    h -= 0.018 * blob(side, y, (0.23, 0.84), (0.07, 0.09))
    h -= 0.010 * blob(u, y, (0, face.nose_length + 0.13), (0.022, 0.05))
    h += _nose(face, u, y)
    h += _age_lines(face, u, y)
    return h.astype(np.float32)


def _nose(face: Face, u: np.ndarray, y: np.ndarray) -> np.ndarray:
    tip, wide, side = face.nose_length, face.nose_width, np.abs(u)
    along = np.clip((y + 0.10) / (tip + 0.10), 0, 1)
    ridge = 0.045 + 0.140 * along**1.4 * face.nose_bridge
    # Below the tip the nose falls back to the lip, later in the middle (columella) than beside it.
    edge = tip - 0.035 + 0.040 * np.exp(-0.5 * (side / 0.034) ** 2)
    under = np.clip((y - edge) / 0.105, 0, 1)
    ridge = ridge * (1 - under * under * (3 - 2 * under)) * np.clip((y + 0.16) / 0.14, 0, 1)
    half = 0.050 + 0.030 * along * (wide / 0.12)
    bridge = ridge * np.exp(-0.5 * (side / half) ** 1.9)
    ball = 0.058 * face.nose_tip * blob(u, y, (0, tip - 0.020), (0.064, 0.052))
    wings = 0.100 * blob(side, y, (wide * 0.88, tip + 0.012), (0.036, 0.040), 2.6)
    groove = 0.022 * blob(side, y, (wide * 1.32, tip + 0.005), (0.022, 0.05))
    holes = 0.016 * blob(side, y, (wide * 0.50, tip + 0.058), (0.028, 0.018))
    return bridge + ball + wings - groove - holes


# Forehead, corners of the mouth and of the eyes: (path, half width, depth at the highest age).
_AGE_LINES = (
    (((-0.16, -0.34), (0.2, -0.36), (0.42, -0.32)), 0.012, 0.004),
    (((-0.16, -0.44), (0.2, -0.46), (0.42, -0.42)), 0.012, 0.004),
    (((0.27, 0.70), (0.30, 0.80)), 0.020, 0.006),
    (((0.46, 0.01), (0.56, 0.03)), 0.010, 0.005),
)


def _age_lines(face: Face, u: np.ndarray, y: np.ndarray) -> np.ndarray:
    side = np.abs(u)
    old = max(0.0, face.age - 0.25) / 0.75
    cheek = ((0.15, 0.36), (0.20, 0.43), (0.265, 0.52), (0.29, 0.61))
    total = fold(side, y, cheek, 0.026, 0.003 + 0.008 * old)
    total = total + fold(side, y, ((0.15, 0.11), (0.25, 0.16), (0.36, 0.14)), 0.022, 0.006 * old)
    for path, width, depth in _AGE_LINES:
        total = total + fold(side, y, path, width, depth * old)
    return total


@lru_cache(maxsize=4)
def unit_relief(face: Face, grid: Grid) -> UnitRelief:
    """Heights and flows of all action units of this face."""
    window = grid.window((-0.80, 0.80), (-0.62, grid.bottom))
    all_u, all_y = grid.axes()
    u, y = all_u[:, window[1]], all_y[window[0]]
    small = (max(2, u.shape[1] // 4), max(2, y.shape[0] // 4))
    uq = cv2.resize(np.ascontiguousarray(u), (small[0], 1), interpolation=cv2.INTER_AREA)
    yq = cv2.resize(np.ascontiguousarray(y), (1, small[1]), interpolation=cv2.INTER_AREA)
    deep = 0.55 + 0.5 * face.age  # young skin folds less
    heights, flows = [], []
    for unit in ACTION_UNITS:
        for sign in (-1.0, 1.0):
            heights.append(_unit_height(face, unit, u * np.float32(sign), y, deep))
            flows.append(_unit_flow(unit, uq, yq, sign))
    return UnitRelief(window, np.stack(heights), np.stack(flows))


def _unit_height(face: Face, unit: int, u: np.ndarray, y: np.ndarray, deep: float) -> np.ndarray:
    total = np.zeros(np.broadcast_shapes(u.shape, y.shape), np.float32)
    for path, width, depth in _FOLDS.get(unit, ()):
        total += fold(u, y, path, width, depth * deep)
    for cu, cy, su, sy, rise in _BULGES.get(unit, ()):
        total += np.float32(rise) * blob(u, y, (cu, cy), (su, sy))
    if unit == 17:
        rng = np.random.default_rng([17, face.seed])
        cell = 0.03 * y.shape[0] / 1.6
        dimples = smooth_noise(rng, (y.shape[0], u.shape[1]), cells=(cell, cell))
        total += np.float32(0.0035) * dimples * blob(u, y, (0.06, 0.88), (0.10, 0.05))
    # A unit of one side fades out across the midline.
    return total * np.clip(u / np.float32(0.04) + np.float32(0.5), 0, 1)


def _unit_flow(unit: int, u: np.ndarray, y: np.ndarray, sign: float) -> np.ndarray:
    total = np.zeros((2, *np.broadcast_shapes(u.shape, y.shape)), np.float32)
    for cu, cy, su, sy, du, dy in _FLOWS.get(unit, ()):
        weight = blob(u, y, (cu * sign, cy), (su, sy))
        total[0] += np.float32(du * sign) * weight
        total[1] += np.float32(dy) * weight
    return total

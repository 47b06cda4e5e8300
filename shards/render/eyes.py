"""Eyes and brows, drawn from action units, gaze and blink.

AU5 raises the upper lid, AU7 tightens both, AU6 pushes the lower lid up, AU1, AU2 and AU4 move the
inner, outer and whole brow; the upper lid follows gaze.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from shards.render.canvas import Canvas, Patch
from shards.render.face import Face

Units = Mapping[int, tuple[float, float]]  # action unit -> (left, right) intensity
_IRIS_RADIUS = 0.0555


@dataclass(frozen=True)
class Look:
    """Where the eyes point (head units of iris travel / 0.3) and how far they are shut."""

    gaze_x: float
    gaze_y: float
    blink: float


@dataclass(frozen=True)
class _Lids:
    """Lid lines over a patch row: centre line, upper and lower lid, float32 [1, w]."""

    t: np.ndarray
    upper: np.ndarray
    lower: np.ndarray
    open_upper: np.ndarray


def draw_eyes(canvas: Canvas, face: Face, units: Units, look: Look, light: np.ndarray) -> None:
    """Paint both eyes. `light` is the unit vector to the lamp in head axes, for the catchlight."""
    for side, sign in enumerate((-1.0, 1.0)):
        centre = sign * face.eye_spacing
        offset = face.asymmetry * sign
        patch = canvas.patch((centre - 0.22, centre + 0.22), (-0.17, 0.15))
        au = {unit: pair[side] for unit, pair in units.items()}
        lids = _lids(face, patch, au, look, sign, offset)
        _paint_lid_skin(patch, face, lids, au)
        _paint_ball(patch, face, lids, look, sign, offset, light)
        _paint_rims(patch, face, lids, look)


def _lids(
    face: Face, patch: Patch, au: Mapping[int, float], look: Look, sign: float, offset: float
) -> _Lids:
    half = face.eye_width
    t = (patch.u - np.float32(sign * face.eye_spacing)) * np.float32(sign / half)
    inside = np.clip(1 - np.abs(t), 0, None)
    base = np.float32(offset + 0.006) - np.float32(face.eye_tilt * half) * t
    squint = 0.024 * au[7] + 0.012 * au[6] + 0.014 * au[9] + 0.006 * au[12]
    rise = 0.056 * face.eye_open + 0.040 * au[5] - 0.6 * squint + 0.004 * au[1] - 0.010 * au[4]
    rise -= 0.07 * max(look.gaze_y, 0.0) + 0.05 * min(look.gaze_y, 0.0)
    sink = 0.038 * face.eye_open - 0.020 * au[7] - 0.019 * au[6] - 0.008 * au[9] + 0.004 * au[5]
    rise, sink = max(rise, 0.004), max(sink, 0.005)
    arch = (1 - (1 - inside) ** 2.3) ** np.float32(0.80) * (1 - np.float32(0.16) * t)
    bowl = (1 - (1 - inside) ** 2.0) ** np.float32(0.90) * (1 + np.float32(0.16) * t)
    lower = base + np.float32(sink) * bowl
    opened = base - np.float32(rise) * arch
    # A closing upper lid comes down to meet the lower one a little below the corners.
    shut = base + np.float32(0.75 * sink) * bowl
    upper = opened + np.float32(look.blink) * (shut - opened)
    return _Lids(t, upper, np.maximum(lower, upper), opened)


def _paint_lid_skin(patch: Patch, face: Face, lids: _Lids, au: Mapping[int, float]) -> None:
    reach = np.clip(1.25 - np.abs(lids.t), 0, 1)
    gap = 0.034 + 0.012 * face.lid_crease - 0.020 * au[5] - 0.010 * au[4]
    crease = lids.open_upper - np.float32(max(gap, 0.012)) * np.clip(reach * 1.8, 0.3, 1)
    between = patch.cover(patch.y - crease, 3.0) * patch.cover(lids.upper - patch.y, 2.0)
    patch.darken(0.45 * between * np.clip(reach * 3, 0, 1), (0.80, 0.70, 0.70))
    line = np.exp(np.float32(-0.5) * ((patch.y - crease) / np.float32(0.0065)) ** 2)
    strength = 0.25 + 0.5 * face.lid_crease
    patch.darken(strength * line * np.clip(reach * 2.2, 0, 1), (0.42, 0.34, 0.32))
    under = lids.lower + np.float32(0.030)
    bag = np.exp(np.float32(-0.5) * ((patch.y - under) / np.float32(0.010)) ** 2)
    tight = 0.14 + 0.35 * face.age + 0.3 * au[7] + 0.3 * au[6]
    patch.darken(min(tight, 0.7) * bag * np.clip(reach * 2, 0, 1), (0.66, 0.56, 0.54))


def _paint_ball(
    patch: Patch,
    face: Face,
    lids: _Lids,
    look: Look,
    sign: float,
    offset: float,
    light: np.ndarray,
) -> None:
    gap = np.minimum(patch.y - lids.upper, lids.lower - patch.y)
    inside = patch.cover(gap) * (np.abs(lids.t) < 1)
    cx = sign * face.eye_spacing * 0.995 + 0.30 * look.gaze_x
    cy = offset + 0.000 + 0.30 * look.gaze_y
    rx, ry = patch.u - np.float32(cx), patch.y - np.float32(cy)
    r = np.sqrt(rx * rx + ry * ry)
    colour = _eyeball(patch, face, lids, rx, ry, r)
    shadow = np.clip((patch.y - lids.upper) / np.float32(0.034), 0, 1)
    slit = np.clip((lids.lower - lids.upper) / np.float32(0.055), 0, 1)
    colour *= ((0.42 + 0.58 * np.sqrt(shadow)) * (0.35 + 0.65 * slit))[..., None]
    spot_x, spot_y = 0.024 * light[0], -0.024 * max(-light[1], 0.15)
    spot = np.sqrt((rx - np.float32(spot_x)) ** 2 + (ry - np.float32(spot_y)) ** 2)
    glint = patch.cover(np.float32(0.0105) - spot, 1.4)
    colour += (glint * slit)[..., None] * (np.float32(1.3) - colour)
    patch.paint(inside, colour)
    patch.gloss(inside, 0.06)


def _eyeball(
    patch: Patch, face: Face, lids: _Lids, rx: np.ndarray, ry: np.ndarray, r: np.ndarray
) -> np.ndarray:
    # Seen beside dark skin, which the camera exposes for, a full white would glare.
    white = np.array((0.60, 0.56, 0.54), np.float32) * np.float32(0.24 + 0.76 * face.tone**0.8)
    ball = 1 - np.float32(0.42) * np.clip(np.abs(lids.t), 0, 1) ** 2
    colour = white * (ball * np.ones_like(r))[..., None]
    corner = np.clip((-lids.t - np.float32(0.80)) / np.float32(0.12), 0, 1) * np.ones_like(r)
    pink = np.array((0.50, 0.20, 0.17), np.float32)
    colour += 0.75 * corner[..., None] * (pink - colour)
    angle = np.arctan2(ry, rx)
    fibres = 1 + 0.14 * np.sin(angle * 17 + face.seed) + 0.10 * np.sin(angle * 29 + 1)
    ring = np.clip(r / np.float32(_IRIS_RADIUS), 0, 1)
    shade = (0.75 + 0.75 * ring) * fibres * (1 - 0.72 * np.clip((ring - 0.78) / 0.2, 0, 1))
    iris = np.asarray(face.iris, np.float32) * shade[..., None]
    colour += patch.cover(np.float32(_IRIS_RADIUS) - r, 1.5)[..., None] * (iris - colour)
    pupil = patch.cover(np.float32(0.023) - r, 1.3)
    colour *= (1 - 0.97 * pupil)[..., None]
    return colour


def _paint_rims(patch: Patch, face: Face, lids: _Lids, look: Look) -> None:
    dark = tuple(0.35 * c for c in face.brow_colour)
    reach = np.clip(1.06 - np.abs(lids.t), 0, 0.12) / np.float32(0.12)
    thick = np.float32(0.0095 + 0.005 * (1 - face.masculine)) * (0.55 + 0.45 * (lids.t + 1) / 2)
    off = np.abs(patch.y - (lids.upper - 0.35 * thick))
    patch.paint(0.95 * patch.cover(thick - off, 1.6) * reach, (dark[0], dark[1], dark[2]))
    below = np.abs(patch.y - lids.lower - np.float32(0.002))
    rim = patch.cover(np.float32(0.0035) - below, 1.8) * reach
    patch.darken(0.6 * rim * (1 - 0.5 * look.blink), (0.30, 0.22, 0.20))


def draw_brows(canvas: Canvas, face: Face, units: Units, strands: np.ndarray) -> None:
    """Paint both brows. `strands`: float32 [64, 256] hair noise, rows across, columns along."""
    for side, sign in enumerate((-1.0, 1.0)):
        au = {unit: pair[side] for unit, pair in units.items()}
        inner = 0.098 - 0.032 * au[4] - 0.012 * au[9]
        outer = face.eye_spacing + 0.195
        low, high = sorted((sign * (inner - 0.03), sign * (outer + 0.03)))
        patch = canvas.patch((low, high), (-0.42, 0.02))
        t = (np.abs(patch.u) - np.float32(inner)) / np.float32(outer - inner)
        middle = _brow_line(face, au, t)
        ends = np.clip((t + 0.04) / 0.14, 0, 1) * np.clip((1.02 - t) / 0.45, 0, 1)
        half = np.float32(face.brow_thickness) * (1.15 - 0.35 * t) * np.clip(ends, 0.02, 1)
        across = (patch.y - middle) / half
        column = np.clip(t * 200 - 14 * across + 24, 0, 255).astype(np.int32)
        row = np.clip(across * 14 + 32, 0, 63).astype(np.int32)
        grain = strands[row, column]
        body = np.clip((1 - np.abs(across)) * 1.5 + 0.20 * grain, 0, 1)
        alpha = body * face.brow_density * np.clip(ends * 1.6, 0, 1)
        patch.paint(alpha * (1 - 0.10 * np.clip(grain, 0, 2)), face.brow_colour)
        patch.height += np.float32(0.004) * alpha


def _brow_line(face: Face, au: Mapping[int, float], t: np.ndarray) -> np.ndarray:
    """Height of the brow's middle over t in [0, 1] from the inner to the outer end."""
    t = np.clip(t, -0.1, 1.1)
    arch = face.brow_arch * (1 - ((t - 0.64) / 0.64) ** 2) - 0.012 * np.clip(t - 0.64, 0, 1)
    inner = np.exp(np.float32(-0.5) * (t / np.float32(0.34)) ** 2)
    outer = np.exp(np.float32(-0.5) * ((t - np.float32(0.82)) / np.float32(0.34)) ** 2)
    line = np.float32(face.brow_height) - arch
    line = line - (0.088 * au[1]) * inner - (0.086 * au[2]) * outer
    knit = 0.062 * au[4] + 0.040 * au[9]
    # Raised and knitted together (AU1+4), the inner end still rises: the frontalis wins there.
    knit *= 1 - 0.62 * min(au[1], 1.0)
    return line + knit * (inner + 0.55 * (1 - inner) * (1 - 0.5 * t))

"""The mouth: lips, cavity, teeth and tongue, drawn from action units.

AU12, AU15 and AU20 move the corners, AU10 and AU9 the upper lip, AU17 the lower lip, AU23 and AU24
tighten, AU25 parts the lips, AU26 and AU27 drop the jaw.
"""

from dataclasses import dataclass

import numpy as np

from shards.render.canvas import Canvas, Patch
from shards.render.eyes import Units
from shards.render.face import Face


@dataclass(frozen=True)
class _Lines:
    """Heights over the patch's columns, float32 [1, w]; t in [-1, 1] from corner to corner."""

    t: np.ndarray
    inside: np.ndarray
    top: np.ndarray
    gap_top: np.ndarray
    gap_bottom: np.ndarray
    bottom: np.ndarray


def jaw_opening(units: Units) -> float:
    """How far the chin drops, in head units."""
    return 0.13 * max(units[26]) + 0.23 * max(units[27])


def draw_mouth(canvas: Canvas, face: Face, units: Units, grain: np.ndarray) -> None:
    """Paint the mouth. `grain`: float32 [256], fine vertical lines of the lips."""
    jaw = jaw_opening(units)
    middle = face.mouth_height
    patch = canvas.patch((-0.40, 0.40), (middle - 0.20, middle + 0.24 + jaw))
    lines = _lines(face, patch, units, jaw)
    _paint_cavity(patch, face, lines, middle, jaw)
    _paint_lips(patch, face, lines, units, grain)


def _pair(units: Units, unit: int) -> np.ndarray:
    return np.asarray(units[unit], np.float32)


def _lines(face: Face, patch: Patch, units: Units, jaw: float) -> _Lines:
    au = {unit: _pair(units, unit) for unit in units}
    mean = {unit: float(pair.mean()) for unit, pair in au.items()}
    tight = np.clip(au[23] + au[24], 0, 1.2)
    reach = face.mouth_width + 0.075 * au[12] + 0.070 * au[20] - 0.045 * tight
    reach = reach - 0.030 * au[17] * 0.6 - 0.020 * au[26] - 0.040 * au[27] - 0.012 * au[10]
    lift = -0.102 * au[12] + 0.076 * au[15] + 0.020 * au[20] - 0.012 * au[9]
    lift = lift + 0.012 * au[17] + 0.30 * jaw
    right = patch.u > 0
    t = patch.u / np.where(right, reach[1], reach[0])
    corner = np.where(right, lift[1], lift[0])
    inside = np.clip(1 - np.abs(t), 0, 1)
    a = 1 - inside
    raised = 0.052 * mean[10] + 0.036 * mean[9]
    pushed = 0.030 * mean[17]
    line = face.mouth_height + corner * a**1.7 - pushed * (1 - a**2)
    line = line - 0.4 * raised * (1 - a**2)
    line = line + 0.007 * np.exp(-((t / 0.30) ** 2)) * face.cupid - 0.008 * a**3
    part = 0.034 * mean[25] * (1 - 0.4 * mean[20])
    dome = (1 - a**2.4) ** 0.75
    smile = 0.022 * mean[12] * mean[25]
    gap_top = line - (0.55 * part + 0.75 * raised * min(1.0, mean[25] + 0.1)) * dome
    gap_top = gap_top + 0.4 * smile * dome - 0.10 * jaw * dome
    gap_bottom = line + (0.75 * part + 0.86 * jaw + 2.0 * smile) * dome
    gap_bottom = gap_bottom + 0.034 * mean[20] * mean[25] * dome
    thin = (1 - 0.62 * min(float(tight.mean()), 1.0)) * (1 - 0.28 * mean[12])
    thin *= 1 - 0.20 * mean[20]
    upper, lower = face.upper_lip * thin * (1 - 0.25 * mean[9]), face.lower_lip * thin
    lower *= 1 + 0.16 * mean[17] - 0.25 * min(jaw / 0.27, 1)
    bow = 1 + face.cupid * (0.16 * np.exp(-(((np.abs(t) - 0.26) / 0.16) ** 2)))
    bow = bow - face.cupid * 0.20 * np.exp(-((t / 0.11) ** 2))
    top = gap_top - upper * (1 - a**1.9) ** 0.85 * bow
    bottom = gap_bottom + lower * (1 - a**2.1) ** 0.85
    cast = [x.astype(np.float32) for x in (t, inside, top, gap_top, gap_bottom, bottom)]
    return _Lines(*cast)


def _paint_cavity(patch: Patch, face: Face, lines: _Lines, middle: float, jaw: float) -> None:
    gap = np.minimum(patch.y - lines.gap_top, lines.gap_bottom - patch.y)
    hole = patch.cover(gap) * (lines.inside > 0)
    if not hole.any():
        return
    depth = np.clip((patch.y - lines.gap_top) / np.float32(0.12), 0, 1)
    colour = np.array((0.070, 0.012, 0.012), np.float32) * (1.1 - 0.7 * depth)[..., None]
    tongue_y = middle + 0.80 * jaw + 0.02
    tongue = np.clip(1 - ((patch.u / 0.15) ** 2 + ((patch.y - tongue_y - 0.05) / 0.085) ** 2), 0, 1)
    red = np.array((0.30, 0.075, 0.075), np.float32)
    colour += np.clip(tongue * 2.5, 0, 0.9)[..., None] * (red - colour)
    # As with the eyes: teeth keep within what an exposure for dark skin leaves of white.
    white = 0.58 + 0.42 * face.tone
    _add_teeth(patch, colour, white, edge=middle + 0.026, up=True)
    _add_teeth(patch, colour, 0.72 * white, edge=middle + 0.050 + 0.95 * jaw, up=False)
    lip_shadow = np.clip(gap / np.float32(0.016), 0, 1)
    colour *= (0.35 + 0.65 * lip_shadow)[..., None]
    patch.paint(hole, colour)
    patch.gloss(hole, 0.15)
    patch.height -= np.float32(0.01) * hole * lip_shadow


def _add_teeth(
    patch: Patch, colour: np.ndarray, brightness: float, *, edge: float, up: bool
) -> None:
    # Upper teeth hang from the skull, lower ones ride on the jaw; both arch away from the middle.
    curve = np.float32(0.30) * patch.u**2
    line = np.float32(edge) - curve if up else np.float32(edge) + np.float32(0.4) * curve
    inside = patch.cover(line - patch.y if up else patch.y - line)
    width = 0.043 if up else 0.032
    phase = patch.u / np.float32(width)  # a seam in the middle, between the central incisors
    seam = np.abs(phase - np.round(phase)) * np.float32(width)
    seam = np.exp(np.float32(-0.5) * (seam / np.float32(0.0035)) ** 2)
    shade = np.clip(1 - 1.1 * (patch.u / 0.28) ** 2, 0.2, 1) * (1 - 0.35 * seam)
    white = np.array((0.74, 0.68, 0.58), np.float32) * np.float32(brightness)
    colour += inside[..., None] * (white * shade[..., None] - colour)


def _paint_lips(patch: Patch, face: Face, lines: _Lines, units: Units, grain: np.ndarray) -> None:
    column = np.clip((lines.t + 1) * 127, 0, 255).astype(np.int32)
    texture = 1 + 0.07 * grain[column]
    ends = np.clip(lines.inside / np.float32(0.06), 0, 1)
    lip = np.asarray(face.lips, np.float32)
    for top, bottom, shade, bulge, upper in (
        (lines.top, lines.gap_top, 0.70, 0.022, True),
        (lines.gap_bottom, lines.bottom, 0.98, 0.036, False),
    ):
        thickness = np.maximum(bottom - top, np.float32(1e-4))
        across = np.clip((patch.y - top) / thickness, 0, 1)
        distance = np.minimum(patch.y - top, bottom - patch.y)
        alpha = patch.cover(distance, 2.2) * ends * np.float32(0.88)
        edge = across if upper else 1 - across
        tone = texture * shade * (0.90 + 0.16 * edge)
        patch.paint(alpha, lip * tone[..., None])
        swell = np.sqrt(np.clip(4 * across * (1 - across), 0, 1)) * (distance > 0)
        patch.height += np.float32(bulge) * swell * ends
        patch.gloss(alpha, 0.45)
    seam = np.exp(np.float32(-0.5) * ((patch.y - lines.gap_bottom) / np.float32(0.006)) ** 2)
    closed = np.clip(1 - (lines.gap_bottom - lines.gap_top) / np.float32(0.02), 0, 1)
    patch.darken(0.90 * seam * closed * np.clip(lines.inside * 14, 0, 1), (0.20, 0.11, 0.10))
    _paint_corners(patch, lines, units)


def _paint_corners(patch: Patch, lines: _Lines, units: Units) -> None:
    # The corners sink into the cheek, deeper in a smile or a frown.
    strain = 0.35 + 0.4 * max(max(units[12]), max(units[15]), max(units[20]))
    index = np.argmin(np.abs(lines.t - 0.97)), np.argmin(np.abs(lines.t + 0.97))
    for column in index:
        at_u, at_y = patch.u[0, column], lines.gap_bottom[0, column]
        square = ((patch.u - at_u) / np.float32(0.020)) ** 2 + (
            (patch.y - at_y) / np.float32(0.014)
        ) ** 2
        patch.darken(strain * np.exp(np.float32(-0.5) * square), (0.35, 0.25, 0.24))

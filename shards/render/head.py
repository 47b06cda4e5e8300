"""The painted head: one frame's texture, relief and outline from action units, gaze and light."""

from dataclasses import dataclass

import cv2
import numpy as np

from shards.render.canvas import Canvas
from shards.render.expression import ACTION_UNITS
from shards.render.eyes import Look, Units, draw_brows, draw_eyes
from shards.render.face import Face
from shards.render.geometry import (
    Grid,
    Profile,
    Relief,
    head_profile,
    jaw_drop,
    surface_normals,
)
from shards.render.hair import Hair
from shards.render.light import Lamp, cast_shadow, encode, relief_normals, shade
from shards.render.mouth import draw_mouth, jaw_opening
from shards.render.noise import smooth_noise
from shards.render.relief import resting_relief, unit_relief
from shards.render.skin import beard_cover, skin_albedo


@dataclass(frozen=True)
class Painted:
    """uint8 texture [H, W, 3], its relief at half the size, and the outline's profile."""

    texture: np.ndarray
    relief: Relief
    profile: Profile


class HeadPainter:
    """Paints one face over and over; everything that does not change is built once."""

    def __init__(self, face: Face, density: float, hair: Hair | None) -> None:
        self.face = face
        self.grid = Grid(density)
        albedo = skin_albedo(face, self.grid)
        if hair is not None:
            albedo *= _hair_shadow(hair, self.grid)[..., None]
        height = resting_relief(face, self.grid)
        if face.beard in ("moustache", "goatee", "full"):
            height += np.float32(0.012) * beard_cover(face, *self.grid.axes())
        self._rest = np.dstack([albedo, height]).astype(np.float32)
        self._albedo = np.ascontiguousarray(self._rest[..., :3])
        self._height = np.ascontiguousarray(self._rest[..., 3])
        self._units = unit_relief(face, self.grid)
        normals = surface_normals(self.grid, head_profile(face))
        self._normals = np.ascontiguousarray(normals.transpose(2, 0, 1))
        rng = np.random.default_rng([0xB20, face.seed])
        self._strands = smooth_noise(rng, (64, 256), cells=(18, 3.0))
        self._lip_grain = smooth_noise(rng, (2, 256), cells=(2, 5.0))[0]
        rows, columns = (s.stop - s.start for s in self._units.window)
        window_rows, window_columns = self._units.window
        self._columns = np.tile(
            np.arange(window_columns.start, window_columns.stop, dtype=np.float32), (rows, 1)
        )
        self._rows = np.tile(
            np.arange(window_rows.start, window_rows.stop, dtype=np.float32)[:, None], (1, columns)
        )
        self._glasses = _glasses(face, self.grid)

    def paint(self, activation: np.ndarray, look: Look, lamp: Lamp) -> Painted:
        """`activation`: [unit of ACTION_UNITS, (left, right)] intensities of this frame."""
        units: Units = {
            unit: (float(pair[0]), float(pair[1]))
            for unit, pair in zip(ACTION_UNITS, activation, strict=True)
        }
        drop = jaw_opening(units)
        canvas, normals = self._deform(activation, drop)
        canvas.height[self._units.window] += self._raise(activation)
        draw_brows(canvas, self.face, units, self._strands)
        draw_eyes(canvas, self.face, units, look, lamp.key)
        draw_mouth(canvas, self.face, units, self._lip_grain)
        tilted = relief_normals(normals, canvas.height, self.grid.density)
        hidden = cast_shadow(canvas.height, self.grid, lamp)
        texture = encode(shade(canvas.albedo, tilted, lamp, shine=canvas.shine, hidden=hidden))
        if self._glasses is not None:
            texture = _blend(texture, *self._glasses)
        half = cv2.resize(canvas.height, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        return Painted(texture, Relief(half, self.grid, 2.0), head_profile(self.face, drop))

    def _deform(self, activation: np.ndarray, drop: float) -> tuple[Canvas, np.ndarray]:
        window = self._units.window
        weights = activation.reshape(-1).astype(np.float32)
        active = np.flatnonzero(weights)
        canvas = Canvas(
            self.grid,
            self._albedo.copy(),
            self._height.copy(),
            np.zeros(self.grid.shape, np.float32),
        )
        if active.size == 0 and drop == 0:
            return canvas, self._normals
        flow = np.tensordot(weights[active], self._units.flows[active], axes=1)
        size = (self._columns.shape[1], self._columns.shape[0])
        flow_u, flow_y = (cv2.resize(part, size) for part in flow)
        _, y = self.grid.axes()
        flow_y = flow_y + jaw_drop(y[window[0]], drop)
        density = np.float32(self.grid.density)
        columns, rows = self._columns - flow_u * density, self._rows - flow_y * density
        moved = cv2.remap(
            self._rest, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        canvas.albedo[window], canvas.height[window] = moved[..., :3], moved[..., 3]
        if drop < 0.004:
            return canvas, self._normals
        normals = self._normals.copy()
        for plane, rest in zip(normals, self._normals, strict=True):
            plane[window] = cv2.remap(rest, columns, rows, cv2.INTER_LINEAR)
        return canvas, normals

    def _raise(self, activation: np.ndarray) -> np.ndarray:
        weights = activation.reshape(-1).astype(np.float32)
        active = np.flatnonzero(weights)
        heights = self._units.heights[active]
        flat = weights[active] @ heights.reshape(len(active), self._columns.size)
        return flat.reshape(self._columns.shape)


def _blend(under: np.ndarray, over: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return cv2.blendLinear(under, over, 1 - alpha, alpha)


def _hair_shadow(hair: Hair, grid: Grid) -> np.ndarray:
    """Hair hangs over the skin beside it and shades it."""
    u, y = grid.axes()
    scale = np.float32(hair.grid.density)
    columns = np.broadcast_to((u + hair.grid.reach) * scale - 0.5, grid.shape)
    rows = np.broadcast_to((y - np.float32(0.02) - hair.grid.top) * scale - 0.5, grid.shape)
    cover = cv2.remap(
        hair.cover,
        np.ascontiguousarray(columns, np.float32),
        np.ascontiguousarray(rows, np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return 1 - np.float32(0.45) * cv2.GaussianBlur(cover, (0, 0), 0.028 * grid.density)


def _glasses(face: Face, grid: Grid) -> tuple[np.ndarray, np.ndarray] | None:
    """Frame and faint lens reflections as (uint8 [H, W, 3], alpha float32 [H, W])."""
    if face.glasses == "none":
        return None
    u, y = grid.axes()
    side = np.abs(u)
    rng = np.random.default_rng([0x61A5, face.seed])
    half_u, half_y = rng.uniform(0.185, 0.205), rng.uniform(0.125, 0.150)
    power = float(rng.uniform(2.2, 4.5))
    line = 0.009 if face.glasses == "thin" else 0.020
    centre = face.eye_spacing + 0.008
    ring = (np.abs((side - centre) / half_u) ** power + np.abs((y - 0.015) / half_y) ** power) ** (
        1 / power
    )
    texel = 1 / grid.density
    rim = np.clip((line - np.abs(ring - 1) * min(half_u, half_y)) / texel + 0.5, 0, 1)
    bridge = np.abs(y + 0.02 - 0.6 * side**2) - line * 0.8
    bridge = np.clip(-bridge / texel + 0.5, 0, 1) * (side < centre - half_u)
    arm = np.clip((line * 0.9 - np.abs(y + 0.03)) / texel + 0.5, 0, 1) * (side > centre + half_u)
    alpha = np.maximum(rim, np.maximum(bridge, arm)).astype(np.float32) * np.float32(0.94)
    shade_of = rng.uniform(10, 90) if face.glasses == "thin" else rng.uniform(8, 50)
    colour = np.full((*grid.shape, 3), shade_of, np.float32)
    colour *= rng.uniform(0.7, 1.25, 3).astype(np.float32)
    glare = np.clip(1 - np.abs((u * 0.8 + y) % 0.5 - 0.1) / 0.05, 0, 1) * (ring < 0.93)
    lens = np.float32(0.05) * glare.astype(np.float32) * (1 - alpha)
    colour = np.where((lens > alpha)[..., None], np.float32(235), colour)
    return np.clip(colour, 0, 255).astype(np.uint8), np.maximum(alpha, lens)

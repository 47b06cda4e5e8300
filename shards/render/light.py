"""Light on a surface with relief: wrapped diffuse, a sheen, a hemisphere of ambient, cast shadows.

All in the head's own axes: the lamp is turned into them, so a turning head needs no new normals.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from shards.render.geometry import Grid, Pose
from shards.render.scene import Scene

# Light enters skin and leaves beside where it entered, red farthest: shadows begin softly.
_WRAP = (0.30, 0.14, 0.09)


@dataclass(frozen=True)
class Lamp:
    """Directions as unit vectors in head axes, colours linear, float32."""

    key: np.ndarray
    up: np.ndarray
    half: np.ndarray
    rim: np.ndarray
    key_colour: np.ndarray
    ambient_colour: np.ndarray
    rim_strength: float

    @classmethod
    def of(cls, scene: Scene, pose: Pose, exposure: float) -> "Lamp":
        ce = np.cos(scene.elevation)
        key = np.array(
            [np.sin(scene.azimuth) * ce, -np.sin(scene.elevation), np.cos(scene.azimuth) * ce]
        )
        half = key + np.array([0.0, 0.0, 1.0])
        rim = np.array([-np.sign(scene.azimuth) * 0.85, -0.35, -0.40])
        back = pose.rotation().T

        def turned(v: np.ndarray) -> np.ndarray:
            return (back @ (v / np.linalg.norm(v))).astype(np.float32)

        # Diffuse light on a surface facing the lamp and the sky adds up to about one.
        key_gain = exposure * scene.key * 1.15
        return cls(
            turned(key),
            turned(np.array([0.0, -1.0, 0.0])),
            turned(half),
            turned(rim),
            np.asarray(scene.key_colour, np.float32) * np.float32(key_gain),
            np.asarray(scene.ambient_colour, np.float32) * np.float32(exposure * scene.ambient),
            float(scene.rim * exposure),
        )


def relief_normals(normals: np.ndarray, height: np.ndarray, density: float) -> np.ndarray:
    """Normals [3, H, W] of a smooth surface (unit `normals`) tilted by a relief, not normalised."""
    scale = density / 8.0
    hu = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3, scale=scale)
    hy = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3, scale=scale)
    nx, ny, nz = normals
    tilted = np.empty_like(normals)
    # Tangents follow from the normal: along u (nz, 0, -nx), along y the cross product with it.
    turned = hy * ny
    np.add(nx, turned * nx - hu * nz, out=tilted[0])
    np.subtract(ny, hy * (1 - ny * ny), out=tilted[1])
    np.add(nz, turned * nz + hu * nx, out=tilted[2])
    return tilted


def cast_shadow(height: np.ndarray, grid: Grid, lamp: Lamp) -> np.ndarray:
    """Share of the lamp hidden by nearby relief (above all by the nose), float32 [H, W]."""
    small = cv2.resize(height, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    texels = grid.density / 2
    flat = float(np.hypot(lamp.key[0], lamp.key[1]))
    hidden = np.zeros_like(small)
    if flat < 0.05:
        return np.zeros_like(height)
    slope = max(float(lamp.key[2]), 0.05) / flat
    for reach in (0.05, 0.09, 0.14):
        shift = np.array(
            [
                [1, 0, reach * texels * lamp.key[0] / flat],
                [0, 1, reach * texels * lamp.key[1] / flat],
            ]
        )
        size = (small.shape[1], small.shape[0])
        toward = cv2.warpAffine(
            small,
            shift,
            size,
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
        over = toward - small - np.float32(reach * slope * 0.8)
        hidden = np.maximum(hidden, np.clip(over * np.float32(22), 0, np.float32(0.75)))
    hidden = cv2.GaussianBlur(hidden, (0, 0), 0.02 * texels)
    return cv2.resize(hidden, (height.shape[1], height.shape[0]))


def shade(
    albedo: np.ndarray, tilted: np.ndarray, lamp: Lamp, *, shine: np.ndarray, hidden: np.ndarray
) -> np.ndarray:
    """Linear light to the camera, float32 [H, W, 3]; `tilted` from `relief_normals`."""
    directions = np.stack([lamp.key, lamp.up, lamp.half, lamp.rim])
    length = 1 / np.sqrt(np.einsum("chw,chw->hw", tilted, tilted))
    dots = (directions @ tilted.reshape(3, -1)).reshape(4, *length.shape)
    dots *= length
    facing, sky, mirror, edge = dots
    lit = 1 - hidden
    sheen = np.maximum(mirror, 0)
    for _ in range(4):
        sheen *= sheen
    wet = sheen * sheen
    wet *= wet
    sheen *= np.float32(0.060) + np.float32(0.06) * shine
    sheen += np.float32(0.6) * shine * wet
    sheen *= lit
    sky *= np.float32(0.32)
    sky += np.float32(0.68)
    rim = np.float32(lamp.rim_strength) * np.maximum(edge, 0)
    planes = []
    for channel, wrap in enumerate(_WRAP):
        gain = lamp.key_colour[channel] / np.float32(1 + wrap)
        light = np.maximum(facing + np.float32(wrap), 0)
        light *= lit
        light *= gain
        light += lamp.ambient_colour[channel] * sky
        light += rim
        planes.append(light)
    return albedo * cv2.merge(planes) + cv2.merge([sheen * c for c in lamp.key_colour])


def encode(linear: np.ndarray) -> np.ndarray:
    """Linear float32 to display uint8: a soft shoulder above 0.7, then gamma 2."""
    over = np.maximum(linear - np.float32(0.7), 0)
    soft = np.minimum(linear, np.float32(0.7)) + over / (1 + over * np.float32(2.2))
    return cv2.convertScaleAbs(np.sqrt(soft), alpha=255.0)

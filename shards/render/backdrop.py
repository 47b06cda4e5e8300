"""What is behind and below the head: a seeded room or street, and neck, shoulders and clothes."""

from collections.abc import Callable

import cv2
import numpy as np

from shards.render.face import Face
from shards.render.light import Lamp, encode
from shards.render.noise import cloud, smooth_noise
from shards.render.scene import Scene

_Painter = Callable[[np.random.Generator, int, int, float], np.ndarray]


def paint_backdrop(scene: Scene, size: tuple[int, int]) -> np.ndarray:
    """uint8 [h, w, 3] of the scene's kind of place; `size` is (w, h)."""
    width, height = size
    rng = np.random.default_rng([0xBAC0, scene.session_seed])
    painter = _PLACES[scene.backdrop]
    picture = painter(rng, height, width, scene.brightness)
    picture = picture * (np.asarray(scene.key_colour, np.float32) ** 0.5)
    blur = float(rng.uniform(0.004, 0.03)) * height
    picture = cv2.GaussianBlur(picture.astype(np.float32), (0, 0), max(blur, 0.6))
    return cv2.convertScaleAbs(picture, alpha=255.0)


def _tint(rng: np.random.Generator, spread: float = 0.35) -> np.ndarray:
    colour = 1 + rng.uniform(-spread, spread, 3)
    return (colour / colour.mean()).astype(np.float32)


def _flat(height: int, width: int, colour: np.ndarray) -> np.ndarray:
    return np.broadcast_to(colour.astype(np.float32), (height, width, 3)).copy()


def _ramp(rng: np.random.Generator, height: int, width: int, strength: float) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    return (1 + strength * (np.cos(angle) * x + np.sin(angle) * y))[..., None]


def _studio(rng: np.random.Generator, height: int, width: int, level: float) -> np.ndarray:
    picture = _flat(height, width, level * _tint(rng, 0.15))
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    glow = np.exp(-0.9 * (x * x + (y + 0.1) ** 2))
    return picture * (0.75 + 0.45 * glow)[..., None]


def _wall(rng: np.random.Generator, height: int, width: int, level: float) -> np.ndarray:
    picture = _flat(height, width, level * _tint(rng)) * _ramp(rng, height, width, 0.25)
    picture *= 1 + 0.05 * cloud(rng, (height, width), cell=height * 0.3)[..., None]
    if rng.random() < 0.6:  # a picture on the wall
        x, y = int(rng.uniform(-0.1, 0.85) * width), int(rng.uniform(-0.1, 0.3) * height)
        w, h = int(rng.uniform(0.2, 0.4) * width), int(rng.uniform(0.25, 0.5) * height)
        frame, inner = rng.uniform(0.05, 0.8, 3), rng.uniform(0.1, 0.9, 3)
        cv2.rectangle(picture, (x, y), (x + w, y + h), frame.tolist(), -1)
        cv2.rectangle(picture, (x + 5, y + 5), (x + w - 5, y + h - 5), inner.tolist(), -1)
    return picture


def _window(rng: np.random.Generator, height: int, width: int, level: float) -> np.ndarray:
    picture = _flat(height, width, 0.6 * level * _tint(rng)) * _ramp(rng, height, width, 0.2)
    x = int(rng.choice([rng.uniform(-0.15, 0.1), rng.uniform(0.6, 0.8)]) * width)
    w, h = int(rng.uniform(0.25, 0.4) * width), int(rng.uniform(0.5, 0.85) * height)
    sky = np.array((0.78, 0.86, 0.95)) * rng.uniform(0.85, 1.05)
    cv2.rectangle(picture, (x, -5), (x + w, h), sky.tolist(), -1)
    bar = (rng.uniform(0.3, 0.8, 1) * np.ones(3)).tolist()
    cv2.line(picture, (x + w // 2, 0), (x + w // 2, h), bar, 4)
    cv2.line(picture, (x, h // 2), (x + w, h // 2), bar, 4)
    cv2.rectangle(picture, (x, -5), (x + w, h), bar, 5)
    return picture


def _shelf(rng: np.random.Generator, height: int, width: int, level: float) -> np.ndarray:
    picture = _flat(height, width, 0.5 * level * np.array((1.1, 0.95, 0.8)))
    rows = int(rng.integers(2, 5))
    step = height / rows
    for row in range(rows):
        x, floor = 0.0, int((row + 1) * step)
        while x < width:
            thick = rng.uniform(0.02, 0.06) * width
            tall = step * rng.uniform(0.55, 0.9)
            colour = (level * rng.uniform(0.3, 1.4) * _tint(rng, 0.38)).tolist()
            top = (int(x), int(floor - tall))
            cv2.rectangle(picture, top, (int(x + thick) - 1, floor), colour, -1)
            x += thick + (rng.uniform(0, 0.1) * width if rng.random() < 0.15 else 0)
        cv2.line(picture, (0, floor), (width, floor), (0.25 * level,) * 3, 4)
    return picture


def _outdoor(rng: np.random.Generator, height: int, width: int, level: float) -> np.ndarray:
    horizon = rng.uniform(0.35, 0.75)
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    sky = (0.55 + 0.45 * level) * np.array((0.72, 0.83, 0.95), np.float32)
    green = level * np.array((0.45, 0.62, 0.34), np.float32) * _tint(rng, 0.2)
    leaves = cloud(rng, (height, width), cell=height * 0.16, octaves=4)
    edge = np.clip((y - horizon + 0.10 * leaves) / 0.06, 0, 1)[..., None]
    ground = green * (1 + 0.30 * leaves)[..., None]
    return sky * (1 - edge) + np.clip(ground, 0.02, 1) * edge


def _stripes(rng: np.random.Generator, height: int, width: int, level: float) -> np.ndarray:
    x = np.linspace(0, 1, width, dtype=np.float32)[None, :]
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    folds = np.sin(2 * np.pi * (rng.uniform(5, 12) * x + 0.05 * np.sin(5 * y)))
    folds = folds + 0.4 * np.sin(2 * np.pi * rng.uniform(14, 25) * x)
    return level * _tint(rng) * (1 + 0.22 * folds)[..., None] * _ramp(rng, height, width, 0.2)


_PLACES: dict[str, _Painter] = {
    "studio": _studio,
    "wall": _wall,
    "window": _window,
    "shelf": _shelf,
    "outdoor": _outdoor,
    "stripes": _stripes,
}


def paint_body(
    face: Face, scene: Scene, lamp: Lamp, *, size: tuple[int, int], scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Neck, shoulders and clothes as (uint8 [h, w, 3], alpha float32 [h, w]).

    `size` is (w, h); the head's centre is taken to be the middle of the picture.
    """
    width, height = size
    rng = np.random.default_rng([0xB0D1, scene.session_seed])
    x = ((np.arange(width, dtype=np.float32) + 0.5 - width / 2) / scale)[None, :]
    y = ((np.arange(height, dtype=np.float32) + 0.5 - height / 2) / scale)[:, None]
    neck = 0.335 + 0.085 * face.masculine + 0.05 * np.clip((y - 1.0) / 0.3, 0, 1) ** 2
    drop = np.clip((y - 1.10) / 0.62, 0, 1)
    half = neck + (1.32 + 0.22 * face.masculine - neck) * drop**0.72 * (drop > 0)
    alpha = np.clip((half - np.abs(x)) * scale + 0.5, 0, 1) * (y > 0.35)
    skin = _neck_skin(face, lamp, x, y, neck)
    cloth, covered = _clothes(rng, lamp, x, y, scale)
    colour = skin + covered[..., None] * (cloth - skin)
    return encode(colour.astype(np.float32)), alpha.astype(np.float32)


def _neck_skin(
    face: Face, lamp: Lamp, x: np.ndarray, y: np.ndarray, neck: np.ndarray
) -> np.ndarray:
    nx = np.clip(x / neck, -0.97, 0.97)
    nz = np.sqrt(1 - nx * nx)
    facing = np.clip(nx * lamp.key[0] + nz * lamp.key[2] - 0.15 * lamp.key[1], 0, 1)
    under_chin = 0.24 + 0.76 * np.clip((y - face.chin + 0.02) / 0.36, 0, 1) ** 1.3
    flesh = np.asarray(face.skin, np.float32) * np.array((0.95, 0.88, 0.86), np.float32)
    cords = 1 - 0.10 * np.exp(-(((np.abs(x) - 0.26 + 0.22 * (y - 0.9)) / 0.05) ** 2))
    light = facing[..., None] * lamp.key_colour + 0.75 * lamp.ambient_colour
    return flesh * light * (under_chin * cords)[..., None]


def _clothes(
    rng: np.random.Generator, lamp: Lamp, x: np.ndarray, y: np.ndarray, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    colour = np.clip(rng.uniform(0.02, 0.6) * _tint(rng, 0.55), 0.01, 0.8)
    kind = rng.choice(3)  # crew neck, V neck, collar
    side = np.abs(x)
    if kind == 0:
        line = 1.33 - 0.28 * np.clip(side / 0.5, 0, 1) ** 2
    elif kind == 1:
        line = 1.62 - 1.05 * np.clip(side, 0, 0.55)
    else:
        line = 1.52 - 0.60 * np.clip(side / 0.5, 0, 1)
    covered = np.clip((y - line) * scale * 0.7 + 0.5, 0, 1)
    shape = np.broadcast_shapes(x.shape, y.shape)
    folds = 1 + 0.10 * cloud(rng, shape, cell=0.35 * scale)
    weave = 1 + 0.05 * smooth_noise(rng, shape, cells=(1.3, 1.3))
    trim = 1 - 0.35 * np.exp(-(((y - line - 0.035) / 0.018) ** 2)) * (kind != 1)
    facing = np.clip(0.45 * x * lamp.key[0] + 0.75 * lamp.key[2] - 0.5 * lamp.key[1], 0, 1)
    light = facing[..., None] * lamp.key_colour + lamp.ambient_colour
    return colour * light * (folds * weave * trim)[..., None], covered

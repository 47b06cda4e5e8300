"""A clip: identity, scene and expression put together into frames.

Layers from back to front: backdrop, hair behind, neck and clothes, ears, head, hair in front. Head
and hair are surfaces looked up pixel by pixel (`geometry.unwrap`) at half the resolution.
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from shards.render.backdrop import paint_backdrop, paint_body
from shards.render.expression import ACTION_UNITS, Expression
from shards.render.eyes import Look
from shards.render.face import Face
from shards.render.geometry import Grid, Pose, unwrap
from shards.render.hair import Hair, build_hair, shade_hair, shows_ears
from shards.render.head import HeadPainter, Painted
from shards.render.light import Lamp, encode
from shards.render.scene import Motion, Scene

_HEAD = 0.388  # a head unit as a share of the picture's shorter effective side
_CENTRE = 0.482  # the head's middle as a share of the picture's height


@dataclass(frozen=True)
class ClipSpec:
    """Everything that determines a clip's pixels. `size` is (width, height) in pixels."""

    face: Face
    scene: Scene
    expression: Expression
    frames: int
    fps: float = 25.0
    size: tuple[int, int] = (320, 240)

    def __post_init__(self) -> None:
        width, height = self.size
        if min(width, height) < 64 or width % 2 or height % 2:
            raise ValueError(
                f"size must be even and at least 64 pixels a side, got {width}x{height}"
            )
        if self.frames < 1 or not self.fps > 0:
            raise ValueError(f"frames and fps must be positive, got {self.frames}, {self.fps}")


def render_clip(spec: ClipSpec) -> np.ndarray:
    """Frames uint8 [T, h, w, 3] (RGB). The same spec gives the same pixels."""
    stage = _Stage(spec)
    return np.stack([stage.frame(t) for t in range(spec.frames)])


@lru_cache(maxsize=2)
def _painter(face: Face, density: float) -> HeadPainter:
    return HeadPainter(face, density, build_hair(face, density))


class _Stage:
    """One clip's static layers and curves."""

    def __init__(self, spec: ClipSpec) -> None:
        self.spec = spec
        width, height = spec.size
        self.unit = _HEAD * min(height, 0.85 * width)
        density = round(1.12 * self.unit, 3)
        self.motion: Motion = spec.scene.motion(spec.frames, spec.fps)
        self.activation = spec.expression.activations(spec.frames)
        self.painter = _painter(spec.face, density)
        self.hair = build_hair(spec.face, density)
        # Cameras expose for the face: dark skin gets more light, though not all the way.
        luminance = float(np.dot(spec.face.skin, (0.3, 0.6, 0.1)))
        self.exposure = spec.scene.exposure * (0.42 / luminance) ** 0.33
        still = Lamp.of(spec.scene, Pose(0, 0, 0, 0, 0, 1), self.exposure)
        self.backdrop = paint_backdrop(spec.scene, spec.size)
        self.hair_texture = None if self.hair is None else shade_hair(self.hair, still)
        self.body_margin = int(0.4 * self.unit)
        self.body, self.body_alpha = paint_body(
            spec.face,
            spec.scene,
            still,
            size=(width + 2 * self.body_margin, 2 * height + 2 * self.body_margin),
            scale=self.unit * spec.scene.scale.mean,
        )
        self.ears = _ears(spec.face, still) if shows_ears(spec.face) else None
        self.camera = _Camera(spec)

    def frame(self, t: int) -> np.ndarray:
        """uint8 [h, w, 3]."""
        motion, scene = self.motion, self.spec.scene
        width, height = self.spec.size
        scale = self.unit * motion.scale[t]
        x = width / 2 + motion.x[t] * self.unit
        y = height * _CENTRE + motion.y[t] * self.unit
        pose = Pose(motion.yaw[t], motion.pitch[t], motion.roll[t], x, y, scale)
        # Lids held wide open (AU5) do not blink.
        widened = float(self.activation[t, ACTION_UNITS.index(5)].max())
        # Eyes stay on what they look at while the head turns.
        gaze = Look(
            float(np.clip(motion.gaze_x[t] - 0.14 * motion.yaw[t], -0.10, 0.10)),
            float(np.clip(motion.gaze_y[t] + 0.14 * motion.pitch[t], -0.06, 0.08)),
            float(motion.blink[t] * (1 - min(widened, 1.0))),
        )
        lamp = Lamp.of(scene, pose, self.exposure)
        painted = self.painter.paint(self.activation[t], gaze, lamp)
        picture = self.backdrop.copy()
        self._compose(picture, painted, pose)
        return self.camera.take(picture, t)

    def _compose(self, picture: np.ndarray, painted: Painted, pose: Pose) -> None:
        shell = None
        if self.hair is not None and self.hair_texture is not None:
            shell = _look_up(pose, self.spec.size, self.hair)
            _draw_hair_behind(picture, shell, self.hair, self.hair_texture)
        self._draw_body(picture, pose)
        if self.ears is not None:
            for sign, ear in zip((-1, 1), self.ears, strict=True):
                _draw_ear(picture, ear, sign, pose, self.spec.face)
        _draw_head(picture, painted, pose, self.spec.size)
        if shell is not None and self.hair is not None and self.hair_texture is not None:
            _draw_hair_front(picture, shell, self.hair, self.hair_texture)

    def _draw_body(self, picture: np.ndarray, pose: Pose) -> None:
        width, height = self.spec.size
        # The trunk follows the head's travel a little; its origin is the middle of its own picture.
        rest_x = width / 2 + self.spec.scene.x.mean * self.unit
        rest_y = height * _CENTRE + self.spec.scene.y.mean * self.unit
        dx = rest_x + 0.55 * (pose.x - rest_x) - self.body.shape[1] / 2
        dy = rest_y + 0.55 * (pose.y - rest_y) - self.body.shape[0] / 2
        move = np.array([[1, 0, dx], [0, 1, dy]])
        top = max(0, int(pose.y + 0.3 * pose.scale))
        move[1, 2] -= top
        size = (width, height - top)
        body = cv2.warpAffine(self.body, move, size, borderMode=cv2.BORDER_REPLICATE)
        alpha = cv2.warpAffine(self.body_alpha, move, size, borderMode=cv2.BORDER_REPLICATE)
        picture[top:] = cv2.blendLinear(picture[top:], body, 1 - alpha, alpha)


@dataclass(frozen=True)
class _Shell:
    """Texture coordinates of a rectangle of pixels: u, y and outline distance in head units."""

    rows: slice
    columns: slice
    u: np.ndarray
    y: np.ndarray
    edge: np.ndarray
    scale: float


def _rectangle(
    pose: Pose, size: tuple[int, int], reach: float, above: float, below: float
) -> tuple[slice, slice]:
    def span(centre: float, low: float, high: float, limit: int) -> slice:
        start = max(0, int(centre - low * pose.scale)) // 2 * 2
        stop = min(limit, (int(centre + high * pose.scale) + 2) // 2 * 2)
        return slice(start, max(stop, start + 2))

    return span(pose.y, above, below, size[1]), span(pose.x, reach, reach, size[0])


def _half_grid(rows: slice, columns: slice) -> tuple[np.ndarray, np.ndarray]:
    x = np.arange(columns.start, columns.stop, 2, dtype=np.float32) + np.float32(1.0)
    y = np.arange(rows.start, rows.stop, 2, dtype=np.float32) + np.float32(1.0)
    return x[None, :], y[:, None]


def _full(part: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
    return cv2.resize(part, (columns.stop - columns.start, rows.stop - rows.start))


def _look_up(pose: Pose, size: tuple[int, int], hair: Hair) -> _Shell:
    rows, columns = _rectangle(pose, size, 1.12, 1.35, max(0.7, hair.end + 0.25))
    x, y = pose.head_plane(*_half_grid(rows, columns))
    u, y, edge = unwrap(x, y, hair.profile, pose, relief=None, steps=3)
    u, y, edge = (_full(part, rows, columns) for part in (u, y, edge))
    edge = edge + _sample(hair.outline, hair.grid, u, y)
    return _Shell(rows, columns, u, y, edge, pose.scale)


def _sample(texture: np.ndarray, grid: Grid, u: np.ndarray, y: np.ndarray) -> np.ndarray:
    density = np.float32(grid.density)
    columns = (u + np.float32(grid.reach)) * density - np.float32(0.5)
    rows = (y - np.float32(grid.top)) * density - np.float32(0.5)
    return cv2.remap(texture, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _lay(picture: np.ndarray, shell: _Shell, colour: np.ndarray, alpha: np.ndarray) -> None:
    part = picture[shell.rows, shell.columns]
    part[:] = cv2.blendLinear(part, colour, 1 - alpha, alpha)


def _outline(shell: _Shell) -> np.ndarray:
    return np.clip(shell.edge * np.float32(shell.scale) + np.float32(0.5), 0, 1)


def _draw_hair_behind(picture: np.ndarray, shell: _Shell, hair: Hair, texture: np.ndarray) -> None:
    colour = _sample(texture, hair.grid, shell.u * np.float32(-0.7), shell.y)
    alpha = _outline(shell) * np.clip((hair.end - shell.y) * 12 + 0.5, 0, 1)
    _lay(picture, shell, cv2.convertScaleAbs(colour, alpha=0.55), alpha)


def _draw_hair_front(picture: np.ndarray, shell: _Shell, hair: Hair, texture: np.ndarray) -> None:
    colour = _sample(texture, hair.grid, shell.u, shell.y)
    alpha = _outline(shell) * _sample(hair.cover, hair.grid, shell.u, shell.y)
    _lay(picture, shell, colour, alpha)


def _draw_head(picture: np.ndarray, painted: Painted, pose: Pose, size: tuple[int, int]) -> None:
    rows, columns = _rectangle(pose, size, 0.95, 1.2, 1.42)
    x, y = pose.head_plane(*_half_grid(rows, columns))
    u, y, edge = unwrap(x, y, painted.profile, pose, relief=painted.relief, steps=5)
    u, y, edge = (_full(part, rows, columns) for part in (u, y, edge))
    shell = _Shell(rows, columns, u, y, edge, pose.scale)
    colour = _sample(painted.texture, painted.relief.grid, u, y)
    _lay(picture, shell, colour, _outline(shell))


def _ears(face: Face, lamp: Lamp) -> tuple[np.ndarray, np.ndarray]:
    """Left and right ear, uint8 RGBA [64, 32, 4], outer side to the right."""
    x = np.linspace(0, 1, 32, dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
    half = np.clip(0.92 - 0.25 * np.clip(y, 0, 1) ** 1.5, 0, 1) * np.sqrt(np.clip(1 - y * y, 0, 1))
    alpha = np.clip((half - x) * 14, 0, 1)
    ring = np.exp(-(((x - half + 0.16) / 0.10) ** 2))
    bowl = np.exp(-(((x - 0.36) / 0.20) ** 2 + ((y - 0.05) / 0.38) ** 2))
    tone = 0.86 + 0.20 * ring - 0.42 * bowl
    out = []
    for sign in (-1, 1):
        facing = max(0.0, float(np.dot((0.45 * sign, 0, 0.85), lamp.key)))
        light = facing * lamp.key_colour + 0.9 * lamp.ambient_colour
        flesh = np.asarray(face.skin, np.float32) * (1.02, 0.84, 0.82)
        colour = encode((flesh * light * tone[..., None]).astype(np.float32))
        out.append(np.dstack([colour, (alpha * 255).astype(np.uint8)]))
    return out[0], out[1]


def _draw_ear(picture: np.ndarray, ear: np.ndarray, sign: int, pose: Pose, face: Face) -> None:
    at = np.array([sign * (face.width - 0.035), 0.11, -0.06])
    outward, down = np.array([sign * 0.115, 0, -0.055]), np.array([sign * -0.02, 0.185, 0.0])
    corners = pose.project(np.stack([at - down, at - down + outward, at + down]))
    source = np.array([(0, 0), (32, 0), (0, 64)], np.float32)
    height, width = picture.shape[:2]
    low = np.clip(corners.min(axis=0) - 12, 0, (width, height)).astype(int)
    high = np.clip(corners.max(axis=0) + 12, 0, (width, height)).astype(int)
    if (high - low).min() < 2:
        return
    move = cv2.getAffineTransform(source, (corners - low).astype(np.float32))
    spot = cv2.warpAffine(ear, move, (int(high[0] - low[0]), int(high[1] - low[1])))
    alpha = spot[..., 3].astype(np.float32) * np.float32(1 / 255)
    part = picture[low[1] : high[1], low[0] : high[0]]
    part[:] = cv2.blendLinear(part, np.ascontiguousarray(spot[..., :3]), 1 - alpha, alpha)


class _Camera:
    """Blur, vignette and sensor noise."""

    def __init__(self, spec: ClipSpec) -> None:
        width, height = spec.size
        scene = spec.scene
        self.blur = scene.blur * height / 240
        x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
        y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
        fall = 1 - np.float32(scene.vignette * 0.5) * (x * x + y * y)
        self.vignette = np.repeat(fall[..., None], 3, axis=2)
        self.rng = np.random.default_rng([0xCA3, scene.session_seed, scene.clip_seed])
        shape = (height + 48, width + 48)
        luma = self.rng.standard_normal((*shape, 1), np.float32)
        chroma = self.rng.standard_normal((*shape, 3), np.float32)
        grain = (luma + np.float32(0.6) * chroma) * np.float32(255 * scene.noise)
        self.grain = np.rint(grain).astype(np.int16)
        self.offsets = self.rng.integers(0, 48, (spec.frames, 2))

    def take(self, picture: np.ndarray, t: int) -> np.ndarray:
        height, width = picture.shape[:2]
        picture = cv2.GaussianBlur(picture, (0, 0), self.blur)
        picture = cv2.multiply(picture, self.vignette, dtype=cv2.CV_8U)
        top, left = self.offsets[t]
        grain = self.grain[top : top + height, left : left + width]
        return cv2.add(picture, grain, dtype=cv2.CV_8U)

"""The head as a surface, its texture grid, and the way back from image pixels to both.

At height y the skull's section is an ellipse of half width w(y) and half depth d(y); a point on it
is (w sin θ, y, d cos θ). The texture column is the arc u = w(y) θ, which near the middle of the
face equals x, so features can be drawn as if on a flat frontal picture. Relief (nose, lips, folds)
displaces the surface along (sin θ, 0, cos θ). Knows nothing of colour or light.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from shards.render.face import Face

_ROWS = 2048
_TOP, _BOTTOM = -1.6, 2.4  # range of the profile tables in head units


@dataclass(frozen=True)
class Grid:
    """Texture grid of `density` texels a head unit over u in [-reach, reach], y in [top, bottom]"""

    density: float
    reach: float = 1.12
    top: float = -1.08
    bottom: float = 1.36

    @property
    def shape(self) -> tuple[int, int]:
        return (
            round((self.bottom - self.top) * self.density),
            round(2 * self.reach * self.density),
        )

    def axes(self) -> tuple[np.ndarray, np.ndarray]:
        """u float32 [1, W] and y float32 [H, 1], at texel centres."""
        rows, columns = self.shape
        u = (np.arange(columns, dtype=np.float32) + 0.5) / np.float32(self.density) - self.reach
        y = (np.arange(rows, dtype=np.float32) + 0.5) / np.float32(self.density) + self.top
        return u[None, :].astype(np.float32), y[:, None].astype(np.float32)

    def window(self, u: tuple[float, float], y: tuple[float, float]) -> tuple[slice, slice]:
        """Rows and columns of the texels inside a rectangle of head units."""
        rows, columns = self.shape

        def span(low: float, high: float, origin: float, count: int) -> slice:
            start = int(np.floor((low - origin) * self.density))
            stop = int(np.ceil((high - origin) * self.density))
            return slice(max(0, start), min(count, stop))

        return span(*y, self.top, rows), span(*u, -self.reach, columns)


@dataclass(frozen=True)
class Profile:
    """Half width and half depth over y, as tables of `_ROWS` entries (float32)."""

    width: np.ndarray
    depth: np.ndarray

    @staticmethod
    def heights() -> np.ndarray:
        return np.linspace(_TOP, _BOTTOM, _ROWS, dtype=np.float32)

    @staticmethod
    def rows(y: np.ndarray) -> np.ndarray:
        """Table index of each height, clipped to the table."""
        scale = np.float32((_ROWS - 1) / (_BOTTOM - _TOP))
        index = (y - np.float32(_TOP)) * scale
        return np.clip(index, 0, _ROWS - 1).astype(np.int32)


def jaw_drop(y: np.ndarray, drop: float) -> np.ndarray:
    """How far the skin at (destination) height y has been carried down by an open jaw."""
    ramp = np.clip((y - 0.50) / 0.52, 0, 1)
    return np.float32(drop) * (ramp * ramp * (3 - 2 * ramp)).astype(np.float32)


def head_profile(face: Face, drop: float = 0.0) -> Profile:
    """Skull and jaw; `drop` lowers the chin."""
    y = Profile.heights()
    y = y - jaw_drop(y, drop)
    middle = np.float32(-0.16)
    upper = np.clip((middle - y) / (middle + 1), 0, 1)
    lower = np.clip((y - middle) / (face.chin - middle), 0, 1)
    crown_w = (1 - upper**2.4) ** 0.5
    jaw_w = (1 - lower**face.jaw_power) ** (1 / face.jaw_round)
    crown_d = (1 - upper**2.6) ** 0.5
    jaw_d = (1 - 0.08 * lower) * (1 - lower**9) ** 0.5
    return Profile(
        (face.width * crown_w * jaw_w).astype(np.float32),
        (face.depth * crown_d * jaw_d).astype(np.float32),
    )


def surface_normals(grid: Grid, profile: Profile) -> np.ndarray:
    """Unit normals of the smooth surface, float32 [H, W, 3]."""
    u, y = grid.axes()
    rows = Profile.rows(y)
    width = np.maximum(profile.width[rows], 0.05)
    depth = np.maximum(profile.depth[rows], 0.05)
    angle = np.clip(u / width, -1.9, 1.9)
    point = np.stack(
        [width * np.sin(angle), np.broadcast_to(y, angle.shape), depth * np.cos(angle)], axis=-1
    )
    along = np.gradient(point, axis=1)
    down = np.gradient(point, axis=0)
    normal = np.cross(along, down).astype(np.float32)
    normal = cv2.GaussianBlur(normal, (0, 0), 0.02 * grid.density)
    length = np.linalg.norm(normal, axis=-1, keepdims=True)
    # Above the crown and below the chin there is no surface; any unit vector will do.
    ahead = np.array([0, 0, 1], np.float32)
    return np.where(length > 1e-9, normal / np.maximum(length, 1e-9), ahead).astype(np.float32)


@dataclass(frozen=True)
class Pose:
    """Yaw > 0 turns to the image's right, pitch > 0 looks up, roll > 0 leans clockwise.

    `x`, `y` in pixels is where the head's centre lands, `scale` in pixels a head unit.
    """

    yaw: float
    pitch: float
    roll: float
    x: float
    y: float
    scale: float

    def rotation(self) -> np.ndarray:
        """float64 [3, 3] from head axes to camera axes."""
        (cy, sy), (cp, sp), (cr, sr) = (
            (np.cos(a), np.sin(a)) for a in (self.yaw, self.pitch, self.roll)
        )
        turn = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
        nod = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
        lean = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
        return lean @ nod @ turn

    def project(self, point: np.ndarray) -> np.ndarray:
        """Head units [..., 3] to pixels [..., 2] (orthographic)."""
        turned = (np.asarray(point) - PIVOT) @ self.rotation().T + PIVOT
        return turned[..., :2] * self.scale + (self.x, self.y)

    def head_plane(self, columns: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixels to head units before yaw and pitch are undone: float32 x, y."""
        cr, sr = np.cos(self.roll), np.sin(self.roll)
        px = (columns - self.x) / self.scale - PIVOT[0]
        py = (rows - self.y) / self.scale - PIVOT[1]
        x = (cr * px + sr * py).astype(np.float32)
        y = (-sr * px + cr * py).astype(np.float32)
        return x, y


PIVOT = np.array([0.0, 0.75, -0.25])  # heads turn about the top of the neck


@dataclass(frozen=True)
class Relief:
    """Displacement map float32 [h, w] (`step` grid texels a pixel) on a grid."""

    height: np.ndarray
    grid: Grid
    step: float

    def at(self, u: np.ndarray, y: np.ndarray) -> np.ndarray:
        scale = np.float32(self.grid.density / self.step)
        columns = (u + np.float32(self.grid.reach)) * scale - np.float32(0.5)
        rows = (y - np.float32(self.grid.top)) * scale - np.float32(0.5)
        return cv2.remap(
            self.height, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )


def unwrap(
    x: np.ndarray, y: np.ndarray, profile: Profile, pose: Pose, *, relief: Relief | None, steps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which surface point each pixel shows, by fixed-point iteration on height and relief.

    x, y: float32 [h, w] from `Pose.head_plane`. Returns u, y on the texture and the distance to the
    outline (> 0 inside), all float32 [h, w] in head units.
    """
    cy, sy = np.float32(np.cos(pose.yaw)), np.float32(np.sin(pose.yaw))
    cp, sp = np.float32(np.cos(pose.pitch)), np.float32(np.sin(pose.pitch))
    across = np.sqrt((profile.width * cy) ** 2 + (profile.depth * sy) ** 2)
    across = np.maximum(across, np.float32(1e-3))
    # Distance across the outline, not along the row: matters where crown and chin run flat.
    lean, beyond = _outline(across)
    phase = np.arctan2(profile.depth * sy, np.maximum(profile.width * cy, 1e-6))
    # Rotation is about PIVOT (which lies in the plane x = 0), the surface about the origin.
    neck_y, neck_z = np.float32(PIVOT[1]), np.float32(PIVOT[2])
    x = x + neck_z * sy
    height = y / cp + neck_y
    raised = toward = np.float32(0)
    angle = width = half = x
    for step in range(steps):
        row = Profile.rows(height)
        half, width, depth = across.take(row), profile.width.take(row), profile.depth.take(row)
        angle = np.arcsin(np.clip((x - raised) / half, -1, 1)) - phase.take(row)
        sine, cosine = np.sin(angle), np.cos(angle)
        if relief is not None:
            bump = relief.at(width * angle, height)
            raised = bump * (sine * cy + cosine * sy)
            toward = bump * (cosine * cy - sine * sy)
        if step < steps - 1:
            z = depth * cosine * cy - width * sine * sy
            height = (y + (z + toward - neck_z * cy) * sp) / cp + neck_y
    row = Profile.rows(height)
    edge = (half - np.abs(x)) * lean.take(row) - beyond.take(row)
    return width * angle, height, edge


def _outline(across: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Over the table's rows: cosine of the outline's lean, and distance beyond crown or chin."""
    step = (_BOTTOM - _TOP) / (_ROWS - 1)
    inside = np.flatnonzero(across > 0.02)
    first, last = inside[0], inside[-1]
    lean = 1 / np.sqrt(1 + (np.gradient(across) / step) ** 2)
    lean[:first], lean[last + 1 :] = lean[first], lean[last]
    row = np.arange(_ROWS)
    beyond = np.maximum(np.maximum(first - row, row - last), 0) * step
    return lean.astype(np.float32), beyond.astype(np.float32)

"""Hair: a shell around the skull with a face opening, strands and its own outline."""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from shards.render.face import Face, HairStyle
from shards.render.geometry import Grid, Profile, surface_normals
from shards.render.light import Lamp, encode
from shards.render.noise import smooth_noise

# Thickness of the shell, lower end of the outline, both in head units.
_SHELL: dict[HairStyle, tuple[float, float]] = {
    "bald": (0.0, -0.2),
    "crop": (0.015, 0.25),
    "short": (0.060, 0.30),
    "fringe": (0.070, 0.34),
    "curly": (0.135, 0.42),
    "bob": (0.085, 0.86),
    "long": (0.080, 1.50),
    "bun": (0.030, 0.30),
}
_FREE_EARS = ("bald", "crop", "short", "bun")


@dataclass(frozen=True)
class Hair:
    """Static maps of a hairdo on its own grid (all float32)."""

    grid: Grid
    profile: Profile
    normals: np.ndarray
    albedo: np.ndarray
    cover: np.ndarray  # [H, W] in front of the skull
    outline: np.ndarray  # [H, W] raggedness added to the distance to the outline
    end: float


def shows_ears(face: Face) -> bool:
    return face.hair_style in _FREE_EARS


@lru_cache(maxsize=4)
def build_hair(face: Face, density: float) -> Hair | None:
    """Hair of `face`, or None for a bald head."""
    if face.hair_style == "bald":
        return None
    grid = Grid(density * 0.8, reach=1.45, top=-1.24, bottom=1.62)
    thick, end = _SHELL[face.hair_style]
    profile = _shell(face, thick, end)
    rng = np.random.default_rng([0x4A12, face.seed])
    grain = _strands(face, grid, rng)
    cover = _cover(face, grid, grain, rng)
    albedo = _colour(face, grid, grain)
    rough = 0.020 if face.hair_style == "curly" else 0.010
    clump = 0.07 * grid.density
    outline = rough * smooth_noise(rng, grid.shape, cells=(clump, clump))
    # All columns meet at the crown, where raggedness would tear.
    outline *= np.clip((grid.axes()[1] + 1.0 + thick) / 0.25, 0, 1)
    return Hair(grid, profile, surface_normals(grid, profile), albedo, cover, outline, end)


def _shell(face: Face, thick: float, end: float) -> Profile:
    y = Profile.heights()
    middle = np.float32(-0.16)
    top = 1.0 + thick * 1.25
    upper = np.clip((middle - y) / (middle + top), 0, 1)
    crown = (1 - upper**2.05) ** 0.52
    reach = max(end, 0.2) + 0.06
    lower = np.clip((y - middle) / (reach - middle), 0, 1)
    close = (1 - lower**6) ** 0.5
    if end > 0.6:  # hanging hair keeps its width and flares a little
        flare = 1 + 0.05 * np.clip((y - 0.1) / 1.2, 0, 1)
        fall = close * flare
    else:
        fall = close * (1 - 0.10 * np.clip((y + 0.1) / 0.6, 0, 1))
    width = (face.width + thick) * crown * fall
    depth = (face.depth + thick) * crown * fall
    return Profile(width.astype(np.float32), depth.astype(np.float32))


def _strands(face: Face, grid: Grid, rng: np.random.Generator) -> np.ndarray:
    texel = grid.density
    if face.hair_style == "curly":
        clumps = smooth_noise(rng, grid.shape, cells=(0.055 * texel, 0.055 * texel))
        return 0.8 * clumps + 0.5 * smooth_noise(rng, grid.shape, cells=(2.0, 2.0))
    long = face.hair_style in ("bob", "long", "fringe")
    run = (0.55 if long else 0.16) * texel
    grain = 0.75 * smooth_noise(rng, grid.shape, cells=(run, 0.030 * texel))
    grain += 0.55 * smooth_noise(rng, grid.shape, cells=(run * 0.6, 1.4))
    u, y = grid.axes()
    # Strands lean away from the parting and wave a little.
    lean = 0.16 * np.tanh((u - face.parting) * 3) * np.clip((0.2 - y) / 1.2, 0, 1)
    wave = 0.012 * np.sin(y * 9 + face.seed)
    columns = (u - lean - wave + grid.reach) * texel - 0.5
    rows = np.broadcast_to((y - grid.top) * texel - 0.5, columns.shape)
    return cv2.remap(
        grain,
        columns.astype(np.float32),
        rows.astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT,
    )


def _cover(face: Face, grid: Grid, grain: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    u, y = grid.axes()
    fade = 1 + 2.5 * np.clip((y + 0.35) / 0.3, 0, 1) * (face.hair_style in _FREE_EARS)
    jag = 0.012 * grain / fade + 0.010 * smooth_noise(rng, grid.shape, cells=(3.0, 3.0))
    soft = 0.030 if face.hair_style in ("crop", "short", "bun") else 0.018
    inside = _hairline(face, u) - y + jag
    if face.hair_style in ("bob", "long"):
        sides = np.abs(u + 0.02 * np.sin(4 * y)) - _curtain(face, y) + 0.7 * jag
        inside = np.maximum(inside, sides)
        inside = np.minimum(inside, _SHELL[face.hair_style][1] + 0.04 - y + 2 * jag)
    cover = np.clip(inside / (soft * fade), 0, 1)
    if face.hair_style == "crop":
        cover = cover * np.clip(0.80 + 0.16 * grain, 0, 1)
    return cover.astype(np.float32)


def _hairline(face: Face, u: np.ndarray) -> np.ndarray:
    """Lower border of the hair over u."""
    h = face.hairline
    recess = 0.10 * face.masculine * (0.3 + face.age)
    side = np.abs(u)
    if face.hair_style == "fringe":
        knots = [(0, -0.315), (0.30, -0.30), (0.46, -0.21), (0.56, 0.02), (0.68, 0.16), (1.5, 0.16)]
    elif face.hair_style == "curly":
        knots = [
            (0, h + 0.04),
            (0.32, h + 0.06),
            (0.50, -0.32),
            (0.60, 0.0),
            (0.8, 0.3),
            (1.5, 0.3),
        ]
    elif face.hair_style in ("bob", "long"):
        knots = [(0, h - 0.02), (0.25, h + 0.05), (0.45, -0.34), (0.55, 0.0), (1.5, 0.0)]
    else:
        burn = 0.02 + 0.10 * face.masculine
        knots = [
            (0, h),
            (0.22, h - recess),
            (0.36, h - 0.3 * recess),
            (0.48, -0.44),
            (0.555, -0.22),
            (0.62, -0.12),
            (0.67, burn),
            (0.74, burn),
            (0.79, -0.06),
            (1.5, -0.06),
        ]
    xs, ys = zip(*knots, strict=True)
    line = np.interp(side, xs, ys)
    if face.hair_style == "fringe":
        line = line + 0.06 * np.clip((u - face.parting) * 0.8, -0.4, 0.4)
    return line.astype(np.float32)


def _curtain(face: Face, y: np.ndarray) -> np.ndarray:
    """Half width of the opening that hanging hair leaves for the face."""
    knots = [
        (-1.3, 0.0),
        (face.hairline - 0.02, 0.04),
        (-0.42, 0.34),
        (-0.22, 0.50),
        (0.1, 0.60),
        (0.5, 0.585),
        (0.95, 0.50),
        (1.7, 0.42),
    ]
    ys, opening = zip(*knots, strict=True)
    return np.interp(y, ys, opening).astype(np.float32)


def _colour(face: Face, grid: Grid, grain: np.ndarray) -> np.ndarray:
    _, y = grid.axes()
    base = np.asarray(face.hair, np.float32)
    tone = np.clip(0.80 + 0.26 * grain, 0.25, 1.7)
    roots = 0.85 + 0.15 * np.clip((y + 1.0) / 0.8, 0, 1)
    return base * (tone * roots)[..., None]


def shade_hair(hair: Hair, lamp: Lamp) -> np.ndarray:
    """uint8 [H, W, 3]: diffuse light plus the band of sheen that lies across strands."""
    n = hair.normals
    facing = np.clip(n @ lamp.key * 0.8 + 0.2, 0, 1)
    sky = 0.70 + 0.30 * (n @ lamp.up)
    edge = np.clip(n @ lamp.rim, 0, 1) * np.float32(lamp.rim_strength * 1.3)
    mirror = np.clip(n @ lamp.half, 0, 1) ** 8
    light = facing[..., None] * lamp.key_colour + sky[..., None] * lamp.ambient_colour
    light = light + edge[..., None]
    brightness = hair.albedo.mean(axis=-1, keepdims=True)
    glow = 0.35 * mirror[..., None] * (hair.albedo + 0.10 * brightness + 0.012)
    return encode((hair.albedo * light + glow * lamp.key_colour).astype(np.float32))

"""Scene: light, backdrop, camera, and how a head drifts, blinks and looks around.

Angles in radians, times in seconds, lengths in head units. Everything of a session (light, wall,
clothes, framing) is shared by the clips recorded in it; motion and noise belong to one clip.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

RGB = tuple[float, float, float]
Backdrop = Literal["studio", "wall", "window", "shelf", "outdoor", "stripes"]
BACKDROPS: tuple[Backdrop, ...] = ("studio", "wall", "window", "shelf", "outdoor", "stripes")


@dataclass(frozen=True)
class Drift:
    """A smooth curve: a mean and two slow sinusoids (amplitude, hertz, phase)."""

    mean: float
    waves: tuple[tuple[float, float, float], tuple[float, float, float]]

    @classmethod
    def sample(cls, mean: float, spread: float, rng: np.random.Generator) -> "Drift":
        def wave(share: float, low: float, high: float) -> tuple[float, float, float]:
            amplitude = spread * share * rng.uniform(0.4, 1.0)
            return float(amplitude), float(rng.uniform(low, high)), float(rng.uniform(0, 2 * np.pi))

        return cls(float(mean), (wave(0.8, 0.1, 0.35), wave(0.2, 0.5, 1.1)))

    def at(self, seconds: np.ndarray) -> np.ndarray:
        """float64, the shape of `seconds`."""
        value = np.full(seconds.shape, self.mean, np.float64)
        for amplitude, hertz, phase in self.waves:
            value += amplitude * np.sin(2 * np.pi * hertz * seconds + phase)
        return value


@dataclass(frozen=True)
class Motion:
    """What moves besides the expression; each float64 [T]."""

    yaw: np.ndarray
    pitch: np.ndarray
    roll: np.ndarray
    x: np.ndarray
    y: np.ndarray
    scale: np.ndarray
    blink: np.ndarray
    gaze_x: np.ndarray
    gaze_y: np.ndarray


@dataclass(frozen=True)
class Scene:
    """A session (light, backdrop, clothes, framing) and one clip in it (motion, camera)."""

    session_seed: int
    clip_seed: int
    # light: azimuth > 0 comes from the image's right, elevation > 0 from above
    azimuth: float
    elevation: float
    key: float
    ambient: float
    key_colour: RGB
    ambient_colour: RGB
    rim: float
    exposure: float
    # camera
    noise: float
    blur: float
    vignette: float
    # backdrop and clothes
    backdrop: Backdrop
    brightness: float
    # motion
    yaw: Drift
    pitch: Drift
    roll: Drift
    x: Drift
    y: Drift
    scale: Drift
    blinks: tuple[float, ...]
    gaze_x: Drift
    gaze_y: Drift

    @classmethod
    def sample(cls, session_seed: int, clip_seed: int, *, seconds: float) -> "Scene":
        """Draw a scene; clips of one session share light, backdrop, clothes and framing."""
        session = np.random.default_rng([0x5E55, session_seed])
        clip = np.random.default_rng([0xC11B, session_seed, clip_seed])
        return cls(
            session_seed=session_seed,
            clip_seed=clip_seed,
            **_draw_light(session),
            noise=float(session.uniform(0.004, 0.022)),
            blur=float(session.uniform(0.25, 0.75)),
            vignette=float(session.uniform(0.0, 0.3)),
            backdrop=BACKDROPS[session.integers(len(BACKDROPS))],
            brightness=float(session.uniform(0.12, 0.75)),
            **_draw_motion(session, clip),
            blinks=_draw_blinks(clip, seconds),
        )

    def motion(self, frames: int, fps: float) -> Motion:
        """The curves sampled at `frames` frames."""
        t = np.arange(frames, dtype=np.float64) / fps
        blink = np.zeros(frames)
        for start in self.blinks:
            # Lids close in about 80 ms and open in about 160 ms.
            closing = np.clip((t - start) / 0.08, 0, 1)
            opening = np.clip((t - start - 0.10) / 0.16, 0, 1)
            blink = np.maximum(blink, np.sin(closing * np.pi / 2) * (1 - opening) ** 1.5)
        return Motion(
            self.yaw.at(t),
            self.pitch.at(t),
            self.roll.at(t),
            self.x.at(t),
            self.y.at(t),
            self.scale.at(t),
            blink,
            self.gaze_x.at(t),
            self.gaze_y.at(t),
        )


def _draw_light(rng: np.random.Generator) -> dict[str, Any]:
    warmth = float(rng.uniform(-1, 1))
    tint = 0.13 * warmth
    ambient_tint = -0.10 * warmth * rng.uniform(0, 1)
    key = float(rng.uniform(0.45, 0.95))
    return {
        "azimuth": float(rng.uniform(-1.05, 1.05)),
        "elevation": float(rng.uniform(0.1, 0.95)),
        "key": key,
        "ambient": float(rng.uniform(0.34, 0.6)),
        "key_colour": (1 + tint, 1.0, 1 - tint),
        "ambient_colour": (1 + ambient_tint, 1.0, 1 - ambient_tint),
        "rim": float(rng.uniform(0, 0.5) * (rng.random() < 0.5)),
        "exposure": float(rng.uniform(0.85, 1.12)),
    }


def _draw_motion(session: np.random.Generator, clip: np.random.Generator) -> dict[str, Any]:
    framing = session.uniform((-0.28, -0.06, 0.93), (0.28, 0.06, 1.07))
    return {
        "yaw": Drift.sample(np.clip(clip.normal(0, 0.11), -0.24, 0.24), 0.07, clip),
        "pitch": Drift.sample(np.clip(clip.normal(0, 0.05), -0.12, 0.12), 0.035, clip),
        "roll": Drift.sample(np.clip(clip.normal(0, 0.04), -0.09, 0.09), 0.025, clip),
        "x": Drift.sample(framing[0], 0.05, clip),
        "y": Drift.sample(framing[1], 0.02, clip),
        "scale": Drift.sample(framing[2], 0.012, clip),
        "gaze_x": Drift.sample(clip.normal(0, 0.035), 0.03, clip),
        "gaze_y": Drift.sample(clip.normal(0.01, 0.02), 0.02, clip),
    }


def _draw_blinks(rng: np.random.Generator, seconds: float) -> tuple[float, ...]:
    # People blink about every four seconds.
    times: list[float] = []
    at = float(rng.exponential(4.0))
    while at < seconds:
        times.append(at)
        at += 0.6 + float(rng.exponential(3.5))
    return tuple(times)

"""Expressions: facial action units with an onset, an apex and an offset.

Prototypes follow EMFACS (Friesen & Ekman 1983; Ekman, Friesen & Hager, FACS Investigator's Guide
2002, table 10-1): each basic expression has a few published combinations, and a clip draws one of
them. Owns which units move, how much and when. Knows nothing of geometry or pixels.
"""

from dataclasses import dataclass

import numpy as np

LABELS: tuple[str, ...] = (
    "neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger",
)  # fmt: skip

ACTION_UNITS: tuple[int, ...] = (1, 2, 4, 5, 6, 7, 9, 10, 12, 15, 17, 20, 23, 24, 25, 26, 27)

# Variants of each expression: action unit -> intensity at strength 1 (1.0 is the FACS maximum, E).
PROTOTYPES: dict[str, tuple[dict[int, float], ...]] = {
    "neutral": ({},),
    "happiness": (
        {6: 0.9, 12: 0.9, 25: 0.7},
        {6: 0.8, 12: 1.0, 25: 0.9, 26: 0.35},
        {6: 0.8, 12: 0.9},
    ),
    "sadness": (
        {1: 0.9, 4: 0.55, 15: 0.95},
        {1: 0.9, 4: 0.6, 15: 0.85, 17: 0.7},
        {1: 1.0, 4: 0.45, 15: 0.9, 7: 0.3},
    ),
    "surprise": (
        {1: 0.9, 2: 0.9, 5: 0.8, 26: 1.0, 25: 0.5},
        {1: 1.0, 2: 1.0, 5: 0.9, 27: 0.8, 25: 0.5},
    ),
    "fear": (
        {1: 1.0, 2: 0.6, 4: 0.7, 5: 1.0, 20: 1.0, 25: 1.0},
        {1: 1.0, 2: 0.6, 4: 0.65, 5: 1.0, 7: 0.2, 20: 1.0, 25: 0.9, 26: 0.45},
    ),
    "disgust": (
        {9: 1.0, 15: 0.4, 17: 0.6},
        {9: 0.95, 10: 0.7, 17: 0.5},
        {9: 0.9, 10: 0.9, 25: 0.6, 4: 0.3},
    ),
    "anger": (
        {4: 1.0, 5: 0.6, 7: 0.7, 23: 0.8},
        {4: 1.0, 5: 0.5, 7: 0.8, 17: 0.6, 24: 0.8},
        {4: 1.0, 5: 0.7, 7: 0.6, 10: 0.4, 23: 0.7, 25: 0.5},
    ),
}

MICRO = 0.3  # at or below this strength an expression is also brief (under half a second)


@dataclass(frozen=True)
class Expression:
    """One event: frames are 0-based, `offset` is the last frame that still moves.

    `units` holds (action unit, left intensity, right intensity), already scaled by `strength`;
    it is empty for neutral, whose onset, apex and offset mark an interval in which nothing happens.
    """

    label: str
    strength: float
    onset: int
    apex: int
    offset: int
    units: tuple[tuple[int, float, float], ...]

    @classmethod
    def sample(
        cls, label: str, strength: float, *, frames: int, fps: float, rng: np.random.Generator
    ) -> "Expression":
        """Draw a variant, its asymmetry and its timing inside a clip of `frames` frames.

        Raises ValueError for an unknown label, a strength outside (0, 1] or fewer than 4 frames.
        """
        if label not in PROTOTYPES:
            raise ValueError(f"unknown expression {label!r}; choose from {', '.join(LABELS)}")
        if not 0 < strength <= 1:
            raise ValueError(f"strength must lie in (0, 1], got {strength}")
        if frames < 4:
            raise ValueError(f"an expression needs at least 4 frames, got {frames}")
        variant = PROTOTYPES[label][rng.integers(len(PROTOTYPES[label]))]
        units = tuple(
            (unit, *_two_sides(full * strength * rng.uniform(0.9, 1.08), rng))
            for unit, full in sorted(variant.items())
        )
        onset, apex, offset = _timing(strength, frames=frames, fps=fps, rng=rng)
        return cls(label, strength, onset, apex, offset, units)

    @property
    def action_units(self) -> str:
        """FACS notation, for example `1+2+5+26`; empty for neutral."""
        return "+".join(str(unit) for unit, _, _ in self.units)

    def envelope(self, frames: int) -> np.ndarray:
        """float64 [T] in [0, 1]: 0 up to the onset, 1 at the apex alone, 0 from the offset on."""
        t = np.arange(frames, dtype=np.float64)
        rise = np.clip((t - self.onset) / (self.apex - self.onset), 0, 1)
        fall = np.clip((t - self.apex) / (self.offset - self.apex), 0, 1)
        # The plateau sags a little, so that the apex stays the single maximum.
        hold = 1 - 0.04 * np.clip(fall / 0.35, 0, 1)
        return _smooth(rise) * hold * (1 - _smooth(np.clip((fall - 0.35) / 0.65, 0, 1)))

    def activations(self, frames: int) -> np.ndarray:
        """float64 [T, unit of ACTION_UNITS, (left, right)]: intensity over the clip."""
        out = np.zeros((frames, len(ACTION_UNITS), 2))
        curve = self.envelope(frames)
        for unit, left, right in self.units:
            out[:, ACTION_UNITS.index(unit)] = curve[:, None] * (left, right)
        return out


def _smooth(x: np.ndarray) -> np.ndarray:
    return x * x * (3 - 2 * x)


def _two_sides(value: float, rng: np.random.Generator) -> tuple[float, float]:
    # Faces are never quite symmetric; single units may lean by a tenth.
    lean = float(np.clip(rng.normal(0, 0.035), -0.08, 0.08))
    return float(value * (1 - lean)), float(value * (1 + lean))


def _timing(
    strength: float, *, frames: int, fps: float, rng: np.random.Generator
) -> tuple[int, int, int]:
    if strength <= MICRO:
        rise, fall = rng.uniform(0.10, 0.18), rng.uniform(0.16, 0.28)
    else:
        rise, fall = rng.uniform(0.24, 0.44), rng.uniform(0.45, 0.8)
    up, down = max(1, round(rise * fps)), max(1, round(fall * fps))
    room = frames - 2  # at least one still frame before the onset
    if up + down > room:
        up = max(1, room * up // (up + down))
        down = max(1, room - up)
    onset = int(rng.integers(1, frames - up - down))
    return onset, onset + up, onset + up + down

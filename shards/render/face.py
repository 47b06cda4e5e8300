"""Identity: what stays the same about a person in every clip.

Lengths are in head units: the head is two units high, eyes at y = 0, chin near y = 1, x to the
image's right, y down, z towards the camera. Knows nothing of pixels, light or expression.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

RGB = tuple[float, float, float]
HairStyle = Literal["bald", "crop", "short", "fringe", "curly", "bob", "long", "bun"]
Beard = Literal["none", "stubble", "moustache", "goatee", "full"]
Glasses = Literal["none", "thin", "thick"]

_HANGING = ("fringe", "bob", "long")
HAIR_STYLES: tuple[HairStyle, ...] = (
    "bald", "crop", "short", "fringe", "curly", "bob", "long", "bun",
)  # fmt: skip

# sRGB anchors from the deepest to the fairest skin; a tone in [0, 1] interpolates between them.
_SKIN = np.array(
    [
        (74, 49, 38),
        (96, 64, 47),
        (122, 81, 57),
        (158, 108, 77),
        (190, 138, 103),
        (215, 168, 133),
        (233, 191, 162),
        (245, 211, 190),
    ],
    np.float64,
)
_HAIR = np.array(
    [
        (22, 19, 19),
        (43, 31, 26),
        (72, 48, 34),
        (104, 70, 44),
        (142, 74, 40),
        (176, 134, 82),
        (205, 172, 120),
        (150, 148, 146),
        (205, 203, 200),
    ],
    np.float64,
)
_IRIS = np.array(
    [(52, 32, 20), (78, 50, 28), (104, 80, 44), (92, 104, 62), (86, 118, 140), (112, 134, 150)],
    np.float64,
)


@dataclass(frozen=True)
class Face:
    """One person. All lengths in head units, colours in linear light in [0, 1]."""

    seed: int
    tone: float
    skin: RGB
    age: float
    masculine: float
    # skull
    width: float
    depth: float
    chin: float
    jaw_power: float
    jaw_round: float
    cheekbone: float
    # eyes
    eye_spacing: float
    eye_width: float
    eye_open: float
    eye_tilt: float
    lid_crease: float
    iris: RGB
    # brows
    brow_height: float
    brow_thickness: float
    brow_arch: float
    brow_density: float
    # nose
    nose_length: float
    nose_width: float
    nose_bridge: float
    nose_tip: float
    # mouth
    mouth_height: float
    mouth_width: float
    upper_lip: float
    lower_lip: float
    cupid: float
    lips: RGB
    # hair and the rest
    hair_style: HairStyle
    hair: RGB
    brow_colour: RGB
    hairline: float
    parting: float
    beard: Beard
    glasses: Glasses
    freckles: float
    redness: float
    asymmetry: float

    @classmethod
    def from_seed(cls, seed: int) -> "Face":
        """A person drawn from `seed`; the same seed is the same person."""
        rng = np.random.default_rng([0xFACE, seed])
        tone = float(rng.uniform(0, 1))
        age = float(rng.beta(1.4, 1.8))
        masculine = float(np.clip(rng.normal(0.25 if rng.random() < 0.5 else 0.75, 0.15), 0, 1))
        skin = _pick(_SKIN, tone) * rng.uniform((0.97, 0.97, 0.94), (1.03, 1.0, 1.04))
        hair = _draw_hair(rng, masculine, age)
        return cls(
            seed=seed,
            tone=tone,
            skin=_rgb(skin),
            age=age,
            masculine=masculine,
            **_draw_shape(rng, masculine),
            **_draw_colours(rng, tone, age, skin, short=hair["hair_style"] not in _HANGING),
            **hair,
            freckles=float(rng.uniform(0, 1) * (tone > 0.6) * (rng.random() < 0.4)),
            redness=float(rng.uniform(0.2, 1)),
            asymmetry=float(rng.normal(0, 0.006)),
        )


def _pick(anchors: np.ndarray, at: float) -> np.ndarray:
    position = np.clip(at, 0, 1) * (len(anchors) - 1)
    low = min(int(position), len(anchors) - 2)
    return anchors[low] + (anchors[low + 1] - anchors[low]) * (position - low)


def _rgb(srgb: np.ndarray) -> RGB:
    # Linear light with gamma 2 throughout: squaring here, np.sqrt when a frame is written.
    r, g, b = (np.clip(srgb / 255.0, 0, 1) ** 2).tolist()
    return (r, g, b)


def _draw_shape(rng: np.random.Generator, masculine: float) -> dict[str, float]:
    def around(mean: float, spread: float) -> float:
        return float(mean + spread * np.clip(rng.standard_normal(), -2, 2))

    return {
        "width": around(0.655, 0.018),
        "depth": around(0.72, 0.02),
        "chin": around(0.98 + 0.03 * masculine, 0.02),
        "jaw_power": around(2.25 + 0.70 * masculine, 0.18),
        "jaw_round": around(1.54 + 0.28 * masculine, 0.08),
        "cheekbone": around(1.0, 0.25),
        "eye_spacing": around(0.288, 0.010),
        "eye_width": around(0.141, 0.006),
        "eye_open": around(1.12 - 0.10 * masculine, 0.07),
        "eye_tilt": around(0.06, 0.05),
        "lid_crease": float(np.clip(around(0.6, 0.3), 0.05, 1)),
        "brow_height": around(-0.178 + 0.02 * masculine, 0.010),
        "brow_thickness": around(0.022 + 0.012 * masculine, 0.003),
        "brow_arch": around(0.036 - 0.014 * masculine, 0.008),
        "brow_density": float(np.clip(around(0.84, 0.07), 0.62, 0.98)),
        "nose_length": around(0.385, 0.014),
        "nose_width": around(0.120, 0.013),
        "nose_bridge": around(1.0, 0.13),
        "nose_tip": around(1.0, 0.12),
        "mouth_height": around(0.628, 0.012),
        "mouth_width": around(0.238, 0.013),
        "upper_lip": around(0.047 - 0.008 * masculine, 0.007),
        "lower_lip": around(0.076 - 0.010 * masculine, 0.008),
        "cupid": around(1.0, 0.3),
    }


def _draw_colours(
    rng: np.random.Generator, tone: float, age: float, skin: np.ndarray, *, short: bool
) -> dict[str, RGB]:
    shade = float(rng.uniform(0, 0.75) if tone > 0.62 else rng.beta(1, 5) * 0.4)
    hair = _pick(_HAIR, shade)
    if short and age > 0.55 and rng.random() < age:  # long hair is dyed, or worn by the young
        grey = _pick(_HAIR, float(rng.uniform(0.87, 1.0)))
        hair = hair + (0.28 + 0.67 * tone) * (grey - hair)
    # Brows are darker than hair, and never lighter than the skin they stand on.
    brows = np.minimum(hair * (0.55 if shade > 0.4 else 0.9), skin * 0.5)
    lips = skin * (0.86, 0.60, 0.60) + rng.uniform(0, 1) * np.array((14, -4, 0))
    light_eyes = tone > 0.6 and rng.random() < 0.65
    iris = _pick(_IRIS, float(rng.uniform(0.4, 1) if light_eyes else rng.uniform(0, 0.25)))
    iris = iris * (0.6 + 0.4 * tone)
    return {"hair": _rgb(hair), "brow_colour": _rgb(brows), "lips": _rgb(lips), "iris": _rgb(iris)}


def _draw_hair(rng: np.random.Generator, masculine: float, age: float) -> dict:
    if masculine > 0.5:
        odds = np.array([0.04 + 0.14 * age, 0.22, 0.36, 0.14, 0.12, 0.0, 0.06, 0.04])
        beard_odds = np.array([0.46, 0.26, 0.07, 0.08, 0.13])
    else:
        odds = np.array([0.0, 0.03, 0.10, 0.15, 0.15, 0.20, 0.25, 0.12])
        beard_odds = np.array([1.0, 0, 0, 0, 0])
    beards: tuple[Beard, ...] = ("none", "stubble", "moustache", "goatee", "full")
    glasses: tuple[Glasses, ...] = ("none", "thin", "thick")
    return {
        "hair_style": HAIR_STYLES[rng.choice(len(HAIR_STYLES), p=odds / odds.sum())],
        "hairline": float(rng.normal(-0.615 - 0.08 * age * masculine, 0.025)),
        "parting": float(rng.uniform(-0.3, 0.3)),
        "beard": beards[rng.choice(5, p=beard_odds)],
        "glasses": glasses[rng.choice(3, p=(0.82, 0.10, 0.08))],
    }

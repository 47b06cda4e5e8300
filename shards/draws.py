"""What changes a training clip behind crop and flip: drawn from its seed, applied by others.

Owns the draws: RandAugment (Cubuk et al. 2020) with the operations and ranges of timm's
"rand-m7-n4-mstd0.5-inc1", which the published fine-tuning recipes name; colour jitter; and random
erasing (Zhong et al. 2020) with VideoMAE's numbers. One draw serves a whole clip: what changes from
frame to frame would be motion. All that those who apply them must agree on is settled here: that is
`draws_opencv` in a loader process, `draws_device` where the network is. Refuses to know which.
"""

from __future__ import annotations

import functools
import math
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.augment import AugmentConfig, Box, random_box
from shards.chance import hashed

Name = Literal[
    "auto_contrast",
    "equalise",
    "invert",
    "rotate",
    "posterise",
    "solarise",
    "solarise_add",
    "saturation",
    "contrast",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "shift_x",
    "shift_y",
]

OPERATIONS: tuple[Name, ...] = Name.__args__
"""Of RandAugment, each as likely as the others."""
MOVES = ("rotate", "shear_x", "shear_y", "shift_x", "shift_y")
"""Those that move pixels: see `source_of`."""
FILL = (124, 116, 104)
"""Where they look beyond the picture: the mean colour of ImageNet."""

_DRAWS = 6  # what a hash is for, as in `shards.order`
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
_LEVELS = 1024  # of noise
_LOW = 0xFFFFFFFF


class Operation(NamedTuple):
    """A change of all frames alike."""

    name: Name
    amount: float = 0.0
    """rotate: degrees; shear: pixels a pixel; shift: share of the side; posterise: bits that stay;
    solarise: the lowest value that is inverted; solarise_add: what values below 128 gain;
    saturation, contrast, brightness, sharpness: a factor, 1 changes nothing."""


class Erased(NamedTuple):
    """A box that shows noise in all frames."""

    box: Box
    seed: int


class Draw(NamedTuple):
    """What happens to a clip: operations one after the other, then perhaps a box."""

    operations: tuple[Operation, ...] = ()
    erased: Erased | None = None


def draw(config: AugmentConfig, seed: int, *, size: int) -> Draw:
    """The draw of one clip.

    Args:
        seed: the clip's in `ClipBatch.seeds`: nothing else decides.
        size: pixels a side of the crop.
    """
    rng = np.random.default_rng(int(hashed(_DRAWS, seed)[0]))
    operations = [*_jitter(config.colour_jitter, rng), *_rand_augment(config, rng)]
    return Draw(tuple(operations), _erased(size, rng) if rng.random() < config.erase else None)


def _jitter(strength: float, rng: np.random.Generator) -> list[Operation]:
    if not strength:
        return []
    named: tuple[Name, ...] = ("brightness", "contrast", "saturation")
    return [Operation(name, 1 + rng.uniform(-strength, strength)) for name in named]


def _rand_augment(config: AugmentConfig, rng: np.random.Generator) -> list[Operation]:
    """Operations, each drawn anew and taken with probability 1/2, at about the magnitude."""
    taken = []
    for _ in range(config.randaugment_ops):
        name = OPERATIONS[rng.integers(len(OPERATIONS))]
        level = float(np.clip(rng.normal(config.randaugment_magnitude, 0.5), 0, 10)) / 10
        sign = 1 if rng.random() < 0.5 else -1
        if rng.random() < 0.5:
            taken.append(Operation(name, amount(name, level, sign)))
    return taken


def amount(name: Name, level: float, sign: int) -> float:
    """Of an operation at a strength of 0 to 1, in one of its two directions, 1 and -1."""
    match name:
        case "rotate":
            return sign * level * 30
        case "shear_x" | "shear_y":
            return sign * level * 0.3
        case "shift_x" | "shift_y":
            return sign * level * 0.45
        case "posterise":
            return 4 - int(level * 4)
        case "solarise":
            return 256 - int(level * 256)
        case "solarise_add":
            return int(level * 110)
        case "saturation" | "contrast" | "brightness" | "sharpness":
            return max(0.1, 1 + sign * level * 0.9)
    return 0.0


def source_of(operation: Operation, height: int, width: int) -> NDArray[np.float64]:
    """Where the pixels come from that one of MOVES puts at (x, y): [2, 3], times (x, y, 1)."""
    name, much = operation
    x, y = (width - 1) / 2, (height - 1) / 2
    cos, sin = math.cos(math.radians(much)), math.sin(math.radians(much))
    rows = {
        "rotate": [[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y]],
        "shear_x": [[1, much, 0], [0, 1, 0]],
        "shear_y": [[1, 0, 0], [much, 1, 0]],
        "shift_x": [[1, 0, much * width], [0, 1, 0]],
        "shift_y": [[1, 0, 0], [0, 1, much * height]],
    }
    return np.array(rows[name], dtype=np.float64)


def _erased(size: int, rng: np.random.Generator) -> Erased | None:
    """2 % to a third of the picture; None where ten draws found no box that fits."""
    box = random_box(size, size, area=(0.02, 1 / 3), aspect=(0.3, 1 / 0.3), rng=rng)
    return None if box is None else Erased(box, int(rng.integers(_LOW)))


def noise(places: Any, seed: int, levels: Any) -> list[Any]:
    """The colours of erased pixels, the same from numpy and from torch, on any device.

    Ten bits of a hash (MurmurHash3's finaliser) for each channel; in 64 bits that overflow as both
    libraries' do.

    Args:
        places: int64, an array or a tensor: the number of each pixel in its clip.
        levels: `noise_levels()`, of the same library.

    Returns:
        red, green and blue, uint8, each in the form of `places`.
    """
    bits = (places * 0x9E3779B1 + seed) & _LOW
    bits = bits ^ (bits >> 16)
    bits = (bits * 0x85EBCA6B) & _LOW
    bits = bits ^ (bits >> 13)
    bits = (bits * 0xC2B2AE35) & _LOW
    bits = bits ^ (bits >> 16)
    return [levels[c][(bits >> (10 * c)) & (_LEVELS - 1)] for c in range(3)]


@functools.cache
def noise_levels() -> NDArray[np.uint8]:
    """[3, 1024]: equally likely values, that are standard normal after the usual normalisation,
    but for what lies outside of 0..255."""
    shares = (np.arange(_LEVELS) + 0.5) / _LEVELS
    normal = np.array([NormalDist().inv_cdf(share) for share in shares])
    values = 255 * (np.array(_MEAN)[:, None] + np.array(_STD)[:, None] * normal)
    return np.clip(np.round(values), 0, 255).astype(np.uint8)

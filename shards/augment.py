"""Pixels of a clip on their way to a batch: what training does to them, crops, flips, test views.

Owns the configuration of augmentation and the part of it that a loader process always does, from
decoded frames to a square of the size asked for; what follows, colours and erasing, is in `draws`.
One draw serves a whole clip: what changes from frame to frame would be motion. Refuses to know
shards, time and batches. All random numbers come from the caller's generator, so a clip looks the
same whichever worker makes it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Frames = NDArray[Any]  # uint8 throughout; the types of OpenCV do not tell


@dataclass(frozen=True)
class AugmentConfig:
    """What training does to a clip; the defaults are VideoMAE's for pretraining: crops alone."""

    crop: Literal["multi_scale", "resized", "none"] = "multi_scale"
    """multi_scale: a side of `scales` at one of 13 places; resized: a random area and aspect;
    none: the largest square in the middle."""
    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    """Sides of multi_scale crops, as shares of the shorter side."""
    area: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the picture that a resized crop takes."""
    aspect: tuple[float, float] = (0.75, 4 / 3)
    """Narrowest and widest ratio of width to height of a resized crop."""
    flip: float = 0.0
    """Probability of a left-right flip."""
    colour_jitter: float = 0.0
    """Brightness, contrast and saturation change by a factor of 1 ± this at most."""
    randaugment_ops: int = 0
    """Operations that RandAugment draws for a clip (n)."""
    randaugment_magnitude: float = 7.0
    """Their strength, 0 to 10 (m)."""
    erase: float = 0.0
    """Probability that a box, the same in all frames, is filled with noise."""

    def __post_init__(self) -> None:
        for name in ("flip", "erase", "colour_jitter"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"augment.{name} is {getattr(self, name)}: use a value in 0..1")
        if not 0 <= self.randaugment_magnitude <= 10:
            raise ValueError("augment.randaugment_magnitude: use a value in 0..10")
        if not self.scales or not all(0 < scale <= 1 for scale in self.scales):
            raise ValueError(f"augment.scales is {self.scales}: use shares in 0..1, at least one")
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"augment.area is {self.area}: use two ascending shares in 0..1")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError(f"augment.aspect is {self.aspect}: use two ascending ratios")

    @property
    def draws(self) -> bool:
        """Whether anything follows crop and flip."""
        return bool(self.colour_jitter or self.randaugment_ops or self.erase)


@dataclass(frozen=True)
class ViewConfig:
    """The views of a clip at evaluation; predictions are averaged over them."""

    temporal: int = 1
    """Clips taken from the video, spread over its length."""
    spatial: int = 1
    """Crops of each: 1 is the largest square; more take 7/8 of it, side by side."""

    def __post_init__(self) -> None:
        for name in ("temporal", "spatial"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.views.{name} is {getattr(self, name)}: use 1 or more")


class Box(NamedTuple):
    """A part of a picture, in pixels."""

    left: int
    top: int
    width: int
    height: int


def cut(
    frames: Sequence[Frames] | Frames,
    config: AugmentConfig,
    *,
    size: int,
    rng: np.random.Generator,
    out: Frames | None = None,
) -> Frames:
    """Crop and perhaps flip a training clip: T frames, uint8 [h, w, 3] → uint8 [T, size, size, 3],
    into `out` where it is given."""
    height, width = frames[0].shape[:2]
    box = _draw_crop(width, height, config, size=size, rng=rng)
    flipped = rng.random() < config.flip
    return crop_resized(frames, box, size=size, flipped=flipped, out=out)


def view_crops(
    frames: Sequence[Frames] | Frames, *, spatial: int, size: int, out: Frames | None = None
) -> Frames:
    """The crops of one temporal view: T frames, uint8 [h, w, 3] → uint8 [spatial, T, size, size,
    3], into `out` where it is given.

    One crop is the largest square, from the middle. Several take 7/8 of its side (224 of 256, as
    VideoMAE tests) and spread along the longer side, the horizontal one of a square picture.
    """
    height, width = frames[0].shape[:2]
    short = min(height, width)
    side = short if spatial == 1 else round(short * 7 / 8)
    at = np.array([0.5]) if spatial == 1 else np.linspace(0, 1, spatial)
    x, y = (at, [0.5] * spatial) if width >= height else ([0.5] * spatial, at)
    if out is None:
        out = np.empty((spatial, len(frames), size, size, 3), dtype=np.uint8)
    for u, v, into in zip(x, y, out, strict=True):
        box = Box(round(u * (width - side)), round(v * (height - side)), side, side)
        crop_resized(frames, box, size=size, out=into)
    return out


def crop_resized(
    frames: Sequence[Frames] | Frames,
    box: Box,
    *,
    size: int,
    flipped: bool = False,
    out: Frames | None = None,
) -> Frames:
    """T frames, uint8 [h, w, 3] → uint8 [T, size, size, 3]: a part, averaged down or interpolated
    up, then perhaps left for right; into `out` where it is given."""
    if out is None:
        out = np.empty((len(frames), size, size, 3), dtype=np.uint8)
    shrinks = box.width >= size and box.height >= size
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    for frame, into in zip(frames, out, strict=True):
        part = frame[box.top : box.top + box.height, box.left : box.left + box.width]
        if part.shape[:2] != (size, size):
            # Each frame goes straight to its place; a flip needs one beside it.
            part = cv2.resize(part, (size, size), dst=None if flipped else into, interpolation=how)
        elif not flipped:
            into[:] = part
        if flipped:
            cv2.flip(part, 1, dst=into)
    return out


def _draw_crop(
    width: int, height: int, config: AugmentConfig, *, size: int, rng: np.random.Generator
) -> Box:
    if config.crop == "multi_scale":
        return _multi_scale(width, height, config.scales, size=size, rng=rng)
    if config.crop == "resized":
        box = random_box(width, height, area=config.area, aspect=config.aspect, rng=rng)
        if box is not None:
            return box
    side = min(width, height)
    return Box((width - side) // 2, (height - side) // 2, side, side)


def _multi_scale(
    width: int, height: int, scales: tuple[float, ...], *, size: int, rng: np.random.Generator
) -> Box:
    """VideoMAE's: width and height from neighbouring scales, at one of 13 fixed places."""
    short = min(width, height)
    sides = [int(short * scale) for scale in scales]
    # A crop that is nearly of the wanted size is taken at it, which spares the interpolation.
    sides = [size if abs(side - size) < 3 and size <= short else side for side in sides]
    pairs = [(w, h) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1]
    w, h = pairs[rng.integers(len(pairs))]
    u, v = _PLACES[rng.integers(len(_PLACES))]
    return Box(u * ((width - w) // 4), v * ((height - h) // 4), w, h)


# In quarters of the free room: the corners, the middles of the sides, the middle, and between.
_PLACES = [(u, v) for u in (0, 2, 4) for v in (0, 2, 4)] + [(u, v) for u in (1, 3) for v in (1, 3)]


def random_box(
    width: int,
    height: int,
    *,
    area: tuple[float, float],
    aspect: tuple[float, float],
    rng: np.random.Generator,
) -> Box | None:
    """A box of random area and aspect that fits; None where ten draws found none."""
    for _ in range(10):
        wanted = rng.uniform(*area) * width * height
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        w, h = round(math.sqrt(wanted * ratio)), round(math.sqrt(wanted / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h)
    return None

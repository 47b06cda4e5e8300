"""Draws applied to a clip by OpenCV, in a loader process.

Owns how; what is drawn is in `draws`, the same on a device in `draws_device`. Statistics that an
operation needs (a histogram, a mean) are those of the clip, so no frame is treated differently.

On uint8 throughout: kornia's RandAugment takes ten times longer on a CPU (72 ms a clip of 16 frames
of 224 px on one core, decoding 20 ms), and draws anew for each frame of a clip.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.draws import FILL, MOVES, Draw, Erased, Operation, noise, noise_levels, source_of

Frames = NDArray[Any]  # uint8 throughout; the types of OpenCV do not tell

_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], dtype=np.float32) / 13
_VALUES = np.arange(256)


def apply(clip: Frames, draw: Draw) -> Frames:
    """A clip, uint8 [T, h, w, 3], RGB, as drawn; the given one is left alone."""
    for operation in draw.operations:
        clip = operate(clip, operation)
    return clip if draw.erased is None else _erase(clip, draw.erased)


def operate(clip: Frames, operation: Operation) -> Frames:
    """uint8 [T, h, w, 3] → the same form, after one operation."""
    name, amount = operation
    if name in MOVES:
        return _warped(clip, source_of(operation, *clip.shape[1:3]))
    match name:
        case "auto_contrast":
            return _mapped(clip, _stretched(clip))
        case "equalise":
            return _mapped(clip, _equalised(clip))
        case "invert":
            return 255 - clip
        case "posterise":
            return clip & np.uint8(256 - 2 ** (8 - int(amount)))
        case "solarise":
            return _mapped(clip, np.where(amount > _VALUES, _VALUES, 255 - _VALUES))
        case "solarise_add":
            return _mapped(clip, np.where(_VALUES < 128, _VALUES + amount, _VALUES))
    return _blended(clip, name, amount)


def _blended(clip: Frames, name: str, factor: float) -> Frames:
    """Away from (factor > 1) or towards (< 1) black, the mean grey, greyness, or smoothness."""
    if name == "brightness":
        return _mapped(clip, _VALUES * factor)
    if name == "contrast":
        mean = _grey(clip).mean()
        return _mapped(clip, mean + (_VALUES - mean) * factor)
    if name == "saturation":
        other = cv2.cvtColor(_grey(clip), cv2.COLOR_GRAY2RGB)
    else:
        other = _tall(_smooth(clip))
    blended = cv2.addWeighted(_tall(clip), factor, other, 1 - factor, 0)
    return blended.reshape(clip.shape)


def _stretched(clip: Frames) -> NDArray:
    """The table [256, 3] that stretches each channel to 0..255."""
    tables = []
    for counts in _histograms(clip):
        low, high = np.flatnonzero(counts)[[0, -1]]
        tables.append((_VALUES - low) * 255 / (high - low) if high > low else _VALUES)
    return np.stack(tables, axis=1)


def _equalised(clip: Frames) -> NDArray:
    """The table [256, 3] that makes the values of each channel equally frequent."""
    tables = []
    for counts in _histograms(clip):
        step = (counts.sum() - counts[np.flatnonzero(counts)[-1]]) // 255
        below = np.cumsum(counts) - counts
        tables.append((below + step // 2) // step if step else _VALUES)
    return np.stack(tables, axis=1)


def _tall(clip: Frames) -> Frames:
    """[T, h, w, 3] → [T·h, w, 3]: one picture, for what looks at single pixels."""
    return clip.reshape(-1, *clip.shape[2:])


def _grey(clip: Frames) -> Frames:
    return cv2.cvtColor(_tall(clip), cv2.COLOR_RGB2GRAY)  # [T·h, w]


def _smooth(clip: Frames) -> Frames:
    """Each frame smoothed, its outermost pixels as they are (as in PIL)."""
    inner, smooth = np.s_[1:-1, 1:-1], clip.copy()
    for frame, into in zip(clip, smooth, strict=True):
        into[inner] = cv2.filter2D(frame, -1, _SMOOTH)[inner]
    return smooth


def _histograms(clip: Frames) -> NDArray[np.int64]:
    """Counts [3, 256] of the clip's values."""
    picture = _tall(clip)
    counts = [cv2.calcHist([picture], [c], None, [256], [0, 256]) for c in range(3)]
    return np.stack(counts)[..., 0].astype(np.int64)


def _mapped(clip: Frames, table: NDArray) -> Frames:
    """Every value through a table [256] or, a channel each, [256, 3]."""
    table = np.broadcast_to(np.clip(np.round(table), 0, 255).astype(np.uint8).T, (3, 256))
    return cv2.LUT(_tall(clip), np.ascontiguousarray(table.T)[None]).reshape(clip.shape)


def _warped(clip: Frames, source: NDArray[np.float64]) -> Frames:
    """All frames through one affine map, see `source_of`."""
    out = np.empty_like(clip)
    size, how = (clip.shape[2], clip.shape[1]), cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    for frame, into in zip(clip, out, strict=True):
        cv2.warpAffine(frame, source, size, dst=into, flags=how, borderValue=FILL)
    return out


def _erase(clip: Frames, erased: Erased) -> Frames:
    (left, top, width, height), seed = erased
    within = np.s_[:, top : top + height, left : left + width]
    clip, places = clip.copy(), np.arange(clip[..., 0].size).reshape(clip.shape[:3])
    clip[within] = np.stack(noise(places[within], seed, noise_levels()), axis=-1)
    return clip

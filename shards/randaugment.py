"""RandAugment (Cubuk et al. 2020) on a whole clip, with the operations and ranges of timm's
"rand-m7-n4-mstd0.5-inc1", which the published fine-tuning recipes name.

Owns the colour and geometry operations. Refuses to know which clips get them. Statistics that an
operation needs (a histogram, a mean) are those of the clip, so no frame is treated differently.

In OpenCV on uint8: kornia's RandAugment takes ten times longer (72 ms a clip of 16 frames of 224 px
on one core, decoding 20 ms), and treats the frames of a clip differently.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Frames = NDArray[Any]  # uint8 throughout; the types of OpenCV do not tell

_FILL = (124, 116, 104)  # the mean colour of ImageNet, where a transform looks beyond the picture
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], dtype=np.float32) / 13
_VALUES = np.arange(256)


def rand_augment(clip: Frames, *, ops: int, magnitude: float, rng: np.random.Generator) -> Frames:
    """`ops` operations, each drawn anew and applied with probability 1/2 at about `magnitude`.

    Args:
        clip: uint8 [T, h, w, 3], RGB.
        magnitude: 0 to 10; every operation varies it by a normal of deviation 0.5.
    """
    for _ in range(ops):
        operation = _OPERATIONS[rng.integers(len(_OPERATIONS))]
        level = float(np.clip(rng.normal(magnitude, 0.5), 0, 10)) / 10
        sign = 1 if rng.random() < 0.5 else -1
        if rng.random() < 0.5:
            clip = operation(clip, level, sign)
    return clip


def blend_clip(
    clip: Frames, what: Literal["brightness", "contrast", "saturation", "sharpness"], factor: float
) -> Frames:
    """Away from (factor > 1) or towards (< 1) black, the mean grey, greyness, or smoothness."""
    if what == "brightness":
        return _mapped(clip, _VALUES * factor)
    if what == "contrast":
        mean = _grey(clip).mean()
        return _mapped(clip, mean + (_VALUES - mean) * factor)
    if what == "saturation":
        other = cv2.cvtColor(_grey(clip), cv2.COLOR_GRAY2RGB)
    else:
        other = _tall(np.stack([cv2.filter2D(frame, -1, _SMOOTH) for frame in clip]))
    blended = cv2.addWeighted(_tall(clip), factor, other, 1 - factor, 0)
    return blended.reshape(clip.shape)


def _auto_contrast(clip: Frames, level: float, sign: int) -> Frames:
    tables = []
    for counts in _histograms(clip):
        low, high = np.flatnonzero(counts)[[0, -1]]
        tables.append((_VALUES - low) * 255 / (high - low) if high > low else _VALUES)
    return _mapped(clip, np.stack(tables, axis=1))


def _equalise(clip: Frames, level: float, sign: int) -> Frames:
    tables = []
    for counts in _histograms(clip):
        step = (counts.sum() - counts[np.flatnonzero(counts)[-1]]) // 255
        below = np.cumsum(counts) - counts
        tables.append((below + step // 2) // step if step else _VALUES)
    return _mapped(clip, np.stack(tables, axis=1))


def _invert(clip: Frames, level: float, sign: int) -> Frames:
    return 255 - clip


def _posterise(clip: Frames, level: float, sign: int) -> Frames:
    bits = 4 - int(level * 4)
    return clip & np.uint8(256 - 2 ** (8 - bits))


def _solarise(clip: Frames, level: float, sign: int) -> Frames:
    threshold = 256 - int(level * 256)
    return _mapped(clip, np.where(threshold > _VALUES, _VALUES, 255 - _VALUES))


def _solarise_add(clip: Frames, level: float, sign: int) -> Frames:
    return _mapped(clip, np.where(_VALUES < 128, _VALUES + int(level * 110), _VALUES))


def _blend(what: Literal["brightness", "contrast", "saturation", "sharpness"]):
    def operation(clip: Frames, level: float, sign: int) -> Frames:
        return blend_clip(clip, what, max(0.1, 1 + sign * level * 0.9))

    return operation


def _rotate(clip: Frames, level: float, sign: int) -> Frames:
    height, width = clip.shape[1:3]
    middle = ((width - 1) / 2, (height - 1) / 2)
    return _warped(clip, cv2.getRotationMatrix2D(middle, sign * level * 30, 1))


def _shear_x(clip: Frames, level: float, sign: int) -> Frames:
    return _warped(clip, [[1, sign * level * 0.3, 0], [0, 1, 0]])


def _shear_y(clip: Frames, level: float, sign: int) -> Frames:
    return _warped(clip, [[1, 0, 0], [sign * level * 0.3, 1, 0]])


def _shift_x(clip: Frames, level: float, sign: int) -> Frames:
    return _warped(clip, [[1, 0, sign * level * 0.45 * clip.shape[2]], [0, 1, 0]])


def _shift_y(clip: Frames, level: float, sign: int) -> Frames:
    return _warped(clip, [[1, 0, 0], [0, 1, sign * level * 0.45 * clip.shape[1]]])


_OPERATIONS: list[Callable[[Frames, float, int], Frames]] = [
    _auto_contrast,
    _equalise,
    _invert,
    _rotate,
    _posterise,
    _solarise,
    _solarise_add,
    _blend("saturation"),
    _blend("contrast"),
    _blend("brightness"),
    _blend("sharpness"),
    _shear_x,
    _shear_y,
    _shift_x,
    _shift_y,
]


def _tall(clip: Frames) -> Frames:
    """[T, h, w, 3] → [T·h, w, 3]: one picture, for what looks at single pixels."""
    return clip.reshape(-1, *clip.shape[2:])


def _grey(clip: Frames) -> Frames:
    return cv2.cvtColor(_tall(clip), cv2.COLOR_RGB2GRAY)  # [T·h, w]


def _histograms(clip: Frames) -> NDArray[np.int64]:
    """Counts [3, 256] of the clip's values."""
    picture = _tall(clip)
    counts = [cv2.calcHist([picture], [c], None, [256], [0, 256]) for c in range(3)]
    return np.stack(counts)[..., 0].astype(np.int64)


def _mapped(clip: Frames, table: NDArray) -> Frames:
    """Every value through a table [256] or, a channel each, [256, 3]."""
    table = np.broadcast_to(np.clip(np.round(table), 0, 255).astype(np.uint8).T, (3, 256))
    return cv2.LUT(_tall(clip), np.ascontiguousarray(table.T)[None]).reshape(clip.shape)


def _warped(clip: Frames, matrix: NDArray | list[list[float]]) -> Frames:
    """All frames through one affine map."""
    out = np.empty_like(clip)
    size = (clip.shape[2], clip.shape[1])
    for frame, into in zip(clip, out, strict=True):
        cv2.warpAffine(
            frame,
            np.asarray(matrix, dtype=np.float64),
            size,
            dst=into,
            flags=cv2.INTER_LINEAR,
            borderValue=_FILL,
        )
    return out

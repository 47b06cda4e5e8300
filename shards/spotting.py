"""Onset and apex of a video that nobody annotated: spotted in its face crop.

Owns the rule. It knows frames, no files and no network.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE = 64  # pixels: what is finer is grain
BORDER = 6  # pixels of it, which a motion may have filled
SMOOTHED = 3  # frames
STOP = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 20, 1e-3)
BLUR = 5  # pixels, against noise


def spot(frames: NDArray[np.uint8]) -> tuple[int, int]:
    """Onset and apex of uint8 [n, h, w, 3], n > 1: the first frame, and the one that differs most
    from the straight change between the first and the last.

    The head moves more than a face does, and often ever farther from where it was. So frames are
    turned and shifted onto the first one (ECC: Evangelidis and Psarakis, PAMI 30(10), 2008), and
    what then changes evenly from the first to the last is no expression. Mean absolute
    differences, smoothed over three frames.

    A rule for a clip that starts before the expression does and ends after it; of one that stops
    at the apex it names some other frame. How far it is off: docs/log.md.
    """
    seen = _aligned(frames)
    along = np.linspace(0, 1, len(seen), dtype=np.float32)[:, None, None]
    differences = np.abs(seen - (seen[0] * (1 - along) + seen[-1] * along)).mean((1, 2))
    padded = np.pad(differences, SMOOTHED // 2, mode="edge")
    smooth = np.convolve(padded, np.full(SMOOTHED, 1 / SMOOTHED), mode="valid")
    return 0, 1 + int(smooth[1:].argmax())


def _aligned(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Grey [n, h, w], small, each moved onto the first, without the border."""
    size, by = (SIDE, SIDE), cv2.INTER_AREA
    grey = [cv2.resize(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY), size, interpolation=by) for f in frames]
    small = np.stack(grey).astype(np.float32)
    motion = np.eye(2, 3, dtype=np.float32)
    for i, frame in enumerate(small[1:], start=1):
        motion = _motion(small[0], frame, motion)
        small[i] = cv2.warpAffine(
            frame,
            motion,
            size,
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
    return small[:, BORDER:-BORDER, BORDER:-BORDER]


def _motion(
    first: NDArray[np.float32], frame: NDArray[np.float32], before: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The rigid motion [2, 3] from the first frame, near that of the frame before, which stands
    where none is found: frames without contrast, a cut."""
    kind, everywhere = cv2.MOTION_EUCLIDEAN, np.full(first.shape, 255, dtype=np.uint8)
    try:
        _, motion = cv2.findTransformECC(first, frame, before.copy(), kind, STOP, everywhere, BLUR)
    except cv2.error:
        return before
    return motion.astype(np.float32)

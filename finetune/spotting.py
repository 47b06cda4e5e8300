"""Onset and apex of a video that nobody annotated: spotted in its face crop.

Owns the rule. It knows frames, no files and no network.
"""

import numpy as np
from numpy.typing import NDArray

SMOOTHED = 3  # frames


def spot(frames: NDArray[np.uint8]) -> tuple[int, int]:
    """Onset and apex of uint8 [n, h, w, 3], n > 1: the first frame, and the one that differs most
    from it in mean absolute difference, smoothed over three frames.

    A rule for a clip that starts before the expression does. It finds large motion of any kind,
    the head's included.
    """
    first = frames[0].astype(np.int16)
    differences = np.array([np.abs(frame - first).mean() for frame in frames])
    padded = np.pad(differences, SMOOTHED // 2, mode="edge")
    smooth = np.convolve(padded, np.full(SMOOTHED, 1 / SMOOTHED), mode="valid")
    return 0, 1 + int(smooth[1:].argmax())

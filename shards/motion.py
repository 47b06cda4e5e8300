"""Motion between two pictures: dense flow, and the strain that it puts on the skin.

Owns the flow's method and settings and the formula of the strain, for what ingest stores and for
what a batch carries alike. Refuses to know clips and marks.
"""

from __future__ import annotations

import cv2
import numpy as np

FARNEBACK = {
    "pyr_scale": 0.5,
    "levels": 3,
    "winsize": 15,
    "iterations": 5,
    "poly_n": 7,
    "poly_sigma": 1.5,
    "flags": cv2.OPTFLOW_FARNEBACK_GAUSSIAN,
}


def flow(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """float32 [h, w, 2]: displacement, right and down, of uint8 [h, w, 3] pictures' pixels
    (Farneback 2003)."""
    gray = [cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY) for rgb in (before, after)]
    start = np.zeros((*gray[0].shape, 2), np.float32)
    return cv2.calcOpticalFlowFarneback(gray[0], gray[1], start, **FARNEBACK)


def strain(field: np.ndarray) -> np.ndarray:
    """float32 [h, w]: size of the infinitesimal strain tensor of a flow [h, w, 2],
    √(xx² + yy² + 2 xy²) with xy = (∂u/∂y + ∂v/∂x) / 2 (Shreve et al. 2011)."""
    across_y, across_x = np.gradient(field[..., 0])
    down_y, down_x = np.gradient(field[..., 1])
    shear = (across_y + down_x) / 2
    return np.sqrt(across_x**2 + down_y**2 + 2 * shear**2).astype(np.float32)

"""Seeded smooth noise for skin, hair and walls."""

import cv2
import numpy as np


def smooth_noise(
    rng: np.random.Generator, shape: tuple[int, int], *, cells: tuple[float, float]
) -> np.ndarray:
    """float32 [h, w] of unit variance whose features are `cells` = (rows, columns) pixels large."""
    rows = max(2, round(shape[0] / max(cells[0], 1.0)) + 1)
    columns = max(2, round(shape[1] / max(cells[1], 1.0)) + 1)
    coarse = rng.standard_normal((rows, columns), np.float32)
    fine = cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
    return fine / max(float(fine.std()), 1e-6)


def cloud(
    rng: np.random.Generator, shape: tuple[int, int], *, cell: float, octaves: int = 3
) -> np.ndarray:
    """float32 [h, w]: octaves of `smooth_noise`, each of half the size and 0.55 the strength."""
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        size = cell / 2**octave
        total += smooth_noise(rng, shape, cells=(size, size)) * np.float32(0.55**octave)
    return total / max(float(total.std()), 1e-6)

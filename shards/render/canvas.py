"""The face's texture while one frame is being painted, and how features are blended into it."""

from dataclasses import dataclass

import numpy as np

from shards.render.face import RGB
from shards.render.geometry import Grid


@dataclass
class Canvas:
    """Linear albedo [H, W, 3], relief [H, W] and shine [H, W] (0 dull to 1 wet), all float32."""

    grid: Grid
    albedo: np.ndarray
    height: np.ndarray
    shine: np.ndarray

    def patch(self, u: tuple[float, float], y: tuple[float, float]) -> "Patch":
        window = self.grid.window(u, y)
        all_u, all_y = self.grid.axes()
        return Patch(
            all_u[:, window[1]],
            all_y[window[0]],
            self.albedo[window],
            self.height[window],
            self.shine[window],
            1.0 / self.grid.density,
        )


@dataclass
class Patch:
    """Views into a rectangle of a `Canvas`; painting here paints the canvas."""

    u: np.ndarray
    y: np.ndarray
    albedo: np.ndarray
    height: np.ndarray
    shine: np.ndarray
    texel: float

    def cover(self, distance: np.ndarray, soft: float = 1.0) -> np.ndarray:
        """Anti-aliased coverage of a signed distance in head units (> 0 inside)."""
        return np.clip(distance * np.float32(1 / (self.texel * soft)) + np.float32(0.5), 0, 1)

    def paint(self, alpha: np.ndarray, colour: RGB | np.ndarray) -> None:
        self.albedo += alpha[..., None] * (np.asarray(colour, np.float32) - self.albedo)

    def darken(self, alpha: np.ndarray, factor: RGB) -> None:
        self.albedo *= 1 + alpha[..., None] * (np.asarray(factor, np.float32) - 1)

    def gloss(self, alpha: np.ndarray, value: float) -> None:
        self.shine += alpha * (np.float32(value) - self.shine)

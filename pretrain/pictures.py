"""A picture of what the autoencoder sees and makes of it.

Owns the layout of the reconstruction strip. It knows pixels, masks and predictions; no model, no
files and no tracker.
"""

import numpy as np
import torch
from torch import Tensor

from mira.tubelets import Grid, from_tubelets, to_pixels, tubelets

ROWS = ("input", "masked", "reconstruction")
COLUMNS = 8  # frames shown of a clip
TILE = 96  # least width of a frame in the picture, pixels
GAP = 2  # between frames and rows, pixels
MARGIN = 24  # for the rows' names, pixels
HIDDEN = 0.5  # grey value of hidden patches


@torch.no_grad()
def reconstruction_strip(x: Tensor, mask: Tensor, prediction: Tensor, *, grid: Grid) -> np.ndarray:
    """Frames of each clip in three rows: input, masked input, reconstruction.

    Visible patches of the reconstruction are those of the input. Predicted patches come
    normalised; they get back the mean and deviation that the input has there.

    Args:
        x: [B, C, T, h, w], normalised (`mira.tubelets.normalise`).
        mask: bool [B, N], true where hidden; as many in every clip.
        prediction: [B, M, tubelet · patch² · C] of the hidden tokens in order, channel fastest.
        grid: how the clips divide into tubelets.

    Returns:
        uint8 [height, width, 3], RGB, 3 · B rows of frames.
    """
    pixels = to_pixels(x)
    pieces = tubelets(pixels, grid)  # [B, N, C, t, p, p]
    masked, rebuilt = pieces.clone(), pieces.clone()
    masked[mask] = HIDDEN
    rebuilt[mask] = _denormalised(prediction.float(), pieces[mask], grid)
    clips = [pixels, from_tubelets(masked, grid), from_tubelets(rebuilt, grid)]
    shown = torch.linspace(0, pixels.shape[2] - 1, min(COLUMNS, pixels.shape[2])).round().long()
    rows = torch.stack([clip[:, :, shown.to(x.device)] for clip in clips], dim=1)
    frames = rows.permute(0, 1, 3, 4, 5, 2).clamp(0, 1).mul(255).round()  # [B, 3, shown, h, w, C]
    return _named(_tiled(frames.byte().cpu().numpy()), clips=len(x))


def _denormalised(prediction: Tensor, pieces: Tensor, grid: Grid) -> Tensor:
    """[B, M, values] to pixels [B · M, C, t, p, p], with the statistics of the input's pieces."""
    shape = (grid.tubelet, grid.patch, grid.patch, grid.channels)
    patches = prediction.flatten(0, 1).unflatten(1, shape).movedim(-1, 1)
    mean = pieces.mean((2, 3, 4), keepdim=True)
    deviation = pieces.std((2, 3, 4), keepdim=True)  # unbiased, as in the target
    return patches * (deviation + 1e-6) + mean


def _tiled(frames: np.ndarray) -> np.ndarray:
    """uint8 [B, 3, columns, h, w, C] to one white-bordered picture, frames enlarged if small."""
    frames = frames if frames.shape[-1] == 3 else np.repeat(frames[..., :1], 3, axis=-1)
    times = -(-TILE // frames.shape[4])
    frames = frames.repeat(times, axis=3).repeat(times, axis=4)
    clips, rows, columns, height, width, _ = frames.shape
    sheet = np.full(
        (clips * (rows * (height + GAP) + 2 * GAP), columns * (width + GAP), 3), 255, np.uint8
    )
    for clip, row, column in np.ndindex(clips, rows, columns):
        top = clip * (rows * (height + GAP) + 2 * GAP) + row * (height + GAP)
        left = column * (width + GAP)
        sheet[top : top + height, left : left + width] = frames[clip, row, column]
    return sheet[: -3 * GAP, :-GAP]


def _named(sheet: np.ndarray, *, clips: int) -> np.ndarray:
    """The sheet with the names of its rows written along the left margin."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height = sheet.shape[0]
    figure = Figure(figsize=(MARGIN / 100, height / 100), dpi=100)
    canvas = FigureCanvasAgg(figure)
    for line in range(clips * len(ROWS)):
        middle = 1 - (line + 0.5) / (clips * len(ROWS))
        text = ROWS[line % len(ROWS)]
        figure.text(0.5, middle, text, rotation=90, ha="center", va="center", fontsize=8)
    canvas.draw()
    margin = np.asarray(canvas.buffer_rgba())[..., :3]
    return np.concatenate([margin[:height], sheet], axis=1)

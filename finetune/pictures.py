"""Pictures of a classifier's results: its confusion matrix, and one clip with what counted in it.

Owns their layout. It knows counts, frames and names; no model, no files and no tracker. matplotlib
is imported where a picture is drawn, so that a process that draws none does not carry it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

DPI = 100
SHOWN = 16  # most frames in a strip


def confusion_matrix_picture(matrix: Tensor | np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """Counts and shares of each true class; the colour is the share.

    Args:
        matrix: [C, C], rows truth, columns prediction; rows may be empty.
        labels: names of the classes in order.

    Returns:
        uint8 [height, width, 3], RGB.
    """
    counts = np.asarray(matrix, dtype=np.float64)
    totals = counts.sum(1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    side = 2.4 + 0.75 * len(labels)
    figure = _figure(side + 0.4, side)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(labels)), labels, rotation=40, ha="right")
    axes.set_yticks(
        range(len(labels)), [f"{n}  ({t:.0f})" for n, t in zip(labels, totals[:, 0], strict=True)]
    )
    axes.set_xlabel("predicted")
    axes.set_ylabel("true (clips)")
    axes.set_title(_headline(counts, totals[:, 0]))
    for row, column in np.ndindex(counts.shape):
        if counts[row, column]:
            colour = "white" if shares[row, column] > 0.5 else "black"
            text = f"{counts[row, column]:.0f}\n{shares[row, column]:.0%}"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    return _pixels(figure)


def importance_strip(
    frames: np.ndarray,
    times: Sequence[float],
    importance: Sequence[float],
    *,
    title: str,
) -> np.ndarray:
    """Frames of a clip in order, each above a bar of how much it counted.

    Bars are in multiples of an even share: the dashed line is 1, where every frame counts the same.

    Args:
        frames: uint8 [T, h, w, 3], RGB; the sampled ones. At most 16 are shown, evenly spaced.
        times: T seconds into the video.
        importance: T shares.
        title: the answer.

    Returns:
        uint8 [height, width, 3], RGB.
    """
    if not len(frames) == len(times) == len(importance) > 0:
        raise ValueError(
            f"a strip needs a time and an importance for each frame, got {len(frames)} frames, "
            f"{len(times)} times and {len(importance)} importances"
        )
    shown = np.linspace(0, len(frames) - 1, min(SHOWN, len(frames))).round().astype(int)
    figure = _figure(max(5.0, 0.95 * len(shown)), 2.6)
    axes = figure.subplots(2, len(shown), squeeze=False, height_ratios=[1, 0.6], sharey="row")
    weights = np.asarray(importance, dtype=np.float64) * len(importance)
    strongest = max(float(weights.max()), 1.0)
    for column, index in enumerate(shown):
        above, below = axes[:, column]
        above.imshow(frames[index])
        above.set_title(f"{times[index]:.2f} s", fontsize=8)
        colour = "#c0392b" if weights[index] == weights.max() else "#2471a3"
        below.bar([0], [weights[index]], width=0.7, color=colour)
        below.axhline(1.0, color="black", linewidth=0.8, linestyle="--")
        below.set(xlim=(-0.5, 0.5), ylim=(0, 1.1 * strongest))
        for panel in (above, below):
            panel.set_xticks([])
            panel.set_yticks([])
        below.set_frame_on(False)
        below.set_xlabel(f"{weights[index]:.2f}", fontsize=8)
    axes[1, 0].set_ylabel("importance", fontsize=8)
    figure.suptitle(title)
    return _pixels(figure)


def pair_picture(
    onset: np.ndarray, apex: np.ndarray, *, times: tuple[float, float], title: str
) -> np.ndarray:
    """Onset, apex, and between them where they differ, as a network sees them that looks at these.

    Args:
        onset, apex: uint8 [h, w, 3], RGB.
        times: of the two, seconds into the video.
        title: the answer.

    Returns:
        uint8 [height, width, 3], RGB.
    """
    figure = _figure(6.6, 2.6)
    panels = figure.subplots(1, 3)
    change = np.abs(apex.astype(np.int16) - onset).mean(2)
    panels[0].imshow(onset)
    panels[1].imshow(change, cmap="magma", vmin=0, vmax=max(float(change.max()), 1.0))
    panels[2].imshow(apex)
    names = (f"onset {times[0]:.2f} s", "difference", f"apex {times[1]:.2f} s")
    for panel, name in zip(panels, names, strict=True):
        panel.set_title(name, fontsize=8)
        panel.set_xticks([])
        panel.set_yticks([])
    figure.suptitle(title)
    return _pixels(figure)


def png(picture: np.ndarray) -> bytes:
    """A picture uint8 [h, w, 3] as the bytes of a PNG file."""
    import io

    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, picture, format="png")
    return buffer.getvalue()


def _headline(counts: np.ndarray, totals: np.ndarray) -> str:
    occurs = totals > 0
    if not occurs.any():
        return "no clips"
    uar = (counts.diagonal()[occurs] / totals[occurs]).mean()
    return f"WAR {counts.trace() / counts.sum():.1%}    UAR {uar:.1%}    {totals.sum():.0f} clips"


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def _pixels(figure: Figure) -> np.ndarray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()

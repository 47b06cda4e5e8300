"""When frames are shown: rate estimation, constant-rate resampling, cutting. Arithmetic alone.

Timestamps in seconds, one a decoded frame, None where the file has none. Knows no decoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from statistics import median

import numpy as np

MAX_RATE = 1000
DEFAULT_RATE = Fraction(25)
JUMP_SECONDS = 2.0
"""A longer pause between two frames is a break in the recording, not a picture shown that long."""


@dataclass(frozen=True)
class Span:
    """Source frames start … stop-1 that belong together."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Cut:
    """One clip to be: which source frame is shown at each of its instants."""

    frames: np.ndarray
    """int64 [T], non-decreasing numbers of source frames."""
    span: Span

    def position(self, frame: int) -> int | None:
        """Place of source frame `frame` in the clip, None where it lies outside."""
        if not self.span.start <= frame < self.span.stop:
            return None
        return min(int(np.searchsorted(self.frames, frame)), len(self.frames) - 1)


def frame_rate(times: Sequence[float | None], declared: Sequence[Fraction | None]) -> Fraction:
    """Frames a second at which the material was shot.

    The median distance of frames decides (a phone that dropped frames still recorded at its nominal
    rate); a rate that the file declares is taken where it agrees within 5 %, for it is exact where
    timestamps are rounded to milliseconds.
    """
    known = [t for t in times if t is not None]
    steps = [b - a for a, b in pairwise(known) if b > a]
    hints = [Fraction(r) for r in declared if r and 0 < r <= MAX_RATE]
    if not steps:
        return hints[0] if hints else DEFAULT_RATE
    middle = median(steps)
    for hint in hints:
        if abs(float(hint) * middle - 1) < 0.05:
            return hint
    usual = [s for s in steps if 0.5 * middle < s < 1.5 * middle]
    rate = min(len(usual) / sum(usual), MAX_RATE)
    return Fraction(rate).limit_denominator(1001)


def continuous(times: Sequence[float | None], rate: Fraction) -> tuple[np.ndarray, int]:
    """Seconds float64 [n], increasing, from 0; and how many breaks were closed.

    Missing timestamps count on at the nominal rate. A jump backwards (joined recordings) or a pause
    (a camera that stopped) is closed to one period: a clip neither runs backwards nor freezes.
    """
    period = float(1 / rate)
    longest = max(JUMP_SECONDS, 10 * period)
    seconds = np.zeros(len(times))
    breaks, shift, previous = 0, 0.0, 0.0
    for i, time in enumerate(times):
        if i == 0:
            shift = -(time or 0.0)
            continue
        now = previous + period if time is None else time + shift
        if time is not None and not -1e-9 < now - previous <= longest:
            shift += previous + period - now
            now = previous + period
            breaks += 1
        seconds[i] = previous = max(now, previous)
    return seconds, breaks


def shown(seconds: np.ndarray, rate: Fraction) -> np.ndarray:
    """int64 [T]: the frame shown at each instant 0, 1/rate, 2/rate ….

    Each frame goes to its nearest instant; an instant without one repeats the frame before it, and
    of two frames on one instant the later is left out. At an even pace this is the identity.
    """
    slots = np.rint((seconds - seconds[0]) * float(rate)).astype(np.int64)
    count = int(slots[-1]) + 1
    first = np.searchsorted(slots, np.arange(count), side="right") - 1
    taken = np.searchsorted(slots, slots[first], side="left")
    return taken.astype(np.int64)


def sound_spans(runs: np.ndarray) -> list[Span]:
    """Stretches without damage. `runs` int64 [n]: equal numbers belong together, -1 is damage."""
    edges = [0, *(np.flatnonzero(np.diff(runs)) + 1).tolist(), len(runs)]
    return [Span(a, b) for a, b in pairwise(edges) if b > a and runs[a] >= 0]


def split_at(span: Span, shots: np.ndarray) -> list[Span]:
    """The span in parts of one shot each. `shots` int64 [n]."""
    changes = span.start + 1 + np.flatnonzero(np.diff(shots[span.start : span.stop]))
    edges = [span.start, *changes.tolist(), span.stop]
    return [Span(a, b) for a, b in pairwise(edges)]


def cut_whole(seconds: np.ndarray, span: Span, rate: Fraction) -> Cut:
    """The span as one clip."""
    return Cut(span.start + shown(seconds[span.start : span.stop], rate), span)


def cut_evenly(
    seconds: np.ndarray, span: Span, rate: Fraction, *, clip_seconds: float, min_frames: int
) -> list[Cut]:
    """The span as clips of `clip_seconds`; a rest shorter than `min_frames` is dropped."""
    frames = span.start + shown(seconds[span.start : span.stop], rate)
    length = max(round(clip_seconds * float(rate)), min_frames)
    pieces = [frames[i : i + length] for i in range(0, len(frames), length)]
    return [
        Cut(piece, Span(int(piece[0]), int(piece[-1]) + 1))
        for piece in pieces
        if len(piece) >= min_frames
    ]

"""From detections to one crop box a clip: tracks, the main face, the square that shows it.

Boxes are float [left, top, width, height, confidence]; pixels of the upright picture, and 0 … 1.
The track, not the single detection, decides: false faces flicker, a person stays. The box is fixed
for a whole clip, since a crop that follows each detection shakes, and so adds the very motion that
expressions are made of. Knows no files, no decoder and no detector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

MAX_GAP = 12
"""Looks a track survives without being seen (2 s)."""


@dataclass
class Track:
    """One face through a clip."""

    frames: list[int] = field(default_factory=list)
    boxes: list[np.ndarray] = field(default_factory=list)
    looks: list[int] = field(default_factory=list)
    """Number of the look (not of the frame) at each hit."""

    def add(self, look: int, frame: int, box: np.ndarray) -> None:
        self.looks.append(look)
        self.frames.append(frame)
        self.boxes.append(box)

    @property
    def weight(self) -> float:
        """Long and large tracks weigh most."""
        return float(np.sum([box[2] * box[4] for box in self.boxes]))


@dataclass(frozen=True)
class Sighting:
    """What the detector saw in one frame."""

    frame: int
    boxes: np.ndarray


def tracks(sightings: Sequence[Sighting]) -> list[Track]:
    """Detections linked by place and size, the weightiest track first."""
    known: list[Track] = []
    for look, sighting in enumerate(sightings):
        open_ = [t for t in known if look - t.looks[-1] <= MAX_GAP]
        free = list(range(len(sighting.boxes)))
        pairs = sorted(
            (_distance(track.boxes[-1], sighting.boxes[i]), n, i)
            for n, track in enumerate(open_)
            for i in free
        )
        taken: set[int] = set()
        for distance, n, i in pairs:
            if distance < 1 and n not in taken and i in free:
                taken.add(n)
                free.remove(i)
                open_[n].add(look, sighting.frame, sighting.boxes[i])
        for i in free:
            known.append(Track())
            known[-1].add(look, sighting.frame, sighting.boxes[i])
    return sorted(known, key=lambda t: -t.weight)


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """Below 1, the same face a moment later: middles within 0.7 widths, sizes within 1.7 times."""
    size = max(a[2], b[2])
    away = float(np.hypot(*(a[:2] + a[2:4] / 2 - b[:2] - b[2:4] / 2))) / size
    growth = abs(float(np.log(a[2] / b[2])))
    return max(away / 0.7, growth / float(np.log(1.7)))


def crop_box(boxes: Sequence[np.ndarray], *, margin: float) -> tuple[float, float, float]:
    """(left, top, side) of the one square that shows the face throughout.

    The median face with `margin` of its width on each side; larger, up to 1.8 times, where the head
    moves: then it holds the 5th to 95th percentile of all faces.
    """
    found = np.asarray(boxes, np.float64)
    low = np.percentile(found[:, :2], 5, axis=0)
    high = np.percentile(found[:, :2] + found[:, 2:4], 95, axis=0)
    width = float(np.median(found[:, 2]))
    least = width * (1 + 2 * margin)
    side = min(max(least, float(max(high - low)) + width * margin), 1.8 * least)
    left, top = (low + high) / 2 - side / 2
    return float(left), float(top), side


def centre_box(height: int, width: int) -> tuple[float, float, float]:
    """(left, top, side) of the largest centred square."""
    side = min(height, width)
    return (width - side) / 2, (height - side) / 2, float(side)


def whole_pixels(
    box: tuple[float, float, float], *, height: int, width: int
) -> tuple[int, int, int]:
    """The box on the pixel grid, inside the picture: moved, and where it is larger, made smaller.

    A face lies inside the picture, so it stays inside the box; nothing is invented around it.
    """
    side = max(1, min(round(box[2]), height, width))
    middle = (box[0] + box[2] / 2, box[1] + box[2] / 2)
    left = min(max(round(middle[0] - side / 2), 0), width - side)
    top = min(max(round(middle[1] - side / 2), 0), height - side)
    return left, top, side


def crop(rgb: np.ndarray, box: tuple[int, int, int], size: int) -> np.ndarray:
    """uint8 [size, size, 3]: the box of the picture."""
    left, top, side = box
    part = np.ascontiguousarray(rgb[top : top + side, left : left + side])
    how = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
    return cv2.resize(part, (size, size), interpolation=how)

"""What is computed from a clip's annotated frames and stored beside it, for micro-expressions.

    KEY.flow.npz       flow float16 [h, w, 2]: for each pixel of the onset where it is at the apex,
                       right and down, in pixels (Farneback 2003); frames int32 [2]
    KEY.strain.npz     strain float16 [h, w]: size of the strain tensor of that flow,
                       √(xx² + yy² + 2 xy²) (Shreve et al. 2011); frames int32 [2]
    KEY.keyframes.npz  pictures uint8 [n, h, w, 3] RGB, as they were before encoding; names, of
                       onset, apex, offset those that are annotated; frames int32 [n]

`frames` count in the clip, as those of its record do. The same clip gives the same bytes. Owns this
form; `shards.derived` reads it. Works on cropped pictures alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from shards.ingest.settings import MARKS, DerivedName
from shards.motion import flow, strain


class KeyFrames:
    """Keeps the annotated pictures of a clip while it passes by, then writes what is wanted."""

    def __init__(self, marks: Mapping[str, int | None], wanted: Sequence[DerivedName]) -> None:
        self._at = {name: at for name in MARKS if (at := marks.get(name)) is not None}
        self._wanted = wanted if self._at else ()
        self._pictures: dict[int, np.ndarray] = {}
        self._count = 0

    def add(self, rgb: np.ndarray) -> None:
        """The clip's next picture."""
        if self._wanted and self._count in self._at.values():
            self._pictures[self._count] = rgb.copy()
        self._count += 1

    def write(self, stem: Path) -> None:
        """STEM.flow.npz and so on; flow and strain only where onset and apex are annotated."""
        made: dict[str, dict[str, np.ndarray]] = {}
        if "keyframes" in self._wanted:
            pictures = np.stack([self._pictures[at] for at in self._at.values()])
            names = np.array(list(self._at), dtype="U6")
            made["keyframes"] = {"pictures": pictures, "names": names, "frames": self._frames()}
        if {"onset", "apex"} <= set(self._at) and {"flow", "strain"} & set(self._wanted):
            pair = [self._pictures[self._at[name]] for name in ("onset", "apex")]
            cv2.setNumThreads(1)
            field, frames = flow(*pair), self._frames()[:2]
            made["flow"] = {"flow": field.astype(np.float16), "frames": frames}
            made["strain"] = {"strain": strain(field).astype(np.float16), "frames": frames}
        for name in self._wanted:
            if name in made:
                # numpy dates the members of its archives 1980, and nothing is compressed, whose
                # bytes would depend on the version of zlib.
                path = stem.with_name(f"{stem.name}.{name}.npz")
                np.savez(path, **made[name])  # pyright: ignore[reportArgumentType]

    def _frames(self) -> np.ndarray:
        return np.array(list(self._at.values()), np.int32)

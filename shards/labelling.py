"""What a batch carries of a clip besides pixels and class: `data.extra`.

Owns the form of these arrays and what stands for "unknown" in each. Refuses to know where records
and pixels come from.

Per clip, a leading dimension of 1:
    subject  int64 [1]              place in the collection's subjects, -1 unknown
    votes    float32 [1, classes]   shares of the votes for these classes, zeros without any
    units    float32 [1, U]         action units, see `units_present`; NaN unknown
    affect   float32 [1, 2]         valence and arousal, -1..1, NaN unknown
    marks    int64 [1, 3]           onset, apex, offset in the stored clip, -1 unknown
Per view:
    frames   int64 [views, T]       with marks: the stored clip's frame that each of the T is
    flow     float32 [views, 3, h, w]  from onset to apex, right and down, in pixels of the crop as
                                    it was augmented, and their optical strain (`shards.motion`)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shards.marks import UNKNOWN, marks_of
from shards.motion import flow, strain
from shards.schema import Record

Extra = Literal["subject", "votes", "units", "affect", "marks", "flow"]
Arrays = dict[str, NDArray]
PER_VIEW = ("frames", "flow")
Subjects = Mapping[tuple[str, str], int]
"""(dataset, subject_id) → place."""


class Labelling:
    """Makes these arrays for clips.

    Args:
        extra: which ones.
        labels: class names, the columns of votes.
        units: the columns of units.
        subjects: the places of subject.
        frames, size: T, and pixels a side.
    """

    def __init__(
        self,
        extra: Sequence[Extra] = (),
        *,
        labels: Sequence[str] = (),
        units: Sequence[str] = (),
        subjects: Subjects | None = None,
        frames: int,
        size: int,
    ):
        self.extra = tuple(extra)
        self._labels, self._units, self._subjects = tuple(labels), tuple(units), subjects or {}
        self._frames, self._size = frames, size

    def of(self, record: Record, indices: NDArray, pixels: NDArray[np.uint8]) -> Arrays:
        """The arrays of one clip.

        Args:
            indices: [views, T], of the frames.
            pixels: [views, T + 2, h, w, C], of which flow reads the last two frames.
        """
        known: Arrays = {}
        for name in self.extra:
            if name == "subject":
                at = self._subjects.get((record.dataset, record.subject_id or ""), UNKNOWN)
                known[name] = np.array([at])
            elif name == "votes":
                known[name] = vote_shares(record.votes or {}, self._labels)[None]
            elif name == "units":
                known[name] = units_present(record.action_units, self._units)[None]
            elif name == "affect":
                known[name] = _affect(record)[None]
            elif name == "marks":
                known |= {name: marks_of(record)[None], "frames": indices}
            else:
                known[name] = np.stack([flow_of(onset, apex) for onset, apex in pixels[:, -2:]])
        return known

    def unknown(self, views: int) -> Arrays:
        """The arrays of a clip that could not be read, or of padding."""
        plane = (self._size, self._size)
        every: Arrays = {
            "subject": np.array([UNKNOWN]),
            "votes": np.zeros((1, len(self._labels)), np.float32),
            "units": np.full((1, len(self._units)), np.nan, np.float32),
            "affect": np.full((1, 2), np.nan, np.float32),
            "marks": np.full((1, 3), UNKNOWN),
            "frames": np.full((views, self._frames), UNKNOWN),
        }
        if "flow" in self.extra:
            every["flow"] = np.zeros((views, 3, *plane), np.float32)
        names = [*self.extra, *(["frames"] if "marks" in self.extra else [])]
        return {name: every[name] for name in names}


def vote_shares(votes: Mapping[str, int], labels: Sequence[str]) -> NDArray[np.float32]:
    """Shares [classes] of the votes for the classes at hand; votes for others are left out. They
    add up to 1, or are all 0 where nobody voted for one of these."""
    counts = np.array([max(0, votes.get(label, 0)) for label in labels], dtype=np.float32)
    return counts / max(1.0, float(counts.sum()))


def units_present(annotated: Sequence[str], columns: Sequence[str]) -> NDArray[np.float32]:
    """Action units [columns]: 1 present, on whichever side; 0 absent; NaN unknown.

    Everything is unknown where nothing was annotated: no list is not an empty face. So is a unit
    that the coder doubted ("14?") or that is one of several ("12/15"), unless it is also annotated
    without doubt. "04" is 4, in the record and as a column.
    """
    if not annotated:
        return np.full(len(columns), np.nan, np.float32)
    sure: set[str] = set()
    doubted: set[str] = set()
    for item in annotated:
        numbers = [str(int(digits)) for digits in re.findall("[0-9]+", item)]
        (doubted if "?" in item or len(numbers) > 1 else sure).update(numbers)
    asked = [str(int(column)) for column in columns]
    values = [1.0 if c in sure else np.nan if c in doubted else 0.0 for c in asked]
    return np.array(values, dtype=np.float32)


def flow_of(onset: NDArray[np.uint8], apex: NDArray[np.uint8]) -> NDArray[np.float32]:
    """float32 [3, h, w]: flow between two pictures [h, w, 3], right and down, and its strain."""
    field = flow(onset, apex)
    return np.stack([field[..., 0], field[..., 1], strain(field)])


def _affect(record: Record) -> NDArray[np.float32]:
    known = (record.valence, record.arousal)
    return np.array([np.nan if value is None else value for value in known], dtype=np.float32)

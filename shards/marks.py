"""Onset and apex of a clip: which two of its frames they are, annotated or not.

Owns what stands in for a mark that is unknown. Refuses to know decoding and batches.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.schema import Record

UNKNOWN = -1


class Pair(NamedTuple):
    """Frames of the stored clip, from 0."""

    onset: int
    apex: int


def pair_of(record: Record) -> Pair:
    """The frames of onset and apex. An unknown onset is the first frame, an unknown apex the middle
    one from onset to offset, and an unknown offset the last frame."""
    onset = 0 if record.onset is None else record.onset
    if record.apex is not None:
        return Pair(onset, record.apex)
    end = record.num_frames - 1 if record.offset is None else record.offset
    return Pair(onset, (onset + end) // 2)


def marked(record: Record) -> bool:
    """Whether somebody said where the apex is: it is not merely the middle."""
    return record.apex is not None and record.apex_source != "middle"


def cut_at_marks(record: Record) -> bool:
    """Whether the clip is what somebody annotated, from onset to offset: where it begins and ends
    tells where the expression does."""
    return record.onset == 0 and record.offset == record.num_frames - 1


def marks_of(record: Record) -> NDArray[np.int64]:
    """Onset, apex and offset [3], -1 where unknown."""
    marks = (record.onset, record.apex, record.offset)
    return np.array([UNKNOWN if mark is None else mark for mark in marks], dtype=np.int64)

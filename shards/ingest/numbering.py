"""Folders of numbered pictures: which pictures make a clip, and where each stands in time.

Owns the numbers in file names. Opens no picture, loads no decoder.

`img46.jpg`, `006_05562.jpg`, `0000.png`: the last digits of a name are the picture's number, and
numbers, not names, give the order. A picture stands at its number's distance from the first; so a
number that is missing leaves an instant without a picture and moves nothing else.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from shards.ingest import storage
from shards.ingest.settings import Rejected

PICTURES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"))
MOST_PICTURES = 200_000
MOST_MISSING = 0.1
"""Share of a clip's pictures that may be missing or broken; one always may."""


@dataclass(frozen=True)
class FrameFolder:
    """How a folder of pictures is read as a video."""

    fps: float
    first: int | None = None
    """Number of the first picture of the clip; None: the lowest there is."""
    last: int | None = None
    by_order: bool = False
    """The numbers give the order alone (they are clock times, say): nothing can be missing."""

    def __post_init__(self) -> None:
        if not 0 < self.fps <= 1000:
            raise ValueError(f"fps is {self.fps}; take frames a second, more than 0, at most 1000")


@dataclass(frozen=True)
class Chosen:
    """The pictures of a clip."""

    pictures: tuple[tuple[int, str], ...]
    """(instant, counted from 0; file name), by instant."""
    instants: int


def numbered(folder: Path) -> list[tuple[int, str]]:
    """(number, file name) of the pictures in a folder, by number.

    Rejected where there is none, or two have the same number.
    """
    try:
        with os.scandir(folder) as entries:
            names = [e.name for e in entries if _is_picture(e.name) and e.is_file()]
    except OSError as error:
        storage.check(error)
        raise storage.Unreadable(f"cannot be listed ({error.strerror})", storage.RIGHTS) from None
    if not names:
        raise Rejected("no picture in this folder", "put the frames there, or correct the path")
    if len(names) > MOST_PICTURES:
        raise Rejected(f"{len(names)} pictures in one folder", f"at most {MOST_PICTURES} can be")
    found = sorted((_number(name), name) for name in names)
    for (number, name), (after, other) in pairwise(found):
        if number == after:
            raise Rejected(f"{name} and {other} have the same number", "remove one of them")
    return found


def _is_picture(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in PICTURES


def _number(name: str) -> int:
    digits = re.findall(r"[0-9]{1,18}", os.path.splitext(name)[0])
    if not digits:
        raise Rejected(f"{name} has no number", "name the frames by their numbers: 1.jpg, 2.jpg …")
    return int(digits[-1])


def choose(folder: Path, how: FrameFolder) -> Chosen:
    """The pictures of the clip that `how` describes. Rejected where too many are missing."""
    found = numbered(folder)
    numbers = [number for number, _ in found]
    low = numbers[0] if how.first is None else how.first
    high = numbers[-1] if how.last is None else how.last
    found = [(n, name) for n, name in found if low <= n <= high]
    present = {n for n, _ in found}
    for end in (low, high):
        if end not in present:
            raise Rejected(f"picture number {end} is missing", "correct the annotation or the copy")
    if how.by_order:
        return Chosen(tuple((i, name) for i, (_, name) in enumerate(found)), len(found))
    step = 1 if how.first is not None else _step([n for n, _ in found])
    chosen = Chosen(tuple(((n - low) // step, name) for n, name in found), (high - low) // step + 1)
    check_missing(chosen.instants - len(found), chosen.instants)
    return chosen


def _step(numbers: Sequence[int]) -> int:
    """By how much the numbers usually rise; Rejected where they keep to no step."""
    steps = Counter(b - a for a, b in pairwise(numbers))
    if not steps:
        return 1
    step = max(steps, key=lambda s: (steps[s], -s))
    if any(s % step for s in steps):
        raise Rejected(
            f"its picture numbers rise unevenly (by {', '.join(map(str, sorted(steps)[:4]))})",
            "copy the folder again, or renumber its pictures one by one",
        )
    return step


def check_missing(missing: int, instants: int) -> None:
    """Rejected if more pictures are missing or broken than may be bridged."""
    if missing > max(1, MOST_MISSING * instants):
        raise Rejected(
            f"{missing} of {instants} pictures are missing or broken",
            "copy the folder again from its source",
        )

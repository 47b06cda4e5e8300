"""Micro-expressions: rows of a coding file to clips from onset to offset, with what is mended.

Owns the cut (onset … offset, every frame at the full rate, and `context` frames more on either side
by request), the checks against the pictures on disk, and the rules for known faults:

    no apex            the middle of onset and offset, apex_source "middle"
    onset 0 (by rule)  picture 1, where the pictures start there
    apex = onset (by rule)  the middle: between equal frames nothing moves

Knows no data set and no spreadsheet.
"""

from __future__ import annotations

import functools
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from shards.datasets.contract import Dataset, Options, one_of, refused
from shards.datasets.patches import Patch
from shards.datasets.sheets import SheetRow
from shards.ingest.annotations import action_units
from shards.ingest.inputs import (
    Annotation,
    ApexSource,
    Collected,
    InputError,
    Item,
    Refused,
    inside,
)
from shards.ingest.numbering import FrameFolder, numbered
from shards.ingest.settings import Rejected

SETTINGS = {"crop": "onset", "min_frames": 2}
"""A micro-expression may last 3 frames at 30 a second."""
RULES = ("no apex: the middle of onset and offset, apex_source middle",)
ONSET_ZERO = "onset 0 where the pictures start at 1: picture 1"
APEX_IS_ONSET = "apex = onset: the middle of onset and offset, apex_source middle"


@dataclass(frozen=True, kw_only=True)
class Coded:
    """A row of a coding file. Frames are the numbers in the pictures' names."""

    clip: str
    subject: str
    folder: str
    """Below the root, with slashes."""
    label: str
    onset: int | None
    offset: int | None
    apex: int | None = None
    units: str = ""
    objective: str | None = None
    part: str = ""
    row: int = 0
    line: int = 0
    numbers: Sequence[int] = ()
    """Of the pictures that are there, rising."""
    apex_source: ApexSource = "annotated"
    patches: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What rejected.csv calls it."""
        return f"{self.folder}#{self.part}" if self.part else self.folder

    def problem(self) -> str | None:
        """What is wrong with the marks, in words."""
        marks = [("onset", self.onset), ("apex", self.apex), ("offset", self.offset)]
        for name, frame in marks:
            if frame is None and name != "apex":
                return f"has no {name}"
        known = [(name, frame) for name, frame in marks if frame is not None]
        for (name, frame), (later, at) in pairwise(known):
            if frame > at:
                return f"{name} {frame} lies after {later} {at}"
        for name, frame in known:
            at = bisect_left(self.numbers, frame)
            if at == len(self.numbers) or self.numbers[at] != frame:
                return (
                    f"{name} {frame} is not among the pictures {self.numbers[0]} to "
                    f"{self.numbers[-1]}"
                )
        return None

    def patched(self, patch: Patch) -> Coded:
        """With the marks that the patch gives."""
        known = {"onset": self.onset, "apex": self.apex, "offset": self.offset, **patch.change}
        return replace(
            self,
            onset=known["onset"],
            apex=known["apex"],
            offset=known["offset"],
            apex_source=patch.apex_source,
            patches=(*self.patches, patch.patch_id),
        )


def read_rows(
    rows: Iterable[SheetRow], file: Path, parse: Callable[[SheetRow], Iterable[Coded]]
) -> tuple[list[Coded], list[Refused]]:
    """The rows as an adapter understands them; those it does not are refused."""
    coded: list[Coded] = []
    no: list[Refused] = []
    for row in rows:
        try:
            coded += [replace(c, row=row.number, line=row.line) for c in parse(row)]
        except InputError as error:
            name = str(row.cells.get("clip") or "")
            no.append(refused(name, error, line=row.line, file=file))
    return coded, no


def clips(
    dataset: Dataset,
    root: Path,
    options: Options,
    *,
    coded: Sequence[Coded],
    file: Path,
    fps: float,
    by_order: bool = False,
) -> Collected:
    """Items of all rows whose marks are sound, as they stand or once mended."""
    listed = functools.cache(lambda folder: array("q", (n for n, _ in numbered(folder))))
    found: list[Coded] = []
    no: list[Refused] = []
    for row in coded:
        try:
            found.append(replace(row, numbers=listed(inside(root, row.folder))))
        except (InputError, Rejected) as error:
            why = getattr(error, "reason", error)
            no.append(refused(row.name, why, line=row.line, file=file))
    found, notes = _mended(dataset, found)
    items = []
    for row in found:
        row = _ruled(dataset, row)
        try:
            if problem := row.problem():
                raise InputError(problem)
            items.append(_item(dataset, root, row, options, fps=fps, by_order=by_order))
        except InputError as error:
            no.append(refused(row.name, error, line=row.line, file=file))
    return Collected(items, no, notes)


def _mended(dataset: Dataset, coded: list[Coded]) -> tuple[list[Coded], list[str]]:
    """With the data set's patches applied to rows that are at fault; a note on those that are not.

    See `patches`: by clip each for itself, by row all or none.
    """
    by_clip = {p.clip: p for p in dataset.patches if p.clip is not None}
    by_row = {p.row: p for p in dataset.patches if p.row is not None}
    at_row = {c.row: c for c in coded if c.row in by_row}
    fits = len(at_row) == len(by_row) and all(
        _at_fault(c) and c.patched(by_row[c.row]).problem() is None for c in at_row.values()
    )
    notes = []
    if by_row and not fits:
        notes.append(
            f"corrections {dataset.corrections} by row ({', '.join(map(str, by_row))}) were not "
            "applied: in this release other rows stand there, or they are not at fault"
        )
    mended = []
    for row in coded:
        patch = by_clip.get(row.clip) if _at_fault(row) else None
        patch = by_row[row.row] if fits and row.row in by_row else patch
        mended.append(row.patched(patch) if patch else row)
    return mended, notes


def _at_fault(row: Coded) -> bool:
    return row.problem() is not None


def _ruled(dataset: Dataset, row: Coded) -> Coded:
    """The general rules, as far as the data set asks for them."""
    if ONSET_ZERO in dataset.rules and row.onset == 0 and row.numbers[0] == 1:
        apex = 1 if row.apex == 0 else row.apex
        row = replace(row, onset=1, apex=apex, patches=_also(dataset, row, "onset-zero"))
    onset, offset = row.onset, row.offset
    if onset is None or offset is None or row.problem():
        return row
    if APEX_IS_ONSET in dataset.rules and row.apex == onset < offset:
        row = replace(row, apex=None, patches=_also(dataset, row, "apex-is-onset"))
    if row.apex is None:
        at = (bisect_left(row.numbers, onset) + bisect_left(row.numbers, offset)) // 2
        row = replace(row, apex=row.numbers[at], apex_source="middle")
    return row


def _also(dataset: Dataset, row: Coded, name: str) -> tuple[str, ...]:
    return (*row.patches, f"{dataset.corrections}/{name}")


def _item(
    dataset: Dataset, root: Path, row: Coded, options: Options, *, fps: float, by_order: bool
) -> Item:
    """The clip onset … offset (and context), its marks counted from its first frame."""
    assert row.onset is not None and row.apex is not None and row.offset is not None
    first, last = _with_context(row, options.context, by_order=by_order)
    start = bisect_left(row.numbers, first)

    def mark(number: int) -> int:
        return bisect_left(row.numbers, number) - start if by_order else number - first

    marks = {name: mark(getattr(row, name)) for name in ("onset", "apex", "offset")}
    annotation = Annotation(
        label=one_of(dataset.classes, row.label),
        subject_id=row.subject,
        source_id=f"{row.subject}/{row.clip}",
        marks=marks,
        action_units=action_units(row.units),
        apex_source=row.apex_source,
        objective_class=row.objective,
        patch_id="; ".join(row.patches) or None,
    )
    frames = FrameFolder(fps, first, last, by_order)
    return Item("", inside(root, row.folder), row.folder, annotation, frames, row.part)


def _with_context(row: Coded, context: int, *, by_order: bool) -> tuple[int, int]:
    """Numbers of the first and last picture kept; context ends where a number is missing."""
    assert row.onset is not None and row.offset is not None
    numbers = row.numbers
    low, high = bisect_left(numbers, row.onset), bisect_left(numbers, row.offset)
    for _ in range(context):
        if low > 0 and (by_order or numbers[low - 1] == numbers[low] - 1):
            low -= 1
        if high + 1 < len(numbers) and (by_order or numbers[high + 1] == numbers[high] + 1):
            high += 1
    return numbers[low], numbers[high]

"""The annotations file: a table whose `path` column names videos, with what is known of each.

Owns its columns and what can be wrong in a row. Opens no video.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

from shards.ingest.inputs import (
    Annotation,
    ApexSource,
    InputError,
    Item,
    Refused,
    inside,
    named,
    shown,
)
from shards.ingest.numbering import FrameFolder
from shards.ingest.settings import MARKS
from shards.ingest.storage import LOCKED, found
from shards.ingest.tables import table

TEXTS = (
    *("label", "subject_id", "source_id", "split", "objective_class"),
    *("dataset", "version", "licence"),
)
AFFECT = ("valence", "arousal")
COLUMNS = ("path", *TEXTS, *MARKS, *AFFECT, "apex_source", "action_units", "votes", "fps")
LONGEST_VOTES = 10_000


def read_annotations(
    file: Path, videos: Path, *, fps: float | None = None
) -> tuple[list[Item], list[Refused], list[str]]:
    """Items in the order of keys; rows that cannot be used; columns that mean nothing to us.

    `path` may be a folder of pictures, of which `fps` is the rate where the row gives none. Raises
    PermissionError where one may not be looked at and none is there.
    """
    rows, unused = _rows(file)
    refused: list[Refused] = []
    good: dict[tuple[str, object], tuple[int, Item]] = {}
    firsts: dict[str, tuple[int, Annotation]] = {}
    torn: dict[str, str] = {}
    denied: PermissionError | None = None
    for number, row in rows:
        relative = row["path"]
        at = f"line {number} of {file.name}"
        try:
            annotation = _annotation(row)
            path = inside(videos, relative)
            there = found(path)
            kind = stat.S_IFMT(there.st_mode) if there else None
            frames = _frames(row.get("fps", ""), fps) if kind == stat.S_IFDIR else None
            if frames is None and kind != stat.S_IFREG:
                raise InputError(f"is not a file in {videos}")
            relative = path.relative_to(videos).as_posix()  # "./a.mp4" is "a.mp4"
            first, said = firsts.setdefault(relative, (number, annotation))
            if differ := _differ(said, annotation):
                torn[relative] = differ
                raise InputError(f"has another {differ} in line {first}")
            clip = relative, annotation.marks.get("onset")
            if clip in good:
                raise InputError("is listed twice")
        except InputError as error:
            refused.append(Refused(shown(relative), f"{error} ({at})", "correct the row"))
            continue
        except PermissionError as error:
            denied = error
            refused.append(Refused(shown(relative), f"{LOCKED[0]} ({at})", LOCKED[1]))
            continue
        good[clip] = number, Item("", path, relative, annotation, frames)
    if denied and not good:
        raise denied
    for clip in [clip for clip in good if clip[0] in torn]:  # who knows which of them is right?
        number, item = good.pop(clip)
        why = f"has another {torn[item.relative]} in a later line (line {number} of {file.name})"
        refused.append(Refused(shown(item.relative), why, "correct the rows, or cut the video"))
    return _annotated([item for _, item in good.values()]), refused, unused


def _differ(a: Annotation, b: Annotation) -> str:
    """In what two rows of a video contradict each other. It is stored whole for each of them, so
    they may differ in their frames alone."""
    names = [f.name for f in fields(Annotation) if f.name not in ("marks", "apex_source")]
    return " and ".join(name for name in names if getattr(a, name) != getattr(b, name))


def _annotated(good: Sequence[Item]) -> list[Item]:
    """A video with several rows gets its onset into the key."""
    times = Counter(item.relative for item in good)
    parts = [
        f"f{item.annotation.marks.get('onset')}"
        if item.annotation and times[item.relative] > 1
        else ""
        for item in good
    ]
    return named([replace(item, part=part) for item, part in zip(good, parts, strict=True)])


def _rows(file: Path) -> tuple[list[tuple[int, dict[str, str]]], list[str]]:
    """(line, cells by column) of every row, and the unused columns."""
    names, rows = table(file)
    unused = _check_columns(file, names)
    if not rows:
        raise InputError(f"{file} has no rows below its header")
    return [(n, {c: row[c] for c in COLUMNS if c in row}) for n, row in rows], unused


def _check_columns(file: Path, names: Sequence[str]) -> list[str]:
    if "path" not in names:
        raise InputError(
            f"{file} has no column 'path' (it has {', '.join(names) or 'none'}); its first line "
            f"names the columns: path and any of {', '.join(COLUMNS[1:])}"
        )
    unused = [name for name in names if name not in COLUMNS]
    for name in unused:
        near = difflib.get_close_matches(name.lower(), set(COLUMNS) - set(names), 1, 0.75)
        if near:
            raise InputError(
                f"{file} has a column {name!r}; it is called {near[0]!r} here, rename it"
            )
    return unused


def _annotation(row: Mapping[str, str]) -> Annotation:
    marks = {name: _frame(name, row[name]) for name in MARKS if row.get(name)}
    known = [(name, frame) for name in MARKS if (frame := marks.get(name)) is not None]
    for (name, frame), (later, at) in pairwise(known):
        if frame > at:
            raise InputError(f"{name} {frame} lies after {later} {at}")
    texts: dict[str, Any] = {name: row[name] for name in TEXTS if row.get(name)}
    source = row.get("apex_source") or None
    if source not in (None, *get_args(ApexSource)):
        known_sources = ", ".join(get_args(ApexSource))
        raise InputError(f"apex_source is {source!r}, it is one of {known_sources}")
    return Annotation(
        marks=marks,
        action_units=action_units(row.get("action_units", "")),
        apex_source=source,  # type: ignore[arg-type]
        votes=_votes(row.get("votes", "")),
        **{name: _affect(name, row[name]) for name in AFFECT if row.get(name)},
        **texts,
    )


def action_units(cell: str) -> tuple[str, ...]:
    """`4+L10`, `R2, AU14?`, `12/15`, `A2` → one string a unit, as annotated, without "AU".

    L, R, A, B: on the left or right, above, below; `?`: doubted; `12/15`, "12 or 15": one of them.
    """
    cell = re.sub(r"\s*(?:/|\bor\b)\s*", "/", cell.strip(), flags=re.IGNORECASE)
    cell = re.sub(r"\bAU\s*(?=[0-9])", "", cell, flags=re.IGNORECASE)
    return tuple(unit for unit in re.split(r"[\s,;|+]+", cell) if unit.strip("/?-"))


def _frame(name: str, cell: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}(\.0*)?", cell):  # pandas writes 5.0 where a column has gaps
        raise InputError(f"{name} is {cell!r}, not a frame number")
    return int(cell.partition(".")[0])


def _affect(name: str, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not -1 <= value <= 1:
        raise InputError(f"{name} is {cell!r}, not a number from -1 to 1; rescale the column")
    return value


def _votes(cell: str) -> dict[str, int] | None:
    """A JSON object: annotators a class name."""
    if not cell:
        return None
    try:
        votes = json.loads(cell[:LONGEST_VOTES])
    except (ValueError, RecursionError):
        votes = None
    if not isinstance(votes, dict) or not all(type(n) is int for n in votes.values()):
        raise InputError(f'votes is {cell[:40]!r}, not a JSON object such as {{"joy": 3}}')
    return votes


def _frames(cell: str, fps: float | None) -> FrameFolder:
    try:
        rate = float(cell) if cell else fps
        if rate is None:
            raise InputError("is a folder of pictures; give its rate in a column fps, or by --fps")
        return FrameFolder(rate)
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"fps is {cell!r}, not a number of frames a second") from None

"""The annotations file: a CSV whose `path` column names videos, with what is known of each.

Owns its columns and what can be wrong in a row. Opens no video.
"""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path, PurePosixPath

from shards.ingest.inputs import Annotation, InputError, Item, Refused, keyed, shown

MARKS = ("onset", "apex", "offset")
COLUMNS = ("path", "label", "subject_id", "source_id", *MARKS, "action_units", "split")
LARGEST_CSV = 1 << 30


def read_annotations(file: Path, videos: Path) -> tuple[list[Item], list[Refused], list[str]]:
    """Items in the order of keys; rows that cannot be used; columns that mean nothing to us."""
    rows, unused = _rows(file)
    refused: list[Refused] = []
    good: list[tuple[Path, str, Annotation]] = []
    seen: set[tuple[str, object]] = set()
    for number, row in rows:
        relative = row["path"]
        try:
            annotation = _annotation(row)
            path = _inside(videos, relative)
            if (relative, annotation.marks.get("onset")) in seen:
                raise InputError("is listed twice")
        except InputError as error:
            at = f"line {number} of {file.name}"
            refused.append(Refused(shown(relative), f"{error} ({at})", "correct the row"))
            continue
        seen.add((relative, annotation.marks.get("onset")))
        good.append((path, relative, annotation))
    return _annotated(good), refused, unused


def _annotated(good: Sequence[tuple[Path, str, Annotation]]) -> list[Item]:
    """A video with several rows gets its onset into the key."""
    times = Counter(relative for _, relative, _ in good)
    videos = keyed(list({relative: (path, relative) for path, relative, _ in good}.values()))
    keys = {item.relative: item.key for item in videos}
    items = []
    for path, relative, annotation in good:
        several = f"-f{annotation.marks.get('onset')}" if times[relative] > 1 else ""
        items.append(Item(keys[relative] + several, path, relative, annotation))
    return sorted(items, key=lambda item: item.key)


def _rows(file: Path) -> tuple[list[tuple[int, dict[str, str]]], list[str]]:
    """(line, cells by column) of every row, and the unused columns."""
    try:
        if file.stat().st_size > LARGEST_CSV:
            raise InputError(f"{file} is larger than 1 GiB; split it")
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}); check --annotations") from None
    except UnicodeDecodeError:
        raise InputError(f"{file} is not UTF-8 text; export it as CSV in UTF-8") from None
    head = text.partition("\n")[0]
    separator = max(",;\t", key=head.count)
    reader = csv.DictReader(
        io.StringIO(text, newline=""), delimiter=separator, restval="", restkey="more"
    )
    names = [name.strip() for name in reader.fieldnames or []]
    reader.fieldnames = names
    unused = _check_columns(file, names)
    try:
        cells = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise InputError(f"{file}, line {reader.line_num}: {error}") from None
    rows = [(n, {c: row[c].strip() for c in COLUMNS if c in row}) for n, row in cells]
    if not rows:
        raise InputError(f"{file} has no rows below its header")
    return rows, unused


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
    units = tuple(u for u in re.split(r"[\s,;|+]+", row.get("action_units", "")) if u)
    known = [(name, frame) for name in MARKS if (frame := marks.get(name)) is not None]
    for (name, frame), (later, at) in pairwise(known):
        if frame > at:
            raise InputError(f"{name} {frame} lies after {later} {at}")
    text = {name: row.get(name) or None for name in ("label", "subject_id", "source_id", "split")}
    return Annotation(marks=marks, action_units=units, **text)


def _frame(name: str, cell: str) -> int:
    if not re.fullmatch(r"\d{1,9}", cell):
        raise InputError(f"{name} is {cell!r}, not a frame number")
    return int(cell)


def _inside(videos: Path, relative: str) -> Path:
    """The file, which the row must not place outside the folder."""
    parts = PurePosixPath(relative)
    if not relative or "\0" in relative:
        raise InputError("has no path")
    if parts.is_absolute() or ".." in parts.parts or "\\" in relative:
        raise InputError("leads out of the videos folder; write it relative to that folder")
    path = videos / parts
    if not path.is_file():
        raise InputError(f"is not a file in {videos}")
    return path

"""A split file: a CSV `dataset,key,split` that says, for one experiment, which clips are of which
split, whatever the shards themselves say. With a fourth column `label` it also says which class
each clip is of, so that data sets whose labels differ can be read together.

Owns the file's form and what can be wrong with it. Refuses to know which clips there are.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from dataclasses import dataclass

from shards.place import Remote, locate, read_whole
from shards.wording import visible

COLUMNS = ("dataset", "key", "split")
LABEL = "label"
Name = tuple[str, str]
"""(dataset, key) of a clip, as its record and its index row have them."""


@dataclass(frozen=True)
class SplitFile:
    """A split file that was read."""

    place: str
    sha256: str
    splits: dict[Name, str]
    labels: dict[Name, str] | None = None
    """Of the clips that have one; None without a column `label`, and then the records' labels
    count."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The labels of all splits, sorted: training and test number their classes alike."""
        return None if self.labels is None else tuple(sorted(set(self.labels.values())))

    @property
    def counts(self) -> Counter[str]:
        """Clips of each split."""
        return Counter(self.splits.values())

    def count(self, split: str | None) -> int:
        """Clips of one split, of all where it is None."""
        return len(self.splits) if split is None else self.counts[split]


def read_split_file(place: str, like: Remote | None = None) -> SplitFile:
    """Read a path or a URL, the latter with the patience of `like`.

    Raises ValueError that names the file, and the line where there is one.
    """
    try:
        raw = read_whole(locate(place, like))
    except OSError as error:
        raise ValueError(f"data.splits: {place} cannot be read ({error.strerror})") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise _wrong(place, line, "is not UTF-8 text; save the file as CSV in UTF-8") from None
    splits, labels = _parse(place, text)
    return SplitFile(place, hashlib.sha256(raw).hexdigest(), splits, labels)


def _parse(place: str, text: str) -> tuple[dict[Name, str], dict[Name, str] | None]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    splits: dict[Name, str] = {}
    labels: dict[Name, str] = {}
    try:
        header = [cell.strip() for cell in next(reader, [])]
        if sorted(header) not in (sorted(COLUMNS), sorted((*COLUMNS, LABEL))):
            found = ", ".join(map(repr, header)) or "none"
            wanted = f"they are {', '.join(COLUMNS)}, and {LABEL} if it replaces the shards' labels"
            raise _wrong(place, 1, f"names the columns {found}; {wanted}")
        for cells in filter(None, reader):
            if len(cells) != len(header):
                raise _wrong(place, reader.line_num, f"has {len(cells)} cells, not {len(header)}")
            row = dict(zip(header, map(str.strip, cells), strict=True))
            name = row["dataset"], row["key"]
            if not row["key"] or not row["split"]:
                what = "split" if row["key"] else "key"
                raise _wrong(place, reader.line_num, f"has no {what}")
            if name in splits:
                raise _wrong(place, reader.line_num, f"names {shown(name)} a second time")
            splits[name] = row["split"]
            if label := row.get(LABEL):
                labels[name] = label
    except csv.Error as error:
        raise _wrong(place, reader.line_num, f"is no line of a CSV file ({error})") from None
    return splits, labels if LABEL in header else None


def shown(name: Name) -> str:
    """For messages."""
    dataset, key = map(visible, name)
    return f"{key} of {dataset}" if dataset else key


def _wrong(place: str, line: int, what: str) -> ValueError:
    return ValueError(f"data.splits: {place}, line {line} {what}")

"""Which videos to ingest, and under which keys. Owns the folder scan; opens no video."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from shards.ingest.numbering import FrameFolder

# Found beside videos and never meant as such; everything else is judged by its content.
SIDECARS = frozenset(
    (".csv", ".tsv", ".txt", ".md", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".parquet")
    + (".srt", ".vtt", ".ass", ".pdf", ".html", ".xlsx", ".xls", ".docx", ".log", ".py", ".sh")
    + (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".wav", ".mp3", ".flac", ".npy", ".npz")
    + (".pt", ".pth", ".zip", ".tar", ".gz")
)
LONGEST_KEY = 80
LONGEST_PATH, LONGEST_NAME = 3000, 255  # bytes a file system takes; it raises beyond
ApexSource = Literal["annotated", "middle", "spotted"]
"""Who says where the apex is: the data set, the half of onset and offset, or a spotting method."""


CLIP_NUMBER = re.compile(r"-[0-9]{4,}$")


class InputError(ValueError):
    """What was handed in cannot be worked with as a whole; the message names the fix."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """What is known of a clip before its video is opened; see `schema.Record`."""

    label: str | None = None
    subject_id: str | None = None
    source_id: str | None = None
    marks: Mapping[str, int | None] = field(default_factory=dict)
    """By name: frames of the source, from 0."""
    action_units: tuple[str, ...] = ()
    split: str | None = None
    apex_source: ApexSource | None = None
    objective_class: str | None = None
    votes: Mapping[str, int] | None = None
    valence: float | None = None
    arousal: float | None = None
    dataset: str = ""
    version: str = ""
    licence: str | None = None
    patch_id: str | None = None

    @property
    def of_the_whole(self) -> bool:
        """Whether it says what the video shows: of a part of it that may not be true."""
        numbers = self.valence, self.arousal
        said = self.label, self.objective_class, self.votes, self.marks, self.action_units
        return any(said) or any(number is not None for number in numbers)


@dataclass(frozen=True, slots=True)
class Item:
    """One video to ingest."""

    key: str
    path: Path
    relative: str
    """Within the videos folder, with slashes."""
    annotation: Annotation | None = None
    frames: FrameFolder | None = None
    """How `path` is read where it is a folder of pictures."""
    part: str = ""
    """Tells several clips of one source apart; goes into the key."""

    @property
    def root(self) -> Path:
        """The videos folder."""
        deep = len(PurePosixPath(self.relative).parts)
        return self.path.parents[deep - 1] if deep else self.path

    @property
    def name(self) -> str:
        """What rejected.csv calls it."""
        return f"{self.relative}#{self.part}" if self.part else self.relative


@dataclass(frozen=True)
class Collected:
    """What is to be ingested, and what was found out on the way."""

    items: list[Item]
    refused: list[Refused] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    """Ingest settings that suit these items, where the user asks for none."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A row of rejected.csv."""

    path: str
    reason: str
    action: str

    def __post_init__(self) -> None:
        for name in self.__slots__:  # a reason may name foreign files, too
            object.__setattr__(self, name, shown(getattr(self, name)))


def scan(videos: Path) -> tuple[list[Item], int]:
    """All files of a folder (or the one file) by key; and how many were left out as sidecars."""
    if videos.is_file():
        return keyed([(videos, videos.name)]), 0
    if not videos.is_dir():
        raise InputError(f"there is no folder {videos}; name the folder that holds the videos")
    found: list[tuple[Path, str]] = []
    ignored = 0
    seen: set[str] = set()
    for folder, folders, names in os.walk(videos, onerror=unlisted, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        if (real := os.path.realpath(folder)) in seen:  # links that lead back up
            folders.clear()
            continue
        seen.add(real)
        for name in sorted(n for n in names if not n.startswith(".")):
            path = Path(folder) / name
            if path.suffix.lower() in SIDECARS:
                ignored += 1
            else:
                found.append((path, shown(path.relative_to(videos).as_posix())))
    if not found:
        others = f" ({ignored} other files)" if ignored else ""
        raise InputError(f"no video in {videos}{others}; put video files there")
    times = Counter(relative for _, relative in found)
    if twice := [name for name, count in times.items() if count > 1]:
        raise InputError(
            f"two files in {videos} are both {twice[0]} once bytes that are not UTF-8 are written "
            "out; rename one"
        )
    return keyed(found), ignored


def unlisted(error: OSError) -> None:
    """For os.walk, which else leaves out what it cannot list."""
    raise InputError(f"{error.filename} cannot be listed ({error.strerror}); check its rights")


def shown(name: str) -> str:
    """The name as text that can be written anywhere; what is no Unicode as escapes."""
    try:  # as Python gives the bytes of a file name that are not UTF-8
        data = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # other lone surrogates, as JSON can hold them
        data = name.encode("utf-8", "backslashreplace")
    return data.decode("utf-8", "backslashreplace")


def keyed(found: Sequence[tuple[Path, str]]) -> list[Item]:
    """Items in the order of their keys, which are unique."""
    return named([Item("", path, relative) for path, relative in found])


def named(items: Sequence[Item]) -> list[Item]:
    """The items with unique keys, in the order of these. No key is that of another's clip."""
    sources = {item.relative for item in items}
    times = Counter(key_of(relative) for relative in sources)
    ready = []
    for item in items:
        key = key_of(item.relative)
        taken = times[key] > 1 or (CLIP_NUMBER.search(key) and CLIP_NUMBER.sub("", key) in times)
        key = hashed(key, item.relative) if taken else key
        ready.append(replace(item, key=f"{key}-{item.part}" if item.part else key))
    return sorted(ready, key=lambda item: item.key)


def inside(root: Path, relative: str) -> Path:
    """The place in `root`; InputError where `relative` would lead out of it."""
    parts = PurePosixPath(relative)
    if not relative or "\0" in relative:
        raise InputError("has no path")
    if parts.is_absolute() or ".." in parts.parts or "\\" in relative:
        raise InputError("leads out of the videos folder; write it relative to that folder")
    if len(relative) > LONGEST_PATH or any(
        len(part.encode("utf-8", "surrogatepass")) > LONGEST_NAME for part in parts.parts
    ):
        raise InputError("has a longer path than file systems take")
    return root / parts


def key_of(relative: str) -> str:
    """`a/b c.mp4` → `a_b_c_mp4`: no dot, at which WebDataset splits, and no slash."""
    key = re.sub(r"[^A-Za-z0-9_-]+", "_", relative).strip("_")
    plain = key and len(key) <= LONGEST_KEY
    return key if plain else hashed(key[: LONGEST_KEY - 9], relative)


def hashed(key: str, relative: str) -> str:
    """The key with a mark of the whole name, for names that become the same key."""
    mark = hashlib.sha256(relative.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{key[: LONGEST_KEY - 9]}_{mark}".lstrip("_")

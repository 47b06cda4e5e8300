"""What an adapter gives, what a user may ask of it, and finding its files.

Knows no data set.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shards.datasets.patches import Patch
from shards.ingest.inputs import Collected, InputError, Refused, shown


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a user may ask of an adapter."""

    fold: int | None = None
    """The official fold whose split goes into the records; None: every clip gets the name of the
    fold that tests it."""
    variant: str | None = None
    """Which of several forms of the frames is read; None: the first that is there."""
    annotations: Path | None = None
    """The table, where it is the user's own."""
    fps: float | None = None
    """Rate of folders of pictures whose data set does not give one."""
    context: int = 0
    """Frames kept before the onset and after the offset of a micro-expression."""

    def __post_init__(self) -> None:
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise InputError(f"--fps is {self.fps:g}; take frames a second, at most 1000")
        if self.context < 0:
            raise InputError(f"--context is {self.context}; take a number of frames, 0 or more")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One form in which the frames of a data set are handed out."""

    name: str
    folders: tuple[str, ...]
    """Where it lies below the root: the first that is there. May hold * and ?."""
    detector: str = "haar"
    """"none" where the pictures are cropped to the face already."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """Counts that were published. Users hold different releases: a difference is a note."""

    clips: int | None = None
    labels: Mapping[str, int] = field(default_factory=dict)
    splits: Mapping[str, int] = field(default_factory=dict)
    subjects: int | None = None


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """An adapter."""

    name: str
    title: str
    about: str
    licence: str
    ask: str
    """Address where the data is asked for."""
    layout: tuple[str, ...]
    """What lies below the root, in words, a line each."""
    read: Callable[[Dataset, Path, Options], Collected]
    """Items without keys, in any order; `collect` adds what all data sets have."""
    honours: tuple[str, ...] = ()
    """Of the options that few data sets have a use for, `fps` and `context`, those of this one."""
    classes: tuple[str, ...] = ()
    expected: Expected = Expected()
    version: str = ""
    folds: int = 0
    variants: tuple[Variant, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Ingest settings that suit it, where the user asks for none."""
    patches: tuple[Patch, ...] = ()
    rules: tuple[str, ...] = ()
    """Faults of a general kind that are mended, and how; in words."""
    own: bool = False
    """The user's own: its name says nothing of the clips."""
    disjoint_subjects: bool = False
    """The protocol wants no subject in two splits."""

    @property
    def corrections(self) -> str:
        """Name and version of its corrections; another number where any of them changes."""
        return f"{self.name}-1"

    def chosen(self, root: Path, file: Path, variant: Variant, frames: Path) -> list[str]:
        """Notes on what was read, where there was a choice."""
        others = [v.name for v in self.variants if v is not variant]
        more = f" (--variant {variant.name}; other forms: {', '.join(others)})" if others else ""
        read = f"annotations {file.relative_to(root)}, frames {frames.relative_to(root)}{more}"
        return [read]

    def refuse(self, root: Path, what: str) -> InputError:
        """Why `root` is not this data set: what was looked for, what is there, where to ask."""
        ask = "" if self.own else f". {self.title} is asked for at {self.ask}"
        if not root.is_dir():
            return InputError(f"there is no folder {root}; --root names the folder of {self.title}")
        found = ", ".join(sorted(shown(p.name) for p in root.iterdir())[:6]) or "nothing"
        return InputError(
            f"no {what} in {root} (it holds {found}). --root is the folder with: "
            f"{'; '.join(self.layout)}{ask}"
        )

    def file(self, root: Path, *patterns: str) -> Path:
        """The annotation file, in the root or a folder or two below; InputError if there is none.

        Of several releases the last in the order of names.
        """
        for pattern in patterns:
            for below in ("", "*/", "*/*/"):
                found = [p for p in matching(root, below + pattern) if p.is_file()]
                if found:
                    return found[-1]
        raise self.refuse(root, " or ".join(patterns))

    def frames(self, root: Path, options: Options) -> tuple[Variant, Path]:
        """The variant that was asked for, or the first whose folder is there; and that folder.

        In the root, else in a folder of it.
        """
        wanted = [v for v in self.variants if options.variant in (None, v.name)]
        if not wanted:
            names = ", ".join(v.name for v in self.variants) or "none"
            raise InputError(f"{self.name} has no --variant {options.variant!r}, it has: {names}")
        places = [
            (v, below + pattern) for below in ("", "*/") for v in wanted for pattern in v.folders
        ]
        for variant, pattern in places:
            found = [p for p in matching(root, pattern) if p.is_dir()]
            if found:
                return variant, found[0]
        raise self.refuse(root, "folder " + " or ".join(f for v in wanted for f in v.folders))


def matching(root: Path, pattern: str) -> list[Path]:
    """Paths below `root` whose parts match, whatever their case, in the order of names."""
    level = [root]
    for part in pattern.split("/"):
        test = re.compile(fnmatch.translate(part), re.IGNORECASE)
        level = [
            path
            for folder in level
            if folder.is_dir()
            for path in sorted(folder.iterdir())
            if test.match(path.name) and not path.name.startswith(".")
        ]
    return level


def refused(name: str, error: object, *, line: int, file: Path) -> Refused:
    """A row of an annotation file that cannot be used."""
    return Refused(shown(name), f"{error} (line {line} of {file.name})", "correct the row")


def one_of(classes: Sequence[str], label: str) -> str:
    """The class name; InputError where there is no such class."""
    name = label.strip().lower()
    if name not in classes:
        raise InputError(f"label {label!r} is none of {', '.join(classes)}")
    return name

"""The clips that a study is about, and what their labels are called in it.

Owns reading them from the indexes of shard folders, renaming labels, and the three classes of the
micro-expression grand challenge. Refuses to know folds and training; no video is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from shards.config import DataConfig
from shards.manifest import Manifest
from shards.place import locate
from shards.wording import count, few

Group = Literal["subject", "source", "clip"]
"""What must lie on one side of a split as a whole."""
UNITS: tuple[Group, ...] = ("subject", "source", "clip")
"""The largest first: a clip goes with its subject, else its source, else by itself."""

_NEGATIVE = dict.fromkeys(("anger", "contempt", "disgust", "fear", "sadness"), "negative")
_OTHERS = {"happiness": "positive", "surprise": "surprise"}
THREE_CLASSES: Mapping[str, Mapping[str, str]] = {
    "casme2": {"disgust": "negative", "repression": "negative", **_OTHERS},
    "samm": {**_NEGATIVE, **_OTHERS},
    "smic": {name: name for name in ("negative", "positive", "surprise")},
    "mmew": {**_NEGATIVE, **_OTHERS},
    "casme3": {**_NEGATIVE, **_OTHERS, "happy": "positive", "sad": "negative"},
}
"""Data set → its label → class; other labels are dropped. The first three as in MEGC 2019 (See,
Yap, Li, Hong and Wang, "MEGC 2019 - the second facial micro-expressions grand challenge")."""
_THREE = tuple(THREE_CLASSES["smic"])
COMPOSITE = {"smic": 164, "casme2": 145, "samm": 133}
"""Clips of each data set in MEGC 2019."""
COMPOSITE_SUBJECTS = 68


@dataclass(frozen=True)
class Clip:
    """What a protocol needs to know of a clip."""

    dataset: str
    key: str
    label: str | None
    subject: str | None = None
    source: str | None = None
    split: str | None = None
    path: str = ""
    content: tuple[int, int, int] = (0, 0, 0)
    """crc32 and bytes of the stored video, and its frames: equal for equal videos."""
    place: tuple[int, int, int] = (0, 0, 0)
    """Folder, shard, and the video's offset in it."""
    stored: str | None = None
    """The label in the shards, where the study calls it otherwise."""

    @property
    def id(self) -> tuple[str, str]:
        """Unique in a study."""
        return self.dataset, self.key

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.dataset}/{self.key}" if self.dataset else self.key

    def group(self, by: Group) -> tuple[str, str] | None:
        """The subject, source or clip, told from those of other data sets; None if unknown."""
        if by == "clip":
            return self.id
        known = self.subject if by == "subject" else self.source
        return None if known is None else (self.dataset, known)

    def unit(self, among: Sequence[Group] = UNITS) -> tuple[Group, tuple[str, str]]:
        """The first of these kinds of group that the clip names, and the group; (clip, id) where
        it names none."""
        for by in among:
            if group := self.group(by):
                return by, group
        return "clip", self.id


def kinds_of(clips: Iterable[Clip], among: Sequence[Group] = UNITS) -> tuple[Group, ...]:
    """The kinds of unit that occur, the largest first."""
    found = {clip.unit(among)[0] for clip in clips}
    return tuple(by for by in UNITS if by in found)


def in_words(kinds: Iterable[str]) -> str:
    """ "subject" where every clip names one, else such as "subject where known, else clip"."""
    return " where known, else ".join(kinds)


def open_folders(data: DataConfig) -> list[Manifest]:
    """The shard folders that are named. Raises ManifestError, and ValueError for none."""
    if not data.shards:
        raise ValueError("data.shards is empty: name shard folders with --data.shards DIR …")
    return [Manifest.open(locate(folder, data.source)) for folder in data.shards]


def read_clips(manifests: Sequence[Manifest]) -> list[Clip]:
    """Every clip of the folders, in the order of data sets and keys.

    Raises ValueError where two have one name.
    """
    clips = [
        Clip(
            dataset=row.record.dataset,
            key=row.key,
            label=row.record.label,
            subject=row.record.subject_id,
            source=row.record.source_id,
            split=row.record.split,
            path=row.record.path,
            content=(row.crc32, row.size, row.record.num_frames),
            place=(folder, shard, row.offset),
        )
        for folder, manifest in enumerate(manifests)
        for shard in range(len(manifest.shards))
        for row in manifest.index(shard)
    ]
    seen = Counter(clip.id for clip in clips)
    if twice := [clip.name for clip in clips if seen[clip.id] > 1]:
        raise ValueError(
            f"{count(len(set(twice)), 'clip')} occur in two of the shard folders under the same "
            f"data set and key: {few(sorted(set(twice)))}. Name each folder once, or ingest one of "
            "them under another data set's name (column `dataset`)"
        )
    return sorted(clips, key=lambda clip: clip.id)


def renamed(clips: Sequence[Clip], rules: Sequence[str]) -> list[Clip]:
    """Clips with their labels as `LABEL=CLASS` or `DATASET/LABEL=CLASS` say; `LABEL=` drops them.

    Raises ValueError for a rule that is none, or whose label does not occur.
    """
    table: dict[str, str] = {}
    for rule in rules:
        old, equals, new = rule.partition("=")
        if not equals or not old:
            raise ValueError(f"rename {rule!r}: write LABEL=CLASS, DATASET/LABEL=CLASS, or LABEL=")
        table[old] = new
    known = {clip.label for clip in clips} | {f"{clip.dataset}/{clip.label}" for clip in clips}
    if lost := [old for old in table if old not in known]:
        labels = sorted({clip.label for clip in clips if clip.label is not None})
        raise ValueError(f"rename: no clip has label {few(lost)}; there are {', '.join(labels)}")
    found = []
    for clip in clips:
        label = clip.label or ""
        label = table.get(f"{clip.dataset}/{label}", table.get(label, label))
        found.append(_called(clip, label or None))
    return found


def three_classes(clips: Sequence[Clip]) -> list[Clip]:
    """Clips as negative, positive and surprise; other labels become None.

    Raises ValueError for a data set without such a table, and where `renamed` made a label of which
    the table knows nothing.
    """
    if strange := sorted({clip.dataset for clip in clips} - set(THREE_CLASSES)):
        raise ValueError(
            f"the three classes are defined for {', '.join(THREE_CLASSES)}, not for "
            f"{few([name or 'a folder without a data set' for name in strange])}: leave it out, or "
            "say what its labels become by --rename LABEL=CLASS … --classes own"
        )
    found = [_called(clip, _class_of(clip)) for clip in clips]
    pairs = zip(clips, found, strict=True)
    if lost := {a.label for a, b in pairs if a.label and b.label is None and _changed(a)}:
        raise ValueError(
            f"rename makes {few(sorted(lost))}, which is none of {', '.join(_THREE)}: rename to "
            "one of these or to a label of the data set, or set --classes own"
        )
    return found


def composite_differences(clips: Sequence[Clip]) -> list[str]:
    """How clips differ from the 442 of 68 subjects that MEGC 2019 counts: a note each."""
    notes = []
    found = Counter(clip.dataset for clip in clips)
    for dataset, published in COMPOSITE.items():
        if (n := found[dataset]) != published:
            notes.append(
                f"{dataset} has {n} clips, MEGC 2019 counts {published} ({n - published:+})"
            )
    subjects = len({clip.group("subject") for clip in clips})
    if subjects != COMPOSITE_SUBJECTS:
        less = subjects - COMPOSITE_SUBJECTS
        notes.append(f"{subjects} subjects, MEGC 2019 counts {COMPOSITE_SUBJECTS} ({less:+})")
    return notes


def _called(clip: Clip, label: str | None) -> Clip:
    """The same under another label, with the one in the shards."""
    return replace(clip, label=label, stored=clip.stored or clip.label)


def _changed(clip: Clip) -> bool:
    """Whether the study calls it otherwise than the shards."""
    return clip.stored not in (None, clip.label)


def _class_of(clip: Clip) -> str | None:
    """Of the three, by its data set; one that `renamed` gave it stays."""
    label = clip.label or ""
    known = THREE_CLASSES[clip.dataset].get(label)
    return label if known is None and _changed(clip) and label in _THREE else known

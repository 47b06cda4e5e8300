"""What leaks past a split that is disjoint by name: the same video twice, labels in names, and
initial weights that know the answers.

Owns finding these and the messages. Refuses to know protocols and training. Subjects on both sides
are found in `folds.py`. Videos are compared by their stored bytes: a second encoding of one
recording is not found.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from finetune.history import fine_tuned, record_of, shared_shards
from finetune.study.cohort import Clip, Group
from finetune.study.folds import Fold, Protocol, Refused
from shards.manifest import Manifest
from shards.wording import count, few

CERTAIN = 0.9
"""Share of the labels that a part of the names must tell to count as telling them."""
FEWEST = 20
GROUPS: tuple[Group, ...] = ("subject", "source")


@dataclass(frozen=True)
class Told:
    """Labels that can be read from names."""

    clips: int
    example: Clip
    how: str

    def __str__(self) -> str:
        return f"{count(self.clips, 'clip')}, such as {self.example.name} ({self.how})"


def check_names(made: Protocol, *, allowed: bool) -> list[str]:
    """Refuse subjects or sources that tell the label where clips are grouped by them, and clips
    whose names tell it.

    Args:
        allowed: names may tell it; that becomes a note for every result.
    """
    clips = made.clips
    used = {made.apart, *(by for fold in made.folds for by in fold.validation_by)}
    for by in GROUPS:
        if by not in used:
            continue
        known = [clip for clip in clips if clip.group(by)]
        told = tells_label(known, [str((clip.group(by) or ("", ""))[1]) for clip in known])
        if told:
            raise Refused(
                f"the {by}_id of {told} tells the label, so folds by {by} would be folds by class; "
                f"ingest with a {by}_id that names the {by} alone"
            )
    for what, name in (("key", lambda clip: clip.key), ("file name", lambda clip: clip.path)):
        looks = (tells_label(some, list(map(name, some))) for some in _named_alike(clips))
        if not (told := next(filter(None, looks), None)):
            continue
        note = f"the {what} of {told} tells the label"
        if not allowed:
            raise Refused(
                f"{note}. The network sees no names, but whatever sorts, draws or looks at clips "
                "by name sees the answer. Rename the files before ingest; where names are the data "
                "set's own, --allow_label_in_names goes on and says it in every result"
            )
        return [note]
    return []


def _named_alike(clips: Sequence[Clip]) -> list[list[Clip]]:
    """All clips, and those of each data set, which names its files in its own way; of fewer than
    FEWEST a name may tell the label by chance."""
    found = Counter(clip.dataset for clip in clips)
    sets = sorted(name for name, n in found.items() if FEWEST <= n < len(clips))
    return [list(clips), *([clip for clip in clips if clip.dataset == name] for name in sets)]


def tells_label(clips: Sequence[Clip], names: Sequence[str]) -> Told | None:
    """Whether labels can be read from the names, clip by clip; None if not.

    Either a name holds the word of a class and that is mostly the clip's own, or one part of the
    names, by its place from the front or the back, has few values and tells the label of nearly
    every clip from the other clips with that value (1001_DFA_ANG_XX: the third). Where a study
    renames labels, names may tell either.
    """
    parts = [words(name) for name in names]
    ours = tuple(clip.label or "" for clip in clips)
    theirs = tuple(clip.stored or clip.label or "" for clip in clips)
    for labels in dict.fromkeys((ours, theirs)):
        if told := _spelled(clips, labels, parts) or _coded(clips, labels, parts):
            return told
    return None


def words(name: str) -> list[str]:
    """Runs of letters or digits, in small letters: "HappyFace01" → happy, face, 01."""
    cut = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return [part.lower() for part in re.findall(r"[^\W\d_]+|[0-9]+", cut)]


def _spelled(
    clips: Sequence[Clip], labels: Sequence[str], parts: Sequence[list[str]]
) -> Told | None:
    """A class's word in names, where it is the clip's own in more than half of the cases."""
    spelled = {label: " ".join(words(label)) for label in set(labels) if re.search("[^0-9]", label)}
    named, own = 0, []
    for clip, label, found in zip(clips, labels, parts, strict=True):
        text = f" {' '.join(found)} "
        there = {name for name, word in spelled.items() if word and f" {word} " in text}
        named += bool(there)
        if label in there:
            own.append((clip, label))
    if len(own) <= named / 2:
        return None
    return Told(len(own), own[0][0], f"label {own[0][1]}")


def _coded(clips: Sequence[Clip], labels: Sequence[str], parts: Sequence[list[str]]) -> Told | None:
    """A part of the names that stands for the class without spelling it."""
    classes = Counter(labels)
    if len(classes) < 2 or classes.most_common(1)[0][1] > CERTAIN * len(labels):
        return None  # guessing the commonest class is as good
    longest = max(map(len, parts), default=0)
    for place in (*range(longest), *range(-longest, 0)):
        values = [p[place] if -len(p) <= place < len(p) else "" for p in parts]
        if not 2 <= len(set(values)) <= 2 * len(classes):
            continue
        right = _from_the_others(values, labels)
        if sum(right) >= CERTAIN * len(labels):
            at = right.index(True)
            return Told(sum(right), clips[at], f"{values[at]!r} goes with label {labels[at]}")
    return None


def _from_the_others(values: Sequence[str], labels: Sequence[str]) -> list[bool]:
    """Whether the other clips of the same value have mostly a clip's own label."""
    table: dict[str, Counter[str]] = defaultdict(Counter)
    for value, label in zip(values, labels, strict=True):
        table[value][label] += 1
    right = []
    for value, label in zip(values, labels, strict=True):
        own = table[value][label] - 1
        rest = max((n for name, n in table[value].items() if name != label), default=0)
        right.append(own > 0 and own >= rest)
    return right


def check_duplicates(made: Protocol, manifests: Sequence[Manifest]) -> list[str]:
    """Refuse a video that is on two sides of a fold under two names; a note on other duplicates."""
    twins = duplicates(made.clips, manifests)
    for fold in made.folds:
        side = _sides(fold, {clip.id for group in twins for clip in group})
        for group in twins:
            sides = {side[clip.id] for clip in group if clip.id in side}
            if len(sides) > 1:
                named = few([f"{clip.name} ({side[clip.id]})" for clip in group if clip.id in side])
                raise Refused(
                    f"fold {fold.name}: the same video under {len(group)} names on two sides: "
                    f"{named}; {count(len(twins), 'such group')}. Ingest without all but one of "
                    "each, give them one subject_id, or --drop_duplicates to keep the first of each"
                )
    if not twins:
        return []
    more = sum(map(len, twins)) - len(twins)
    return [f"{count(more, 'clip')} repeat another under another name, on the same side"]


def check_weights(
    made: Protocol, init: Path, origin: Mapping[str, str], *, allowed: bool
) -> Protocol:
    """The protocol with a note where initial weights have seen the study's shards.

    Refuses weights that were fine-tuned on them. What is not found: see `finetune.history`.

    Args:
        init: a folder that a run of ours wrote or registered, or a file.
        origin: the study's, with `input.manifest_N.sha256`.
        allowed: the weights may be fine-tuned on these shards; every table says so.
    """
    record = record_of(init)
    if not (seen := shared_shards(record, origin)):
        return made
    if not fine_tuned(record):
        note = f"initial weights were pretrained on these shards, without labels: {few(seen)}"
        return replace(made, notes=(*made.notes, note))
    if not allowed:
        raise Refused(
            f"{init} was fine-tuned on {few(seen)} of this study: it may know the labels that "
            "folds test. Start from a pretrained encoder, or --init None; where it saw no clip "
            "that is tested, --allow_trained_init goes on and says it in every table"
        )
    told = "initial weights were fine-tuned on these shards"
    return replace(made, leaks=(*made.leaks, told))


def without_duplicates(
    clips: Sequence[Clip], manifests: Sequence[Manifest]
) -> tuple[list[Clip], list[str]]:
    """The first of every group of equal videos; a note on the others, and on other labels among
    them.

    Args:
        clips: those that count under the study's labels, so that none gives way to one that does
            not.
    """
    twins = duplicates(clips, manifests)
    gone = {clip.id for group in twins for clip in group[1:]}
    if not gone:
        return list(clips), []
    names = [clip.name for clip in clips if clip.id in gone]
    notes = [f"{count(len(gone), 'clip')} left out that repeat another: {few(names)}"]
    torn = [group for group in twins if len({clip.label for clip in group}) > 1]
    if torn:
        named = few([f"{clip.name} ({clip.label})" for group in torn for clip in group])
        what = f"{count(len(torn), 'video')} with two labels, of which the first counts"
        notes.append(f"{what}: {named}")
    return [clip for clip in clips if clip.id not in gone], notes


def duplicates(clips: Iterable[Clip], manifests: Sequence[Manifest]) -> list[list[Clip]]:
    """Groups of clips whose stored videos are the same bytes, each in the order of the clips.

    Checksum, size and length of the indexes screen; only what agrees in them is read and hashed.
    """
    alike = defaultdict(list)
    for clip in clips:
        alike[clip.content].append(clip)
    found: dict[tuple[str, tuple[int, int, int]], list[Clip]] = defaultdict(list)
    for content, group in alike.items():
        for clip in group if len(group) > 1 else ():
            found[_sha256(clip, manifests), content].append(clip)
    return [group for group in found.values() if len(group) > 1]


def _sha256(clip: Clip, manifests: Sequence[Manifest]) -> str:
    folder, shard, offset = clip.place
    file = manifests[folder].open_tar(shard)
    try:
        return hashlib.sha256(os.pread(file, clip.content[1], offset)).hexdigest()
    finally:
        os.close(file)


def _sides(fold: Fold, ids: set[tuple[str, str]]) -> dict[tuple[str, str], str]:
    return {c.id: part for part, clips in fold.parts().items() for c in clips if c.id in ids}

"""What a fold is: its clips, its split file, and the proof that nothing of its test is trained on.

Owns the check that a fold's parts are disjoint and that every clip is tested once. Refuses to know
which protocol made the folds. What leaks through names and content is `leaks.py`.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from finetune.study.cohort import Clip, Group
from shards.wording import count, few

Name = Literal["folds", "split", "kfold", "loso", "lodo", "composite"]
PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Fold:
    """One training and its test."""

    name: str
    train: tuple[Clip, ...]
    validation: tuple[Clip, ...]
    test: tuple[Clip, ...]
    validation_by: tuple[Group | Literal["stored"], ...] = ()
    """What validation was carved out by: (subject,) where every clip names one, (subject, clip)
    where some go by themselves; (stored,); or () without one."""

    def parts(self) -> dict[str, tuple[Clip, ...]]:
        """By the names in the split file."""
        return dict(zip(PARTS, (self.train, self.validation, self.test), strict=True))


@dataclass(frozen=True)
class Protocol:
    """All folds, and what is claimed of them."""

    name: Name
    folds: tuple[Fold, ...]
    labels: tuple[str, ...]
    """Classes that occur, sorted."""
    apart: Group
    """No test group is trained on: subjects, sources, or clips alone."""
    each_once: bool
    """Every clip is tested by exactly one fold."""
    mapped: bool
    """The labels are not those of the shards."""
    notes: tuple[str, ...]
    """For every report."""
    leaks: tuple[str, ...] = ()
    """What was allowed by request and makes figures too good: it stands beside every one."""

    @property
    def clips(self) -> list[Clip]:
        """Those of the first fold, which are those of every fold; in the order of their names."""
        found = [clip for part in self.folds[0].parts().values() for clip in part]
        return sorted(found, key=lambda clip: clip.id)

    @property
    def shares_subjects(self) -> bool:
        """Somebody who is tested is trained on, too; `proves` refuses it unless it is allowed."""
        return any(_trained_on_tested(fold) for fold in self.folds)


class Refused(ValueError):
    """Clips that do not allow the protocol, or a split that leaks; says which, and the fix."""


def proves(made: Protocol, *, allow_shared_subjects: bool = False) -> list[str]:
    """Check what a protocol claims; returns notes on what it does not claim.

    Raises Refused where a clip is in two parts of a fold, a group that should be apart is on both
    sides, a subject is in training and test, or clips are not tested exactly once.
    """
    notes = _sources_shared(made)
    for fold in made.folds:
        known = (*fold.train, *fold.validation)
        _disjoint(fold, "clip", known, fold.test)
        _disjoint(fold, made.apart, known, fold.test)
        _disjoint(fold, "clip", fold.train, fold.validation)
        if fold.validation_by and (first := fold.validation_by[0]) != "stored":
            _disjoint(fold, first, fold.train, fold.validation)
        notes += _subjects_apart(fold, allow_shared_subjects)
        notes += _validated_on_known(fold)
        notes += _absent(fold)
    tested = Counter(clip.id for fold in made.folds for clip in fold.test)
    if twice := sorted("/".join(clip) for clip, n in tested.items() if n > 1):
        raise Refused(f"{count(len(twice), 'clip')} tested by more than one fold: {few(twice)}")
    if made.each_once and (missing := [c.name for c in made.clips if c.id not in tested]):
        raise Refused(f"{count(len(missing), 'clip')} tested by no fold: {few(missing)}")
    return notes


def split_table(fold: Fold, *, mapped: bool) -> bytes:
    """The split file: `dataset,key,split`, and `label` where labels are mapped."""
    lines = sorted(
        (clip.dataset, clip.key, part, *([clip.label or ""] if mapped else []))
        for part, clips in fold.parts().items()
        for clip in clips
    )
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerows([("dataset", "key", "split", *(["label"] if mapped else [])), *lines])
    return text.getvalue().encode()


def _disjoint(fold: Fold, by: Group, left: Iterable[Clip], right: Iterable[Clip]) -> None:
    """Raises Refused where a group has clips on both sides; an unknown group is no group."""
    known = {clip.group(by): clip for clip in left}
    for clip in right:
        group = clip.group(by)
        if group is not None and group in known:
            pair = f"{known[group].name} and {clip.name} are of one {by} ({'/'.join(group)}) and"
            what = f"{clip.name} is" if by == "clip" else pair
            raise Refused(
                f"fold {fold.name}: {what} in two parts of it; correct the annotations, or leave "
                "one of them out"
            )


def _subjects_apart(fold: Fold, allowed: bool) -> list[str]:
    """A note where subjects of the test are trained on. Raises Refused unless that is allowed."""
    if not (both := _trained_on_tested(fold)):
        return []
    subjects = sorted({clip.subject or "" for clip in both})
    seen = [clip for clip in fold.test if clip.group("subject") == both[0].group("subject")]
    what = (
        f"fold {fold.name}: {count(len(subjects), 'subject')} both trained on and tested, such as "
        f"{subjects[0]}: {both[0].name} in training, {seen[0].name} in test"
    )
    if not allowed:
        raise Refused(
            f"{what}. Use --protocol loso or kfold, or ingest with --holdout, which keep subjects "
            "apart; for an official split that is so, --allow_shared_subjects goes on and says it "
            "in every result"
        )
    return [what]


def _trained_on_tested(fold: Fold) -> list[Clip]:
    tested = {clip.group("subject") for clip in fold.test} - {None}
    return [c for c in (*fold.train, *fold.validation) if c.group("subject") in tested]


def _sources_shared(made: Protocol) -> list[str]:
    """A note where a film or recording is tested that is trained on, too: scenes help a network."""
    if made.apart == "source":
        return []
    shared: list[tuple[str, Clip]] = []
    for fold in made.folds:
        known = {clip.group("source") for clip in (*fold.train, *fold.validation)} - {None}
        shared += [(fold.name, clip) for clip in fold.test if clip.group("source") in known]
    if not shared:
        return []
    fold, clip = shared[0]
    return [
        f"{count(len(shared), 'test clip')} of a source that is trained on, too, such as "
        f"{clip.name} of {clip.source} in fold {fold}"
    ]


def _validated_on_known(fold: Fold) -> list[str]:
    """A note where a stored validation shows people of the training: it picks a step by them."""
    if fold.validation_by != ("stored",):
        return []
    trained = {clip.group("subject") for clip in fold.train} - {None}
    both = sorted({c.subject or "" for c in fold.validation if c.group("subject") in trained})
    if not both:
        return []
    subjects = count(len(both), "subject")
    return [f"fold {fold.name}: {subjects} of the validation trained on, too: {few(both)}"]


def _absent(fold: Fold) -> list[str]:
    """Classes that are tested and not trained on: they cannot be answered."""
    missing = sorted({c.label or "" for c in fold.test} - {c.label or "" for c in fold.train})
    if not missing:
        return []
    return [f"fold {fold.name}: no training clip of {', '.join(missing)}, which is tested"]

"""The protocols the field is judged by: what a fold trains on, validates on and is tested on.

Owns official folds, a stored split, k-fold, leave one subject out (LOSO), leave one data set out
(LODO) and the composite of MEGC 2019. Refuses to know how a fold is trained; that its parts are
disjoint is proved in `study/folds.py`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from finetune.study.cohort import (
    COMPOSITE,
    THREE_CLASSES,
    UNITS,
    Clip,
    Group,
    composite_differences,
    kinds_of,
    renamed,
    three_classes,
)
from finetune.study.dealing import deal, hold_out
from finetune.study.folds import PARTS, Fold, Name, Protocol, Refused, proves
from finetune.study.spelling import check_spelling
from shards.wording import count, few


@dataclass(frozen=True)
class ProtocolConfig:
    """How clips are split."""

    protocol: Name = "loso"
    """`folds`: the official folds, stored as splits fold1 … (ingest without --fold); `split`: the
    stored train and test; `kfold`; `loso`: leave one subject out; `lodo`: leave one data set out;
    `composite`: MEGC 2019, LOSO over SMIC-HS, CASME II and SAMM with three classes."""
    k: int = 5
    """Folds of kfold."""
    group: Group = "subject"
    """What kfold keeps together: clips of a subject, of a source (a film, a recording), or each
    clip by itself."""
    classes: Literal["own", "three"] | None = None
    """`three`: negative, positive, surprise; other labels are dropped. None is the protocol's way:
    three for composite, and for lodo of micro-expressions."""
    rename: tuple[str, ...] = ()
    """`LABEL=CLASS` or `DATASET/LABEL=CLASS`, so that data sets agree; `LABEL=` drops its clips."""
    validation_share: float = 0.15
    """Share of a fold's training clips that picks the best step: whole subjects, of clips without
    one sources, else single clips; a stored `val` is taken as it is. 0 trains on all that is not
    tested, also a stored `val`, and takes the last step."""
    split_seed: int = 0
    """Of kfold's folds and of what is held out for validation."""
    allow_shared_subjects: bool = False
    """Go on where a stored split tests on subjects that it trains on; every result says so."""

    def __post_init__(self) -> None:
        if self.k < 2:
            raise ValueError(f"k is {self.k}: use 2 or more")
        if not 0 <= self.validation_share < 0.9:
            raise ValueError(
                f"validation_share is {self.validation_share}: use 0 or more, below 0.9"
            )


def build(config: ProtocolConfig, clips: Sequence[Clip]) -> Protocol:
    """The folds of a protocol over labelled clips, proved disjoint.

    Raises Refused, and ValueError for settings that do not fit the clips.
    """
    clips, notes, mapped = labelled(config, clips)
    check_spelling(clips, _apart(config))
    tests, train_test, apart = _tests(config, clips)
    folds = tuple(_fold(config, name, test, clips, train_test) for name, test in tests.items())
    labels = tuple(sorted({clip.label for clip in clips if clip.label is not None}))
    each_once = config.protocol != "split"
    made = Protocol(config.protocol, folds, labels, apart, each_once, mapped, tuple(notes))
    more = proves(made, allow_shared_subjects=config.allow_shared_subjects)
    leaks = ("subjects of the test are trained on",) if made.shares_subjects else ()
    return replace(made, notes=(*notes, *more), leaks=leaks)


def labelled(config: ProtocolConfig, clips: Sequence[Clip]) -> tuple[list[Clip], list[str], bool]:
    """The clips that count, under the labels that count; notes; whether labels were changed."""
    notes: list[str] = []
    sets = {clip.dataset for clip in clips}
    micro = config.protocol == "lodo" and sets <= set(THREE_CLASSES)
    own_way = config.classes is None and (config.protocol == "composite" or micro)
    three = config.classes == "three" or own_way
    if config.protocol == "composite" and (strange := sorted(sets - set(COMPOSITE))):
        raise Refused(
            f"composite is {', '.join(COMPOSITE)}; {few([s or 'no data set' for s in strange])} is "
            "not part of it: leave those shards out, or use --protocol loso --classes three"
        )
    bare = sum(clip.label is None for clip in clips)
    found = renamed(clips, config.rename) if config.rename else list(clips)
    found = [clip for clip in found if clip.label is not None]
    found = three_classes(found) if three else found
    kept = [clip for clip in found if clip.label is not None]
    if bare:
        notes.append(f"{count(bare, 'clip')} without a label left out")
    if dropped := len(clips) - bare - len(kept):
        notes.append(f"{count(dropped, 'clip')} left out whose label is none of the classes")
    if len({clip.label for clip in kept}) < 2:
        raise Refused(
            f"{count(len(kept), 'clip')} of fewer than two classes: a study needs at least two; "
            "look at the labels with `python -m shards preview DIR`"
        )
    if config.protocol == "composite":
        notes += composite_differences(kept)
    return kept, notes, three or bool(config.rename)


def _tests(
    config: ProtocolConfig, clips: Sequence[Clip]
) -> tuple[dict[str, list[Clip]], bool, Group]:
    """Test clips of every fold; whether the stored split says what is trained on; what is apart."""
    if config.protocol == "folds":
        return _official(clips), False, "clip"
    if config.protocol == "split":
        return {"split": _stored(clips)}, True, "clip"
    if config.protocol == "lodo":
        sets = _by(clips, lambda clip: clip.dataset)
        if len(sets) < 2:
            raise Refused(
                f"lodo needs two data sets or more, here is {few(list(sets))}: name more shards"
            )
        return _named({("", name): found for name, found in sets.items()}), False, "clip"
    by = _apart(config)
    groups = _groups(clips, by, config.protocol)
    if config.protocol == "kfold":
        counts = {group: Counter(c.label or "" for c in found) for group, found in groups.items()}
        lists = deal(counts, config.k, config.split_seed)
        tests = {
            f"fold{i}": [c for g in members for c in groups[g]]
            for i, members in enumerate(lists, 1)
        }
        return tests, False, by
    if len(groups) < 2:
        raise Refused(f"{config.protocol} needs two subjects or more, here is {len(groups)}")
    return _named(groups), False, by


def _apart(config: ProtocolConfig) -> Group:
    """What folds go by, where they go by groups."""
    return config.group if config.protocol == "kfold" else "subject"


def _official(clips: Sequence[Clip]) -> dict[str, list[Clip]]:
    strange = [c.name for c in clips if not re.fullmatch(r"fold[0-9]+", c.split or "")]
    if strange:
        raise Refused(
            f"{count(len(strange), 'clip')} name no official fold as their split: {few(strange)}. "
            "Ingest DFEW and MAFW without --fold (splits fold1 … fold5); for shards of one fold "
            "use --protocol split"
        )
    found = _by(clips, lambda clip: clip.split or "")
    if len(found) < 2:
        raise Refused(
            f"folds trains on the other official folds, and all {count(len(clips), 'clip')} are of "
            f"{next(iter(found))}: name the shards of all folds, or use --protocol kfold"
        )
    return {name: found[name] for name in sorted(found, key=lambda name: int(name[4:]))}


def _stored(clips: Sequence[Clip]) -> list[Clip]:
    strange = [clip.name for clip in clips if clip.split not in PARTS]
    test = [clip for clip in clips if clip.split == "test"]
    if strange or not test or len(test) == len(clips):
        found = dict(Counter(clip.split or "none" for clip in clips))
        raise Refused(
            f"split needs the stored splits train and test (and may have val), found {found}"
            + (f", such as {few(strange)}" if strange else "")
            + "; ingest with a column split or --holdout test=0.2, or use --protocol kfold or loso"
        )
    return test


def _groups(clips: Sequence[Clip], by: Group, protocol: str) -> dict[tuple[str, str], list[Clip]]:
    """Clips by subject or source. Raises Refused where one is not known."""
    unknown = [clip.name for clip in clips if clip.group(by) is None]
    if unknown:
        other = " or --protocol kfold --group source" if by == "subject" else " or --group clip"
        raise Refused(
            f"{protocol} goes by {by}, and {len(unknown):,} of {count(len(clips), 'clip')} have no "
            f"{by}_id: {few(unknown)}. Ingest with a column {by}_id; without, use --protocol folds "
            f"or split where the data set has them,{other}"
        )
    return _by(clips, lambda clip: clip.group(by))


def _named(groups: dict[tuple[str, str], list[Clip]]) -> dict[str, list[Clip]]:
    """Groups under names that are folders' too. Raises Refused where two become the same."""
    found: dict[str, list[Clip]] = {}
    for (dataset, name), members in sorted(groups.items()):
        folder = re.sub(r"[^\w-]+", "_", f"{dataset}-{name}" if dataset else name) or "unnamed"
        if folder in found:
            raise Refused(f"two groups would have the fold {folder}: rename one at ingest")
        found[folder] = members
    return found


def _fold(
    config: ProtocolConfig, name: str, test: Sequence[Clip], clips: Sequence[Clip], stored: bool
) -> Fold:
    """A fold whose validation never touches its test."""
    test = sorted(test, key=lambda clip: clip.id)
    tested = {clip.id for clip in test}
    rest = [clip for clip in clips if clip.id not in tested]
    held = [clip for clip in rest if stored and clip.split == "val"]
    if held and config.validation_share:
        train = [clip for clip in rest if clip.split == "train"]
        return Fold(name, tuple(train), tuple(held), tuple(test), ("stored",))
    if not config.validation_share or len(rest) < 2:
        return Fold(name, tuple(rest), (), tuple(test))
    kinds, groups = _units(rest)
    counts = {group: Counter(c.label or "" for c in found) for group, found in groups.items()}
    chosen = hold_out(counts, config.validation_share, config.split_seed)
    picked = {clip.id for group in chosen for clip in groups[group]}
    val = [clip for clip in rest if clip.id in picked]
    train = [clip for clip in rest if clip.id not in picked]
    return Fold(name, tuple(train), tuple(val), tuple(test), kinds)


def _units(
    clips: Sequence[Clip], among: Sequence[Group] = UNITS
) -> tuple[tuple[Group, ...], dict[Hashable, list[Clip]]]:
    """What validation is carved out by, two or more, and their kinds: subjects, of clips without
    one sources, else single clips. Of one subject alone, sources; of one source, clips."""
    kinds = kinds_of(clips, among)
    # With the seed, names decide what is held out: those of a single kind stay as they are.
    mixed = len(kinds) > 1
    groups = _by(clips, lambda clip: clip.unit(among) if mixed else clip.unit(among)[1])
    return (kinds, groups) if len(groups) > 1 else _units(clips, among[1:])


def _by(clips: Iterable[Clip], key) -> dict:
    found = defaultdict(list)
    for clip in clips:
        found[key(clip)].append(clip)
    return dict(sorted(found.items()))

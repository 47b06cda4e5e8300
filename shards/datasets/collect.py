"""From a data set's root to items that ingest takes: reading, then the checks all data sets share.

Owns the validators that need the whole collection: duplicates, class counts, folds. Those of one
clip (onset ≤ apex ≤ offset inside the clip) are the adapters' and `schema.Record`'s.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from shards.datasets.contract import Dataset, Options
from shards.ingest.inputs import Annotation, Collected, InputError, Item, Refused, named
from shards.ingest.splits import split_subjects


def collect(dataset: Dataset, root: Path, options: Options) -> Collected:
    """Items in the order of their keys, refused rows, notes.

    Raises InputError where the root is not this data set, or the request does not fit it.
    """
    _check_request(dataset, root, options)
    found = dataset.read(dataset, root, options)
    items, twice = _once(found.items)
    items = named(_stamped(dataset, items))
    if not items and not found.refused:
        raise dataset.refuse(root, "clip")
    notes = [*found.notes, *_corrected(items), *_counted(dataset, items)]
    _check_subjects(dataset, items)
    return Collected(items, found.refused + twice, notes, found.settings)


def _check_request(dataset: Dataset, root: Path, options: Options) -> None:
    if not root.is_dir():
        raise dataset.refuse(root, "")
    if options.fold is not None and not 1 <= options.fold <= dataset.folds:
        known = f"1 to {dataset.folds}" if dataset.folds else "none"
        raise InputError(f"--fold is {options.fold}; {dataset.title} has folds: {known}")
    if options.variant is not None and not dataset.variants:
        raise InputError(f"{dataset.title} comes in one form; leave out --variant")
    for name in ("fps", "context"):
        if getattr(options, name) and name not in dataset.honours:
            raise InputError(f"--{name} changes nothing of {dataset.title}; leave it out")
    if options.annotations is not None and dataset.name != "table":
        raise InputError(
            f"{dataset.title} brings its own annotations; leave out --annotations, or take "
            "--dataset table for a table of yours"
        )


def _once(items: list[Item]) -> tuple[list[Item], list[Refused]]:
    """The first of the items with the same name, and the others as refused."""
    kept: dict[str, Item] = {}
    twice = []
    for item in items:
        if item.name in kept:
            twice.append(Refused(item.name, "is listed twice", "remove one of the rows"))
        else:
            kept[item.name] = item
    return list(kept.values()), twice


def _stamped(dataset: Dataset, items: list[Item]) -> list[Item]:
    """With what is the same for all clips, where the clip does not say it itself."""
    if dataset.own:
        return items
    known: dict[int, Annotation] = {}  # a million clips share their annotation with others
    stamped = []
    for item in items:
        a = item.annotation or Annotation()
        if id(a) not in known:
            known[id(a)] = replace(
                a,
                dataset=a.dataset or dataset.name,
                version=a.version or dataset.version,
                licence=a.licence or dataset.licence,
            )
        stamped.append(replace(item, annotation=known[id(a)]))
    return stamped


def _corrected(items: list[Item]) -> list[str]:
    """Which corrections were applied, and to how many clips."""
    ids = [item.annotation.patch_id for item in items if item.annotation]
    counts = Counter(one for known in ids if known for one in known.split("; "))
    if not counts:
        return []
    several = (f"{name} ({n})" if n > 1 else name for name, n in sorted(counts.items()))
    return [f"corrected: {', '.join(several)}"]


def _counted(dataset: Dataset, items: list[Item]) -> list[str]:
    """How the counts differ from those that were published."""
    known = [item.annotation for item in items if item.annotation]
    expected = dataset.expected
    differs = []
    if expected.clips not in (None, len(items)):
        differs.append(f"{len(items)} clips ({_by(len(items), expected.clips)})")
    subjects = len({a.subject_id for a in known if a.subject_id})
    if expected.subjects not in (None, subjects):
        differs.append(f"{subjects} subjects ({_by(subjects, expected.subjects)})")
    pairs = (("label", expected.labels), ("split", expected.splits))
    for kind, counts in pairs:
        seen = Counter(getattr(a, kind) for a in known)
        differs += [
            f"{kind} {name} {seen[name]} ({_by(seen[name], count)})"
            for name, count in counts.items()
            if seen[name] != count
        ]
    if not differs:
        return []
    return [f"not the published counts of {dataset.title}: {', '.join(differs)}"]


def _by(seen: int, expected: int | None) -> str:
    return f"{seen - (expected or 0):+d}, published {expected}"


def _check_subjects(dataset: Dataset, items: list[Item]) -> None:
    if not dataset.disjoint_subjects:
        return
    both = split_subjects(items)
    if both:
        raise InputError(
            f"{len(both)} subjects of {dataset.title} are in several splits, such as {both[0]}, "
            "which its protocol excludes; compare the folders or lists with the original ones"
        )

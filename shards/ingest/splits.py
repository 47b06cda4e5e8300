"""Splits by subject and source, and the order of labels. Arithmetic on names alone."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from shards.ingest.inputs import Annotation, InputError, Item

Name = tuple[int, str]
"""What a clip shows: 0 and its subject, 1 and its source, or 2 and its file."""


def hold_out(items: Sequence[Item], shares: Mapping[str, float]) -> list[Item]:
    """Gives every item a split: `shares` of the items by name, the rest "train".

    No subject and no source is in two. What hangs together is drawn in an order that depends on
    names alone, so that a collection that grows keeps most of its split.
    """
    group_of = groups(items)
    sizes = Counter(group_of)
    if len(sizes) <= len(shares):
        raise InputError(
            f"--holdout wants {len(shares) + 1} splits of {len(sizes)} subjects (those of one "
            "source count as one); one subject cannot be in two splits, so more are needed"
        )
    order = sorted(sizes, key=_drawn, reverse=True)  # taken from its end, which costs nothing
    split_of: dict[Name, str] = {}
    for left, (name, share) in zip(range(len(shares), 0, -1), shares.items(), strict=True):
        taken = 0
        while order and (not taken or taken < round(share * len(items))) and len(order) > left:
            group = order.pop()
            split_of[group] = name
            taken += sizes[group]
    return [
        _with_split(item, split_of.get(group, "train"))
        for item, group in zip(items, group_of, strict=True)
    ]


def groups(items: Sequence[Item]) -> list[Name]:
    """The group of every item, called by its least name: what shares a subject or a source with
    one of its items is of it too (connected components, by union-find)."""
    above: dict[Name, Name] = {}

    def top(name: Name) -> Name:
        while (up := above.setdefault(name, name)) != name:
            above[name] = above[up]  # shortens the way for the next
            name = up
        return name

    for first, *others in map(_names, items):
        for other in others:
            low, high = sorted((top(first), top(other)))
            above[high] = low
    return [top(next(_names(item))) for item in items]


def _names(item: Item) -> Iterator[Name]:
    a = item.annotation or Annotation()
    if a.subject_id:
        yield 0, a.subject_id
    if a.source_id:
        yield 1, a.source_id
    if not a.subject_id and not a.source_id:
        yield 2, item.relative


def _drawn(group: Name) -> tuple[str, Name]:
    return hashlib.sha256(group[1].encode("utf-8", "replace")).hexdigest(), group


def _with_split(item: Item, split: str) -> Item:
    return replace(item, annotation=replace(item.annotation or Annotation(), split=split))


def split_subjects(
    items: Iterable[Item], by: Literal["subject_id", "source_id"] = "subject_id"
) -> list[str]:
    """Subjects, or sources, that occur in more than one split."""
    splits: dict[str, set[str | None]] = {}
    for item in items:
        if item.annotation and (name := getattr(item.annotation, by)):
            splits.setdefault(name, set()).add(item.annotation.split)
    return sorted(name for name, found in splits.items() if len(found) > 1)


def label_order(labels: Iterable[str]) -> list[str]:
    """Class names in the order of their indices: numbers by value, names by alphabet."""
    names = set(labels)
    return sorted(names, key=int) if all(n.isdecimal() for n in names) else sorted(names)

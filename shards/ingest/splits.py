"""Splits by subject, and the order of labels. Arithmetic on names alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from shards.ingest.inputs import Annotation, InputError, Item


def hold_out(items: Sequence[Item], shares: Mapping[str, float]) -> list[Item]:
    """Gives every item a split: `shares` of the items by name, the rest "train", no subject in two.

    Subjects (else sources, else files) are drawn in an order that depends on their names alone, so
    that a collection that grows keeps most of its split.
    """
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(group_of(item), []).append(item)
    if len(groups) <= len(shares):
        raise InputError(
            f"--holdout wants {len(shares) + 1} splits of {len(groups)} subjects; one subject "
            "cannot be in two splits, so more are needed"
        )
    order = sorted(groups, key=lambda g: hashlib.sha256(g.encode("utf-8", "replace")).hexdigest())
    split_of: dict[str, str] = {}
    for left, (name, share) in zip(range(len(shares), 0, -1), shares.items(), strict=True):
        taken = 0
        while order and (not taken or taken < round(share * len(items))) and len(order) > left:
            group = order.pop(0)
            split_of[group] = name
            taken += len(groups[group])
    return [_with_split(item, split_of.get(group_of(item), "train")) for item in items]


def group_of(item: Item) -> str:
    """Whom or what the item shows: items of one group stay in one split."""
    a = item.annotation
    return (a and (a.subject_id or a.source_id)) or item.relative


def _with_split(item: Item, split: str) -> Item:
    return replace(item, annotation=replace(item.annotation or Annotation(), split=split))


def split_subjects(items: Iterable[Item]) -> list[str]:
    """Subjects that occur in more than one split."""
    splits: dict[str, set[str | None]] = {}
    for item in items:
        if item.annotation and item.annotation.subject_id:
            splits.setdefault(item.annotation.subject_id, set()).add(item.annotation.split)
    return sorted(subject for subject, names in splits.items() if len(names) > 1)


def label_order(labels: Iterable[str]) -> list[str]:
    """Class names in the order of their indices: numbers by value, names by alphabet."""
    names = set(labels)
    return sorted(names, key=int) if all(n.isdecimal() for n in names) else sorted(names)

"""A look through every index: which samples are of a split, and what the
records say of them that counts for the whole.

Owns what is known of a shard whose index is lost. Refuses to open tars.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.chance import apportion
from shards.index import ShardLost
from shards.manifest import Manifest
from shards.marks import marked
from shards.splitfile import Name, SplitFile, shown

AT_ONCE = 16
"""Indexes fetched from a URL at the same time."""


class Look(NamedTuple):
    """What one index says of the samples that belong."""

    positions: NDArray[np.int32]
    classes: NDArray[np.int32]
    subjects: frozenset[Name] = frozenset()
    unmarked: int = 0
    named: tuple[Name, ...] = ()
    """Those of a split file, of whichever split."""


class Survey(NamedTuple):
    """What was found, by the number of the shard."""

    positions: list[NDArray[np.int32]]
    """Of the samples that belong, in their shard."""
    classes: list[NDArray[np.int32]]
    """Of the same samples, -1 where unknown."""
    lost: dict[int, ShardLost]
    """Shards without an index."""
    subjects: tuple[tuple[str, str], ...]
    """(dataset, subject_id) of the samples that belong, sorted; no place for an unknown one."""
    unmarked: int
    """Samples that belong and whose apex nobody annotated."""
    absent: tuple[Name, ...]
    """Clips of the split file that no index has."""


def survey(
    manifests: Sequence[Manifest],
    *,
    split: str | None,
    classes: Mapping[str, int],
    chosen: SplitFile | None = None,
) -> Survey:
    """Look through all folders for a split, None for every sample.

    Places stay what they were where an index is lost: its shard has as many samples as its manifest
    counts. A split file says nothing of shards, so what others leave of its count is dealt out to
    lost ones by their sizes.

    Args:
        classes: a label's index.
        chosen: says what is of which split, and maybe of which class, instead of the records.

    Raises ManifestError where an index does not hold what its manifest counts, ValueError where two
    samples are one clip of the split file. CacheError passes.
    """
    looks = [look for m in manifests for look in _look_through(m, split, classes, chosen)]
    lost = {i: look for i, look in enumerate(looks) if isinstance(look, ShardLost)}
    shards = [shard for m in manifests for shard in m.shards]
    if chosen is None:
        hidden = [shards[i].count(split) for i in lost]
    else:
        seen = sum(len(look.positions) for look in looks if isinstance(look, Look))
        hidden = _dealt(chosen.count(split) - seen, [shards[i].samples for i in lost])
    blank = dict(zip(lost, map(_blank, hidden), strict=True))
    found = [look if isinstance(look, Look) else blank[i] for i, look in enumerate(looks)]
    return Survey(
        [look.positions for look in found],
        [look.classes for look in found],
        lost,
        tuple(sorted({subject for look in found for subject in look.subjects})),
        sum(look.unmarked for look in found),
        _absent(chosen, found),
    )


def _dealt(clips: int, sizes: Sequence[int]) -> list[int]:
    """So many clips over shards of these sizes, none where none can be."""
    if not any(sizes):
        return [0] * len(sizes)
    return apportion(max(0, clips), np.array(sizes, dtype=float)).tolist()


def _blank(count: int) -> Look:
    """Of a shard that is known to have so many samples that belong, and nothing else."""
    return Look(np.arange(count, dtype=np.int32), np.full(count, -1, dtype=np.int32))


def _absent(chosen: SplitFile | None, found: Sequence[Look]) -> tuple[Name, ...]:
    if chosen is None:
        return ()
    times = Counter(name for look in found for name in look.named)
    for name, count in times.items():
        if count > 1:
            raise ValueError(
                f"data.splits: {chosen.place} names {shown(name)}, and {count} clips are called so "
                "in data.shards: ingest the folders with different names in a column dataset"
            )
    return tuple(name for name in chosen.splits if name not in times)


def _look_through(
    manifest: Manifest,
    split: str | None,
    classes: Mapping[str, int],
    chosen: SplitFile | None,
) -> list[Look | ShardLost]:
    def look(i: int) -> Look | ShardLost:
        try:
            rows = manifest.index(i)
        except ShardLost as error:  # with a split file its places are dealt out for good
            return error if chosen is None else ShardLost(str(error))
        names = [(row.record.dataset, row.key) for row in rows]
        if chosen is None:
            kept = [at for at, row in enumerate(rows) if split in (None, row.record.split)]
            manifest.check_count(i, split, len(kept))
        else:
            splits = [chosen.splits.get(name) for name in names]
            kept = [at for at, s in enumerate(splits) if s is not None and split in (None, s)]
        records = [rows[at].record for at in kept]
        labels = [record.label for record in records]
        if chosen is not None and chosen.labels is not None:
            labels = [chosen.labels.get(names[at]) for at in kept]
        return Look(
            np.asarray(kept, dtype=np.int32),
            np.array([classes.get(label or "", -1) for label in labels], dtype=np.int32),
            frozenset((r.dataset, r.subject_id) for r in records if r.subject_id),
            sum(not marked(record) for record in records),
            tuple(name for name in names if name in chosen.splits) if chosen else (),
        )

    shards = range(len(manifest.shards))
    if isinstance(manifest.folder, Path):
        return [look(i) for i in shards]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(look, shards))

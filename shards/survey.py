"""A look through every index: which samples are of a split, and of which class each is.

Owns what is known of a shard whose index is lost. Refuses to open tars.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.chance import apportion
from shards.index import ShardLost
from shards.manifest import Manifest

AT_ONCE = 16
"""Indexes fetched from a URL at the same time."""

Seen = tuple[NDArray[np.int32], NDArray[np.int32]]
"""Positions of the samples that belong, and their classes."""


class Survey(NamedTuple):
    """What was found, by the number of the shard."""

    positions: list[NDArray[np.int32]]
    """Of the samples that belong, in their shard."""
    classes: list[NDArray[np.int32]]
    """Of the same samples, -1 where unknown."""
    lost: dict[int, ShardLost]
    """Shards without an index."""


def survey(
    manifests: Sequence[Manifest], *, split: str | None, classes: Mapping[str, int]
) -> Survey:
    """Look through all folders for a split, None for every sample.

    A shard whose index is lost gets as many samples as the manifest's count of the split leaves
    over, several of them by their sizes, so that places stay what they were. CacheError passes.
    """
    found = Survey([], [], {})
    for manifest in manifests:
        looks = _look_through(manifest, split, classes)
        seen = sum(len(look[0]) for look in looks if isinstance(look, tuple))
        total = manifest.samples if split is None else manifest.splits.get(split, 0)
        sizes = [shard.samples for shard in manifest.shards]
        gone = [i for i, look in enumerate(looks) if not isinstance(look, tuple)]
        rest = np.zeros(len(looks), dtype=np.int64)
        if gone and any(sizes[i] for i in gone):
            rest[gone] = apportion(total - seen, np.array([sizes[i] for i in gone], dtype=float))
        for i, look in enumerate(looks):
            if isinstance(look, ShardLost):
                found.lost[len(found.positions)] = look
                look = np.arange(rest[i], dtype=np.int32), np.full(rest[i], -1, dtype=np.int32)
            found.positions.append(look[0])
            found.classes.append(look[1])
    return found


def _look_through(
    manifest: Manifest, split: str | None, classes: Mapping[str, int]
) -> list[Seen | ShardLost]:
    def look(i: int) -> Seen | ShardLost:
        try:
            rows = [row.record for row in manifest.index(i)]
        except ShardLost as error:
            return error
        kept = [at for at, record in enumerate(rows) if split in (None, record.split)]
        labels = [classes.get(rows[at].label or "", -1) for at in kept]
        return np.asarray(kept, dtype=np.int32), np.asarray(labels, dtype=np.int32)

    shards = range(len(manifest.shards))
    if isinstance(manifest.folder, Path):
        return [look(i) for i in shards]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(look, shards))

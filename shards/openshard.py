"""The open files of one shard.

Owns which of a shard's samples are of a split, found when it is opened, and where their lines are.
Refuses to know other shards, and what a line says.
"""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import ArrayLike

from shards.manifest import Manifest


class OpenShard:
    """Closed with the object. Of the index only the places of lines are held, so that memory does
    not grow with what the records of open shards say.

    Args:
        split: whose samples belong, by the records; None keeps all.
        kept: positions of those that belong, instead of `split`.

    Raises ShardLost where the index is lost, CacheError, and ManifestError where it does not hold
    as many samples of the split as the manifest counts.
    """

    def __init__(
        self,
        manifest: Manifest,
        i: int,
        *,
        split: str | None = None,
        kept: ArrayLike | None = None,
    ):
        lines = manifest.index_lines(i)
        if kept is None and split is not None:
            kept = manifest.positions(i, split, lines)
        sizes = np.array([len(line) + 1 for line in lines], dtype=np.int64)
        places = np.stack([np.cumsum(sizes) - sizes, sizes], axis=1)
        self._places = places if kept is None else places[np.asarray(kept, dtype=np.int64)]
        self.index = manifest.open_index(i)
        self.tar: int | None = None
        self.used = 0.0
        """When, by the monotonic clock."""

    def line(self, sample: int) -> bytes:
        """Of the index, of the shard's `sample`-th sample that belongs."""
        start, size = self._places[sample].tolist()
        return os.pread(self.index, size, start)

    def __del__(self) -> None:
        for name in ("tar", "index"):
            if (file := self.__dict__.get(name)) is not None:
                os.close(file)

"""One shard that is being read.

Owns which of a shard's samples are of a split, found when it is opened, where their lines are, and
its open files. Refuses to know other shards, and what a line says.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from shards.manifest import Manifest
from shards.patience import patiently

READ_PATIENCE = 10.0
"""Seconds in which a fault of reading may pass: every sample of a broken disk costs them."""


class OpenShard:
    """Files of a folder at hand stay open until the object goes. Those in a cache are opened for
    every reading, so that the cache may delete them between two: one that does is asked for them
    again. Of the index only the places of lines are held, so that memory does not grow with what
    the records of open shards say.

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
        self._manifest, self._i = manifest, i
        self._at_hand = isinstance(manifest.folder, Path)
        self._open: dict[str, int] = {}
        self.used = 0.0
        """When, by the monotonic clock."""

    def line(self, sample: int) -> bytes:
        """Of the index, of the shard's `sample`-th sample that belongs. Raises ShardLost,
        CacheError."""
        start, size = self._places[sample].tolist()
        try:
            return self._read("index", self._manifest.open_index, size, start)
        except OSError as error:
            raise self._manifest.index_lost(self._i, error) from error

    def video(self, size: int, offset: int) -> bytes:
        """Bytes of the tar, fewer where it ends before. Raises ShardLost, CacheError, OSError."""
        return self._read("tar", self._manifest.open_tar, size, offset)

    def _read(self, name: str, opened: Callable[[int], int], size: int, start: int) -> bytes:
        def once() -> bytes:
            file = self._open.pop(name, None)
            file = opened(self._i) if file is None else file
            try:
                data = os.pread(file, size, start)
            except OSError:
                os.close(file)  # of a network disk, it may have gone stale
                raise
            if self._at_hand:
                self._open[name] = file
            else:
                os.close(file)
            return data

        what = f"{name} of {self._manifest.shards[self._i].name}"
        return patiently(once, what, limit=READ_PATIENCE)

    def __del__(self) -> None:
        for file in self.__dict__.get("_open", {}).values():
            os.close(file)

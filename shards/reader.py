"""Clips out of several shard folders that are read as one collection.

Owns which samples belong to the collection, their class indices, and the open files of a process.
Refuses to know order, decoding and batches. Files open when they are first needed and never travel
to another process, so a collection can be handed to loader workers however they are started.
"""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.index import IndexRow, broken, index_name
from shards.manifest import Manifest
from shards.schema import Record

OPEN_SHARDS = 128
"""Kept open by a process: more than the streams of a rank, less than the usual 1024 files."""


class ReadError(ValueError):
    """A sample that is not the one that was written."""


class Collection:
    """Shard folders as one list of shards.

    Args:
        manifests: opened folders, whose label names must be the same.
        keep: which records belong; None keeps all, without reading any index.

    Raises ValueError where the labels differ.
    """

    def __init__(self, manifests: Sequence[Manifest], *, keep: Callable[[Record], bool] | None):
        self.labels = _common_labels(manifests)
        self._manifests = tuple(manifests)
        self._first = np.cumsum([0] + [len(m.shards) for m in manifests])
        self._kept: list[NDArray[np.int32]] | None = None
        if keep is not None:
            kept = [positions for m in manifests for positions in m.select(keep)]
            self._kept = [np.asarray(positions, dtype=np.int32) for positions in kept]
        self._class = {name: i for i, name in enumerate(self.labels)}
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()

    @property
    def counts(self) -> list[int]:
        """Kept samples of every shard."""
        if self._kept is not None:
            return [len(positions) for positions in self._kept]
        return [shard.samples for m in self._manifests for shard in m.shards]

    def row(self, shard: int, sample: int) -> IndexRow:
        """The row of a shard's `sample`-th kept sample; ManifestError if the shard is lost."""
        position = sample if self._kept is None else int(self._kept[shard][sample])
        manifest, i = self._locate(shard)
        return manifest.parse_row(i, self._opened(shard).line(position))

    def video(self, shard: int, row: IndexRow) -> bytes:
        """The mp4 of a row. Raises ReadError where the bytes are not the ones written."""
        try:
            data = os.pread(self._opened(shard).tar, row.size, row.offset)
        except OSError as error:
            raise ReadError(f"cannot be read: {error.strerror}") from None
        if len(data) != row.size:
            raise ReadError(f"was cut: {len(data)} of {row.size} bytes are there")
        if zlib.crc32(data) != row.crc32:
            raise ReadError("was changed since it was written: its crc32 differs")
        return data

    def label(self, record: Record) -> int:
        """The class index of a record, -1 without a label. ReadError for an unlisted label."""
        if record.label is None:
            return -1
        if record.label not in self._class:
            raise ReadError(f"has label {record.label!r}, the manifest lists {list(self.labels)}")
        return self._class[record.label]

    def path(self, shard: int) -> Path:
        """The tar of a shard."""
        manifest, i = self._locate(shard)
        return manifest.folder / manifest.shards[i].name

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": OrderedDict()}

    def _locate(self, shard: int) -> tuple[Manifest, int]:
        m = int(np.searchsorted(self._first, shard, side="right")) - 1
        return self._manifests[m], shard - int(self._first[m])

    def _opened(self, shard: int) -> _OpenShard:
        if shard not in self._open:
            self._open[shard] = _OpenShard(*self._locate(shard))
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(shard)
        return self._open[shard]


class _OpenShard:
    """The open files of one shard, closed with the object. Only the places of the index's lines are
    held, so that memory does not grow with the shards that are open."""

    def __init__(self, manifest: Manifest, i: int):
        lines = manifest.index_lines(i)
        self._starts = np.cumsum([0] + [len(line) + 1 for line in lines])
        tar = manifest.folder / manifest.shards[i].name
        self.tar = _open(tar)
        self.index = _open(tar.with_name(index_name(tar.name)))

    def line(self, position: int) -> bytes:
        start, end = self._starts[position : position + 2].tolist()
        return os.pread(self.index, end - start, start)

    def __del__(self) -> None:
        for name in ("tar", "index"):
            if name in self.__dict__:
                os.close(self.__dict__[name])


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise broken(path, f"cannot be opened ({error.strerror})") from None


def _common_labels(manifests: Sequence[Manifest]) -> tuple[str, ...]:
    """The labels of all folders that have any; an index would mean two things if they differed."""
    labelled = [m for m in manifests if m.labels]
    if not labelled:
        return ()
    first = labelled[0]
    for other in labelled[1:]:
        if other.labels != first.labels:
            raise ValueError(
                f"shard folders with different labels cannot be read together: {first.folder} has "
                f"{list(first.labels)}, {other.folder} has {list(other.labels)}; ingest both with "
                "the same set of label names"
            )
    return first.labels

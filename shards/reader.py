"""Clips out of several shard folders that are read as one collection.

Owns which samples belong to the collection, their class indices, which shards are lost, and the
open files of a process. Refuses to know order, decoding and batches. Files open when they are first
needed and never travel to another process, so a collection can be handed to loader workers however
they are started.
"""

from __future__ import annotations

import time
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.cache import CacheError
from shards.index import IndexRow, ShardLost
from shards.ledger import Skip
from shards.manifest import Manifest
from shards.openshard import OpenShard
from shards.place import Remote
from shards.presence import told
from shards.schema import Record
from shards.splitfile import SplitFile
from shards.survey import Survey, survey

OPEN_SHARDS = 256
"""Kept open by a process, with two files each: more than the streams of a rank, also of a mixture
of several folders, less than the usual 1024 files."""
IDLE = 60.0
"""Seconds after which an unused shard is closed: its files and its share of memory."""


class ReadError(ValueError):
    """A sample that is not the one that was written."""


class Collection:
    """Shard folders as one list of shards.

    Args:
        manifests: opened folders, whose label names must be the same, unless `chosen` has some.
        split: which samples belong; None keeps all. The manifests count them, an index is read
            when its shard is.
        chosen: says what is of which split, and maybe of which class, instead of the records;
            without a split all that it names belongs. It has every index read at once.
        lost: shards that are known not to be there in full.
        skip: samples that are not to be tried.

    Raises ValueError where the labels differ, and where two samples are one clip of `chosen`.
    """

    def __init__(
        self,
        manifests: Sequence[Manifest],
        *,
        split: str | None = None,
        chosen: SplitFile | None = None,
        lost: Mapping[int, ShardLost] | None = None,
        skip: Skip | None = None,
    ):
        relabelled = None if chosen is None else chosen.classes
        self.relabelled = relabelled is not None
        """Whether `chosen` has other labels than the shards."""
        self.labels = _common_labels(manifests) if relabelled is None else relabelled
        self.manifests = tuple(manifests)
        self.lost: dict[int, ShardLost] = dict(lost or {})
        """Shards that are not there, those that this process has met included. One that is away
        (`ShardAway`) is tried again, and leaves when it is read."""
        self.unindexed: dict[int, ShardLost] = {}
        """Those of them that lack their index, as far as one was asked for it."""
        self._first = np.cumsum([0] + [len(m.shards) for m in manifests])
        self._class = {name: i for i, name in enumerate(self.labels)}
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._skip = skip or {}
        self._stored = split if chosen is None else None
        """The split by the records."""
        self._survey: Survey | None = None
        self._chosen = None if chosen is None else (chosen.place, chosen.sha256)
        if chosen is not None:
            self._look(split, chosen)

    @property
    def counts(self) -> list[int]:
        """Kept samples of every shard."""
        if self._chosen is not None:
            return [len(positions) for positions in self._surveyed().positions]
        return [shard.count(self._stored) for m in self.manifests for shard in m.shards]

    @property
    def classes(self) -> list[NDArray[np.int32]]:
        """The class index of every kept sample of every shard, -1 without one; reads every
        index."""
        return self._surveyed().classes

    @property
    def rejected(self) -> int:
        """Videos of the split that ingest could not use: no sample stands for them. 0 where the
        split is that of a file, which names samples."""
        split, every = self._stored, [m.rejected for m in self.manifests]
        if self._chosen is not None:
            return 0
        return sum(sum(r.values()) if split is None else r.get(split, 0) for r in every)

    @property
    def subjects(self) -> tuple[tuple[str, str], ...]:
        """(dataset, subject_id) of the kept samples, sorted; reads every index."""
        return self._surveyed().subjects

    @property
    def unmarked(self) -> int:
        """Kept samples whose apex nobody annotated (`shards.marks.marked`); reads every index."""
        return self._surveyed().unmarked

    @property
    def absent(self) -> tuple[tuple[str, str], ...]:
        """(dataset, key) of what the split file names and no index has."""
        return self._survey.absent if self._survey is not None else ()

    @property
    def inputs(self) -> dict[str, tuple[str, str]]:
        """Place and sha256 of every manifest and of the split file, by name: for the record of a
        run."""
        origins = {f"manifest_{i}": m.origin for i, m in enumerate(self.manifests)}
        return origins if self._chosen is None else {**origins, "splits": self._chosen}

    @property
    def told(self) -> dict[str, str]:
        """The lost shards, for other processes that open the same folders."""
        return told(self.lost)

    def row(self, shard: int, sample: int) -> IndexRow:
        """The row of a shard's `sample`-th kept sample, with the label that counts; ShardLost if
        there is no index."""
        manifest, i = self._locate(shard)
        try:
            row = manifest.parse_row(i, self._opened(shard).line(sample))
        except ShardLost as error:
            self.lost[shard] = self.unindexed[shard] = error
            raise
        self.unindexed.pop(shard, None)
        if not self.relabelled:
            return row
        at = int(self.classes[shard][sample])
        return replace(row, record=replace(row.record, label=self.labels[at] if at >= 0 else None))

    def video(self, shard: int, row: IndexRow) -> bytes:
        """The mp4 of a row. Raises ReadError where the bytes are not the ones written, ShardLost,
        and CacheError."""
        try:
            return self._sound(shard, row)
        except ReadError:
            self._forget(shard)
        return self._sound(shard, row)

    def label(self, record: Record) -> int:
        """The class index of a record, -1 without a label. ReadError for an unlisted label."""
        if record.label is None:
            return -1
        if record.label not in self._class:
            raise ReadError(f"has label {record.label!r}, the manifest lists {list(self.labels)}")
        return self._class[record.label]

    def skips(self, shard: int, key: str) -> bool:
        """Whether a sample is not to be tried."""
        return key in self._skip.get(self.sha256(shard), ())

    def path(self, shard: int) -> Path | Remote:
        """The tar of a shard."""
        manifest, i = self._locate(shard)
        return manifest.folder / manifest.shards[i].name

    def sha256(self, shard: int) -> str:
        """Of the tar of a shard, by its manifest."""
        manifest, i = self._locate(shard)
        return manifest.shards[i].sha256

    def warm(self, shard: int) -> None:
        """Fetch a shard into the cache ahead of its time, with one try: what goes wrong shows when
        it is read."""
        manifest, i = self._locate(shard)
        try:
            manifest.warm(i)
        except (ShardLost, CacheError):
            return

    def __getstate__(self) -> dict:
        """Of a survey others need what a split file says, and can look for the rest themselves."""
        survey = None if self._chosen is None else self._survey
        return {**self.__dict__, "_open": OrderedDict(), "_survey": survey}

    def _surveyed(self) -> Survey:
        return self._survey if self._survey is not None else self._look(self._stored)

    def _look(self, split: str | None, chosen: SplitFile | None = None) -> Survey:
        found = survey(self.manifests, split=split, classes=self._class, chosen=chosen)
        self._survey = found
        self.lost = {**found.lost, **self.lost}
        self.unindexed |= found.lost
        return found

    def _locate(self, shard: int) -> tuple[Manifest, int]:
        m = int(np.searchsorted(self._first, shard, side="right")) - 1
        return self.manifests[m], shard - int(self._first[m])

    def _sound(self, shard: int, row: IndexRow) -> bytes:
        _refuse(self.lost.get(shard))
        held = self._opened(shard)
        try:
            data = held.video(row.size, row.offset)
        except ShardLost as error:
            self.lost[shard] = error
            raise
        except OSError as error:
            raise ReadError(f"cannot be read: {error.strerror}") from None
        self.lost.pop(shard, None)
        if len(data) != row.size:
            raise ReadError(f"was cut: {len(data)} of {row.size} bytes are there")
        if zlib.crc32(data) != row.crc32:
            raise ReadError("was changed since it was written: its crc32 differs")
        return data

    def _forget(self, shard: int) -> None:
        """Begin anew with a shard: it may have been damaged in the cache, which it was sound to
        enter, or put back, or an open file of a network disk may have gone stale."""
        if isinstance(tar := self.path(shard), Remote):
            tar.cache.drop(self.sha256(shard))
        self._open.pop(shard, None)

    def _opened(self, shard: int) -> OpenShard:
        _refuse(self.unindexed.get(shard))
        if shard not in self._open:
            self._open[shard] = self._open_shard(shard)
        held = self._open[shard]
        held.used = time.monotonic()
        self._open.move_to_end(shard)
        while len(self._open) > OPEN_SHARDS or self._oldest().used < held.used - IDLE:
            self._open.popitem(last=False)
        return held

    def _open_shard(self, shard: int) -> OpenShard:
        manifest, i = self._locate(shard)
        kept = None if self._chosen is None else self._surveyed().positions[shard]
        return OpenShard(manifest, i, split=self._stored, kept=kept)

    def _oldest(self) -> OpenShard:
        return next(iter(self._open.values()))


def _refuse(known: ShardLost | None) -> None:
    """Raises what was met before, unless it may have passed."""
    if known is not None and known.stands:
        raise known.with_traceback(None)  # else it would grow with every sample


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
                f"{list(first.labels)}, {other.folder} has {list(other.labels)}; name the classes "
                "of all clips in a split file with a column label (data.splits)"
            )
    return first.labels

"""Shards fetched before they are needed, while the batches before them are read.

Owns how far ahead is looked, and the threads that fetch. Refuses to judge what cannot be fetched:
who reads it meets the same error.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

from shards.order import PADDING
from shards.places import Places
from shards.reader import Collection

THREADS = 4
CLIPS = 128
"""Clips of every stream that are looked ahead."""


class Ahead:
    """Fetches the shards of coming places into the cache; does nothing where all are at hand."""

    def __init__(self, collection: Collection, places: Places):
        self._collection = collection
        away = any(not isinstance(m.folder, Path) for m in collection.manifests)
        self._coming = iter(places if away else ())
        self._asked: OrderedDict[int, int] = OrderedDict()
        """Shards within sight, and the last micro-batch that needs each."""
        self._seen = 0
        self._wanted: SimpleQueue[int | None] = SimpleQueue()
        self._closed = False
        for _ in range(THREADS if away else 0):  # daemons: a program's end waits for no download
            Thread(target=self._fetch, name="shards-ahead", daemon=True).start()
        self._sight = max(1, CLIPS // places.order.per_stream) * places.a_step
        self.reach(self._sight)

    def reach(self, micro_batches: int = 1) -> None:
        """Look this many micro-batches further."""
        for _, slots in zip(range(micro_batches), self._coming, strict=False):
            self._seen += 1
            for shard in dict.fromkeys(slot.shard for slot in slots if slot.shard != PADDING):
                if shard not in self._asked:
                    self._wanted.put(shard)
                self._asked[shard] = self._seen
                self._asked.move_to_end(shard)
            # A cache smaller than the set may have deleted it when the next epoch needs it.
            while self._asked and next(iter(self._asked.values())) <= self._seen - self._sight:
                self._asked.popitem(last=False)

    def close(self) -> None:
        """Fetch nothing more; what is on its way is finished by itself."""
        self._closed = True
        for _ in range(THREADS):
            self._wanted.put(None)

    def _fetch(self) -> None:
        while (shard := self._wanted.get()) is not None and not self._closed:
            self._collection.warm(shard)

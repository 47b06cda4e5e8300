"""How fast this machine makes clips of these shards: a few of them, loaded as a training would.

Owns the measurement. Refuses to know who asks and what is fast enough.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from shards.clips import Clips, Trouble
from shards.config import DataConfig
from shards.ledger import Failure
from shards.order import PADDING, Order, Slot
from shards.reader import Collection
from shards.stream import open_collection

TOGETHER = 4
"""Clips put together at once; the first lot only warms up."""


@dataclass(frozen=True)
class Speed:
    """What was measured on one core."""

    clips: int
    """How many were loaded soundly and timed."""
    core_seconds: float
    """Processor time they took."""
    seconds: float
    """Time on the clock: more than `core_seconds` where the disk or other programs came between."""
    tried: int
    """Those that could not be read, too."""
    troubles: tuple[str, ...]
    """Why some could not be read."""

    @property
    def per_core(self) -> float:
        """Clips a second that one core makes; 0 where not one could be read."""
        return self.clips / self.core_seconds if self.clips and self.core_seconds else 0.0

    @property
    def waiting(self) -> float:
        """Share of the time on the clock in which this core did not work."""
        return max(0.0, 1 - self.core_seconds / self.seconds) if self.seconds else 0.0


def measure(
    data: DataConfig,
    *,
    seconds: float,
    most: int | None = None,
    collection: Collection | None = None,
) -> Speed:
    """Load training clips of `data` for so many seconds, or so many clips, in this process.

    Clips go the whole way of the loader, from reading to the batch. Without an open `collection`
    splits are ignored: a split file has every index read, and clips of all splits take the same.
    Raises ManifestError and ValueError like `open_clips`.
    """
    if collection is None:
        collection = open_collection(replace(data, split=None, splits=None))
    clips = Clips.of(collection, data, train=True)
    troubles: list[str] = []
    timed = tried = 0
    with _one_core():
        start, core = time.perf_counter(), time.process_time()
        for turn, slots in enumerate(_lots(collection.counts, data.seed)):
            _, failed = clips.__getitems__(slots)
            tried += len(slots)
            troubles += [str(getattr(t, "reason", t)) for t in failed if not _known(t)]
            if turn == 0:
                start, core = time.perf_counter(), time.process_time()
            else:
                timed += len(slots) - len(failed)
            late = time.perf_counter() - start > seconds
            if turn and (late or (most and tried >= most)):  # on a busy machine even turn 0 is late
                break
        spent, used = time.perf_counter() - start, time.process_time() - core
    return Speed(timed, used, spent, tried, tuple(troubles))


def _known(trouble: Trouble) -> bool:
    """Whether the sample is left out on purpose (`data.skip`)."""
    return isinstance(trouble, Failure) and trouble.kind == "skipped"


def _lots(counts: list[int], seed: int) -> Iterator[list[Slot]]:
    """Places in the order of training, a lot at a time, without padding and without end."""
    order = Order(counts, streams=TOGETHER, global_batch=TOGETHER, seed=seed, shuffle=True)
    for step in itertools.count():
        if slots := [slot for slot in order.slots(step) if slot.shard != PADDING]:
            yield slots


@contextmanager
def _one_core() -> Iterator[None]:
    """OpenCV as in a loader process, where it has no threads of its own."""
    import cv2

    threads = cv2.getNumThreads()
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)

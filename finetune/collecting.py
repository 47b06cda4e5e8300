"""What ranks find out about single clips, in one place: whose clip it is, and gathering the rows.

Owns the pairing of a batch's places with the records of what stands in them. Keys alone do not do:
two folders may use the same. It knows no network and no figures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from finetune.metrics import LabelledBatch
from shards.index import IndexRow
from shards.stream import ClipStream


class Clips:
    """The clips of a stream, a batch at a time, from its first one on.

    Args:
        stream: in evaluation, every clip once.
    """

    def __init__(self, stream: ClipStream):
        self._places, self._collection = iter(stream.places), stream.collection
        self.read = 0
        self.unread = 0

    def of(self, batch: LabelledBatch) -> list[IndexRow | None]:
        """The row of every clip of the next batch; None for padding and for what was not read."""
        rows: list[IndexRow | None] = []
        weights = batch.weights.tolist()
        for key, weight, slot in zip(batch.keys, weights, next(self._places), strict=True):
            row = self._collection.row(slot.shard, slot.sample) if weight > 0 else None
            assert row is None or row.key == key, f"{key!r} was read in the place of {row}"
            self.read += row is not None
            self.unread += bool(key) and row is None
            rows.append(row)
        return rows

    def counted(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """`clips`, `unread` and `coverage`, the share that was read, over all ranks.

        Raises:
            ValueError: not one clip was read.
        """
        counts = reduce(torch.tensor([self.read, self.unread], dtype=torch.float64))
        clips, unread = counts.tolist()
        if not clips:
            raise ValueError(f"none of {unread:.0f} clips could be read: the ledger says why")
        return {"clips": clips, "unread": unread, "coverage": clips / (clips + unread)}


def check_read(stream: ClipStream) -> None:
    """TooManyFailures, the same on every rank, where all together could not read more of a stream
    that has ended than its `max_failed_share`."""
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, stream.unreadable)
    stream.judge({which: failure for part in everyone for which, failure in part.items()})


def gathered(mine: Any) -> list[Any] | None:
    """What every rank brings, in the order of ranks, on rank 0; None on the others."""
    everyone = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(mine, everyone)
    return everyone


def person(row: IndexRow) -> str | None:
    """Who a clip shows, as one name; None where unknown. Data sets share no people."""
    facts = row.record
    return None if facts.subject_id is None else f"{facts.dataset}/{facts.subject_id}"

"""The places of one rank: which samples its batches hold, step by step.

Owns the cutting of steps into micro-batches. Refuses to know what an order is made of, and to read.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from shards.order import Order, Slot


@dataclass(frozen=True)
class Places:
    """The places of one rank, a micro-batch at a time, in the order of steps.

    A step goes through the streams again and again and takes one sample of each, from the next one
    at the next place: what stands side by side in a micro-batch is then of different shards, as far
    as there are streams, and of all the folders of a mixture, which take turns along the places.
    Mixing pairs neighbours, and those of one shard are often of one class.
    """

    order: Order
    micro_batch: int
    rank: int
    world: int
    start_step: int
    endless: bool

    @property
    def a_step(self) -> int:
        """Micro-batches of a step."""
        order = self.order
        return order.streams * order.per_stream // (self.world * self.micro_batch)

    def __iter__(self) -> Iterator[list[Slot]]:
        first = self.start_step
        last = self.order.steps_per_epoch
        for step in itertools.count(first) if self.endless else range(first, last):
            slots = self.order.slots(step, rank=self.rank, world=self.world)
            slots.sort(key=self._turn)
            for i in range(0, len(slots), self.micro_batch):
                yield slots[i : i + self.micro_batch]

    def _turn(self, slot: Slot) -> tuple[int, int]:
        return (slot.stream // self.world + slot.place) % self.order.per_stream, slot.stream

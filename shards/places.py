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

    The folders of a mixture are spread evenly over a step, and each goes by place, not by stream:
    what stands side by side in a micro-batch is then of different shards, as far as there are
    streams. Mixing pairs neighbours, and those of one shard are often of one class.
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
            slots = self._dealt(slots)
            for i in range(0, len(slots), self.micro_batch):
                yield slots[i : i + self.micro_batch]

    def _dealt(self, slots: list[Slot]) -> list[Slot]:
        """The places of a step in the order of its micro-batches."""
        folders: dict[int, list[Slot]] = {}
        for slot in sorted(slots, key=lambda slot: (slot.place, slot.stream)):
            folders.setdefault(self.order.folder(slot), []).append(slot)
        at = [((i + 0.5) / len(own), f) for f, own in folders.items() for i in range(len(own))]
        rest = {folder: iter(own) for folder, own in folders.items()}
        return [next(rest[folder]) for _, folder in sorted(at)]

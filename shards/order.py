"""The order of samples, as arithmetic: which sample stands in which place of which step.

Owns epochs, streams, steps, mixtures and the seed of every place. Refuses to do any input or
output, and to keep state: everything is a function of (seed, step), whatever the number of workers,
so that a run resumes anywhere, on any number of them, without replaying or remembering.

An epoch's samples stand in one line (`shards.lines`). V logical streams own equal contiguous parts
of that line, and a step takes the next g = global_batch / V samples of every stream. Where a stream
ends before the others, padding fills its places, so that an epoch covers every sample exactly once
and ends with a whole step. Rank r of W serves the streams v with v mod W = r.

A mixture has a line for every folder, and the same places of every step belong to the same folder:
as many as its weight says, spread evenly. A stream then owns a part of every line, as long as its
share of the folder's places. It starts a part again as soon as that ends, without padding: an
epoch of a folder still holds every sample once, but folders end their epochs at different steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.chance import apportion, hashed
from shards.lines import Balanced, Line

PADDING = -1
"""The shard of a place that holds no sample."""

_SLOTS = 3  # what a hash is for, so that equal numbers never share one; `shards.lines` has others


class Slot(NamedTuple):
    """One place in a step, the `place`-th of its stream; `sample` counts those selected."""

    step: int
    stream: int
    place: int
    shard: int
    sample: int
    seed: int


@dataclass(frozen=True)
class Mixture:
    """Several folders of shards, each with a share of every step."""

    shards: tuple[int, ...]
    """How many shards each folder has."""
    weights: tuple[float, ...]
    """What each counts; only their ratios matter."""
    names: tuple[str, ...]
    """For messages."""


@dataclass(frozen=True)
class Balance:
    """Class-balanced sampling, see `shards.lines.Balanced`."""

    classes: Sequence[NDArray]
    """Of every shard its samples' classes, -1 for none."""
    exponent: float


class Order:
    """The places of every step.

    Args:
        counts: samples of every shard.
        streams: V; divides global_batch.
        global_batch: places of a step over all ranks.
        seed: of the permutations and of the places' seeds.
        shuffle: False keeps shards and samples as they are on disk (evaluation).
        mixture: shares of several folders; None takes every sample once an epoch.
        balance: shares of the classes; None takes them as they come.

    Raises ValueError where streams do not divide global_batch, there is no sample at all, or a
    folder of a mixture has no sample or no place in a step.
    """

    def __init__(
        self,
        counts: Sequence[int],
        *,
        streams: int,
        global_batch: int,
        seed: int,
        shuffle: bool,
        mixture: Mixture | None = None,
        balance: Balance | None = None,
    ):
        check_streams(streams, global_batch)
        self.streams, self.seed = streams, seed
        self.per_stream = global_batch // streams
        self.samples = int(sum(counts))
        if self.samples == 0:
            raise ValueError("there is no sample to put in order")
        sizes = mixture.shards if mixture else (len(counts),)
        first = np.cumsum([0, *sizes]).tolist()
        self._lines: list[Line] = []
        for begin, size in zip(first, sizes, strict=False):
            part = slice(begin, begin + size)
            if balance is None:
                line = Line(counts[part], seed=seed, shuffle=shuffle, first=begin)
            else:
                classes, b = balance.classes[part], balance.exponent
                line = Balanced(classes, exponent=b, seed=seed, first=begin)
            self._lines.append(line)
        owners = np.zeros(global_batch, dtype=np.int64)
        if mixture:
            self._check_filled(mixture)
            owners = _spread(_shares(mixture, global_batch))
        self._table = owners.reshape(streams, self.per_stream)  # the line of each place of a step
        places = sum(line.places for line in self._lines)
        self.steps_per_epoch = -(-places // global_batch)
        self._parts = [self._cut(i, endless=mixture is not None) for i in range(len(self._lines))]

    def slots(self, step: int, *, rank: int = 0, world: int = 1) -> list[Slot]:
        """The places of a step that a rank serves, by stream and index.

        Raises ValueError where `world` does not divide the streams.
        """
        check_world(world, self.streams)
        streams = np.arange(rank, self.streams, world)
        table, index = self._table[streams], np.arange(self.per_stream)
        shards = np.full(table.shape, PADDING)
        samples = np.zeros_like(table)
        for number, (line, part) in enumerate(zip(self._lines, self._parts, strict=True)):
            mine = table == number  # [streams of the rank, g]
            where, nth = streams[np.nonzero(mine)[0]], (np.cumsum(mine, axis=1) - 1)[mine]
            shards[mine], samples[mine] = _located(line, part, where, step, nth)
        seeds = hashed(_SLOTS, self.seed, step, streams[:, None], index) >> np.uint64(1)
        columns = np.broadcast_arrays(step, streams[:, None], index, shards, samples, seeds)
        return [Slot(*row) for row in zip(*(c.ravel().tolist() for c in columns), strict=True)]

    def folder(self, slot: Slot) -> int:
        """Which folder of a mixture a place is for; 0 without one."""
        return int(self._table[slot.stream, slot.place])

    def shards_at_once(self, world: int) -> int:
        """Shards that a rank is inside at the same time, at most: one of every line for each of
        its streams that has places for it."""
        lines = [len(np.unique(places)) for places in self._table]
        return max(sum(lines[rank::world]) for rank in range(world))

    def _cut(self, number: int, *, endless: bool) -> _Part:
        """A line's parts, in proportion to the places that the streams have for it."""
        line, places = self._lines[number], (self._table == number).sum(axis=1)
        before = np.cumsum(places) - places
        total = int(places.sum())
        start = before * line.places // total
        length = (before + places) * line.places // total - start
        if endless:  # a folder smaller than its share of one step is shown more often than once
            return _Part(start, np.maximum(length, 1), places, np.maximum(length, 1))
        return _Part(start, length, places, places * self.steps_per_epoch)

    def _check_filled(self, mixture: Mixture) -> None:
        for name, line in zip(mixture.names, self._lines, strict=True):
            if line.places == 0:
                raise ValueError(f"data.weights gives {name} a share, but it has no sample to show")


class _Part(NamedTuple):
    """Which part of a line each stream owns, all [V]."""

    start: NDArray
    length: NDArray
    places: NDArray
    """Of a step."""
    cycle: NDArray
    """Places from the beginning of the part to its next; those beyond `length` are padding."""


def _located(
    line: Line, part: _Part, streams: NDArray, step: int, nth: NDArray
) -> tuple[NDArray, NDArray]:
    """Shard and sample of places: the `nth` of a line in a step of a stream, all [n]."""
    epochs, at = np.divmod(step * part.places[streams] + nth, part.cycle[streams])
    shards, samples = np.full(at.shape, PADDING), np.zeros_like(at)
    real = at < part.length[streams]
    at = at + part.start[streams]
    for epoch in np.unique(epochs[real]).tolist():
        here = real & (epochs == epoch)
        shards[here], samples[here] = line.locate(at[here], epoch)
    return shards, samples


def _shares(mixture: Mixture, global_batch: int) -> NDArray:
    """The places of a step that each folder of a mixture has."""
    weights = np.asarray(mixture.weights)
    places = apportion(global_batch, weights)
    if places.min() == 0:
        least = int(places.argmin())
        raise ValueError(
            f"data.weights {mixture.weights[least]} gives {mixture.names[least]} no place in a "
            f"step of run.global_batch {global_batch}: use {weights.sum() / global_batch:.3g} or "
            "more, or a larger batch"
        )
    return places


def _spread(places: NDArray) -> NDArray:
    """The folder of every place of a step: each folder's places at equal distances."""
    folders = np.repeat(np.arange(len(places)), places)
    nth = np.concatenate([np.arange(n) for n in places])
    return folders[np.argsort((nth + 0.5) / places[folders], kind="stable")]


def check_streams(streams: int, global_batch: int) -> None:
    """Raises ValueError where `streams` do not divide `global_batch`, saying which values work."""
    if streams < 1 or global_batch < 1:
        raise ValueError(f"data.streams {streams} and run.global_batch {global_batch} must be >= 1")
    if global_batch % streams:
        below, above = global_batch // streams * streams, (global_batch // streams + 1) * streams
        batches = " or ".join(str(batch) for batch in (below, above) if batch)
        raise ValueError(
            f"run.global_batch {global_batch} is not a multiple of data.streams {streams}: "
            f"use run.global_batch {batches}, or one of data.streams {_divisors(global_batch)}"
        )


def check_world(world: int, streams: int) -> None:
    """Raises ValueError where `world` workers do not divide `streams`, saying which counts work."""
    if world < 1 or streams % world:
        raise ValueError(
            f"{world} workers cannot share data.streams {streams} evenly: "
            f"use one of cluster.workers {_divisors(streams)}"
        )


def check_micro_batch(micro_batch: int, global_batch: int, world: int) -> None:
    """Raises ValueError where micro-batches do not fill a rank's part of a step exactly."""
    if micro_batch < 1 or global_batch // world % micro_batch:
        raise ValueError(
            f"run.micro_batch {micro_batch} does not divide the {global_batch // world} clips a "
            f"worker takes a step (run.global_batch {global_batch} over {world} workers): "
            f"use one of run.micro_batch {_divisors(global_batch // world)}"
        )


def _divisors(n: int) -> str:
    return ", ".join(str(d) for d in range(1, n + 1) if n % d == 0)

"""The order of samples, as arithmetic: which sample stands in which place of which step.

Owns epochs, streams, steps, permutations and the seed of every place. Refuses to do any input or
output, and to keep state: everything is a function of (seed, step), whatever the number of workers,
so that a run resumes anywhere, on any number of them, without replaying or remembering.

An epoch's samples stand in one line: shards permuted by (seed, epoch), the samples of a shard by
(seed, epoch, shard). V logical streams own equal contiguous parts of that line, and a step takes
the next g = global_batch / V samples of every stream. Where a stream ends before the others,
padding fills its places, so that an epoch covers every sample exactly once and ends with a whole
step. Rank r of W serves the streams v with v mod W = r.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PADDING = -1
"""The shard of a place that holds no sample."""

_SHARDS, _SAMPLES, _SLOTS = 1, 2, 3  # what a hash is for, so that equal numbers never share one


class Slot(NamedTuple):
    """One place in a step, the `place`-th of its stream; `sample` counts those selected."""

    step: int
    stream: int
    place: int
    shard: int
    sample: int
    seed: int


class Order:
    """The places of every step.

    Args:
        counts: samples of every shard.
        streams: V; divides global_batch.
        global_batch: places of a step over all ranks.
        seed: of the permutations and of the places' seeds.
        shuffle: False keeps shards and samples as they are on disk (evaluation).

    Raises ValueError where streams do not divide global_batch, or there is no sample at all.
    """

    def __init__(
        self,
        counts: Sequence[int],
        *,
        streams: int,
        global_batch: int,
        seed: int,
        shuffle: bool,
    ):
        check_streams(streams, global_batch)
        self.counts = np.asarray(counts, dtype=np.int64)
        self.streams, self.seed, self.shuffle = streams, seed, shuffle
        self.samples = int(self.counts.sum())
        if self.samples == 0:
            raise ValueError("there is no sample to put in order")
        self.per_stream = global_batch // streams
        longest = -(-self.samples // streams)
        self.steps_per_epoch = -(-longest // self.per_stream)
        # One epoch's line serves thousands of steps; the next begins while workers prefetch.
        self._line = functools.lru_cache(maxsize=2)(self._shard_line)

    def slots(self, step: int, *, rank: int = 0, world: int = 1) -> list[Slot]:
        """The places of a step that a rank serves, by stream and index.

        Raises ValueError where `world` does not divide the streams.
        """
        check_world(world, self.streams)
        epoch, turn = divmod(step, self.steps_per_epoch)
        streams = np.arange(rank, self.streams, world)
        index = np.arange(self.per_stream)
        start = streams * self.samples // self.streams
        end = (streams + 1) * self.samples // self.streams
        at = (start + turn * self.per_stream)[:, None] + index  # [streams of the rank, g]
        real = at < end[:, None]
        shards = np.full(at.shape, PADDING)
        samples = np.zeros_like(at)
        shards[real], samples[real] = self._locate(at[real], epoch)
        seeds = _hash(_SLOTS, self.seed, step, streams[:, None], index) >> np.uint64(1)
        columns = np.broadcast_arrays(step, streams[:, None], index, shards, samples, seeds)
        return [Slot(*row) for row in zip(*(c.ravel().tolist() for c in columns), strict=True)]

    def _locate(self, at: NDArray, epoch: int) -> tuple[NDArray, NDArray]:
        """Shard and sample of places in an epoch's line."""
        order, ends = self._line(epoch if self.shuffle else 0)
        turn = np.searchsorted(ends, at, side="right")
        shards = order[turn]
        within = at - (ends[turn] - self.counts[shards])
        if self.shuffle:
            for shard in np.unique(shards).tolist():
                here = shards == shard
                count = int(self.counts[shard])
                within[here] = _sample_order(self.seed, epoch, shard, count)[within[here]]
        return shards, within

    def _shard_line(self, epoch: int) -> tuple[NDArray, NDArray]:
        """The shards of an epoch in their order, and where each of them ends in the line."""
        order = np.arange(len(self.counts))
        if self.shuffle:
            order = _permutation(len(self.counts), _SHARDS, self.seed, epoch)
        return order, np.cumsum(self.counts[order])


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


@functools.lru_cache(maxsize=2048)
def _sample_order(seed: int, epoch: int, shard: int, count: int) -> NDArray:
    """Every stream is inside one or two shards at a time, so some hundreds are in use at once."""
    return _permutation(count, _SAMPLES, seed, epoch, shard).astype(np.int32)


def _permutation(n: int, *parts: int) -> NDArray:
    """Sorting by hashes shuffles the same on every platform and under every release of numpy."""
    return np.argsort(_hash(*parts, np.arange(n)), kind="stable")


def _hash(*parts: int | NDArray) -> NDArray:
    """A 64-bit hash of integers, elementwise: a chain of splitmix64 (Steele, Lea, Flood 2014)."""
    value = np.zeros(1, dtype=np.uint64)
    for part in parts:
        value = value + np.asarray(part).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        value = value ^ (value >> np.uint64(31))
    return value

"""An epoch's samples in one line: which sample stands where.

Owns what an epoch holds: every sample once (`Line`), or the classes in other shares (`Balanced`).
Refuses to know steps, streams and workers. A line is a function of (seed, epoch); the samples of a
shard stand together, so that a shard is read in one go.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shards.chance import apportion, hashed, permutation

_SHARDS, _SAMPLES, _CLASSES = 1, 2, 4  # what a hash is for, so that equal numbers never share one


class Line:
    """Every sample once: shards permuted by (seed, epoch), a shard's samples by (seed, epoch,
    shard).

    Args:
        counts: samples of every shard.
        seed: of the permutations.
        shuffle: False keeps shards and samples as they are on disk (evaluation).
        first: number of the first of these shards; `locate` counts from it.
    """

    def __init__(self, counts: Sequence[int], *, seed: int, shuffle: bool, first: int = 0):
        self.counts = np.asarray(counts, dtype=np.int64)
        self.seed, self.shuffle, self.first = seed, shuffle, first
        self.places = int(self.counts.sum())
        """Of an epoch."""
        # One epoch's line serves thousands of steps; the next begins while workers prefetch.
        self._ends = functools.lru_cache(maxsize=4)(self._shard_ends)
        # Every stream is inside one or two shards at a time, so some hundreds are in use at once.
        self._members = functools.lru_cache(maxsize=2048)(self._sample_order)

    def locate(self, at: NDArray, epoch: int) -> tuple[NDArray, NDArray]:
        """Shard and sample of places in an epoch's line, below `places`."""
        epoch = epoch if self.shuffle else 0
        order, begins, ends = self._ends(epoch)
        turn = np.searchsorted(ends, at, side="right")
        shards, within = order[turn], at - begins[turn]
        if self.shuffle:
            for shard in np.unique(shards).tolist():
                here = shards == shard
                within[here] = self._members(epoch, shard)[within[here]]
        return shards + self.first, within

    def _shard_ends(self, epoch: int) -> tuple[NDArray, NDArray, NDArray]:
        """The shards of an epoch in their order, and where each begins and ends in the line."""
        counts = self._counts_in(epoch)
        order = np.arange(len(counts))
        if self.shuffle:
            order = permutation(len(counts), _SHARDS, self.seed, epoch)
        ends = np.cumsum(counts[order])
        return order, ends - counts[order], ends

    def _counts_in(self, epoch: int) -> NDArray:
        return self.counts

    def _sample_order(self, epoch: int, shard: int) -> NDArray:
        count = int(self.counts[shard])
        return permutation(count, _SAMPLES, self.seed, epoch, shard + self.first).astype(np.int32)


class Balanced(Line):
    """Classes in shares of n^(1 - exponent), n being a class's samples: 1 makes all classes equal.

    An epoch has as many places as there are labelled samples; those of a class are dealt to its
    samples in turn, going on where the epoch before left off, so none comes twice more than
    another.

    Args:
        classes: of every shard its samples' classes, -1 for a sample without one, which is left
            out.
        exponent: 0..1.

    Raises ValueError where no sample has a class.
    """

    def __init__(self, classes: Sequence[NDArray], *, exponent: float, seed: int, first: int = 0):
        super().__init__([len(of) for of in classes], seed=seed, shuffle=True, first=first)
        everything = np.concatenate([np.zeros(0, dtype=np.int64), *classes])
        self._starts = np.concatenate([[0], np.cumsum(self.counts)])
        self._classes = [np.flatnonzero(everything == c) for c in np.unique(everything) if c >= 0]
        if not self._classes:
            raise ValueError(
                "data.balance needs labels, and no sample has one: ingest with --annotations, or "
                "leave data.balance out"
            )
        sizes = np.array([len(members) for members in self._classes], dtype=np.float64)
        self.places = int(sizes.sum())
        self._quotas = apportion(self.places, sizes ** (1 - exponent))
        self._drawn = functools.lru_cache(maxsize=4)(self._draw)

    def _draw(self, epoch: int) -> NDArray[np.int64]:
        """The samples of an epoch, numbered through all shards, in ascending order."""
        drawn = []
        for c, (members, quota) in enumerate(zip(self._classes, self._quotas, strict=True)):
            turns = np.arange(epoch * quota, (epoch + 1) * quota)
            rounds, at = turns // len(members), turns % len(members)
            for number in np.unique(rounds).tolist():
                order = permutation(len(members), _CLASSES, self.seed, number, c, self.first)
                drawn.append(members[order[at[rounds == number]]])
        return np.sort(np.concatenate(drawn))

    def _counts_in(self, epoch: int) -> NDArray:
        return np.diff(np.searchsorted(self._drawn(epoch), self._starts))

    def _sample_order(self, epoch: int, shard: int) -> NDArray:
        begin, end = np.searchsorted(self._drawn(epoch), self._starts[shard : shard + 2])
        mine = self._drawn(epoch)[begin:end] - self._starts[shard]
        keys = hashed(_SAMPLES, self.seed, epoch, shard + self.first, np.arange(len(mine)))
        return mine[np.argsort(keys, kind="stable")].astype(np.int32)

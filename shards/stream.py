"""Batches from shards, in the order of `shards.order`, from any step on.

Owns the loader, and what becomes of a run whose samples cannot be read: each keeps its place with
weight 0 and goes to the ledger, nothing replaces it, and too many end the run.
Refuses to know models, devices and objectives.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from shards.ahead import Ahead
from shards.batch import ClipBatch
from shards.cache import gb_for
from shards.clips import Clips, Trouble
from shards.config import DataConfig
from shards.index import ShardLost
from shards.ledger import Failure, Ledger
from shards.opening import check_indexed, check_lost, classes_to_balance, open_collection
from shards.order import Balance, Mixture, Order, check_micro_batch, check_world
from shards.places import Places
from shards.presence import Lost
from shards.reader import Collection
from shards.workers import deaths_explained, preparation, start_context, without_main

__all__ = ["ClipStream", "DataConfig", "TooManyFailures", "open_clips", "open_collection"]

BY_CHANCE = 20
"""Unreadable samples that one of several ranks may meet whatever its part of them all."""


class TooManyFailures(ValueError):
    """More samples than allowed could not be read; the message names the first and the ledger.

    As of a lost shard, no restart mends it, whatever words the reasons quote.
    """


def open_clips(
    data: DataConfig,
    *,
    global_batch: int,
    micro_batch: int,
    rank: int,
    world: int,
    start_step: int = 0,
    train: bool,
    ledger: Ledger | None,
    collection: Collection | None = None,
    lost: Lost | None = None,
    pinned: bool = False,
) -> ClipStream:
    """Open a rank's batches; cheap, as loader processes start with the iteration.

    Args:
        global_batch: clips a step over all ranks.
        micro_batch: clips a batch; global_batch / (world · micro_batch) batches make a step.
        start_step: the first step served.
        train: shuffled, mixed, balanced, augmented and without end; else every sample once, in the
            order on disk, in the views of `data.views`.
        ledger: where unreadable samples are written down; None only counts them.
        collection: that of an earlier stream of the same `data`; spares opening the folders, and
            reading indexes where all were needed, once more.
        lost: as for `open_collection`, where there is none.
        pinned: batches in memory that a GPU copies from by itself; only where one is used, as it
            makes a context there.

    Raises ManifestError where a folder is not what was ingested, and ValueError where the numbers
    do not divide, labels differ, votes are for other labels, or no sample is left. Both say what to
    change.
    """
    check_world(world, data.streams)
    collection = collection or open_collection(data, lost=lost)
    order = Order(
        collection.counts,
        streams=data.streams,
        global_batch=global_batch,
        seed=data.seed,
        shuffle=train,
        mixture=_mixture(data, collection) if train else None,
        balance=_balance(data, collection) if train else None,
    )
    check_micro_batch(micro_batch, global_batch, world)
    if "votes" in data.extra and collection.relabelled:
        raise ValueError(
            f"data.extra votes (losses.votes) are votes for the labels in the shards, which the "
            f"column label of {data.splits} replaces: leave one of the two out"
        )
    if "subject" in data.extra:
        what = "data.extra subject needs the subjects of every clip"
        check_indexed(collection, what, without="leave it out of data.extra")
    _check_cache(data, collection, order.shards_at_once(world))
    places = Places(order, micro_batch, rank, world, start_step, endless=train)
    return ClipStream(data, collection, places, train=train, ledger=ledger, pinned=pinned)


def _mixture(data: DataConfig, collection: Collection) -> Mixture | None:
    if data.weights is None:
        return None
    if len(data.weights) != len(data.shards):
        raise ValueError(
            f"data.weights has {len(data.weights)} numbers for {len(data.shards)} of data.shards: "
            "give one a folder"
        )
    sizes = tuple(len(manifest.shards) for manifest in collection.manifests)
    return Mixture(sizes, data.weights, data.shards)


def _balance(data: DataConfig, collection: Collection) -> Balance | None:
    return None if data.balance is None else Balance(classes_to_balance(collection), data.balance)


def _check_cache(data: DataConfig, collection: Collection, at_once: int) -> None:
    """ValueError where the cache cannot hold the shards that a rank is inside at the same time."""
    away = [m for m in collection.manifests if not isinstance(m.folder, Path)]
    sizes = sorted((shard.bytes for m in away for shard in m.shards), reverse=True)
    needed = sum(sizes[:at_once])
    if needed > data.cache_gb * 1e9:
        raise ValueError(
            f"data.cache_gb {data.cache_gb} cannot hold the {min(at_once, len(sizes))} shards that "
            f"a worker reads at once ({needed / 1e9:.3g} GB): use --data.cache_gb "
            f"{gb_for(needed)} or more, write smaller shards, or use fewer data.streams"
        )


def _as_made(batch: Any) -> Any:
    """`Clips` puts its batches together itself."""
    return batch


class ClipStream:
    """A rank's micro-batches in the order of steps; made by `open_clips`.

    Iterating anew starts again at `start_step`. Raises while iterating: TooManyFailures,
    ManifestError where a shard is lost, WorkerDied.
    """

    def __init__(
        self,
        data: DataConfig,
        collection: Collection,
        places: Places,
        *,
        train: bool,
        ledger: Ledger | None,
        pinned: bool = False,
    ):
        self.samples = places.order.samples
        self.steps_per_epoch = places.order.steps_per_epoch
        self.collection = collection
        self.labels = collection.labels
        self.served = 0
        """Samples handed out since the stream was opened, padding not counted."""
        self.failed = 0
        """How often a sample could not be read."""
        self.unreadable: dict[tuple[str, str], Failure] = {}
        """Those samples, by shard and key, each with its first failure."""
        self.missing: dict[str, str] = {}
        """Shards that are lost, and why."""
        self.left_out: Counter[str] = Counter()
        """Clips that were not shown: their own fault ("sample"), lost with their shard ("shard"),
        or named by an earlier ledger ("skipped")."""
        self._data, self._ledger, self._places = data, ledger, places
        self._running: Generator[ClipBatch] | None = None
        workers = data.loader_workers
        clips = Clips.of(collection, data, train=train)
        self._repeats = data.repeats if train else 1
        self._loader = DataLoader(
            clips,
            batch_sampler=places,
            collate_fn=_as_made,
            num_workers=workers,
            multiprocessing_context=start_context() if workers else None,
            worker_init_fn=preparation() if workers else None,
            prefetch_factor=data.prefetch if workers else None,
            pin_memory=pinned,
            generator=torch.Generator(),  # else every start draws from the trainer's random numbers
        )

    @property
    def inputs(self) -> dict[str, tuple[str, str]]:
        """Place and sha256 of what was read, by name: for the record of a run."""
        return self.collection.inputs

    @property
    def subjects(self) -> tuple[tuple[str, str], ...]:
        """(dataset, subject_id) at each number of the extra `subject`; reads every index."""
        return self.collection.subjects

    @property
    def places(self) -> Places:
        """Which sample stands where in each of its batches, from the first one on."""
        return self._places

    def __iter__(self) -> Iterator[ClipBatch]:
        self.close()
        self._running = self._serve()
        return self._running

    def close(self) -> None:
        """End the loader processes of a running iteration."""
        if self._running is not None:
            self._running.close()
            self._running = None

    def __enter__(self) -> ClipStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self) -> Generator[ClipBatch]:
        with without_main():
            loaded = iter(self._loader)
        ahead = Ahead(self.collection, self._places)
        try:
            while True:
                with deaths_explained():
                    item = next(loaded, None)
                if item is None:
                    return
                batch, troubles = item
                ahead.reach()
                self._account(batch, troubles)
                yield batch
        finally:
            ahead.close()
            # Else the processes live as long as somebody holds the traceback of what ended this.
            if isinstance(loaded, _MultiProcessingDataLoaderIter):
                loaded._shutdown_workers()

    def _account(self, batch: ClipBatch, troubles: list[Trouble]) -> None:
        self.served += sum(key != "" for key in batch.keys) // self._repeats
        for trouble in troubles:
            if not isinstance(trouble, Failure):
                raise trouble
            self.left_out[trouble.kind] += 1
            if trouble.kind == "skipped":
                continue
            if trouble.kind == "shard":
                self.missing.setdefault(trouble.shard, trouble.reason)
                check_lost(self._data, [ShardLost(why) for why in self.missing.values()])
            else:
                self.failed += 1
                self.unreadable.setdefault((trouble.shard, trouble.key), trouble)
            if self._ledger is not None:
                self._ledger.add(trouble)
        allowed = self._data.max_failed_share
        # The share may be used up early, but where hardly anything can be read, why go on?
        hopeless = self.failed > max(20, max(allowed, 0.5) * self.served)
        if hopeless or len(self.unreadable) > self._tolerated():
            world = self._places.world
            each = f" one of {world} workers ({self._tolerated():.0f})" if world > 1 else ""
            raise TooManyFailures(self._complaint(self.unreadable, each))

    def judge(self, unreadable: Mapping[tuple[str, str], Failure]) -> None:
        """Raises TooManyFailures where the samples that all ranks together could not read are more
        than `max_failed_share`: each knows of its own alone."""
        if len(unreadable) > self._data.max_failed_share * self.samples:
            raise TooManyFailures(self._complaint(unreadable))

    def _tolerated(self) -> float:
        """Unreadable samples that this rank may meet.

        A rank knows of its own alone: `max_failed_share` of its part of an epoch, or of what it was
        served since. They do not lie evenly, as a shard is read in one go: twice that is allowed.
        """
        allowed = self._data.max_failed_share
        seen = max(self.samples / self._places.world, self.served)
        return min(allowed * self.samples, 2 * allowed * seen + BY_CHANCE)

    def _complaint(self, unreadable: Mapping[tuple[str, str], Failure], each: str = "") -> str:
        known = itertools.islice(unreadable.values(), 3)
        first = "; ".join(f"{f.key} in {f.shard}: {f.reason}" for f in known)
        ledger = self._ledger.path if self._ledger is not None else "not kept"
        return (
            f"{len(unreadable)} of {self.samples} samples cannot be read, which is more than "
            f"data.max_failed_share {self._data.max_failed_share} allows{each}. First: {first}. "
            f"Ledger: {ledger}. `python -m shards verify DIR` tells damaged shards, `python -m "
            "shards ingest … --redo LEDGER` makes them anew; or allow a larger share"
        )

"""Batches from shards, in the order of `shards.order`, from any step on.

Owns the configuration, the loader, and what becomes of a run whose samples cannot be read: each
keeps its place with weight 0 and goes to the ledger, nothing replaces it, and too many end the run.
Refuses to know models, devices and objectives.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field

import torch
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from shards.augment import AugmentConfig, ViewConfig
from shards.batch import ClipBatch
from shards.clips import Clips, Trouble
from shards.index import ManifestError
from shards.ledger import Failure, Ledger
from shards.manifest import Manifest
from shards.order import Order, Slot, check_micro_batch, check_world
from shards.reader import Collection
from shards.workers import deaths_explained, prepare, start_context, without_main


@dataclass(frozen=True)
class DataConfig:
    """Which clips, and how they are cut and loaded."""

    shards: tuple[str, ...]
    """Shard folders, as written by `python -m shards ingest`."""
    split: str | None = None
    """Only the samples of this split; None takes all."""
    streams: int = 64
    """Logical streams that fix the order of samples: they divide the global batch, and the number
    of workers divides them. A run keeps them for life: no more workers can ever share it."""
    frames: int = 16
    """Frames of a clip."""
    stride: int | None = 4
    """Video frames from one frame of a clip to the next; None spreads the clip over the video."""
    size: int = 224
    """Pixels a side."""
    loader_workers: int = 2
    """Processes that decode, of each training worker; 0 decodes in the trainer itself."""
    prefetch: int = 2
    """Micro-batches that each of them holds ready."""
    seed: int = 0
    """Of the order of samples and of every random choice about them."""
    max_failed_share: float = 0.01
    """The run stops when more than this share of its samples cannot be read."""
    views: ViewConfig = field(default_factory=ViewConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        least = {"streams": 1, "frames": 1, "size": 1, "loader_workers": 0, "prefetch": 1}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ValueError(f"data.{name} is {getattr(self, name)}: use {smallest} or more")
        if self.stride is not None and self.stride < 1:
            raise ValueError(f"data.stride is {self.stride}: use 1 or more, or None")
        if not 0 <= self.max_failed_share <= 1:
            raise ValueError(f"data.max_failed_share is {self.max_failed_share}: use 0..1")


class TooManyFailures(RuntimeError):
    """More samples than allowed could not be read; the message names the first and the ledger."""


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
) -> ClipStream:
    """Open a rank's batches; cheap, as loader processes start with the iteration.

    Args:
        global_batch: clips a step over all ranks.
        micro_batch: clips a batch; global_batch / (world · micro_batch) batches make a step.
        start_step: the first step served.
        train: shuffled, augmented and without end; else every sample once, in the order on disk,
            in the views of `data.views`.
        ledger: where unreadable samples are written down; None only counts them.

    Raises ManifestError where a folder is not what was ingested, and ValueError where the numbers
    do not divide, labels differ, or no sample is left. Both say what to change.
    """
    check_world(world, data.streams)
    collection = open_collection(data)
    order = Order(
        collection.counts,
        streams=data.streams,
        global_batch=global_batch,
        seed=data.seed,
        shuffle=train,
    )
    check_micro_batch(micro_batch, global_batch, world)
    places = Places(order, micro_batch, rank, world, start_step, endless=train)
    return ClipStream(data, collection, places, train=train, ledger=ledger)


def open_collection(data: DataConfig) -> Collection:
    """The samples that a config names, every shard's presence and size checked."""
    if not data.shards:
        raise ValueError("data.shards is empty: name shard folders with --data.shards DIR …")
    manifests = [Manifest.open(folder) for folder in data.shards]
    for manifest in manifests:
        manifest.check_files()
    wanted = data.split
    samples = sum(m.samples if wanted is None else m.splits.get(wanted, 0) for m in manifests)
    if samples == 0:
        known = sorted({split for m in manifests for split in m.splits})
        raise ValueError(
            f"data.split is {wanted!r}, but {', '.join(data.shards)} have no sample of it; "
            f"splits there: {', '.join(known) or 'none'}"
        )
    if samples == sum(m.samples for m in manifests):
        return Collection(manifests, keep=None)
    return Collection(manifests, keep=lambda record: record.split == wanted)


@dataclass(frozen=True)
class Places:
    """The places of one rank, a micro-batch at a time, in the order of steps."""

    order: Order
    micro_batch: int
    rank: int
    world: int
    start_step: int
    endless: bool

    def __iter__(self) -> Iterator[list[Slot]]:
        first = self.start_step
        last = self.order.steps_per_epoch
        for step in itertools.count(first) if self.endless else range(first, last):
            slots = self.order.slots(step, rank=self.rank, world=self.world)
            for i in range(0, len(slots), self.micro_batch):
                yield slots[i : i + self.micro_batch]


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
    ):
        self.samples = places.order.samples
        self.steps_per_epoch = places.order.steps_per_epoch
        self.labels = collection.labels
        self.served = 0
        """Samples handed out since the stream was opened, padding not counted."""
        self.failed = 0
        """How often a sample could not be read."""
        self.unreadable: dict[tuple[str, str], Failure] = {}
        """Those samples, by shard and key, each with its first failure."""
        self._data, self._ledger = data, ledger
        self._running: Generator[ClipBatch] | None = None
        workers = data.loader_workers
        clips = Clips(
            collection,
            frames=data.frames,
            stride=data.stride,
            size=data.size,
            how=data.augment if train else data.views,
        )
        self._loader = DataLoader(
            clips,
            batch_sampler=places,
            collate_fn=clips.collate,
            num_workers=workers,
            multiprocessing_context=start_context() if workers else None,
            worker_init_fn=prepare if workers else None,
            prefetch_factor=data.prefetch if workers else None,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else every start draws from the trainer's random numbers
        )

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
        try:
            while True:
                with deaths_explained():
                    item = next(loaded, None)
                if item is None:
                    return
                batch, troubles = item
                self._account(batch, troubles)
                yield batch
        finally:
            # Else the processes live as long as somebody holds the traceback of what ended this.
            if isinstance(loaded, _MultiProcessingDataLoaderIter):
                loaded._shutdown_workers()

    def _account(self, batch: ClipBatch, troubles: list[Trouble]) -> None:
        self.served += sum(key != "" for key in batch.keys)
        for trouble in troubles:
            if isinstance(trouble, ManifestError):
                raise trouble
            self.failed += 1
            self.unreadable.setdefault((trouble.shard, trouble.key), trouble)
            if self._ledger is not None:
                self._ledger.add(trouble)
        allowed = self._data.max_failed_share
        # The share may be used up early, but where hardly anything can be read, why go on?
        hopeless = self.failed > max(20, max(allowed, 0.5) * self.served)
        if hopeless or len(self.unreadable) > allowed * self.samples:
            raise TooManyFailures(self._complaint())

    def _complaint(self) -> str:
        known = itertools.islice(self.unreadable.values(), 3)
        first = "; ".join(f"{f.key} in {f.shard}: {f.reason}" for f in known)
        ledger = self._ledger.path if self._ledger is not None else "not kept"
        return (
            f"{len(self.unreadable)} of {self.samples} samples cannot be read, which is more than "
            f"data.max_failed_share {self._data.max_failed_share} allows. First: {first}. "
            f"Ledger: {ledger}. `python -m shards verify DIR` tells damaged shards; ingest them "
            "again, or allow a larger share"
        )

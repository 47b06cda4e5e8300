"""What the commands that measure share: which shards are read, each clip once, and how.

Owns the settings, and the stream of one worker. It knows no network and no figures.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from torch import nn

from finetune.collecting import check_read
from launch.cluster import ClusterConfig, WorkerContext
from launch.config import absolute_paths
from launch.engine import evaluate
from launch.task import Meter
from launch.tracking import TrackingConfig
from launch.zero import Precision
from shards.cache import DEFAULT_GB
from shards.config import DataConfig
from shards.ledger import Ledger
from shards.presence import Lost
from shards.stream import ClipStream, open_clips


@dataclass(frozen=True)
class ReadingConfig:
    """Which shards are read, and how."""

    model: str = ""
    """`models:/NAME@ALIAS`, `models:/NAME/VERSION`, or a folder that fine-tuning wrote."""
    shards: tuple[str, ...] = ()
    """Shard folders: paths, or URLs."""
    split: str | None = "test"
    """The split that is measured; None takes every clip."""
    splits: str | None = None
    """A CSV file `dataset,key,split` (path or URL) that replaces the splits stored in the shards;
    clips that it does not name are left out."""
    precision: Precision = "fp32"
    """Of the network's matrix products."""
    batch: int = 8
    """Clips a worker computes at once."""
    loader_workers: int = 2
    """Processes that decode, of each worker; 0 decodes in the worker itself."""
    max_failed_share: float = 0.01
    """It stops when more than this share of a split's clips cannot be read."""
    skip: tuple[str, ...] = ()
    """Ledgers of earlier runs: the clips they name are not tried and do not count as failed."""
    cache: str | None = None
    """Local folder for shards from a URL; None is ~/.cache/mira-video/shards."""
    cache_gb: float = DEFAULT_GB
    """Size it never exceeds."""
    cluster: ClusterConfig = field(default_factory=lambda: ClusterConfig(workers=0))
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}: use 1 or more")

    def data(self, split: str | None, *, streams: int = 1) -> DataConfig:
        """What is read of a split; how a clip is sampled is left to whoever knows the network."""
        return DataConfig(
            shards=self.shards,
            split=split,
            splits=self.splits,
            streams=streams,
            loader_workers=self.loader_workers,
            max_failed_share=self.max_failed_share,
            skip=self.skip,
            cache=self.cache,
            cache_gb=self.cache_gb,
        )


Reading = TypeVar("Reading", bound=ReadingConfig)


def prepared(config: Reading) -> Reading:
    """With absolute paths. ValueError where model or shards are not named."""
    config = absolute_paths(config, "shards", "splits", "skip", "cache", "cluster.output")
    if not config.model:
        raise ValueError("model is empty: name one with --model models:/NAME@ALIAS or a folder")
    if not config.shards:
        raise ValueError("shards is empty: name shard folders with --shards DIR …")
    return config


def ledger_of(config: ReadingConfig) -> Path:
    """Where what could not be read is written down."""
    return Path(config.cluster.output, "ledger.jsonl")


def open_once(
    config: ReadingConfig, data: DataConfig, context: WorkerContext, *, lost: Lost | None
) -> ClipStream:
    """Each clip of `data` once, one worker's part of them."""
    return open_clips(
        data,
        global_batch=config.batch * context.world,
        micro_batch=config.batch,
        rank=context.rank,
        world=context.world,
        train=False,
        pinned=bool(config.cluster.gpus_per_worker),
        ledger=Ledger(ledger_of(config), rank=context.rank),
        lost=lost,
    )


def measured(
    config: ReadingConfig,
    task: nn.Module,
    stream: ClipStream,
    meter: Meter,
    context: WorkerContext,
) -> dict[str, float]:
    """The meter's figures of a whole stream. TooManyFailures, on every worker, where all together
    could not read more of it than `max_failed_share`."""
    found = evaluate(task, stream, meter, context=context, precision=config.precision)
    check_read(stream)
    return found

"""The configuration of reading: which clips, from where, and how they are cut and loaded.

Owns the fields, their defaults and their checks. Refuses to open anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from shards.augment import AugmentConfig, ViewConfig
from shards.cache import DEFAULT_FOLDER, DEFAULT_GB, Cache
from shards.labelling import Extra
from shards.place import RETRY_SECONDS, Remote


@dataclass(frozen=True)
class DataConfig:
    """Which clips, and how they are cut and loaded."""

    shards: tuple[str, ...]
    """Shard folders, as written by `python -m shards ingest`: paths, or URLs (https://, s3://,
    gs:// and what else fsspec opens)."""
    split: str | None = None
    """Only the samples of this split; None takes all."""
    splits: str | None = None
    """A CSV file `dataset,key,split` (path or URL) that replaces the splits stored in the shards;
    clips that it does not name are left out. It needs every index when it is opened."""
    weights: tuple[float, ...] | None = None
    """Training takes this share of every step from each of the folders, one number a folder; only
    their ratios matter. None takes every sample once an epoch."""
    balance: float | None = None
    """Training shows a class of n clips in proportion to n^(1 - balance): 1 makes all classes
    equal, 0 changes nothing but that clips without a label are left out; None is off. It needs
    every index, whatever allow_missing says."""
    repeats: int = 1
    """Views of each decoded clip in training, in the same micro-batch (repeated augmentation).
    They are not counted in global_batch and micro_batch, nor in the rule for the learning rate."""
    streams: int = 64
    """Logical streams that fix the order of samples: they divide the global batch, and the number
    of workers divides them. A run keeps them for life: no more workers can ever share it."""
    frames: int = 16
    """Frames of a clip."""
    stride: int | None = 4
    """Video frames from one frame of a clip to the next; None spreads the clip over the video."""
    size: int = 224
    """Pixels a side."""
    pair: bool = False
    """Onset and apex follow the frames of every clip, cut and coloured like them; `frames` may then
    be 0. An unknown onset is the first frame, an unknown apex the middle up to the offset."""
    extra: tuple[Extra, ...] = ()
    """What else of each clip a batch carries; see `shards.labelling`."""
    units: tuple[str, ...] = ()
    """Action units, such as 1 4 12: the columns of the extra `units`."""
    loader_workers: int = 2
    """Processes that decode, of each training worker; 0 decodes in the trainer itself."""
    prefetch: int = 2
    """Micro-batches that each of them holds ready."""
    seed: int = 0
    """Of the order of samples and of every random choice about them."""
    max_failed_share: float = 0.01
    """The run stops when more than this share of its samples cannot be read. Of several workers
    each judges by what it reads itself: it stops the run at twice its part of these and 20 more."""
    allow_missing: int = 0
    """So many whole shards may be lost: their samples keep their places with weight 0 and go to the
    ledger. One more ends the run. What is missing or cut in a folder shows at the start; of a shard
    that is lost later, has another index, or lies at a URL, only the workers that read it know, and
    each counts by itself. What a passing fault keeps away is tried again after ten minutes, and
    counts all the same."""
    skip: tuple[str, ...] = ()
    """Ledgers of earlier runs: the samples they name keep their places with weight 0, untried."""
    cache: str | None = None
    """Local folder for shards from a URL, shared by all processes of a machine; None is
    ~/.cache/mira-video/shards."""
    cache_gb: float = DEFAULT_GB
    """Size it never exceeds: shards that were opened longest ago make room."""
    retry_seconds: float = RETRY_SECONDS
    """How long fetching a file from a URL is tried again before it counts as lost."""
    views: ViewConfig = field(default_factory=ViewConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    augment_on: Literal["auto", "cpu", "device"] = "auto"
    """Who does what follows crop and flip in `augment`: cpu, the loader processes; device, the
    trainer on the device it trains on; auto, a device that is a GPU, else the loader. The draws are
    the same, the pixels but for rounding. Flow is of the augmented clip: with it, the loader."""

    def __post_init__(self) -> None:
        least = {
            "streams": 1,
            "frames": 0 if self.pair else 1,
            "size": 1,
            "loader_workers": 0,
            "prefetch": 1,
        }
        least |= {"repeats": 1, "allow_missing": 0, "retry_seconds": 0}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ValueError(f"data.{name} is {getattr(self, name)}: use {smallest} or more")
        if self.stride is not None and self.stride < 1:
            raise ValueError(f"data.stride is {self.stride}: use 1 or more, or None")
        if not 0 <= self.max_failed_share <= 1:
            raise ValueError(f"data.max_failed_share is {self.max_failed_share}: use 0..1")
        if self.balance is not None and not 0 <= self.balance <= 1:
            raise ValueError(f"data.balance is {self.balance}: use 0..1, or None")
        if "flow" in self.extra and not self.pair:
            raise ValueError("data.extra has flow, from onset to apex: it needs data.pair")
        if "flow" in self.extra and self.augment.erase:
            raise ValueError(
                "data.extra has flow, and the noise of data.augment.erase would be motion in it: "
                "set data.augment.erase 0"
            )
        if "flow" in self.extra and self.augment_on == "device":
            raise ValueError(
                "data.extra has flow, which the loader computes from the augmented clip: set "
                "data.augment_on auto or cpu"
            )
        if ("units" in self.extra) != bool(self.units):
            raise ValueError("data.units and the units of data.extra go together: name both")
        if wrong := [unit for unit in self.units if not unit.isdecimal()]:
            raise ValueError(f"data.units has {wrong[0]!r}: use bare numbers, such as 4")
        if self.cache_gb <= 0:
            raise ValueError(f"data.cache_gb is {self.cache_gb}: use a positive number")
        if self.weights is not None and min(self.weights, default=0) <= 0:
            raise ValueError(f"data.weights is {self.weights}: use positive numbers, or None")

    def settled(self, *, gpu: bool) -> DataConfig:
        """The same with `augment_on` decided, for trainers with or without a GPU."""
        if self.augment_on != "auto":
            return self
        there = gpu and self.augment.draws and "flow" not in self.extra
        return replace(self, augment_on="device" if there else "cpu")

    @property
    def on_device(self) -> AugmentConfig | None:
        """What the trainer draws and applies; None where the loader does all there is."""
        return self.augment if self.augment_on == "device" and self.augment.draws else None

    @property
    def source(self) -> Remote:
        """How URLs are read: a Remote with this configuration's cache and patience."""
        folder = DEFAULT_FOLDER if self.cache is None else Path(self.cache)
        return Remote("", Cache(folder, int(self.cache_gb * 1e9)), self.retry_seconds)

"""From a place in the order to the pixels that stand in it: read, decode, cut, augment.

Owns what a loader process does. Refuses to know order, processes and the fate of a run: a sample
that cannot be read comes back as an empty place and the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from shards.augment import AugmentConfig, ViewConfig, augment, view_crops
from shards.batch import Clip, ClipBatch, collate
from shards.cache import CacheError
from shards.chance import hashed
from shards.frames import DecodeError, decode, draw_indices, view_indices
from shards.index import IndexRow, ManifestError, ShardLost
from shards.ledger import Failure
from shards.order import PADDING, Slot
from shards.reader import Collection, ReadError

Trouble = Failure | ManifestError | CacheError
"""A sample that was not read, or what ends the run."""

_VIEWS = 5  # what a hash is for, as in `shards.order`


class Clips(Dataset):
    """Clips by their place.

    Args:
        frames, stride, size: T, video frames between two of them (None: spread over the video), and
            pixels a side.
        how: an AugmentConfig gives training clips, a ViewConfig the views of a test.
        repeats: training clips made of each decoded video, each a clip of its own in the batch.
    """

    def __init__(
        self,
        collection: Collection,
        *,
        frames: int,
        stride: int | None,
        size: int,
        how: AugmentConfig | ViewConfig,
        repeats: int = 1,
    ):
        self._collection, self._how = collection, how
        self._repeats = repeats if isinstance(how, AugmentConfig) else 1
        self._frames, self._stride, self._size = frames, stride, size

    def __getitem__(self, slot: Slot) -> tuple[Clip, Trouble | None]:
        if slot.shard == PADDING:
            return _empty(slot, ""), None
        tar = self._collection.path(slot.shard)
        key, path = f"{tar.name}#{slot.sample}", ""  # of a sample whose index is lost
        try:
            row = self._collection.row(slot.shard, slot.sample)
            key, path = row.key, row.record.path
            if self._collection.skips(slot.shard, key):
                reason, kind = "an earlier ledger names it", "skipped"
            else:
                label = self._collection.label(row.record)
                return Clip(self._pixels(slot, row), label, slot.seed, key), None
        except ShardLost as error:
            reason, kind = str(error), "shard"
        except (ReadError, DecodeError) as error:
            reason, kind = str(error), "sample"
        except (ManifestError, CacheError) as error:  # no sample's fault: ends the run, over there
            return _empty(slot, key), error
        sha256 = self._collection.sha256(slot.shard)
        failure = Failure(str(tar), key, reason, slot.step, sha256=sha256, path=path, kind=kind)
        return _empty(slot, key), failure

    def collate(
        self, loaded: Sequence[tuple[Clip, Trouble | None]]
    ) -> tuple[ClipBatch, list[Trouble]]:
        """Clips → a batch, and what went wrong with some of them."""
        how = self._how
        clips = [clip for clip, _ in loaded]
        batch = collate(
            # Clips of one video are no neighbours: mixing pairs what stands side by side.
            [_view(clip, r) for r in range(self._repeats) for clip in clips]
            if isinstance(how, AugmentConfig)
            else clips,
            views=how.temporal * how.spatial if isinstance(how, ViewConfig) else 1,
            frames=self._frames,
            size=self._size,
        )
        return batch, [trouble for _, trouble in loaded if trouble is not None]

    def _pixels(self, slot: Slot, row: IndexRow) -> NDArray[np.uint8]:
        """[views, T, h, w, C]"""
        rng = np.random.default_rng(slot.seed)
        how, cut = self._how, {"frames": self._frames, "stride": self._stride}

        def choose(found: int) -> NDArray[np.int64]:
            if found != row.record.num_frames:
                raise DecodeError(f"has {found} frames, its record says {row.record.num_frames}")
            if isinstance(how, AugmentConfig):
                return draw_indices(found, **cut, rng=rng)
            return view_indices(found, **cut, views=how.temporal)

        frames = decode(self._collection.video(slot.shard, row), choose)
        if isinstance(how, AugmentConfig):
            rngs = [rng]
            for r in range(1, self._repeats):
                rngs.append(np.random.default_rng(_view_seed(slot.seed, r)))
            return np.stack([augment(frames, how, size=self._size, rng=rng) for rng in rngs])
        crops = [view_crops(clip, spatial=how.spatial, size=self._size) for clip in frames]
        return np.concatenate(crops)


def _view(clip: Clip, r: int) -> Clip:
    """The `r`-th of the clips that were made of one video."""
    pixels = None if clip.pixels is None else clip.pixels[r : r + 1]
    return replace(clip, pixels=pixels, seed=_view_seed(clip.seed, r))


def _view_seed(seed: int, r: int) -> int:
    """The first view has the seed of its place: it is the same clip with and without others."""
    return int(hashed(_VIEWS, seed, r)[0] >> np.uint64(1)) if r else seed


def _empty(slot: Slot, key: str) -> Clip:
    return Clip(None, -1, slot.seed, key)

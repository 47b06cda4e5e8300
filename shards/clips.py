"""From a place in the order to the pixels that stand in it: read, decode, cut, augment.

Owns what a loader process does. Refuses to know order, processes and the fate of a run: a sample
that cannot be read comes back as an empty place and the reason.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from shards.augment import AugmentConfig, ViewConfig, augment, view_crops
from shards.batch import Clip, ClipBatch, collate
from shards.frames import DecodeError, decode, draw_indices, view_indices
from shards.index import IndexRow, ManifestError
from shards.ledger import Failure
from shards.order import PADDING, Slot
from shards.reader import Collection, ReadError

Trouble = Failure | ManifestError
"""A sample that cannot be read, or a whole shard."""


class Clips(Dataset):
    """Clips by their place.

    Args:
        frames, stride, size: T, video frames between two of them (None: spread over the video), and
            pixels a side.
        how: an AugmentConfig gives training clips, a ViewConfig the views of a test.
    """

    def __init__(
        self,
        collection: Collection,
        *,
        frames: int,
        stride: int | None,
        size: int,
        how: AugmentConfig | ViewConfig,
    ):
        self._collection, self._how = collection, how
        self._frames, self._stride, self._size = frames, stride, size

    def __getitem__(self, slot: Slot) -> tuple[Clip, Trouble | None]:
        if slot.shard == PADDING:
            return _empty(slot, ""), None
        key = ""
        try:
            row = self._collection.row(slot.shard, slot.sample)
            key = row.key
            label = self._collection.label(row.record)
            pixels = self._pixels(slot, row)
        except ManifestError as error:  # not one sample's fault: it ends the run, in the trainer
            return _empty(slot, key), error
        except (ReadError, DecodeError) as error:
            shard = str(self._collection.path(slot.shard))
            return _empty(slot, key), Failure(shard, key, str(error), slot.step)
        return Clip(pixels, label, slot.seed, key), None

    def collate(
        self, loaded: Sequence[tuple[Clip, Trouble | None]]
    ) -> tuple[ClipBatch, list[Trouble]]:
        """Clips → a batch, and what went wrong with some of them."""
        how = self._how
        batch = collate(
            [clip for clip, _ in loaded],
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
            return augment(frames, how, size=self._size, rng=rng)[None]
        crops = [view_crops(clip, spatial=how.spatial, size=self._size) for clip in frames]
        return np.concatenate(crops)


def _empty(slot: Slot, key: str) -> Clip:
    return Clip(None, -1, slot.seed, key)

"""From a place in the order to the pixels that stand in it: read, decode, cut, augment.

Owns what a loader process does. Refuses to know order, processes and the fate of a run: a sample
that cannot be read comes back as an empty place and the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from shards.augment import AugmentConfig, ViewConfig, cut, view_crops
from shards.batch import Clip, ClipBatch, collate
from shards.cache import CacheError
from shards.chance import hashed
from shards.config import DataConfig
from shards.draws import draw
from shards.draws_opencv import apply
from shards.frames import DecodeError, decode_each, draw_indices, view_indices
from shards.index import IndexRow, ManifestError, ShardLost
from shards.labelling import PER_VIEW, Labelling
from shards.ledger import Failure
from shards.marks import pair_of
from shards.order import PADDING, Slot
from shards.reader import Collection, ReadError
from shards.schema import Record

Trouble = Failure | ManifestError | CacheError
"""A sample that was not read, or what ends the run."""

_VIEWS = 5  # what a hash is for, as in `shards.order`


class Clips(Dataset):
    """Clips by their place.

    Args:
        frames, stride, size: T, video frames between two of them (None: spread over the video), and
            pixels a side.
        pair: onset and apex follow the T frames.
        labelling: what else a clip carries.
        how: an AugmentConfig gives training clips, a ViewConfig the views of a test.
        repeats: training clips made of each decoded video, each a clip of its own in the batch.
        draws: False leaves to the trainer what follows crop and flip.
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
        draws: bool = True,
        pair: bool = False,
        labelling: Labelling | None = None,
    ):
        self._collection, self._how = collection, how
        self._repeats = repeats if isinstance(how, AugmentConfig) else 1
        self._frames, self._stride, self._size = frames, stride, size
        self._pair, self._draws = pair, draws
        self._labelling = labelling or Labelling(frames=frames, size=size)

    @classmethod
    def of(cls, collection: Collection, data: DataConfig, *, train: bool) -> Clips:
        """The clips that a configuration describes; for `subject` it may read every index."""
        return cls(
            collection,
            frames=data.frames,
            stride=data.stride,
            size=data.size,
            how=data.augment if train else data.views,
            repeats=data.repeats,
            draws=data.augment_on != "device",
            pair=data.pair,
            labelling=Labelling(
                data.extra,
                labels=collection.labels,
                units=data.units,
                subjects={name: i for i, name in enumerate(collection.subjects)}
                if "subject" in data.extra
                else None,
                frames=data.frames,
                size=data.size,
            ),
        )

    def __getitem__(self, slot: Slot) -> tuple[Clip, Trouble | None]:
        if slot.shard == PADDING:
            return self._empty(slot, ""), None
        tar = self._collection.path(slot.shard)
        key, path = f"{tar.name}#{slot.sample}", ""  # of a sample whose index is lost
        try:
            row = self._collection.row(slot.shard, slot.sample)
            key, path = row.key, row.record.path
            if self._collection.skips(slot.shard, key):
                reason, kind = "an earlier ledger names it", "skipped"
            else:
                return self._clip(slot, row), None
        except ShardLost as error:
            reason, kind = str(error), "shard"
        except (ReadError, DecodeError) as error:
            reason, kind = str(error), "sample"
        except (ManifestError, CacheError) as error:  # no sample's fault: ends the run, over there
            return self._empty(slot, key), error
        sha256 = self._collection.sha256(slot.shard)
        failure = Failure(str(tar), key, reason, slot.step, sha256=sha256, path=path, kind=kind)
        return self._empty(slot, key), failure

    def __getitems__(self, slots: Sequence[Slot]) -> tuple[ClipBatch, list[Trouble]]:
        """A batch, and what went wrong with some of its clips.

        Each clip is put in its place before the next is made: they use the same memory one after
        the other, and to be given fresh memory costs about as much as to crop.
        """
        count, troubles = len(slots), []

        def made() -> Iterator[Clip]:
            for slot in slots:
                clip, trouble = self[slot]
                if trouble is not None:
                    troubles.append(trouble)
                if isinstance(self._how, ViewConfig):
                    yield clip
                else:
                    yield from (_view(clip, r) for r in range(self._repeats))
                del clip

        batch = collate(
            made(),
            count * self._repeats,
            views=self._views // self._repeats,
            frames=self._frames + 2 * self._pair,
            size=self._size,
            # Clips of one video are no neighbours: mixing pairs what stands side by side.
            places=[r * count + i for i in range(count) for r in range(self._repeats)],
        )
        return batch, troubles

    @property
    def _views(self) -> int:
        """Of each decoded clip, its repeats in training."""
        how = self._how
        return how.temporal * how.spatial if isinstance(how, ViewConfig) else self._repeats

    def _clip(self, slot: Slot, row: IndexRow) -> Clip:
        label = self._collection.label(row.record)
        pixels, indices = self._pixels(slot, row)
        return Clip(
            pixels, label, slot.seed, row.key, self._labelling.of(row.record, indices, pixels)
        )

    def _empty(self, slot: Slot, key: str) -> Clip:
        return Clip(None, -1, slot.seed, key, self._labelling.unknown(self._views))

    def _pixels(self, slot: Slot, row: IndexRow) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Pixels [views, T (+ 2), h, w, C], and the frames [views, T] that the T of them are."""
        rng = np.random.default_rng(slot.seed)
        how, cut = self._how, {"frames": self._frames, "stride": self._stride}
        chosen = np.empty((0, self._frames), dtype=np.int64)

        def choose(found: int) -> NDArray[np.int64]:
            nonlocal chosen
            if found != row.record.num_frames:
                raise DecodeError(f"has {found} frames, its record says {row.record.num_frames}")
            if isinstance(how, AugmentConfig):
                chosen = draw_indices(found, **cut, rng=rng)
            else:
                chosen = view_indices(found, **cut, views=how.temporal)
            return with_pair(chosen, row.record) if self._pair else chosen

        frames = decode_each(self._collection.video(slot.shard, row), choose)
        length = self._frames + 2 * self._pair
        made = np.empty((self._views, length, self._size, self._size, 3), dtype=np.uint8)
        if isinstance(how, AugmentConfig):
            for r, into in enumerate(made):
                self._view(frames, how, slot.seed, r, rng, into)
            return made, np.tile(chosen, (self._repeats, 1))
        for k, into in enumerate(np.split(made, how.temporal)):
            clip = frames[k * length : (k + 1) * length]
            view_crops(clip, spatial=how.spatial, size=self._size, out=into)
        return made, np.repeat(chosen, how.spatial, axis=0)

    def _view(
        self,
        frames: list[NDArray[np.uint8]],
        how: AugmentConfig,
        seed: int,
        r: int,
        rng: np.random.Generator,
        into: NDArray[np.uint8],
    ) -> None:
        """Make the `r`-th training clip of these frames; `rng` is of the first, which chose
        them."""
        seed = _view_seed(seed, r)
        rng = np.random.default_rng(seed) if r else rng
        cut(frames, how, size=self._size, rng=rng, out=into)
        if self._draws and how.draws:
            into[:] = apply(into, draw(how, seed, size=self._size))


def with_pair(indices: NDArray[np.int64], record: Record) -> NDArray[np.int64]:
    """[…, T] → […, T + 2]: onset and apex behind the indices. DecodeError where the record names
    frames that the clip does not have."""
    pair = pair_of(record)
    if not all(0 <= at < record.num_frames for at in pair):
        raise DecodeError(f"has {record.num_frames} frames, its record names {pair}")
    return np.concatenate([indices, np.broadcast_to(pair, (*indices.shape[:-1], 2))], axis=-1)


def _view(clip: Clip, r: int) -> Clip:
    """The `r`-th of the clips that were made of one video."""
    pixels = None if clip.pixels is None else clip.pixels[r : r + 1]
    extra = {n: a[r : r + 1] if n in PER_VIEW else a for n, a in clip.extra.items()}
    return replace(clip, pixels=pixels, seed=_view_seed(clip.seed, r), extra=extra)


def _view_seed(seed: int, r: int) -> int:
    """The first view has the seed of its place: it is the same clip with and without others."""
    return int(hashed(_VIEWS, seed, r)[0] >> np.uint64(1)) if r else seed

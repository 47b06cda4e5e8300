"""The samples that a configuration names: folders opened, shards counted, splits looked up.

Owns what is refused before anything is read: no sample of a split, shards that are lost, classes
that are lost with them, clips that a split file names and nobody has. Refuses to know order,
decoding and batches.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shards.config import DataConfig
from shards.index import ShardLost
from shards.ledger import read_skip
from shards.manifest import Manifest
from shards.place import locate
from shards.presence import Lost, heard, look
from shards.reader import Collection
from shards.splitfile import SplitFile, read_split_file, shown
from shards.wording import count, few


def open_collection(data: DataConfig, *, lost: Lost | None = None) -> Collection:
    """The samples that a config names, every shard's presence and size checked.

    Args:
        lost: `Collection.told` of whoever looked at the same folders. None looks at every file; of
            what else is gone by now the reading tells.
    """
    if not data.shards:
        raise ValueError("data.shards is empty: name shard folders with --data.shards DIR …")
    manifests = [Manifest.open(locate(folder, data.source)) for folder in data.shards]
    gone = look(manifests) if lost is None else heard(lost)
    check_lost(data, list(gone.values()))
    chosen = None if data.splits is None else read_split_file(data.splits, data.source)
    _check_split(data, manifests, chosen)
    skip = read_skip(data.skip, data.source)
    collection = Collection(manifests, split=data.split, chosen=chosen, lost=gone, skip=skip)
    check_lost(data, list(collection.lost.values()))
    _check_absent(data, collection)
    return collection


def _check_split(data: DataConfig, manifests: Sequence[Manifest], chosen: SplitFile | None) -> None:
    """ValueError where nothing is of the wanted split."""
    if chosen is not None:
        found, known, where = chosen.count(data.split), list(chosen.counts), data.splits
    else:
        found, where = sum(m.count(data.split) for m in manifests), ", ".join(data.shards)
        known = [split for m in manifests for split in m.splits]
    if found == 0:
        raise ValueError(
            f"data.split is {data.split!r}, but {where} {'has' if chosen else 'have'} no sample of "
            f"it; splits there: {', '.join(sorted(set(known))) or 'none'}"
        )


def _check_absent(data: DataConfig, collection: Collection) -> None:
    """ValueError where the split file names more clips that are not there than lost shards have."""
    sizes = [shard.samples for m in collection.manifests for shard in m.shards]
    hidden = sum(sizes[shard] for shard in collection.unindexed)
    if len(collection.absent) > hidden:
        names = few([shown(name) for name in collection.absent])
        known = f" (lost shards can have {hidden} of them)" if hidden else ""
        raise ValueError(
            f"data.splits: {data.splits} names {count(len(collection.absent), 'clip')} that "
            f"{', '.join(data.shards)} do not have{known}: {names}. Add the folders that have "
            "them, or write the file for these"
        )


def classes_to_balance(collection: Collection) -> list[NDArray[np.int32]]:
    """The classes of `Collection.classes`, for `data.balance`, which needs all of them."""
    what = "data.balance needs the classes of every clip"
    check_indexed(collection, what, without="leave data.balance None")
    return collection.classes


def check_indexed(collection: Collection, what: str, *, without: str) -> None:
    """ShardLost where an index is lost, whatever `data.allow_missing` says, for a setting that
    depends on the records of all clips; reads every index.

    Args:
        what: the setting and what it needs, for the message.
        without: how to do without the setting.
    """
    _ = collection.classes  # looks through every index
    if lost := collection.unindexed:
        raise ShardLost(
            f"{what}: {next(iter(lost.values()))}. `ingest … --redo LEDGER` makes a lost index "
            f"anew; without it {without}"
        )


def check_lost(data: DataConfig, lost: list[ShardLost]) -> None:
    """ShardLost, of the first, where more shards are lost than allowed."""
    if len(lost) > data.allow_missing:
        raise ShardLost(
            f"{lost[0]}. Lost are {len(lost)}, allowed {data.allow_missing}: "
            f"--data.allow_missing {len(lost)} goes on without"
        )

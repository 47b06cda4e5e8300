"""What of a shard folder has to be made anew: from ledgers and the folder to shards and videos.

A tar that is whole, by its sha256, keeps all samples but those that a ledger names. Of one that is
lost or changed every sample is made anew: which ones says its index, or where that is lost too, its
neighbours, as samples stand in the order of the videos' keys. Owns this choice. Opens no video,
writes nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.index import IndexRow, ManifestError, scan_tar, sha256_of
from shards.ingest.inputs import CLIP_NUMBER, InputError, Item
from shards.ledger import Named
from shards.manifest import Manifest

Place = tuple[int, int]
"""Number of a video, and of its clip; -1 where it is its only one."""
LAST = 1 << 62
"""Number of a clip after all of a video."""


@dataclass(frozen=True)
class Torn:
    """A shard that is to be written anew."""

    number: int
    """In the manifest."""
    whole: bool
    """Whether its tar is what was written."""
    keys: frozenset[str]
    """Samples that are made anew."""
    videos: tuple[int, ...]
    """Numbers of the videos for it, in order."""
    gap: tuple[Place, Place] | None = None
    """Where nobody knows what it held: the places of the samples before and after it."""


class Videos:
    """The videos of a request, by the keys of their clips."""

    def __init__(self, items: Sequence[Item]) -> None:
        self._keys = [item.key for item in items]

    def place(self, key: str) -> Place | None:
        """Where a sample of that key comes from; None where there is no such video."""
        number, clip = self._find(key), -1
        if number is None and (found := CLIP_NUMBER.search(key)):
            number, clip = self._find(key[: found.start()]), int(found[0][1:])
        return None if number is None else (number, clip)

    def beside(self, key: str) -> Place:
        """The place of a key, or where it would be: after the video that comes before it."""
        return self.place(key) or (bisect_right(self._keys, key) - 1, LAST)

    def _find(self, key: str) -> int | None:
        at = bisect_right(self._keys, key) - 1
        return at if at >= 0 and self._keys[at] == key else None

    def __len__(self) -> int:
        return len(self._keys)


def torn(
    folder: Path, manifest: Manifest, named: Mapping[str, Named], videos: Videos
) -> Iterator[Torn]:
    """The named shards of which something has to be made anew.

    Raises InputError where that cannot be known.
    """
    for number, shard in enumerate(manifest.shards):
        if shard.sha256 not in named:
            continue
        tar = folder / shard.name
        whole = _is_whole(tar, shard.bytes, shard.sha256)
        rows = rows_of(folder, manifest, number, whole=whole)
        if rows is None:
            before, after = gap = _gap(folder, manifest, number, videos)
            first = before[0] + (before[1] == LAST)
            between = tuple(range(first, after[0] + (after[1] > 0)))
            yield Torn(number, False, frozenset(), between, gap)
            continue
        keys = {row.key for row in rows}
        if whole:
            keys &= named[shard.sha256].keys
        found = (videos.place(key) for key in keys)
        numbers = tuple(sorted({place[0] for place in found if place}))
        if keys or not _indexed(manifest, number):
            yield Torn(number, whole, frozenset(keys), numbers)


def rows_of(folder: Path, manifest: Manifest, i: int, *, whole: bool) -> list[IndexRow] | None:
    """What shard `i` holds: from its index, or if that is lost from its tar, if that is whole."""
    try:
        return manifest.index(i)
    except ManifestError:
        return list(scan_tar(folder / manifest.shards[i].name)) if whole else None


def _is_whole(tar: Path, size: int, digest: str) -> bool:
    try:
        return tar.is_file() and tar.stat().st_size == size and sha256_of(tar) == digest
    except OSError:  # a disk that cannot read it back
        return False


def _indexed(manifest: Manifest, i: int) -> bool:
    try:
        manifest.index_lines(i)
    except ManifestError:
        return False
    return True


def _gap(folder: Path, manifest: Manifest, i: int, videos: Videos) -> tuple[Place, Place]:
    """The places around a shard of which nothing is left."""
    before, after = (-1, LAST), (len(videos), -1)
    if i > 0:
        number, clip = videos.beside(_neighbour(folder, manifest, i, i - 1)[-1].key)
        before = number, LAST if clip < 0 else clip
    if i + 1 < len(manifest.shards):
        after = videos.beside(_neighbour(folder, manifest, i, i + 1)[0].key)
    return before, after


def _neighbour(folder: Path, manifest: Manifest, i: int, other: int) -> list[IndexRow]:
    shard = manifest.shards[other]
    whole = _is_whole(folder / shard.name, shard.bytes, shard.sha256)
    rows = rows_of(folder, manifest, other, whole=whole)
    if not rows:
        raise InputError(
            f"{manifest.shards[i].name} and {shard.name} beside it are lost with their indexes, so "
            "nobody knows which clips each held; restore one of the index files, or ingest into a "
            "new folder"
        )
    return rows

"""A folder of shards: its manifest; opening and writing it.

    DIR/manifest.json  schema, versions, labels, splits, and of every shard its counts and hashes
    DIR/shard-*        tars and their index files (`shards.index`)

Owns the manifest's form. Refuses to know where videos came from and how they are decoded. Opening
reads the manifest alone, so 100,000 shards open in seconds; an index is read when needed. The
folder may lie anywhere (`shards.place`); writing takes a local one.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import hashlib
import json
import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from shards.index import (
    INGEST,
    IndexRow,
    ManifestError,
    Shard,
    ShardLost,
    broken,
    index_name,
    split_of,
    unreadable,
    write_aside,
)
from shards.patience import patiently
from shards.place import DISK_PATIENCE, Remote, locate, open_whole, read_whole
from shards.schema import SCHEMA

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """An opened shard folder."""

    folder: Path | Remote
    shards: tuple[Shard, ...]
    samples: int
    labels: tuple[str, ...]
    """Class names; a class's index is its place here."""
    splits: dict[str, int]
    """Samples of each split."""
    clip: dict[str, Any]
    """How the clips were encoded: size, fps policy, codec, gop, crf."""
    created_by: dict[str, str]
    """Versions of what wrote the folder."""
    rejected: dict[str, int] = field(default_factory=dict)
    """Videos that gave no clip, by the split that they were to be of; "" without one."""
    sha256: str = ""
    """Of the manifest itself, and so of everything in the folder."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _unpacked, (self._packed,)

    @functools.cached_property
    def _packed(self) -> bytes:
        """Pickled once, whatever the number of loader processes that get it: with 100,000 shards
        each would cost the trainer a third of a second of its start."""
        with _uncollected():
            return pickle.dumps([getattr(self, field.name) for field in fields(self)])

    @property
    def origin(self) -> tuple[str, str]:
        """Where it was read, and its sha256: for the record of a run."""
        return str(self.folder / MANIFEST), self.sha256

    @classmethod
    def open(cls, folder: str | Path | Remote) -> Manifest:
        """Read `folder`/manifest.json; ManifestError where there is none of this schema."""
        folder = locate(folder)
        path = folder / MANIFEST
        try:
            raw = read_whole(path)
        except OSError as error:
            what = f"cannot be read ({error.strerror})"
            raise ManifestError(f"{path} {what}{_fix(folder, error)}") from None
        with _uncollected():
            try:
                data = json.loads(raw)
            except (ValueError, RecursionError) as error:
                raise broken(path, f"is not JSON ({error})") from None
            digest = hashlib.sha256(raw).hexdigest()
            return _parse(data, folder=folder, path=path, digest=digest)

    def count(self, split: str | None) -> int:
        """Samples of one split, all of them where it is None."""
        return self.samples if split is None else self.splits.get(split, 0)

    def index(self, i: int) -> list[IndexRow]:
        """All rows of shard `i`, read past the cache: who looks through a whole index does so once.
        Raises like `index_lines`."""
        lines = self._lines(i, lambda: read_whole(self._index_path(i)))
        return [self.parse_row(i, line) for line in lines]

    def index_lines(self, i: int) -> list[bytes]:
        """The unparsed lines of shard `i`'s index; ShardLost if it is missing or changed."""

        def once() -> bytes:
            with os.fdopen(self.open_index(i), "rb") as file:
                return file.read()

        path = str(self._index_path(i))
        return self._lines(i, lambda: patiently(once, path, limit=DISK_PATIENCE))

    def _lines(self, i: int, read: Callable[[], bytes]) -> list[bytes]:
        shard, path = self.shards[i], self._index_path(i)
        try:
            raw = read()
            if hashlib.sha256(raw).hexdigest() != shard.index_sha256 and isinstance(path, Remote):
                path.cache.drop(shard.index_sha256)  # it was sound when it came in
                raw = read()
        except OSError as error:
            raise unreadable(path, error) from error
        if hashlib.sha256(raw).hexdigest() != shard.index_sha256:
            raise broken(path, f"is not the file that {MANIFEST} describes", kind=ShardLost)
        lines = raw.splitlines()
        if len(lines) != shard.samples:
            raise broken(path, f"has {len(lines)} lines for {shard.samples} samples")
        return lines

    def positions(self, i: int, split: str, lines: Sequence[bytes]) -> list[int]:
        """Which samples of shard `i` are of a split, from the lines of its index.

        Raises ManifestError where a line is none, and like `check_count`.
        """
        try:
            found = [at for at, line in enumerate(lines) if split_of(line) == split]
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            raise broken(self._index_path(i), f"({error})") from None
        self.check_count(i, split, len(found))
        return found

    def check_count(self, i: int, split: str | None, found: int) -> None:
        """ManifestError where shard `i` is counted otherwise here: the places of all samples were
        made from these counts."""
        if found != (counted := self.shards[i].count(split)):
            what = f"has {found} samples of split {split!r}, {MANIFEST} counts {counted}"
            raise broken(self._index_path(i), what)

    def open_index(self, i: int) -> int:
        """A descriptor of shard `i`'s index. Raises ShardLost, CacheError."""
        return _open(self._index_path(i), self.shards[i].index_sha256, 0)

    def open_tar(self, i: int) -> int:
        """A descriptor of shard `i`'s tar. Raises ShardLost, CacheError."""
        shard = self.shards[i]
        return _open(self.folder / shard.name, shard.sha256, shard.bytes)

    def warm(self, i: int) -> None:
        """Fetch shard `i` into the cache ahead of its time, if it is not at hand and there is room
        that nobody needs now. Raises ShardLost, CacheError."""
        if isinstance(self.folder, Remote):
            early = replace(self, folder=self.folder.ahead())
            os.close(early.open_index(i))
            os.close(early.open_tar(i))

    def parse_row(self, i: int, line: bytes) -> IndexRow:
        """A line of shard `i`'s index; ManifestError where it is none."""
        try:
            return IndexRow.from_line(line)
        except (ValueError, TypeError, RecursionError) as error:
            raise broken(self._index_path(i), f"({error})") from None

    def index_lost(self, i: int, error: OSError) -> ManifestError:
        """The ShardLost to raise where shard `i`'s index cannot be read."""
        return unreadable(self._index_path(i), error)

    def _index_path(self, i: int) -> Path | Remote:
        return self.folder / index_name(self.shards[i].name)


def write_manifest(
    folder: Path,
    shards: Sequence[Shard],
    *,
    labels: Sequence[str],
    clip: Mapping[str, Any],
    created_by: Mapping[str, str],
    rejected: Mapping[str, int] | None = None,
) -> Manifest:
    """Write `folder`/manifest.json, last of all: a folder with a manifest is a finished one."""
    data = {
        "schema": SCHEMA,
        "created_by": dict(created_by),
        "clip": dict(clip),
        "labels": list(labels),
        "splits": _total(shards),
        "samples": sum(shard.samples for shard in shards),
        "shards": [asdict(shard) for shard in shards],
    }
    if rejected:  # folders without have the bytes that they had before these were counted
        data["rejected"] = dict(sorted(rejected.items()))
    write_aside(folder / MANIFEST, (json.dumps(data, ensure_ascii=False, indent=1) + "\n").encode())
    return Manifest.open(folder)


def _unpacked(packed: bytes) -> Manifest:
    with _uncollected():
        return Manifest(*pickle.loads(packed))


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without the search for cycles of garbage: there is none among shards, and with 100,000 of
    them searching takes longer than making them."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def _shards(entries: Any) -> tuple[Shard, ...]:
    """Equal counts become one object: most shards of a large folder are of one split alone."""
    known: dict[tuple, dict[str, int]] = {}
    for entry in entries:
        counts = entry.get("splits")
        if type(counts) is dict:
            entry["splits"] = known.setdefault(tuple(counts.items()), counts)
    return tuple(Shard(**entry) for entry in entries)


def _total(shards: Iterable[Shard]) -> dict[str, int]:
    """Samples of each split, by name."""
    counts = Counter[str]()
    for shard in shards:
        for name, count in shard.splits.items():
            counts[name] += count
    return dict(sorted(counts.items()))


def _open(path: Path | Remote, digest: str, size: int) -> int:
    try:
        return open_whole(path, digest, size)
    except OSError as error:
        raise unreadable(path, error) from None


def _fix(folder: Path | Remote, error: OSError) -> str:
    if isinstance(folder, Remote):
        return "; check the address, and that what ingest wrote was copied there"
    if error.errno not in (errno.ENOENT, errno.ENOTDIR):
        return ""  # a folder that is there, on a disk that is not
    return f": {folder} is no shard folder; write one with `{INGEST} {folder}`"


def _parse(data: Any, *, folder: Path | Remote, path: Path | Remote, digest: str) -> Manifest:
    found = data.get("schema") if isinstance(data, dict) else None
    if found != SCHEMA:
        again = f"{folder} --overwrite`" if isinstance(folder, Path) else "DIR`, then copy it there"
        what = f"has schema {found!r}, this version reads {SCHEMA!r}"
        raise ManifestError(f"{path} {what}; ingest the videos again: `{INGEST} {again}")
    data.setdefault("rejected", {})  # of a folder that was written before they were counted
    names = {"schema", "created_by", "clip", "labels", "splits", "rejected", "samples", "shards"}
    if set(data) != names:
        raise broken(path, f"differs in {sorted(set(data) ^ names)}")
    objects = (("splits", dict), ("rejected", dict), ("clip", dict), ("created_by", dict))
    for name, kind in (("labels", list), *objects):
        if type(data[name]) is not kind:
            raise broken(path, f"has {name} {data[name]!r:.40}, not a JSON {kind.__name__}")
    if strange := [n for n in data["rejected"].values() if type(n) is not int or n < 0]:
        raise broken(path, f"counts {strange[0]!r:.40} rejected videos")
    try:
        shards = _shards(data["shards"])
        total = sum(shard.samples for shard in shards)
    except (TypeError, AttributeError) as error:
        raise broken(path, f"lists a shard that is none ({error})") from None
    if total != data["samples"]:
        raise broken(path, f"counts {data['samples']} samples, its shards {total}")
    if (splits := _total(shards)) != data["splits"]:
        raise broken(path, f"counts the splits {data['splits']!r:.200}, its shards {splits!r:.200}")
    return Manifest(
        folder=folder,
        shards=shards,
        samples=total,
        labels=tuple(data["labels"]),
        splits=splits,
        clip=data["clip"],
        created_by=data["created_by"],
        rejected=data["rejected"],
        sha256=digest,
    )

"""A folder of shards: its manifest; opening, writing, selecting from and verifying it.

    DIR/manifest.json  schema, versions, labels, splits, and of every shard its counts and hashes
    DIR/shard-*        tars and their index files (`shards.index`)

Owns the manifest's form. Refuses to know where videos came from and how they are decoded. Opening
reads the manifest alone, so 100,000 shards open in seconds; an index is read when needed. The
folder may lie anywhere (`shards.place`); writing and verifying take a local one.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pickle
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
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
    scan_tar,
    sha256_of,
    write_aside,
)
from shards.place import Remote, locate
from shards.schema import SCHEMA, Record

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
    sha256: str = ""
    """Of the manifest itself, and so of everything in the folder."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _unpacked, (self._packed,)

    @functools.cached_property
    def _packed(self) -> bytes:
        """Pickled once, whatever the number of loader processes that get it: with 100,000 shards
        each would cost the trainer a third of a second of its start."""
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
            raw = path.read_bytes()
        except OSError as error:
            raise ManifestError(f"{path} cannot be read ({error.strerror}){_fix(folder)}") from None
        try:
            data = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise broken(path, f"is not JSON ({error})") from None
        digest = hashlib.sha256(raw).hexdigest()
        return _parse(data, folder=folder, path=path, digest=digest)

    def index(self, i: int) -> list[IndexRow]:
        """All rows of shard `i`; raises like `index_lines`."""
        return [self.parse_row(i, line) for line in self.index_lines(i)]

    def index_lines(self, i: int) -> list[bytes]:
        """The unparsed lines of shard `i`'s index; ShardLost if it is missing or changed."""
        shard = self.shards[i]
        path = self.folder / index_name(shard.name)
        with os.fdopen(self.open_index(i), "rb") as file:
            raw = file.read()
        if hashlib.sha256(raw).hexdigest() != shard.index_sha256:
            raise broken(path, f"is not the file that {MANIFEST} describes", kind=ShardLost)
        lines = raw.splitlines()
        if len(lines) != shard.samples:
            raise broken(path, f"has {len(lines)} lines for {shard.samples} samples")
        return lines

    def open_index(self, i: int) -> int:
        """A descriptor of shard `i`'s index. Raises ShardLost, CacheError."""
        shard = self.shards[i]
        return _open(self.folder / index_name(shard.name), shard.index_sha256, 0)

    def open_tar(self, i: int) -> int:
        """A descriptor of shard `i`'s tar. Raises ShardLost, CacheError."""
        shard = self.shards[i]
        return _open(self.folder / shard.name, shard.sha256, shard.bytes)

    def parse_row(self, i: int, line: bytes) -> IndexRow:
        """A line of shard `i`'s index; ManifestError where it is none."""
        try:
            return IndexRow.from_line(line)
        except (ValueError, TypeError, RecursionError) as error:
            raise broken(self.folder / index_name(self.shards[i].name), f"({error})") from None

    def select(self, keep: Callable[[Record], bool]) -> list[list[int]]:
        """For every shard the positions of the samples that `keep` accepts. Reads every index."""
        return [
            [at for at, row in enumerate(self.index(i)) if keep(row.record)]
            for i in range(len(self.shards))
        ]

    def check_files(self) -> None:
        """Looks at names and sizes; ShardLost names the first shard that differs."""
        for lost in self.lost_files().values():
            raise lost

    def lost_files(self) -> dict[int, ShardLost]:
        """The shards whose files are not there in full, by their names and sizes.

        Elsewhere than on a file system nothing is looked at: listing takes long there, and what is
        lost shows when it is fetched.
        """
        if not isinstance(self.folder, Path):
            return {}
        try:
            with os.scandir(self.folder) as entries:
                # Of an index its hash is checked when it is read.
                sizes = {
                    e.name: e.stat().st_size if e.name.endswith(".tar") else 0 for e in entries
                }
        except OSError as error:
            raise broken(self.folder, f"cannot be listed ({error.strerror})") from None
        lost = {}
        for i, shard in enumerate(self.shards):
            if shard.name not in sizes or index_name(shard.name) not in sizes:
                gone = shard.name if shard.name not in sizes else index_name(shard.name)
                lost[i] = broken(self.folder / gone, "is missing", kind=ShardLost)
            elif (size := sizes[shard.name]) != shard.bytes:
                what = "was cut" if size < shard.bytes else "has grown"
                what = f"{what}: {size} bytes, written with {shard.bytes}"
                lost[i] = broken(self.folder / shard.name, what, kind=ShardLost)
        return lost


def write_manifest(
    folder: Path,
    shards: Sequence[Shard],
    *,
    labels: Sequence[str],
    splits: Mapping[str, int],
    clip: Mapping[str, Any],
    created_by: Mapping[str, str],
) -> Manifest:
    """Write `folder`/manifest.json, last of all: a folder with a manifest is a finished one."""
    data = {
        "schema": SCHEMA,
        "created_by": dict(created_by),
        "clip": dict(clip),
        "labels": list(labels),
        "splits": dict(splits),
        "samples": sum(shard.samples for shard in shards),
        "shards": [asdict(shard) for shard in shards],
    }
    write_aside(folder / MANIFEST, (json.dumps(data, ensure_ascii=False, indent=1) + "\n").encode())
    return Manifest.open(folder)


def verify(folder: str | Path) -> list[str]:
    """Read and compare everything: problems in words, none for an intact folder.

    Raises ManifestError where the manifest itself cannot be read.
    """
    manifest = Manifest.open(folder)
    problems: list[str] = []
    labels, splits = set(manifest.labels), Counter[str]()
    keys: set[str] = set()
    for i, shard in enumerate(manifest.shards):
        try:
            rows = _verified_rows(manifest, i, shard)
        except ManifestError as error:
            problems.append(str(error))
            continue
        splits.update(row.record.split for row in rows if row.record.split)
        for row in rows:
            problems += [f"{shard.name}: {row.key}: {p}" for p in row.record.problems()]
            if row.key in keys:
                problems.append(f"{shard.name}: {row.key} occurs twice")
            if row.record.label is not None and row.record.label not in labels:
                problems.append(f"{shard.name}: {row.key}: label {row.record.label!r} is unlisted")
            keys.add(row.key)
    if not problems and dict(splits) != manifest.splits:
        problems.append(f"{MANIFEST} counts the splits as {manifest.splits}, found {dict(splits)}")
    return problems


def stats(folder: str | Path) -> dict[str, Any]:
    """Counts for people; `labels` and `splits` count under "" what has none."""
    manifest = Manifest.open(folder)
    records = [row.record for i in range(len(manifest.shards)) for row in manifest.index(i)]
    seen = Counter(record.label for record in records)
    return {
        "samples": manifest.samples,
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "frames": sum(record.num_frames for record in records),
        "seconds": sum(record.num_frames / record.fps for record in records),
        "subjects": len({record.subject_id for record in records if record.subject_id is not None}),
        "datasets": dict(Counter(record.dataset for record in records)),
        "splits": dict(Counter(record.split or "" for record in records)),
        "labels": {label: seen[label] for label in manifest.labels} | {"": seen[None]},
        "clip": manifest.clip,
    }


def _unpacked(packed: bytes) -> Manifest:
    return Manifest(*pickle.loads(packed))


def _verified_rows(manifest: Manifest, i: int, shard: Shard) -> list[IndexRow]:
    """Rows of a shard whose tar, index and manifest agree; ManifestError says how they do not."""
    tar = manifest.folder / shard.name
    if not isinstance(tar, Path):
        raise ManifestError(f"{tar} is not on this machine: verify the folder that ingest wrote")
    if not tar.is_file():
        raise broken(tar, "is missing")
    rows = manifest.index(i)
    if tar.stat().st_size != shard.bytes:
        size = tar.stat().st_size
        what = "was cut" if size < shard.bytes else "has grown"
        raise broken(tar, f"{what}: {size} bytes, written with {shard.bytes}")
    if sha256_of(tar) != shard.sha256:
        raise broken(tar, "was changed: its sha256 is not the manifest's")
    if list(scan_tar(tar)) != rows:
        raise broken(tar, "does not hold what its index says")
    return rows


def _open(path: Path | Remote, digest: str, size: int) -> int:
    try:
        if isinstance(path, Path):
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return path.open_cached(digest, size)
    except OSError as error:
        raise broken(path, f"cannot be read ({error.strerror})", kind=ShardLost) from None


def _fix(folder: Path | Remote) -> str:
    if isinstance(folder, Path):
        return f": {folder} is no shard folder; write one with `{INGEST} {folder}`"
    return "; check the address, and that what ingest wrote was copied there"


def _parse(data: Any, *, folder: Path | Remote, path: Path | Remote, digest: str) -> Manifest:
    found = data.get("schema") if isinstance(data, dict) else None
    if found != SCHEMA:
        raise broken(path, f"has schema {found!r}, this version reads {SCHEMA!r}")
    names = {"schema", "created_by", "clip", "labels", "splits", "samples", "shards"}
    if set(data) != names:
        raise broken(path, f"differs in {sorted(set(data) ^ names)}")
    for name, kind in (("labels", list), ("splits", dict), ("clip", dict), ("created_by", dict)):
        if type(data[name]) is not kind:
            raise broken(path, f"has {name} {data[name]!r:.40}, not a JSON {kind.__name__}")
    try:
        shards = tuple(Shard(**entry) for entry in data["shards"])
        total = sum(shard.samples for shard in shards)
    except TypeError as error:
        raise broken(path, f"lists a shard that is none ({error})") from None
    if total != data["samples"]:
        raise broken(path, f"counts {data['samples']} samples, its shards {total}")
    return Manifest(
        folder=folder,
        shards=shards,
        samples=total,
        labels=tuple(data["labels"]),
        splits=data["splits"],
        clip=data["clip"],
        created_by=data["created_by"],
        sha256=digest,
    )

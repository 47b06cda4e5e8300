"""One shard: the members of its tar, its index file, and their hashes.

    shard-000000.tar          members KEY.mp4, KEY.json (the record): an ordinary WebDataset shard;
                              between them KEY.flow.npz and the like, where ingest was asked for it
    shard-000000.index.jsonl  a line a sample, in the tar's order:
                              {"key", "video": [offset, size], "crc32", "record"}

Owns every byte offset: with the index a clip is read by one `pread`, no tar is parsed or scanned,
and its crc32 tells damage that a decoder would pass on as a picture. Refuses to know how clips are
made and decoded.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import tarfile
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shards.patience import Away
from shards.schema import Record, SchemaError

if TYPE_CHECKING:
    from shards.place import Remote

KEY = re.compile(r"[A-Za-z0-9_-]+")
"""Keys hold no dot, at which WebDataset splits a member's name, and no path."""
TAR = re.compile(r"[^/\\\0]+\.tar")
DIGEST = re.compile(r"[0-9a-f]{64}")
LARGEST_RECORD = 16 << 20
DERIVED = ("flow.npz", "strain.npz", "keyframes.npz")
"""Members that only those read who ask (`shards.derived`); the index does not name them."""
KINDS = ("mp4", "json", *DERIVED)
TRY_AGAIN = 600.0
"""Seconds until a shard that was away is tried again: to find that it still is takes minutes."""
INGEST = "python -m shards ingest VIDEOS --out"


class ManifestError(ValueError):
    """A shard folder that cannot be used; the message names the file and the fix."""


class ShardLost(ManifestError):
    """One shard that is gone or is another one; the others can still be read."""

    @property
    def stands(self) -> bool:
        """Whether it is lost without another try."""
        return True


class ShardAway(ShardLost):
    """One that cannot be read by a fault that may pass; it is tried again after a while."""

    def __init__(self, what: str):
        super().__init__(what)
        self.until = time.monotonic() + TRY_AGAIN

    @property
    def stands(self) -> bool:
        return time.monotonic() < self.until


@dataclass(frozen=True)
class Shard:
    """What the manifest knows of one tar."""

    name: str
    """File name of the tar."""
    samples: int
    splits: dict[str, int]
    """Samples of each split; what has none is not counted."""
    bytes: int
    sha256: str
    index_sha256: str

    def __post_init__(self) -> None:
        """A manifest from elsewhere must not name places outside its folder or the cache."""
        numbers = type(self.samples) is int and type(self.bytes) is int
        if not (numbers and self.samples >= 0 and self.bytes >= 0 and TAR.fullmatch(self.name)):
            raise TypeError(f"{self.name!r:.80} with {self.samples!r:.20} samples")
        counts = self.splits.items() if type(self.splits) is dict else [("", -1)]
        sound = all(name and type(n) is int and n >= 0 for name, n in counts)
        if not sound or sum(self.splits.values()) > self.samples:
            told = f"{self.samples!r:.20} samples and the splits {self.splits!r:.80}"
            raise TypeError(f"{self.name!r:.80} with {told}")
        if not (DIGEST.fullmatch(self.sha256) and DIGEST.fullmatch(self.index_sha256)):
            raise TypeError(f"{self.name!r:.80} with a sha256 that is none")

    def count(self, split: str | None) -> int:
        """Samples of one split, all of them where it is None."""
        return self.samples if split is None else self.splits.get(split, 0)


@dataclass(frozen=True)
class IndexRow:
    """One sample: `size` bytes of mp4 from `offset` in the tar, their crc32, and the record."""

    key: str
    offset: int
    size: int
    crc32: int
    record: Record

    def to_line(self) -> str:
        """One line of an index file, with its line break."""
        row = {
            "key": self.key,
            "video": [self.offset, self.size],
            "crc32": self.crc32,
            "record": self.record.to_json(),
        }
        return json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n"

    @classmethod
    def from_line(cls, line: str | bytes) -> IndexRow:
        """The inverse of `to_line`. Raises SchemaError or ValueError for anything else."""
        row = json.loads(line)
        if not isinstance(row, dict) or set(row) != {"key", "video", "crc32", "record"}:
            raise SchemaError(f"an index line holds key, video, crc32 and record, not {line!r:.80}")
        offset, size = row["video"]
        if any(type(n) is not int or n < 0 for n in (offset, size, row["crc32"])):
            raise SchemaError(f"an index line has numbers that are none: {line!r:.80}")
        return cls(row["key"], offset, size, row["crc32"], Record.from_json(row["record"]))


def split_of(line: bytes) -> str | None:
    """The split in an index line; nothing else is looked at, in a fifth of the time of
    `from_line`.

    Raises ValueError, TypeError, LookupError or RecursionError where it is no such line.
    """
    return json.loads(line)["record"]["split"]


def split_counts(rows: Iterable[IndexRow]) -> dict[str, int]:
    """Samples of each split, by name."""
    found = Counter(row.record.split for row in rows if row.record.split)
    return dict(sorted(found.items()))


def index_name(tar: str) -> str:
    """File name of the index that belongs to a tar."""
    return tar.removesuffix(".tar") + ".index.jsonl"


def index_shard(tar: Path) -> Shard:
    """Write the index of a finished tar beside it and return its manifest entry.

    The only writer of index files: what a reader will trust is read back from the tar itself.
    Raises ManifestError for a tar that holds anything but pairs of KEY.mp4 and KEY.json.
    """
    rows = list(scan_tar(tar))
    text = "".join(row.to_line() for row in rows).encode()
    write_aside(tar.parent / index_name(tar.name), text)
    return Shard(
        name=tar.name,
        samples=len(rows),
        splits=split_counts(rows),
        bytes=tar.stat().st_size,
        sha256=sha256_of(tar),
        index_sha256=hashlib.sha256(text).hexdigest(),
    )


def scan_tar(tar: Path) -> Iterator[IndexRow]:
    """Rows of a tar, from its members; ManifestError where it is cut or no shard of ours."""
    videos: dict[str, tuple[int, int, int]] = {}
    whole = tar.stat().st_size
    try:
        with tarfile.open(tar, "r:") as archive, tar.open("rb") as raw:
            for member in archive:
                key, _, kind = member.name.partition(".")
                if not member.isfile() or not KEY.fullmatch(key) or kind not in KINDS:
                    raise broken(tar, f"holds {member.name!r}, not KEY.{' or KEY.'.join(KINDS)}")
                if kind in DERIVED:
                    continue
                if member.offset_data + member.size > whole:  # before memory is taken for it
                    raise broken(tar, f"was cut inside {member.name}")
                if kind == "json" and member.size > LARGEST_RECORD:
                    raise broken(tar, f"holds {member.name}, far too large for a record")
                raw.seek(member.offset_data)
                data = raw.read(member.size)
                if kind == "mp4":
                    videos[key] = member.offset_data, member.size, zlib.crc32(data)
                elif key not in videos:
                    raise broken(tar, f"holds {member.name} without its video before it")
                else:
                    yield IndexRow(key, *videos.pop(key), Record.from_json(json.loads(data)))
    except ManifestError:
        raise
    except (tarfile.TarError, ValueError, RecursionError) as error:
        raise broken(tar, f"cannot be read as a shard ({error})") from None
    if videos:
        raise broken(tar, f"holds no record for {', '.join(videos)}")


def write_aside(path: Path, data: bytes) -> None:
    """Write a whole file or none: whatever interrupts the writer, nobody reads half of it."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def broken(
    path: Path | Remote, what: str, *, kind: type[ManifestError] = ManifestError
) -> ManifestError:
    """The error for a damaged folder: what is wrong with which file, and the fix."""
    if not isinstance(path, Path):
        return kind(f"{path} {what}; copy it there again from the folder that ingest wrote")
    folder = path if path.is_dir() else path.parent
    return kind(f"{path} {what}; restore it or write the folder anew: `{INGEST} {folder}`")


def unreadable(path: Path | Remote, error: OSError) -> ManifestError:
    """The error to raise where a shard's file could not be read: a ShardLost, but where this
    process has too many files open."""
    what = f"cannot be read ({error.strerror})"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return ManifestError(f"{path} {what}: raise the limit, ulimit -n")
    return broken(path, what, kind=ShardAway if isinstance(error, Away) else ShardLost)


def sha256_of(path: Path) -> str:
    """Of a whole file, as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

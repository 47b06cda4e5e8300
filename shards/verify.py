"""Whether a folder holds what its manifest says, down to the last byte.

Owns the comparison of tars, indexes, records, lengths of videos and manifest. Refuses to decode,
and to mend: that is `ingest --redo`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from shards.cache import Cache
from shards.frames import DecodeError, length_of
from shards.index import (
    IndexRow,
    ManifestError,
    Shard,
    broken,
    scan_tar,
    sha256_of,
    split_counts,
)
from shards.manifest import MANIFEST, Manifest
from shards.place import Remote


def verify(folder: str | Path | Remote) -> list[str]:
    """Read and compare everything: problems in words, none for an intact folder. From a URL every
    shard is fetched, one at a time, into a folder for temporary files: what a cache holds says
    nothing of what lies there now.

    Raises ManifestError where the manifest itself cannot be read, UnknownPlace, CacheError.
    """
    manifest = Manifest.open(folder)
    if not isinstance(manifest.folder, Remote):
        return _problems(manifest)
    with tempfile.TemporaryDirectory(prefix="verify-") as scratch:
        room = max((shard.bytes for shard in manifest.shards), default=0)
        afresh = replace(manifest.folder, cache=Cache(Path(scratch), room))
        return _problems(replace(manifest, folder=afresh))


def _problems(manifest: Manifest) -> list[str]:
    problems: list[str] = []
    labels, keys = set(manifest.labels), set[str]()
    for i, shard in enumerate(manifest.shards):
        try:
            rows = _verified_rows(manifest, i, shard)
        except ManifestError as error:
            problems.append(str(error))
            continue
        for row, wrong in zip(rows, _wrong_lengths(manifest, i, rows), strict=True):
            found = [*row.record.problems(), *wrong]
            problems += [f"{shard.name}: {row.key}: {p}" for p in found]
            if row.key in keys:
                problems.append(f"{shard.name}: {row.key} occurs twice")
            if row.record.label is not None and row.record.label not in labels:
                problems.append(f"{shard.name}: {row.key}: label {row.record.label!r} is unlisted")
            keys.add(row.key)
    return problems


def _verified_rows(manifest: Manifest, i: int, shard: Shard) -> list[IndexRow]:
    """Rows of a shard whose tar, index and manifest agree; ManifestError says how they do not."""
    tar = manifest.folder / shard.name
    if isinstance(tar, Path):
        _check_file(tar, shard)
    rows = manifest.index(i)
    if _scanned(manifest, i) != rows:
        raise broken(tar, "does not hold what its index says")
    if (found := split_counts(rows)) != shard.splits:
        what = f"counts the splits of {shard.name} as {shard.splits}, found {found}"
        raise broken(manifest.folder / MANIFEST, what)
    return rows


def _wrong_lengths(manifest: Manifest, i: int, rows: Sequence[IndexRow]) -> Iterator[list[str]]:
    """Of each row what is wrong with its video, by the video's index."""
    file = manifest.open_tar(i)
    try:
        for row in rows:
            try:
                found = length_of(os.pread(file, row.size, row.offset))
            except DecodeError as error:
                yield [f"its video {error}"]
                continue
            told = f"its video has {found} frames, its record says {row.record.num_frames}"
            yield [told] if found != row.record.num_frames else []
    finally:
        os.close(file)


def _check_file(tar: Path, shard: Shard) -> None:
    if not tar.is_file():
        raise broken(tar, "is missing")
    if (size := tar.stat().st_size) != shard.bytes:
        what = "was cut" if size < shard.bytes else "has grown"
        raise broken(tar, f"{what}: {size} bytes, written with {shard.bytes}")
    if sha256_of(tar) != shard.sha256:
        raise broken(tar, "was changed: its sha256 is not the manifest's")


def _scanned(manifest: Manifest, i: int) -> list[IndexRow]:
    """What a tar holds; one from elsewhere was compared by its sha256 when it came in."""
    tar = manifest.folder / manifest.shards[i].name
    if isinstance(tar, Path):
        return list(scan_tar(tar))
    file = manifest.open_tar(i)
    try:
        return list(scan_tar(Path(f"/dev/fd/{file}")))
    finally:
        os.close(file)

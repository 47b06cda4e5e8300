"""Shards on disk: tars of clips and records, and what a full disk does.

Knows nothing of faces or encoding. The same samples give the same bytes.
"""

from __future__ import annotations

import errno
import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.index import Shard, index_shard
from shards.schema import Record

RESERVE = 64 << 20
"""Bytes that must stay free on the disk."""


class DiskFull(OSError):
    """No room left; the message names the place, what is needed and what is free."""


@contextmanager
def room_for(path: Path, needed: int) -> Iterator[None]:
    """Checks that `needed` bytes fit where `path` lies, and explains ENOSPC met while writing."""
    free = shutil.disk_usage(path).free
    if free < needed + RESERVE:
        raise no_room(path, needed, free)
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or isinstance(error, DiskFull):
            raise
        raise no_room(path, needed, shutil.disk_usage(path).free) from error


def no_room(path: Path, needed: int, free: int) -> DiskFull:
    return DiskFull(
        errno.ENOSPC,
        f"no room at {path}: {needed + RESERVE:,} bytes needed, {free:,} free; make room or take "
        "another --out",
    )


class ShardsWriter:
    """shard-NNNNNN.tar one after the other, with their index files; samples in the order of adding.

    Plain `tarfile` in USTAR form with zeroed owner and time: what WebDataset reads, and the same
    bytes for the same samples.
    """

    def __init__(self, folder: Path, *, samples: int, max_bytes: int) -> None:
        if samples < 1 or max_bytes < 1:
            raise ValueError(f"a shard of {samples} samples, {max_bytes} bytes holds nothing")
        self._folder = folder
        self._limits = (samples, max_bytes)
        self._tar: tarfile.TarFile | None = None
        self._path = folder
        self._held = (0, 0)
        self.shards: list[Shard] = []

    def add(self, key: str, video: Path, record: Record) -> None:
        """Appends the clip in the file `video`."""
        data = json.dumps(record.to_json(), ensure_ascii=False, separators=(",", ":")).encode()
        size = video.stat().st_size
        samples, held = self._held
        if self._tar and (samples >= self._limits[0] or held + size > self._limits[1]):
            self.finish_shard()
            samples, held = 0, 0
        with room_for(self._folder, size + len(data) + 4096):
            if self._tar is None:
                self._path = self._folder / f"shard-{len(self.shards):06d}.tar"
                self._tar = tarfile.open(self._path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
            with video.open("rb") as file:
                self._tar.addfile(_member(f"{key}.mp4", size), file)
            self._tar.addfile(_member(f"{key}.json", len(data)), io.BytesIO(data))
        self._held = (samples + 1, held + size)

    def finish_shard(self) -> None:
        """Closes the open shard, if any, and writes its index."""
        if self._tar is not None:
            with room_for(self._folder, 1 << 20):
                self._tar.close()
                self._tar = None
                self.shards.append(index_shard(self._path))


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = size
    member.mtime = 0
    return member

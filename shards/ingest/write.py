"""Shards on disk: tars of clips and records, and what a full disk does.

Knows nothing of faces or encoding. The same samples give the same bytes.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from shards.index import DERIVED, Shard, index_shard
from shards.schema import Record

RESERVE = 64 << 20
"""Bytes that must stay free on the disk."""
KINDS_IN_ORDER = ("mp4", *DERIVED, "json")
"""Suffixes of a sample's members, as they follow one another."""


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
    bytes for the same samples. `finished` are those that are there already; `on_finish` is called
    with each further one once it is on the disk.
    """

    def __init__(
        self,
        folder: Path,
        *,
        samples: int,
        max_bytes: int,
        finished: Sequence[Shard] = (),
        on_finish: Callable[[Shard], None] = lambda shard: None,
    ) -> None:
        if samples < 1 or max_bytes < 1:
            raise ValueError(f"a shard of {samples} samples, {max_bytes} bytes holds nothing")
        self._folder = folder
        self._on_finish = on_finish
        self._limits = (samples, max_bytes)
        self._tar: tarfile.TarFile | None = None
        self._path = folder
        self._held = (0, 0)
        self.shards: list[Shard] = list(finished)

    def add(self, key: str, stem: Path, record: Record) -> None:
        """Appends the clip in the file STEM.mp4, and what lies beside it (`index.DERIVED`)."""
        data = record_bytes(record)
        size = sum(file.stat().st_size for file in files_of(stem).values())
        if self._tar and self._held[1] + size > self._limits[1]:
            self.finish_shard()
        with room_for(self._folder, size + len(data) + 4096):
            if self._tar is None:
                self._path = self._folder / f"shard-{len(self.shards):06d}.tar"
                self._tar = new_tar(self._path)
            add_sample(self._tar, key, stem, data)
        self._held = (self._held[0] + 1, self._held[1] + size)

    @property
    def full(self) -> bool:
        """Whether the open shard takes no further clip, however small; then finish it."""
        return self._held[0] >= self._limits[0]

    def finish_shard(self) -> None:
        """Closes the open shard, if any, and writes its index."""
        if self._tar is not None:
            with room_for(self._folder, 1 << 20):
                self._tar.close()
                self._tar, self._held = None, (0, 0)
                on_disk(self._path)
                self.shards.append(index_shard(self._path))
            self._on_finish(self.shards[-1])


def new_tar(path: Path) -> tarfile.TarFile:
    """An empty tar to add samples to."""
    return tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)


def files_of(stem: Path) -> dict[str, Path]:
    """The files of a clip that are there, by the suffixes of their members."""
    files = {kind: stem.with_name(f"{stem.name}.{kind}") for kind in ("mp4", *DERIVED)}
    return {kind: file for kind, file in files.items() if file.exists()}


def record_bytes(record: Record) -> bytes:
    """The member KEY.json."""
    return json.dumps(record.to_json(), ensure_ascii=False, separators=(",", ":")).encode()


def add_sample(tar: tarfile.TarFile, key: str, stem: Path, record: bytes) -> None:
    """Appends the clip's files and its record, as `record_bytes` gives it."""
    for kind, path in files_of(stem).items():
        with path.open("rb") as file:
            tar.addfile(_member(f"{key}.{kind}", path.stat().st_size), file)
    tar.addfile(_member(f"{key}.json", len(record)), io.BytesIO(record))


def copy_sample(
    tar: tarfile.TarFile, key: str, old: Mapping[str, tarfile.TarInfo], data: IO[bytes]
) -> None:
    """Appends a sample of another shard as it is, from its members by name and its open file."""
    for kind in KINDS_IN_ORDER:
        if member := old.get(f"{key}.{kind}"):
            data.seek(member.offset_data)
            tar.addfile(_member(member.name, member.size), data)


def on_disk(path: Path) -> None:
    """Returns once the file's bytes are."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = size
    member.mtime = 0
    return member

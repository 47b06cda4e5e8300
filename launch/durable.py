"""Folders that must survive a crash of the machine, and be recognised when they did not.

Owns the writing through to the disk, the list of a folder's files with their sizes, and the check
of such a list. Every rank takes part, each with its own files. Refuses to know what is in them.
"""

from __future__ import annotations

import errno
import os
import socket
import tempfile
import time
import uuid
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
"""Numbers of errors of a place that takes no more, however often it is tried."""


def through(files: Sequence[Path], folder: Path) -> dict[str, int]:
    """Write the files of this rank, which lie below `folder`, through to the disk.

    Returns:
        the files of all ranks and their sizes, by their path in `folder`.
    """
    for file in files:
        _sync(file)
    for inner in {file.parent for file in files}:
        _sync(inner)
    mine = {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return {name: size for part in everyone for name, size in sorted(part.items())}


def write_through(path: Path, text: str) -> None:
    """A text file that is on the disk when this returns."""
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def folder_through(folder: Path) -> None:
    """Write a folder with all that lies in it through to the disk."""
    for path in (*folder.rglob("*"), folder):
        _sync(path)


def rename_through(path: Path, to: Path) -> None:
    """Give a folder that was written through its name, and write that through."""
    _sync(path)
    path.rename(to)
    _sync(to.parent)


def why_unwritten(error: Exception, folder: Path) -> int:
    """The number of what kept a file from being written: one of `FULL`, or EIO.

    torch tells of a full disk in a RuntimeError without a number, and where a quota is used up the
    disk has room: so a small file is tried. Ask before anything is cleared away.
    """
    number = getattr(error, "errno", None)
    if number is None:
        try:
            with tempfile.TemporaryFile(dir=folder) as probe:
                probe.write(bytes(1 << 20))
                probe.flush()
                os.fsync(probe.fileno())
        except OSError as tried:
            number = tried.errno
    return number if number in FULL else errno.EIO


def damage(folder: Path, sizes: dict[str, int]) -> str | None:
    """What is wrong with a folder that `through` listed; the same answer on every rank, which
    shares the reading: archives as torch writes them hold checksums."""
    rank, world = dist.get_rank(), dist.get_world_size()
    found = [_wrong(folder / name, sizes[name]) for name in sorted(sizes)[rank::world]]
    everyone: list[Any] = [None] * world
    dist.all_gather_object(everyone, next(filter(None, found), None))
    return next(filter(None, everyone), None)


def check_shared(folder: Path, *, patience: float = 10.0) -> None:
    """Raise OSError unless every rank sees what rank 0 writes into `folder`. Every rank calls this.

    Network file systems may cache the list of a folder; a rank looks again for `patience` seconds.
    """
    token = folder / f".shared-{from_rank0(uuid.uuid4().hex)}"
    if dist.get_rank() == 0:
        token.write_text(socket.gethostname())
    dist.barrier()
    seen = _appears(token, patience)
    hosts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(hosts, (socket.gethostname(), seen))
    if dist.get_rank() == 0:
        token.unlink(missing_ok=True)
    blind = [f"rank {rank} on {host}" for rank, (host, ok) in enumerate(hosts) if not ok]
    if blind:
        raise OSError(
            errno.ENOENT,
            f"the output folder is not shared across nodes: {', '.join(blind)} cannot see what "
            f"rank 0 on {hosts[0][0]} wrote; put --cluster.output on a file system that all nodes "
            "mount at the same path",
            str(folder),
        )


def from_rank0(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _wrong(file: Path, size: int) -> str | None:
    if not file.is_file():
        return f"{file.name} is missing"
    if (now := file.stat().st_size) != size:
        return f"{file.name} has {now} of {size} bytes"
    try:
        with zipfile.ZipFile(file) as archive:
            broken = archive.testzip()
    except zipfile.BadZipFile as error:
        return f"{file.name}: {error}"
    return f"{file.name} has other bytes than were written, in {broken}" if broken else None


def _sync(path: Path) -> None:
    """fsync a file or a folder; some network file systems cannot for folders, and need not."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _appears(path: Path, patience: float) -> bool:
    end = time.monotonic() + patience
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True

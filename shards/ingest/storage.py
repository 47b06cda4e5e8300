"""Faults of what videos are stored on. They are no fault of a video, and they may pass.

Owns which ones these are. Knows no decoder and no processes.
"""

from __future__ import annotations

import errno
import os
from itertools import islice
from pathlib import Path

from shards.patience import patiently

PASSING = frozenset(
    (
        *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO, errno.ENODEV, errno.ENXIO),
        *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ECONNRESET, errno.ENOTCONN),
    )
)
ONE_OR_ALL = frozenset((errno.ENOENT, errno.EACCES, errno.EPERM))
"""What one file gives that was deleted or locked, and all files once their share was unmounted or a
ticket expired."""
STEP = 1 << 24
WITNESSES = 32
"""So many other files are asked at most."""
PATIENCE = 300.0
"""Seconds in which a fault may pass."""


class StorageFault(OSError):
    """A file cannot be read, for a reason that may pass."""


def check(error: Exception, known: Path | None = None) -> None:
    """Raises StorageFault where an error of opening or reading a file is one.

    `known` was there when the run began: that it is gone, or may not be read, is a fault unless
    something else beside it can be read.
    """
    number, said = getattr(error, "errno", None), getattr(error, "strerror", None) or str(error)
    if number in ONE_OR_ALL and known is not None and not _alone(known):
        raise StorageFault(number, f"{said}, nor can anything beside it be read") from error
    if number in PASSING:
        raise StorageFault(number, said) from error


def _alone(path: Path) -> bool:
    """Whether it is this file's own fault: its folder is there, and what else lies in it can be
    read."""
    path = Path(os.path.realpath(path))  # where a link leads
    try:
        names = os.listdir(path.parent)
    except OSError:
        return False
    others = [path.parent / name for name in names if name != path.name]
    return any(map(begins, islice(others, WITNESSES))) if others else bool(names)


def check_bytes(path: Path) -> None:
    """Raises StorageFault unless all of a file can be read: what a decoder calls an input error may
    be damage."""
    try:
        with path.open("rb", buffering=0) as file:
            while file.read(STEP):
                pass
    except OSError as error:
        check(error, path)


def begins(path: Path) -> bool:
    """Whether the first bytes of a file can be read now, from where it lies; of a folder, those of
    a file in it."""
    try:
        if path.is_dir():
            return any(map(_file_begins, islice(path.iterdir(), WITNESSES)))
    except OSError:
        return False
    return _file_begins(path)


def _file_begins(path: Path) -> bool:
    try:
        if not path.is_file():  # a pipe would block
            return False
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, STEP, os.POSIX_FADV_DONTNEED)  # not from memory
            return bool(file.read(1))
    except OSError:
        return False


def found(path: Path) -> os.stat_result | None:
    """What lies at a path when a run begins; None where nothing does. Waits for faults that may
    pass; OSError where they do not, or where it may not be looked at."""
    try:
        return patiently(lambda: _stat(path), str(path), limit=PATIENCE)
    except PermissionError:
        said = "cannot be looked at; check the rights of the folders on the way"
        raise PermissionError(errno.EACCES, said, str(path)) from None


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except PermissionError:
        raise
    except OSError as error:
        check(error)
        return None

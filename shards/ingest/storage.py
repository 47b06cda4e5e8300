"""Faults of what videos are stored on. They are no fault of a video, and they may pass.

Owns which ones these are. Knows no decoder and no processes.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

PASSING = frozenset(
    (
        *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO, errno.ENODEV, errno.ENXIO),
        *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ECONNRESET, errno.ENOTCONN),
    )
)
STEP = 1 << 24


class StorageFault(OSError):
    """A file cannot be read, for a reason that may pass."""


def check(error: Exception) -> None:
    """Raises StorageFault where an error of opening or reading a file is one."""
    number = getattr(error, "errno", None)
    if number in PASSING:
        raise StorageFault(number, getattr(error, "strerror", None) or str(error)) from error


def check_bytes(path: Path) -> None:
    """Raises StorageFault unless all of a file can be read: what a decoder calls an input error may
    be damage."""
    try:
        with path.open("rb", buffering=0) as file:
            while file.read(STEP):
                pass
    except OSError as error:
        check(error)


def begins(path: Path) -> bool:
    """Whether the first bytes of a file can be read now, from where it lies; of a folder, its
    names."""
    try:
        if path.is_dir():
            return bool(os.listdir(path))
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, STEP, os.POSIX_FADV_DONTNEED)  # not from memory
            return bool(file.read(1))
    except OSError:
        return False

"""Faults of what videos are stored on. They are no fault of a video, and they may pass.

Owns which ones these are. Knows no decoder and no processes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from shards.ingest.settings import Rejected
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
RIGHTS = "check the path and its rights"
LOCKED = "cannot be looked at", "check the rights of the folders on the way"
"""Reason and action."""
WITNESSES, FEW, DEPTH = 200, 12, 3
"""So many entries of a folder are looked at, what lies below it included; so many of each of its
subfolders, down to so many levels: one that is locked leaves room for the next."""
PATIENCE = 300.0
"""Seconds in which a fault may pass."""


class StorageFault(OSError):
    """A file cannot be read, for a reason that may pass."""


class Unreadable(Rejected):
    """What was there when the run began cannot be opened: a fault of the storage unless `alone`."""


def check(error: Exception) -> None:
    """Raises StorageFault where an error of opening or reading a file is one."""
    number = getattr(error, "errno", None)
    if number in PASSING:
        raise StorageFault(number, getattr(error, "strerror", None) or str(error)) from error


def alone(video: Path, root: Path) -> bool:
    """Whether it is a video's own fault that it cannot be opened: another file can, in its folder
    or in one above, up to `root`, that of the run.

    Where a link leads out of `root` that folder alone is asked. What nothing lies beside was locked
    if it is still there.
    """
    here, top = Path(os.path.realpath(video)), Path(os.path.realpath(root))
    folders = [here, *here.parents]  # it may be a folder of pictures
    folders = folders[: folders.index(top) + 1 if top in folders else 2]
    files = (f for folder in folders for f in islice(_below(folder), WITNESSES))
    opened = map(_opens, (file for file in files if file and file != str(here)))
    first = next(opened, None)
    return os.path.lexists(here) if first is None else first or any(opened)


def _below(folder: Path | str, depth: int = DEPTH) -> Iterator[str | None]:
    """The files of a folder, one by one, and the first ones of each subfolder; None for an entry
    that is no file. Ends where it cannot be listed."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            yield entry.path if os.path.isfile(entry.path) else None
            if depth and entry.is_dir(follow_symlinks=False):
                yield from islice(_below(entry.path, depth - 1), FEW)


def check_bytes(path: Path) -> None:
    """Raises StorageFault or Unreadable unless all of a file can be read: what a decoder calls an
    input error may be damage."""
    try:
        with path.open("rb", buffering=0) as file:
            while file.read(STEP):
                pass
    except OSError as error:
        check(error)
        raise Unreadable(f"cannot be read ({error.strerror})", RIGHTS) from error


def begins(path: Path) -> bool:
    """Whether the first bytes of a file can be read now; of a folder, those of a file in it."""
    return _opens(path) or any(map(_opens, filter(None, islice(_below(path), WITNESSES))))


def _opens(path: Path | str) -> bool:
    """Whether a file can be read now, from where it lies; an empty one can."""
    try:
        if not os.path.isfile(path):  # a pipe would block
            return False
        with open(path, "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, STEP, os.POSIX_FADV_DONTNEED)  # not from memory
            file.read(1)
            return True
    except OSError:
        return False


def found(path: Path) -> os.stat_result | None:
    """What lies at a path when a run begins; None where nothing does. Waits for faults that may
    pass; OSError where they do not, PermissionError where it may not be looked at."""
    try:
        return patiently(lambda: _stat(path), str(path), limit=PATIENCE)
    except PermissionError:
        raise PermissionError(errno.EACCES, "; ".join(LOCKED), str(path)) from None


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except PermissionError:
        raise
    except OSError as error:
        check(error)
        return None

"""One job at a time in an output folder.

Owns the lock that a driver holds on its folder while it runs. The operating system releases it
however the process ends, so a killed job leaves nothing to clear away. Refuses to know what the job
does.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = ".driver"
# A file system that keeps no locks: some are mounted so. Then nobody is kept away.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def claimed(folder: Path, *, patience: float = 0.0) -> Iterator[None]:
    """Hold `folder`, which is made where it is not there, for this job.

    Args:
        patience: seconds to wait for another job, which may be ending.

    Raises ValueError naming the job that holds it, on this machine or on another one that shares
    the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, until = folder / NAME, time.monotonic() + patience
    while (file := _opened(path, last=time.monotonic() >= until)) is None:
        time.sleep(0.5)
    try:
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(file)


def _opened(path: Path, *, last: bool) -> int | None:
    """The file, locked; not one that its last holder has unlinked meanwhile. None where another job
    holds it, or at the `last` try ValueError."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return file
            holder = os.read(file, 200).decode(errors="replace") or "another process"
            os.close(file)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            if not last:
                return None
            raise ValueError(
                f"{path.parent} is in use by another job ({holder}): wait until it ends, stop it, "
                "or choose another output folder"
            ) from None
        if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
            return file
        os.close(file)

"""Loader processes: how they start, what they are told, and what their death means.

Owns the choice of the start method. Refuses to know what the processes load.

Forking a trainer copies the locks of threads that do not exist in the copy (Ray's gRPC, CUDA), so
workers are forked from a server process that has imported torch and this package and nothing else.
The server takes about two seconds once a process, which pass beside other work where `start_early`
was called; every worker after that some tens of milliseconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import forkserver
from multiprocessing.context import BaseContext

PRELOAD = ["torch.utils.data", "shards.stream", "av"]


KEPT_FREE = 64 * 2**20
"""Bytes that a loader process keeps for its next clip at most."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _LARGEST = -1, -3, 32 * 2**20  # of malloc.h

_ADVICE = (
    "Out of memory? Use fewer of data.loader_workers or data.prefetch. "
    "A bus error means that /dev/shm is full (docker: --shm-size)"
)


class WorkerDied(RuntimeError):
    """A loader process is gone; the message says what usually kills one."""


def start_context() -> BaseContext:
    """The multiprocessing context of loader workers."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


def start_early(loaders: int) -> None:
    """Start the server that `loaders` processes are going to be forked from, without waiting for
    it: before a network is built, so that both take their seconds at the same time."""
    if loaders:
        start_context()
        forkserver.ensure_running()


@contextlib.contextmanager
def without_main() -> Iterator[None]:
    """While this lasts, started processes do not import the program's main file.

    Loader workers need nothing of it; importing it again costs seconds where it imports a trainer,
    and runs a script that has no `if __name__ == "__main__"`.
    """
    main = sys.modules["__main__"]
    hidden = {name: main.__dict__.pop(name) for name in ("__file__",) if name in main.__dict__}
    spec, main.__spec__ = main.__spec__, None
    try:
        yield
    finally:
        main.__spec__ = spec
        main.__dict__.update(hidden)


def preparation() -> Callable[[int], None]:
    """What runs first in every loader process."""
    return functools.partial(_prepare, dict(os.environ))


def _prepare(environment: Mapping[str, str], _worker: int) -> None:
    import cv2

    cv2.setNumThreads(0)  # the process has one core, OpenCV would take them all
    _keep_freed_memory()
    # The server process has the environment of its own start: credentials may have been set since.
    os.environ.update(environment)


def _keep_freed_memory() -> None:
    """glibc gives what a clip leaves free back to the system, and asks for it again, zeroed page by
    page, for the next one: up to 5 ms a clip of 224 px."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, KEPT_FREE)
        mallopt(_MMAP_THRESHOLD, _LARGEST)


@contextlib.contextmanager
def deaths_explained() -> Iterator[None]:
    """Turns the signs of a dead worker into WorkerDied."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise WorkerDied(f"{error}. {_ADVICE}") from None
    except (EOFError, ConnectionError) as error:
        # The memory of a batch is fetched from the process that made it.
        raise WorkerDied(
            f"A loader process died handing over a batch ({error!r}). {_ADVICE}"
        ) from None

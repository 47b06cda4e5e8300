"""How a job that is told to stop gets the chance to say so.

Owns the termination signal of a driver process and the name of an end by exception. Refuses to
know what is cleaned up.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def termination_raises() -> Iterator[None]:
    """SIGTERM becomes SystemExit(143) in the block, unless somebody already handles the signal.

    Outside the main thread, where Python allows no handlers, this does nothing.
    """
    mine = threading.current_thread() is threading.main_thread()
    mine = mine and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not mine:
        yield
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def handler_kept(number: signal.Signals) -> Iterator[None]:
    """The handler of a signal is afterwards what it was, whatever a library sets in the block."""
    before = signal.getsignal(number)
    try:
        yield
    finally:
        mine = threading.current_thread() is threading.main_thread()
        if mine and before not in (None, signal.SIG_DFL):
            signal.signal(number, before)


def status_after(error: BaseException) -> str:
    """KILLED where the exception says that somebody stopped the job, else FAILED."""
    stopped = isinstance(error, KeyboardInterrupt)
    stopped |= isinstance(error, SystemExit) and error.code in (130, 143)
    return "KILLED" if stopped else "FAILED"

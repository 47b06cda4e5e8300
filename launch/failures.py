"""Which failures of workers a restart mends, how often in a row, and how they are told.

Owns the reading of exceptions. Refuses to know who starts workers and who logs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from launch.durable import FULL

# How errors of a lost peer or loader process, a broken connection or a sick device read; a restart
# mends these.
_TORN = ("gloo", "nccl", "connection", "socket", "cuda error", "[cuda]", "cudnn", "timed out")
_TORN += ("dataloader worker",)
# And of what comes back every time, though it sounds like them.
_FOR_GOOD = ("built in", "device-side assert", "out of memory", "alloc_failed")
_NO_ROOM = "WorkerGroupStartupTimeoutError"  # of a private module of Ray's


Progress = Callable[[], Any]
"""How far a job has got; it is asked in another process, on any node."""


class WorkerLost(RuntimeError):
    """Workers were lost more often than `max_failures` allows."""


class Restarts:
    """Allows `max_failures` in a row between which `progress` returns the same."""

    def __init__(self, max_failures: int, progress: Progress | None):
        self._allowed, self._progress = max_failures, progress
        self._count, self._reached = 0, None

    def after(self, failures: dict[int, Exception]) -> str:
        """What to say before workers are started again. Raises the failure that no restart mends,
        or WorkerLost."""
        lost = any(is_lost_process(error) for error in failures.values())
        for _, error in sorted(failures.items()):
            if not lost and not mended_by_restart(error):
                raise error
        return self._again(told(failures))

    def after_start(self, error: Exception) -> str:
        """As `after`, of what befell workers before their function ran. That Ray gave up waiting
        for room is no failure."""
        if type(error).__name__ == _NO_ROOM:
            return "waiting for room: other jobs hold cores or GPUs that the workers need"
        wrapped = getattr(error, "cause", None) if is_lost_process(error) else None
        cause: Exception = wrapped or error  # Ray wraps what a task raised
        if not mended_by_restart(cause):
            raise cause from None
        return self._again(f"workers could not be started ({_first_line(cause)})")

    def _again(self, what: str) -> str:
        reached = self._reached
        with contextlib.suppress(OSError):  # storage that hiccups may be why they failed
            reached = self._progress() if self._progress else None
        self._count = self._count + 1 if reached == self._reached else 1
        self._reached = reached
        if self._count > self._allowed:
            since = " in a row without a new checkpoint" if self._progress else ""
            raise WorkerLost(
                f"{what}; that was failure {self._count}{since}, --cluster.max_failures "
                f"allows {self._allowed}"
            )
        return f"{what}; failure {self._count}, {self._allowed} allowed: starting again"


def mended_by_restart(error: Exception) -> bool:
    """Whether starting the workers again can help: a peer, a connection or a device was lost, or
    storage hiccupped.

    A mistake in a config, in data or in code, a full disk or memory that is too small come back
    every time.
    """
    if isinstance(error, FileNotFoundError | PermissionError | torch.OutOfMemoryError | WorkerLost):
        return False
    if isinstance(error, ConnectionError | TimeoutError):  # not all have a number
        return True
    if isinstance(error, OSError):
        return error.errno not in (None, *FULL)
    if isinstance(error, RuntimeError):
        said = str(error).lower()
        if any(sign in said for sign in _FOR_GOOD):
            return False
        return isinstance(error, dist.DistError) or any(sign in said for sign in _TORN)
    return is_lost_process(error)


def is_lost_process(error: Exception) -> bool:
    """Whether Ray itself reports the failure: the process died or stopped answering."""
    return type(error).__module__.split(".")[0] == "ray"


def told(failures: dict[int, Exception]) -> str:
    """One short line for what befell the workers."""
    lost = {rank: error for rank, error in failures.items() if is_lost_process(error)}
    said = []
    for rank, error in sorted(
        (lost or failures).items()
    ):  # the others only report that they miss these
        said.append(
            f"worker {rank} died"
            if is_lost_process(error)
            else f"worker {rank}: {_first_line(error)}"
        )
    return ", ".join(said)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__

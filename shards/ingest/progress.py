"""How far a run is, for people: a bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Update = Callable[[int, int, int], None]
LINE_EVERY = 30.0
"""Seconds between the lines of a log."""


@contextmanager
def progress() -> Iterator[Update]:
    """What to call with (done, total, rejected); the first call says where the run goes on."""
    if sys.stderr.isatty():
        with _bar() as update:
            yield update
    else:
        yield Lines()


class Lines:
    """One line every half minute, on stderr."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first = -1
        self._began = self._said = 0.0

    def __call__(self, done: int, total: int, rejected: int) -> None:
        now = self._clock()
        if self._first < 0:
            self._first, self._began, self._said = done, now, now
            if done:
                print(f"ingest: goes on after {done} of {total} videos", file=sys.stderr)
            return
        if now - self._said >= LINE_EVERY:
            self._said = now
            rate = (done - self._first) / max(now - self._began, 1e-3)
            left = duration((total - done) / rate) if rate else "unknown"
            print(
                f"ingest: {done} of {total} videos, {pace(rate)}, {rejected} rejected, {left} left",
                file=sys.stderr,
                flush=True,
            )


def pace(rate: float) -> str:
    """Videos a second, or a minute where they are long."""
    return f"{rate:.1f} videos/s" if rate >= 1 or not rate else f"{60 * rate:.1f} videos/min"


def duration(seconds: float) -> str:
    """`1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


@contextmanager
def _bar() -> Iterator[Update]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )

    class Rate(ProgressColumn):
        def render(self, task: Task) -> str:
            made = task.completed - task.fields["first"]
            return pace(made / max(task.elapsed or 0, 1e-3))

    bar = Progress(
        TextColumn("ingest"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TextColumn("{task.fields[rejected]} rejected"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
        console=Console(stderr=True),
    )

    def update(done: int, total: int, rejected: int) -> None:
        if not bar.tasks:  # here, not before: a request that is refused shows no bar
            bar.add_task("ingest", total=total, completed=done, first=done, rejected=rejected)
            bar.start()
        bar.update(bar.tasks[0].id, completed=done, rejected=rejected)

    try:
        yield update
    finally:
        if bar.live.is_started:
            bar.stop()

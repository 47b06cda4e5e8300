"""How far a study is, for people: a table that renews itself on a terminal, a line a change else.

Owns what is shown of folds. Refuses to know how they are run.
"""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from launch.parallel import Job
from shards.wording import duration

if TYPE_CHECKING:
    from rich.table import Table

FINISHED_SHOWN = 6
Progress = Callable[[str], str]
"""From a fold's name to how far its training is."""
Watch = Callable[[Sequence[Job]], None]


@contextmanager
def watching(progress: Progress) -> Iterator[Watch]:
    """What to call with all folds whenever something may have changed."""
    if not sys.stdout.isatty():
        yield Lines()
        return
    from rich.live import Live

    seldom = Seldom(progress)
    with Live(refresh_per_second=2, transient=True) as live:
        yield lambda jobs: live.update(table(jobs, seldom))


class Seldom:
    """Progress, asked for every few seconds: a store far away answers for hundreds of folds."""

    def __init__(self, progress: Progress, seconds: float = 5.0) -> None:
        self._progress, self._seconds = progress, seconds
        self._known: dict[str, tuple[float, str]] = {}

    def __call__(self, fold: str) -> str:
        now = time.monotonic()
        asked, told = self._known.get(fold, (-math.inf, "starting"))
        if now - asked >= self._seconds:
            with suppress(Exception):  # whatever a store does: the folds go on without the table
                told = self._progress(fold)
            self._known[fold] = (now, told)
        return told


class Lines:
    """One line for every fold that ends, is tried again, or starts."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[str, int]] = {}

    def __call__(self, jobs: Sequence[Job]) -> None:
        over = sum(job.status in ("done", "failed") for job in jobs)
        for job in jobs:
            now = (job.status, job.attempts)
            before = self._said.get(job.name)
            if now == before or (before is None and job.status == "waiting"):
                continue
            self._said[job.name] = now
            if before is None and job.status == "done" and job.attempts == 0:
                print(f"fold {job.name}: finished before", flush=True)
            else:
                print(f"fold {job.name}: {_told(job)} [{over} of {len(jobs)}]", flush=True)


def table(jobs: Sequence[Job], progress: Progress) -> Table:
    """Failed and running folds, the last finished ones, and how many there are of each kind."""
    from rich.markup import escape
    from rich.table import Table

    count = Counter(job.status for job in jobs)
    title = ", ".join(f"{count[name]} {name}" for name in ("done", "running", "waiting", "failed"))
    shown = Table("fold", "state", "how far", title=f"{len(jobs)} folds: {title}", min_width=60)
    done = [job for job in jobs if job.status == "done"][-FINISHED_SHOWN:]
    for job in (*(j for j in jobs if j.status in ("failed", "running")), *done):
        far = progress(job.name) if job.status == "running" else ""
        shown.add_row(escape(job.name), escape(_told(job)), escape(far))
    return shown


def _told(job: Job) -> str:
    took = duration(job.seconds)
    if job.status == "done" and job.result:
        row = job.result["results"][0]
        if row["uar"] is None:
            return f"done, no clip answered: ledgers name all ({took})"
        return f"done, UAR {row['uar']:.1%}, WAR {row['war']:.1%} ({took})"
    if job.status == "running":
        return f"running, attempt {job.attempts}" if job.attempts > 1 else "running"
    if job.status == "waiting" and job.reason:
        return f"to be tried again ({job.reason})"
    return f"failed: {job.reason}" if job.status == "failed" else job.status

"""Videos through disposable processes, several at once, results in the order of the videos.

Results wait as files until their turn, a bounded number of videos ahead of the slowest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from shards.ingest.inputs import Item
from shards.ingest.isolate import Sandbox, job
from shards.ingest.settings import IngestSettings, Rejected

AHEAD = 4
"""Videos a worker may be ahead of the slowest one."""
Outcome = dict[str, Any] | Rejected


def outcomes(
    items: Sequence[Item], work: Path, settings: IngestSettings, *, jobs: int
) -> Generator[tuple[Item, Outcome, Path], None, None]:
    """(item, its result or rejection, folder of its files) in the order of `items`.

    Close the iterator to stop: it ends all processes.
    """
    sandboxes = [Sandbox() for _ in range(max(1, min(jobs, len(items))))]
    free: SimpleQueue[Sandbox] = SimpleQueue()
    for sandbox in sandboxes:
        free.put(sandbox)

    def one(item: Item, folder: Path) -> Outcome:
        folder.mkdir()
        sandbox = free.get()
        try:
            return sandbox.run(_job(item, folder, settings))
        except Rejected as no:
            return no
        finally:
            free.put(sandbox)

    waiting: deque[tuple[Item, Path, Future[Outcome]]] = deque()
    todo = ((item, work / f"{number:08d}") for number, item in enumerate(items))
    pool = ThreadPoolExecutor(len(sandboxes))
    try:
        for _ in items:
            while len(waiting) < AHEAD * len(sandboxes) and (task := next(todo, None)):
                waiting.append((*task, pool.submit(one, *task)))
            item, folder, future = waiting.popleft()
            yield item, future.result(), folder
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for sandbox in sandboxes:
            sandbox.close()
        pool.shutdown(wait=True)


def _job(item: Item, out: Path, settings: IngestSettings) -> dict[str, Any]:
    a = item.annotation
    whole = a is not None and (a.label is not None or bool(a.marks))
    marks = dict(a.marks) if a else {}
    frames = asdict(item.frames) if item.frames else None
    return job(item.path, out, settings, kind="clips", whole=whole, marks=marks, frames=frames)

"""Videos through disposable processes, several at once, results in the order of the videos.

Results wait as files until their turn, a bounded number of videos ahead of the slowest.
"""

from __future__ import annotations

import secrets
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
    items: Sequence[Item], work: Path, settings: IngestSettings, *, jobs: int, start: int = 0
) -> Generator[tuple[int, Outcome, Path]]:
    """(number, result or rejection, folder of its files) of `items` from number `start` on.

    Close the iterator to stop: it ends all processes.
    """
    sandboxes = [Sandbox() for _ in range(max(1, min(jobs, len(items) - start)))]
    free: SimpleQueue[Sandbox] = SimpleQueue()
    for sandbox in sandboxes:
        free.put(sandbox)

    def one(item: Item, folder: Path) -> Outcome:
        folder.mkdir()
        sandbox = free.get()
        try:
            return sandbox.run(job_of(item, folder, settings))
        except Rejected as no:
            return no
        finally:
            free.put(sandbox)

    waiting: deque[tuple[int, Path, Future[Outcome]]] = deque()
    mark = secrets.token_hex(4)  # of a killed run a process may still be writing
    todo = ((n, work / f"{n:08d}-{mark}") for n in range(start, len(items)))
    pool = ThreadPoolExecutor(len(sandboxes))
    try:
        for _ in range(start, len(items)):
            while len(waiting) < AHEAD * len(sandboxes) and (task := next(todo, None)):
                number, folder = task
                waiting.append((number, folder, pool.submit(one, items[number], folder)))
            number, folder, future = waiting.popleft()
            yield number, future.result(), folder
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for sandbox in sandboxes:
            sandbox.close()
        pool.shutdown(wait=True)


def job_of(item: Item, out: Path, settings: IngestSettings) -> dict[str, Any]:
    """What the disposable process is told to do with a video."""
    a = item.annotation
    whole = a is not None and a.of_the_whole
    marks = dict(a.marks) if a else {}
    frames = asdict(item.frames) if item.frames else None
    facts = {"root": item.root, "whole": whole, "marks": marks, "frames": frames}
    return job(item.path, out, settings, kind="clips", **facts)

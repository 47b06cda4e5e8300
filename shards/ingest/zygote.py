"""The process that videos' processes are forked from: decoders loaded once, one fork a video.

Owns limits and the death of what runs too long. Reads a job a line on stdin, answers a line on
stdout, ends (and ends its child) when stdin closes, so nothing outlives whoever started it.

Not multiprocessing's forkserver: that imports the caller's main module into every child, which runs
a script without a `__main__` guard again; it is one for the whole process, shared with torch's data
loaders; and it refuses to start from their (daemonic) workers.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from shards.ingest import work
from shards.ingest.detect import detector
from shards.ingest.isolate import DISK_FULL_EXIT, OTHER_EXIT, STDERR, STORAGE_EXIT
from shards.ingest.storage import PASSING, StorageFault
from shards.ingest.write import DiskFull

LARGEST_FILE = 16 << 30


def main() -> None:
    """Serves jobs until stdin ends."""
    detector("haar")  # loaded once; other detectors may need files that only a job names
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(BrokenPipeError):  # whoever would read the answer is gone
        _serve_all()


def _serve_all() -> None:
    waiting = b""
    _answer({"ready": True})
    while data := os.read(0, 1 << 16):
        waiting += data
        while b"\n" in waiting:
            line, waiting = waiting.split(b"\n", 1)
            answer = _serve(json.loads(line))
            if answer is None:
                return
            _answer(answer)


def _answer(answer: dict[str, Any]) -> None:
    os.write(1, json.dumps(answer).encode() + b"\n")


def _serve(job: dict[str, Any]) -> dict[str, Any] | None:
    """How the job's process ended; None when stdin closed meanwhile."""
    alive, held = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(alive)
        _child(job)
    os.close(held)  # now only the child holds it: the pipe ends when the child does
    limit = float(job["settings"]["timeout"])
    deadline = time.monotonic() + limit
    timed_out = abandoned = False
    ready = select.select([0, alive], [], [], limit)[0]
    while alive not in ready:
        abandoned = 0 in ready
        timed_out = not abandoned and time.monotonic() >= deadline
        if abandoned or timed_out:
            os.kill(child, signal.SIGKILL)
            break
        ready = select.select([0, alive], [], [], max(0.0, deadline - time.monotonic()))[0]
    os.close(alive)
    _, status, used = os.wait4(child, 0)
    if abandoned:
        return None
    return {
        "code": os.waitstatus_to_exitcode(status),
        "timed_out": timed_out,
        "peak_bytes": used.ru_maxrss * 1024,
    }


def _child(job: dict[str, Any]) -> None:
    """Never returns."""
    code = 1
    try:
        error = os.open(
            Path(job["out"]) / STDERR, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600
        )
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(nothing, 1)
        os.dup2(error, 2)
        _limit(job["settings"])
        work.perform(job)
        code = 0
    except DiskFull as error:
        code = DISK_FULL_EXIT
        print(error.strerror, file=sys.stderr, flush=True)
    except BaseException as error:
        of_storage = isinstance(error, StorageFault)
        if of_storage or (isinstance(error, OSError) and error.errno in PASSING):
            code = STORAGE_EXIT if of_storage else OTHER_EXIT
            print(error.strerror, file=sys.stderr, flush=True)
        else:
            traceback.print_exc()
            sys.stderr.flush()
    finally:
        os._exit(code)


def _limit(settings: dict[str, Any]) -> None:
    """Memory beyond what the libraries already map, processor time, file size; no core file."""
    memory = int(settings["memory_limit_gib"] * (1 << 30))
    statm = Path("/proc/self/statm")
    if statm.exists():
        memory += int(statm.read_text().split()[0]) * resource.getpagesize()
        _lower(resource.RLIMIT_AS, memory)
    _lower(resource.RLIMIT_CPU, int(settings["timeout"]) + 5)
    _lower(resource.RLIMIT_FSIZE, LARGEST_FILE)
    _lower(resource.RLIMIT_CORE, 0)


def _lower(kind: int, limit: int) -> None:
    _, hard = resource.getrlimit(kind)
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(kind, (limit, limit))


if __name__ == "__main__":
    main()

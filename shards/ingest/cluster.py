"""Videos over a Ray cluster: the same results as `pool.outcomes`, made on many machines.

A task is a group of videos, one after the other in the same disposable processes as on one machine.
Files go through a folder that all machines share; what passes through Ray is a few lines a video.
This process packs the shards, in the order of the videos, so the bytes do not depend on the
cluster. Only this file of `shards` knows Ray.
"""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from shards.ingest.inputs import Item
from shards.ingest.isolate import Sandbox
from shards.ingest.models import ModelError, with_model
from shards.ingest.pool import Outcome, job_of
from shards.ingest.request import versions
from shards.ingest.settings import IngestSettings, Rejected

GROUP = 4
"""Videos a task."""
AHEAD = 3
"""Groups a processor of the cluster that are begun or waiting."""
RETRIES = 5
"""How often a group is begun anew on another worker after one was lost."""


class ClusterError(OSError):
    """The cluster cannot do it; the message names what is wrong and the fix."""


@dataclass(frozen=True)
class _Reply:
    """Of one video. `files` is a folder; one of `made`, `refused` and `failed` is set."""

    files: str
    made: dict[str, Any] | None = None
    refused: tuple[str, str] | None = None
    failed: tuple[int, str] | None = None
    """errno and message of what is no fault of the video."""


def outcomes(
    items: Sequence[Item],
    work: Path,
    settings: IngestSettings,
    *,
    address: str,
    jobs: int | None = None,
    start: int = 0,
) -> Generator[tuple[int, Outcome, Path]]:
    """As `pool.outcomes`, on the cluster at `address` ("" takes RAY_ADDRESS, else one on this
    machine); at most `jobs` groups at once.

    Raises ClusterError where there is no cluster, where a machine of it does not see the files or
    has other versions of the libraries, and where workers are lost again and again.
    """
    with _connected(address):
        import ray

        task = ray.remote(num_cpus=1, max_retries=RETRIES)(_group)
        waiting: deque[tuple[range, Any]] = deque()
        groups = (range(i, min(i + GROUP, len(items))) for i in range(start, len(items), GROUP))
        try:
            while True:
                while len(waiting) < (jobs or AHEAD * _processors()) and (g := next(groups, None)):
                    asked = [(n, items[n]) for n in g]
                    waiting.append((g, task.remote(asked, str(work), settings, versions())))
                if not waiting:
                    return
                numbers, running = waiting.popleft()
                for number, reply in zip(numbers, _answer(running), strict=True):
                    yield number, _outcome(reply), Path(reply.files)
        finally:
            for _, running in waiting:
                ray.cancel(running, force=True)


@contextmanager
def _connected(address: str) -> Iterator[None]:
    """A Ray connection, the caller's if there is one."""
    # Left unset, Ray may write a token to the home folder and ask for it ever after.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    where = address or os.environ.get("RAY_ADDRESS") or "auto"
    options = {"logging_level": "error", "log_to_driver": False, "runtime_env": _our_package()}
    try:
        _reach(where)
        ray.init(address=where, **options)
    except (OSError, ValueError, RuntimeError) as error:
        asked = f"at {where}" if where != "auto" else "on this machine"
        raise ClusterError(
            errno.ENOTCONN,
            f"no Ray cluster {asked} can be used ({str(error).splitlines()[0]}); start one with "
            "`ray start --head`, name one with --ray ADDRESS, or leave out --ray",
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Raises OSError if nobody listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


def _our_package() -> dict[str, Any]:
    """Where workers find `shards`. A submitted job brings its own copy."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return {}
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {"env_vars": {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}}


def _processors() -> int:
    """Of the whole cluster now; it may grow and shrink."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _answer(running: Any) -> list[_Reply]:
    import ray
    from ray.exceptions import NodeDiedError, OutOfMemoryError, WorkerCrashedError

    try:
        return ray.get(running)
    except (NodeDiedError, OutOfMemoryError, WorkerCrashedError) as error:
        raise ClusterError(
            errno.EIO,
            f"workers were lost {RETRIES + 1} times over the same videos "
            f"({str(error).splitlines()[0]}); if memory ran out, let fewer CPUs a machine join "
            "(ray start --num-cpus), and start again",
        ) from None


def _outcome(reply: _Reply) -> Outcome:
    if reply.failed:
        raise ClusterError(*reply.failed)
    if reply.made is None:
        assert reply.refused
        return Rejected(*reply.refused)
    return reply.made


@cache
def _sandbox() -> Sandbox:
    """One a worker process; it ends with it."""
    return Sandbox()


def _group(
    asked: Sequence[tuple[int, Item]], work: str, settings: IngestSettings, expected: dict[str, str]
) -> list[_Reply]:
    """Runs on a worker. A group that is begun anew writes into folders of its own."""
    host = socket.gethostname()
    if wrong := _unfit(Path(work), asked, host, expected) or _lacks_model(settings, host):
        return [_Reply("", failed=wrong) for _ in asked]
    return [_one(n, item, Path(work), settings, f"{host}-{os.getpid()}") for n, item in asked]


def _one(number: int, item: Item, work: Path, settings: IngestSettings, who: str) -> _Reply:
    folder = work / f"{number:08d}-{who}"
    try:
        folder.mkdir()
        return _Reply(str(folder), made=_sandbox().run(job_of(item, folder, settings)))
    except Rejected as no:
        return _Reply(str(folder), refused=(no.reason, no.action))
    except OSError as error:
        return _Reply(str(folder), failed=(error.errno or errno.EIO, f"{error.strerror or error}"))


def _lacks_model(settings: IngestSettings, host: str) -> tuple[int, str] | None:
    try:
        with_model(settings)
    except ModelError as error:
        return errno.ENOENT, f"on {host}: {error}"
    return None


def _unfit(
    work: Path, asked: Sequence[tuple[int, Item]], host: str, expected: dict[str, str]
) -> tuple[int, str] | None:
    """Why this machine would not make what the others make."""
    if (here := versions()) != expected:
        differ = ", ".join(f"{n} {v} (not {expected[n]})" for n, v in here.items())
        return errno.ENOEXEC, f"{host} has other versions: {differ}; install the same everywhere"
    for place in (work, *sorted({item.path.parent for _, item in asked})):
        if not os.path.isdir(place):
            return errno.ENOENT, (
                f"{host} does not see {place}; the videos and --out must lie in folders that all "
                "machines of the cluster share, under the same path"
            )
    return None

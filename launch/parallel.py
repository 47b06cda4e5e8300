"""Many independent jobs at once: each a Ray task in a fresh process, with resources of its own.

Owns how many run at a time, what is tried again, and what becomes of the rest when one fails.
Refuses to know what a job does: it calls a function with a dict, in a process of its own, and hands
back what it returns.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from launch.capacity import check_capacity
from launch.cluster import ClusterConfig, ray_cluster
from launch.failures import WorkerLost, is_lost_process, mended_by_restart

Body = Callable[[dict[str, Any]], dict[str, Any]]
"""A function at the top of a module that all nodes can import."""


@dataclass
class Job:
    """One call, and what has become of it."""

    name: str
    payload: dict[str, Any]
    status: Literal["waiting", "running", "done", "failed"] = "waiting"
    attempts: int = 0
    seconds: float = 0.0
    """Since the latest attempt began, or how long it took."""
    result: dict[str, Any] | None = None
    reason: str = ""
    """Why the latest attempt failed, in one line."""
    trace: str = ""


def run_all(
    body: Body,
    jobs: Sequence[Job],
    cluster: ClusterConfig,
    *,
    retries: int,
    at_once: int | None = None,
    watch: Callable[[Sequence[Job]], None],
    poll: float = 0.5,
) -> None:
    """Call `body(job.payload)` for every waiting job; as many at once as fit.

    A job whose process is lost, or whose failure a restart mends, is tried again; one that fails
    for good does not end the others.

    Args:
        cluster: resources of one job. With `workers` 0 it computes in its own process, with
            `cpus_per_worker` and `gpus_per_worker`; else it starts that many Ray workers itself.
        retries: how often a job is tried again.
        at_once: no more than these at a time; None leaves it to the cluster's size.
        watch: called with all jobs at every change, and every `poll` seconds.

    Raises ValueError where not one job fits.
    """
    with ray_cluster(silent=True):
        _Run(body, jobs, cluster, retries, at_once, poll).loop(watch)


class _Run:
    def __init__(
        self,
        body: Body,
        jobs: Sequence[Job],
        cluster: ClusterConfig,
        retries: int,
        at_once: int | None,
        poll: float,
    ):
        self.jobs, self.cluster = jobs, cluster
        self.retries, self.limit, self.poll = retries, at_once, poll
        self.task = _task_of(body, cluster)
        self.running: dict[Any, tuple[Job, float]] = {}

    def loop(self, watch: Callable[[Sequence[Job]], None]) -> None:
        """Until no job waits or runs."""
        import ray

        room, ready = self._room(), []
        try:
            while True:
                waiting = [job for job in self.jobs if job.status == "waiting"]
                if waiting and (ready or not room):  # nodes come and go
                    room = self._room_now(room)
                for job in waiting:
                    if len(self.running) < room:
                        self._start(job)
                watch(self.jobs)
                if not self.running and not waiting:
                    return
                ready = self._wait()
                for reference in ready:
                    self._finish(reference)
                for job, since in self.running.values():
                    job.seconds = time.monotonic() - since
        finally:
            for reference in self.running:
                ray.cancel(reference, force=False)
            if self.running:  # the jobs may say that they were stopped
                ray.wait(list(self.running), num_returns=len(self.running), timeout=10)

    def _room(self) -> int:
        """How many jobs the cluster holds."""
        workers = max(1, self.cluster.workers)
        fits = check_capacity(replace(self.cluster, workers=workers)) // workers
        return fits if self.limit is None else min(fits, self.limit)

    def _room_now(self, before: int) -> int:
        """As `_room`, and 0 where not one job fits any more: a node that is away may come back."""
        try:
            return self._room()
        except ValueError as error:
            if before:
                print(f"no room for a job; waiting for nodes to come back: {error}", flush=True)
            return 0

    def _wait(self) -> list[Any]:
        """The calls that ended within `poll` seconds."""
        import ray

        if not self.running:
            time.sleep(self.poll)
            return []
        return ray.wait(list(self.running), timeout=self.poll)[0]

    def _start(self, job: Job) -> None:
        job.status, job.attempts = "running", job.attempts + 1
        self.running[self.task(job.payload)] = (job, time.monotonic())

    def _finish(self, reference: Any) -> None:
        import ray

        job, since = self.running.pop(reference)
        job.seconds = time.monotonic() - since
        try:
            told: dict[str, Any] = cast(dict[str, Any], ray.get(reference))
        except Exception as error:
            if not is_lost_process(error):
                raise
            first = str(error).strip().split("\n")[0]
            told = {"reason": f"its process was lost: {first}", "again": True, "trace": ""}
        if "result" in told:
            job.status, job.result, job.reason, job.trace = "done", told["result"], "", ""
            return
        job.reason, job.trace = told["reason"], told["trace"]
        again = told["again"] and job.attempts <= self.retries
        job.status = "waiting" if again else "failed"


def _task_of(body: Body, cluster: ClusterConfig) -> Any:
    """The Ray task that calls `body`. A process serves one job: libraries keep state."""
    import ray

    own = cluster.workers == 0
    task = ray.remote(
        num_cpus=cluster.cpus_per_worker if own else 0,
        num_gpus=cluster.gpus_per_worker if own else 0,
        max_calls=1,
        max_retries=0,
    )(_call)
    return lambda payload: task.remote(body, payload)


def _call(body: Body, payload: dict[str, Any]) -> dict[str, Any]:
    """In the task: an error comes back as words, as its class may be unknown to the driver."""
    try:
        return {"result": body(payload)}
    except Exception as error:
        lines = str(error).strip().split("\n")
        return {
            "reason": f"{type(error).__name__}: {lines[0]}",
            "trace": traceback.format_exc(),
            "again": isinstance(error, WorkerLost) or mended_by_restart(error),
        }

"""Where the workers of a job run: in this process, in a Ray cluster of its own, or in one that is
there.

Owns Ray and the process group of the workers. Refuses to know what a worker does: it calls a
function with a dict and its place among the others, and hands back what the first one returns.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.distributed as dist

from launch.capacity import check_capacity, free_room, telling_of_shortage
from launch.failures import Progress, Restarts
from launch.signals import handler_kept
from launch.zero import release_process_group

Worker = Callable[[dict[str, Any], "WorkerContext"], dict[str, Any]]
"""A function at the top of a module that all nodes can import."""


@dataclass(frozen=True)
class ClusterConfig:
    workers: int = 1
    """Worker processes, each with its share of every batch. 0 = train in this process, without
    Ray."""
    gpus_per_worker: Literal[0, 1] = 0
    """GPUs of one worker. 0 = train on the CPU."""
    cpus_per_worker: int = 1
    """CPU cores of one worker: threads of its matrix products; its data loaders share them."""
    max_failures: int = 3
    """How often in a row lost workers are replaced before the job fails, each time going on from
    the last checkpoint. A new checkpoint starts the count again: a run of months meets more."""
    output: str = ""
    """Folder of the run: checkpoints, results, logs. On several nodes it must lie on storage that
    all of them share."""

    def __post_init__(self) -> None:
        if self.workers < 0 or self.cpus_per_worker < 1 or self.max_failures < 0:
            raise ValueError(
                "workers and max_failures must be at least 0, cpus_per_worker at least 1"
            )


@dataclass(frozen=True)
class WorkerContext:
    """A worker's place among the others."""

    rank: int
    world: int
    device: torch.device


def launch(
    worker: Worker,
    config: dict[str, Any],
    cluster: ClusterConfig,
    *,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run `worker(config, context)` on every worker and return what rank 0 returned.

    Each worker has a process group (nccl on GPUs, gloo otherwise) when it is called. When a worker
    is lost, all are started again, up to `max_failures` times in a row without `progress`, which
    returns another value whenever the job has got further; continuing from a checkpoint is the
    worker function's part. Paths in `config` must be absolute: workers run in folders of their own.

    Raises what a worker raised; ValueError where the cluster lacks the CPUs or GPUs; WorkerLost.
    """
    if cluster.workers == 0:
        return _run_here(worker, config, cluster)
    if not cluster.output:
        raise ValueError(
            "cluster.output is empty: name the folder of the run with --cluster.output FOLDER"
        )
    with ray_cluster():
        return _run_on_ray(worker, config, cluster, progress)


def _run_here(worker: Worker, config: dict[str, Any], cluster: ClusterConfig) -> dict[str, Any]:
    if cluster.gpus_per_worker and not torch.cuda.is_available():
        raise ValueError(
            "cluster.gpus_per_worker is 1 but no GPU is here; use --cluster.gpus_per_worker 0"
        )
    if not cluster.gpus_per_worker and torch.cuda.is_available():
        print("on the CPU, though a GPU is here: --cluster.gpus_per_worker 1 takes it", flush=True)
    device = torch.device("cuda", 0) if cluster.gpus_per_worker else torch.device("cpu")
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    before = {name: os.environ.get(name) for name in place}
    os.environ.update(place)
    backend = "nccl" if device.type == "cuda" else "gloo"
    store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]  (documented, not in __all__)
    dist.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        return worker(config, WorkerContext(0, 1, device))
    finally:
        release_process_group()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextlib.contextmanager
def ray_cluster(*, silent: bool = False) -> Iterator[None]:
    """A Ray connection: the caller's, that of RAY_ADDRESS (set inside a submitted job), or a
    cluster of our own. `silent`: what tasks and workers print stays in Ray's logs."""
    given = os.environ.get("RAY_ADDRESS")
    if not given:
        # Left unset, a local cluster writes a token and asks every later one for it.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    # Printing through Ray Train's patch shows every line twice; the default poll of 2 s delays
    # every restart.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    # Until a node's announced end Ray would report its dead workers again at every poll. A lost
    # node is survived without an announcement.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # Lines of progress after a restart look like repetitions of those before it.
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {
        "logging_level": "warning",
        # The workers' lines come as they are, without the chatter of Ray Train.
        "logging_config": ray.LoggingConfig(log_level="ERROR"),
        "runtime_env": _our_packages(),
        "log_to_driver": not silent,
    }
    if not given:  # what passes through Ray is a config and a summary: a small store does
        options |= {"address": "local", "object_store_memory": 200_000_000}
        options["include_dashboard"] = False
    with handler_kept(signal.SIGTERM):  # Ray's ends this process as if it had failed
        ray.init(**options)
    try:
        yield
    finally:
        ray.shutdown()


def _our_packages() -> dict[str, Any]:
    """The runtime environment in which workers find our packages. A submitted job brings its own
    copy of them."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return {}
    root = str(Path(__file__).resolve().parent.parent)
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {"env_vars": {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}}


def _run_on_ray(
    worker: Worker, config: dict[str, Any], cluster: ClusterConfig, progress: Progress | None
) -> dict[str, Any]:
    import ray.train

    check_capacity(cluster)
    restarts, said = Restarts(cluster.max_failures, progress), ""
    with telling_of_shortage(cluster):
        while True:
            try:
                return _attempt(worker, config, cluster, restarts)
            except ray.train.ControllerError as error:
                # Of Ray's own, what befell workers before their function ran.
                before, said = said, restarts.after_start(error.controller_failure)
                if said != before:
                    print(said, flush=True)
                free_room()


def _attempt(
    worker: Worker, config: dict[str, Any], cluster: ClusterConfig, restarts: Restarts
) -> dict[str, Any]:
    """One run of Ray Train, which starts lost workers again by itself."""
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import LoggingConfig

    # A name that was used before would resume that run.
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
    storage = Path(cluster.output).resolve() / "ray"
    failures = ray.train.FailureConfig(  # the callback counts, and the caller
        max_failures=-1, controller_failure_limit=0
    )
    trainer = TorchTrainer(
        _worker_main,
        train_loop_config={"worker": worker, "config": config, "threads": cluster.cpus_per_worker},
        torch_config=TorchConfig(backend="nccl" if cluster.gpus_per_worker else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=cluster.workers,
            use_gpu=bool(cluster.gpus_per_worker),
            resources_per_worker={"CPU": cluster.cpus_per_worker, "GPU": cluster.gpus_per_worker},
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=str(storage),
            failure_config=failures,
            callbacks=[_failure_callback(restarts)],
            logging_config=LoggingConfig(log_level="CRITICAL"),  # what fails is said once, by us
            worker_runtime_env=_our_packages(),
        ),
    )
    try:
        return cast(dict[str, Any], _beside(trainer.fit).return_value)
    finally:
        shutil.rmtree(storage / name, ignore_errors=True)  # Ray's own; nothing of ours is there
        with contextlib.suppress(OSError):
            storage.rmdir()


def _beside(call: Callable[[], Any]) -> Any:
    """What `call` returns or raises, in a thread of its own: signals then reach a main thread that
    is not inside Ray, whose own handlers turn every end by a signal into status 1."""
    result: Future[Any] = Future()

    def run() -> None:
        try:
            result.set_result(call())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, name="ray-train", daemon=True).start()
    return result.result()


def _worker_main(loop: dict[str, Any]) -> dict[str, Any]:
    """What Ray calls in every worker process, after its process group is up."""
    import ray.train.torch

    torch.set_num_threads(loop["threads"])
    place = ray.train.get_context()
    device = torch.device(ray.train.torch.get_device())
    rank, world = place.get_world_rank(), place.get_world_size()
    try:
        return loop["worker"](loop["config"], WorkerContext(rank, world, device))
    except Exception as error:
        # A traceback does not travel to the driver, a note does.
        error.add_note(f"on worker {rank} of {world}:\n{traceback.format_exc()}")
        raise


def _failure_callback(restarts: Restarts) -> Any:
    """Called in Ray's controller when workers failed: says so, and ends the job where a restart
    cannot help, or has not. It counts on from a copy of `restarts`."""
    from ray.train import UserCallback

    class Failures(UserCallback):
        def after_exception(
            self, run_context: Any, worker_exceptions: dict[int, Exception]
        ) -> None:
            print(restarts.after(worker_exceptions), flush=True)

    return Failures()

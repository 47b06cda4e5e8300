"""Real Ray workers: the same result as without them, lost workers, errors that reach the user."""

from __future__ import annotations

import errno
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
)

from launch.capacity import check_capacity, telling_of_shortage
from launch.checkpoint import Checkpoints
from launch.cluster import ClusterConfig, launch
from launch.engine import RunConfig, fit
from launch.failures import Restarts, WorkerLost, mended_by_restart
from shards.stream import TooManyFailures
from tests.launch.toy import MemoryTracker, ToyStream, ToyTask

ROOT = Path(__file__).resolve().parents[2]
RUN = RunConfig(
    steps=8, global_batch=16, micro_batch=4, base_lr=0.3, zero_stage=2, save_every=3, log_every=1
)


def train_or_break(config, context):
    """A worker: trains the toy; `break` = kill or raise says what rank 1 does before step 5."""
    folder = Path(config["output"])
    with (folder / f"starts-of-{context.rank}").open("a") as starts:
        starts.write("x")

    def batches(start):
        for batch in ToyStream(16, 4, context).open(start):
            if batch.keys[0] == "s5.1":
                if config["break"] == "raise":
                    raise ValueError("s5.1 has no face; mend shard-000001.tar")
                if config["break"] == "always" or not (folder / "killed").exists():
                    (folder / "killed").touch()
                    if config["break"] in ("kill", "always"):
                        os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    tracker = MemoryTracker()
    summary = fit(
        ToyTask(),
        batches,
        RUN,
        tracker=tracker,
        checkpoints=Checkpoints(folder / "checkpoints"),
        context=context,
        total_steps=RUN.steps,
    )
    return asdict(summary) | {"losses": tracker.losses, "threads": torch.get_num_threads()}


@pytest.fixture(scope="module")
def ray_cluster():
    """One local Ray of two cores for this module, with its own folder and ports of its own
    choosing."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
    import ray

    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets allow paths of 107 characters
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100_000_000,
        _temp_dir=folder,
        logging_config=ray.LoggingConfig(log_level="ERROR"),
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def on(workers: int, folder: Path, *, what: str = "", max_failures: int = 2) -> dict:
    cluster = ClusterConfig(workers=workers, output=str(folder), max_failures=max_failures)
    return launch(train_or_break, {"output": str(folder), "break": what}, cluster)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run in this process, without Ray."""
    return on(0, tmp_path_factory.mktemp("alone"))


def test_killed_worker_is_replaced_and_the_run_ends_as_if_nothing_had_happened(
    ray_cluster, alone, tmp_path
):
    torn = on(2, tmp_path, what="kill")
    assert (tmp_path / "killed").exists()
    assert torn["resumed_from"] == 3, "it goes on from the last checkpoint by itself"
    assert torn["losses"] == pytest.approx(alone["losses"][3:], rel=1e-5)
    assert torn["first_loss"] == pytest.approx(alone["first_loss"], rel=1e-6)
    assert torn["threads"] == 1
    assert [p.read_text() for p in sorted(tmp_path.glob("starts-*"))] == ["xx", "xx"]
    assert not (tmp_path / "ray").exists(), "nothing of Ray's own is left in the output"


def test_error_of_one_worker_reaches_the_user_as_it_is_and_is_not_tried_again(
    ray_cluster, tmp_path
):
    with pytest.raises(ValueError) as error:
        on(2, tmp_path, what="raise")
    assert str(error.value) == "s5.1 has no face; mend shard-000001.tar"
    assert "on worker 1 of 2" in error.value.__notes__[0], "where it came from is kept beside"
    assert (tmp_path / "starts-of-1").read_text() == "x"


def test_worker_that_is_lost_again_and_again_ends_the_run(ray_cluster, tmp_path):
    with pytest.raises(
        WorkerLost, match=r"worker 1 died; that was failure 1, .*max_failures allows 0"
    ):
        on(2, tmp_path, what="always", max_failures=0)


def gets_further_and_dies(config, context):
    """A worker that leaves one more checkpoint each time before it is lost, and ends the third."""
    folder = Path(config["output"])
    if (reached := len(list(folder.glob("step-*")))) == 3:
        return {"reached": reached}
    (folder / f"step-{reached}").touch()
    os.kill(os.getpid(), signal.SIGTERM if reached == 1 else signal.SIGKILL)
    return time.sleep(30)


def furthest(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("step-*"))


@pytest.mark.slow
def test_workers_that_are_lost_again_and_again_with_progress_end_the_run(ray_cluster, tmp_path):
    """Also those that die while they are started, of which Ray forgets what it reserved."""
    cluster = ClusterConfig(workers=2, output=str(tmp_path), max_failures=1)
    config, progress = {"output": str(tmp_path)}, functools.partial(furthest, tmp_path)
    assert launch(gets_further_and_dies, config, cluster, progress=progress) == {"reached": 3}


def test_failures_add_up_only_where_there_is_no_progress_between_them():
    """A run of months loses more workers than any number allowed would be."""
    reached = iter([None, None, 500, 1000, 1000, 1000])
    restarts = Restarts(2, lambda: next(reached))
    torn = {1: RuntimeError("NCCL error"), 0: RuntimeError("Connection closed by peer")}
    counts = [restarts.after(torn).split("; ")[1] for _ in range(5)]
    assert [count.split(",")[0] for count in counts] == [f"failure {n}" for n in (1, 2, 1, 1, 2)]
    with pytest.raises(WorkerLost, match=r"NCCL error; that was failure 3 in a row without a new"):
        restarts.after(torn)
    with pytest.raises(KeyError):
        restarts.after({0: KeyError("x")})


def test_storage_that_is_away_when_workers_fail_is_no_progress_and_no_error():
    def away():
        raise OSError(errno.ESTALE, "stale file handle")

    restarts = Restarts(1, away)
    torn = {0: RuntimeError("NCCL error")}
    assert "failure 1, 1 allowed: starting again" in restarts.after(torn)
    with pytest.raises(WorkerLost):
        restarts.after(torn)


def test_a_start_that_fails_counts_as_lost_workers_do():
    from ray.exceptions import RayTaskError

    refused = dist.DistNetworkError("The client socket has failed to connect to 10.0.0.1")
    wrapped = RayTaskError("setup", "a long traceback", refused).as_instanceof_cause()
    restarts = Restarts(2, lambda: 500)
    assert restarts.after_start(wrapped) == (
        "workers could not be started (DistNetworkError: The client socket has failed to connect "
        "to 10.0.0.1); failure 1, 2 allowed: starting again"
    )
    assert "failure 2" in restarts.after_start(TimeoutError("timed out setting up"))
    with pytest.raises(WorkerLost, match=r"failed to initialize.*; that was failure 3 in a row"):
        restarts.after_start(WorkerGroupStartupFailedError("a worker failed to initialize"))


def test_a_start_that_no_restart_mends_ends_the_job_and_a_lack_of_room_is_waited_for():
    from ray.exceptions import RayTaskError

    restarts = Restarts(0, None)
    assert "waiting for room" in restarts.after_start(WorkerGroupStartupTimeoutError(num_workers=2))
    wrapped = RayTaskError("f", "a traceback", ImportError("no torch")).as_instanceof_cause()
    for error, kind in ((wrapped, ImportError), (WorkerLost("failure 4, nccl"), WorkerLost)):
        with pytest.raises(kind):
            restarts.after_start(error)


def test_a_worker_fits_where_all_it_asks_for_is_on_one_node(monkeypatch):
    """Cores of nodes without GPUs are none for it."""
    gpu, cpu = {"CPU": 64.0, "GPU": 8.0}, {"CPU": 144.0}
    nodes = [{"Alive": True, "Resources": r} for r in [gpu] * 8 + [cpu] * 2]
    nodes.append({"Alive": False, "Resources": gpu})
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    asked = ClusterConfig(workers=40, gpus_per_worker=1, cpus_per_worker=12)
    assert check_capacity(asked) == 40
    with pytest.raises(ValueError, match=r"12 CPU and 1 GPU.*800 CPUs and 64 GPUs on 10 nodes"):
        check_capacity(replace(asked, workers=41))
    assert check_capacity(ClusterConfig(workers=1, cpus_per_worker=12)) == 8 * 5 + 2 * 12


def test_that_workers_wait_for_lost_nodes_is_said_once(monkeypatch, capsys):
    asked = threading.Semaphore(0)

    def capacity(_cluster):
        asked.release()
        raise ValueError("the cluster has room for 1 workers")

    monkeypatch.setattr("launch.capacity.check_capacity", capacity)
    with telling_of_shortage(ClusterConfig(workers=2), every=0.01):
        assert all(asked.acquire(timeout=10) for _ in range(3))
    said = capsys.readouterr().out
    assert said == "waiting until all workers fit: the cluster has room for 1 workers\n"


def test_more_workers_than_cores_is_an_error_at_once(ray_cluster, tmp_path):
    with pytest.raises(
        ValueError,
        match=r"3 workers of 1 CPU each do not fit: the cluster has 2 CPUs.*--cluster.workers 2",
    ):
        on(3, tmp_path)


def test_more_gpus_than_there_are_is_an_error_at_once(ray_cluster, tmp_path):
    cluster = ClusterConfig(workers=2, gpus_per_worker=1, output=str(tmp_path))
    with pytest.raises(
        ValueError,
        match=r"of 1 CPU and 1 GPU each.* 0 GPUs.*room for 0.*less --cluster.gpus_per_worker",
    ):
        launch(train_or_break, {}, cluster)


def test_run_in_this_process_leaves_nothing_behind(alone):
    assert not dist.is_initialized()
    assert "RANK" not in os.environ
    assert len(alone["losses"]) == RUN.steps


def test_run_in_this_process_passes_errors_on_and_can_be_followed_by_another(tmp_path, alone):
    def fails(config, context):
        raise KeyError("x")

    with pytest.raises(KeyError):
        launch(fails, {}, ClusterConfig(workers=0))
    assert on(0, tmp_path)["losses"] == alone["losses"]


def test_gpu_without_a_gpu_is_refused():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match="gpus_per_worker 0"):
        launch(train_or_break, {}, ClusterConfig(workers=0, gpus_per_worker=1))


def test_output_must_be_named():
    with pytest.raises(ValueError, match=r"--cluster\.output"):
        launch(train_or_break, {}, ClusterConfig(workers=1))


@pytest.mark.parametrize(
    "error, mended",
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:537] Connection closed by peer"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True),
        (dist.DistBackendError("NCCL failure"), True),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), True),
        (OSError(errno.EIO, "input/output error"), True),
        (RuntimeError("Distributed package doesn't have NCCL built in"), False),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), False),
        (TimeoutError("timed out setting up the process group"), True),
        (OSError(errno.ENOSPC, "no space"), False),
        (OSError(errno.EDQUOT, "quota exceeded"), False),
        (FileNotFoundError("shard-000001.tar"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
        (ValueError("data.shards"), False),
        (TooManyFailures("2 of 9 samples cannot be read: k in /nccl/a.tar: timed out"), False),
        (KeyError("x"), False),
    ],
)
def test_only_what_a_restart_can_mend_is_restarted(error, mended):
    assert mended_by_restart(error) is mended


SCRIPT = """
import sys
from launch.cluster import ClusterConfig, launch
from stranger import work
out = sys.argv[1]
print("answer", launch(work, {"x": 20}, ClusterConfig(workers=1, output=out)))
launch(work, {"x": -1}, ClusterConfig(workers=1, output=out))
"""
WORK = """
def work(config, context):
    if config["x"] < 0:
        raise ValueError("x is below zero; use a positive one")
    return {"x": config["x"] + context.world}
"""


def as_script(text: str, folder: Path, home: Path) -> subprocess.CompletedProcess[str]:
    """Run it beside the module `stranger`, with nothing of Ray in the environment."""
    (folder / "main.py").write_text(text)
    (folder / "stranger.py").write_text(WORK)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, "main.py", str(folder / "out")],
        cwd=folder,
        env=clean | {"HOME": str(home), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.mark.slow
def test_cluster_of_its_own_finds_modules_beside_the_script_and_fails_with_the_message(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    done = as_script(SCRIPT, tmp_path, home)
    assert "answer {'x': 21}" in done.stdout, done.stderr
    assert done.returncode == 1
    assert "ValueError: x is below zero; use a positive one" in done.stderr
    assert not (home / ".ray" / "auth_token").exists(), "later clusters would demand the token"


START = """
import os, sys
os.environ["GLOO_SOCKET_IFNAME"] = "nosuch0"
from launch.cluster import ClusterConfig, launch
from stranger import work
launch(work, {"x": 20}, ClusterConfig(workers=1, output=sys.argv[1], max_failures=1))
"""


@pytest.mark.slow
def test_workers_whose_process_group_cannot_be_made_are_started_again_then_given_up(tmp_path):
    done = as_script(START, tmp_path, tmp_path)
    assert done.returncode == 1
    assert done.stdout.count("workers could not be started (") == 1, done.stdout + done.stderr
    assert "failure 1, 1 allowed: starting again" in done.stdout
    assert "WorkerLost: workers could not be started (" in done.stderr
    assert "that was failure 2" in done.stderr

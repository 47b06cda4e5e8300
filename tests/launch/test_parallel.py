"""Independent jobs on a real Ray: as many as fit, tried again when lost, apart from one another."""

import os
import signal
import time
from pathlib import Path

import pytest

from launch import parallel
from launch.cluster import ClusterConfig
from launch.failures import WorkerLost
from launch.parallel import Job, run_all
from tests.runs import local_ray

ONE_CORE = ClusterConfig(workers=0, cpus_per_worker=1)


@pytest.fixture(scope="module", autouse=True)
def ray_of_two_cores():
    with local_ray():
        yield


def body(payload):
    """Does what its payload says and leaves a mark for every start."""
    folder = Path(payload["folder"])
    mark = folder / f"{payload['name']}-{os.getpid()}"
    mark.touch()
    starts = len(list(folder.glob(f"{payload['name']}-*")))
    if payload["do"] == "die" and starts <= payload["times"]:
        os.kill(os.getpid(), signal.SIGKILL)
    if payload["do"] == "lose" and starts <= payload["times"]:
        raise WorkerLost("worker 1 died; that was failure 4")
    if payload["do"] == "fail":
        raise ValueError("s0_1 has no face\nmore lines")
    if payload["do"] == "wait":
        (folder / f"on-{payload['name']}").touch()
        time.sleep(0.8)
        payload["beside"] = len(list(folder.glob("on-*")))
        (folder / f"on-{payload['name']}").unlink()
    return {"pid": os.getpid(), "beside": payload.get("beside")}


def jobs(folder: Path, **what: tuple[str, int]) -> list[Job]:
    return [
        Job(name, {"folder": str(folder), "name": name, "do": do, "times": times})
        for name, (do, times) in what.items()
    ]


def test_a_failure_leaves_the_others_alone_and_what_is_lost_is_tried_again(tmp_path):
    made = jobs(tmp_path, b=("fail", 0), c=("die", 1), d=("lose", 1), e=("die", 9), f=("go", 0))
    made[4].status, made[4].result = "done", {"kept": True}
    running = []

    def watch(jobs):
        running.append(sum(job.status == "running" for job in jobs))

    run_all(body, made, ONE_CORE, retries=1, watch=watch, poll=0.1)
    assert [job.status for job in made] == ["failed", "done", "done", "failed", "done"]
    assert [job.attempts for job in made] == [1, 2, 2, 2, 0]
    assert made[0].reason == "ValueError: s0_1 has no face" and "in body" in made[0].trace
    assert "process was lost" in made[3].reason and made[2].reason == ""
    assert made[4].result == {"kept": True} and not list(tmp_path.glob("f-*"))
    pids = {job.result["pid"] for job in made[1:3]}
    assert len(pids) == 2 and os.getpid() not in pids, "a fresh process each"
    assert max(running) == 2, "as many as the cluster has cores"


def test_no_more_run_at_once_than_are_allowed(tmp_path):
    made = jobs(tmp_path, j0=("wait", 0), j1=("wait", 0))
    running = []
    run_all(
        *(body, made, ONE_CORE),
        retries=0,
        at_once=1,
        watch=lambda jobs: running.append(sum(job.status == "running" for job in jobs)),
        poll=0.1,
    )
    assert max(running) == 1 and [job.result["beside"] for job in made] == [1, 1]


def test_a_job_that_does_not_fit_is_refused_at_once(tmp_path):
    made = jobs(tmp_path, a=("go", 0))
    config = ClusterConfig(workers=0, cpus_per_worker=64)
    with pytest.raises(ValueError, match="1 workers of 64 CPU each do not fit: the cluster has 2"):
        run_all(body, made, config, retries=0, watch=lambda jobs: None)
    assert made[0].status == "waiting" and not list(tmp_path.iterdir())


def test_jobs_wait_for_a_node_that_is_away(tmp_path, monkeypatch, capsys):
    """The first look finds room, the next ones none, as if the only node were gone."""
    looks, whole = [], parallel.check_capacity

    def capacity(cluster):
        looks.append(1)
        if 2 <= len(looks) <= 4:
            raise ValueError("1 workers of 1 CPU each do not fit: the cluster has none")
        return whole(cluster)

    monkeypatch.setattr(parallel, "check_capacity", capacity)
    made, running = jobs(tmp_path, a=("go", 0), b=("go", 0), c=("go", 0)), []

    def watch(jobs):
        running.append([job.status for job in jobs].count("running"))

    run_all(body, made, ONE_CORE, retries=0, at_once=1, watch=watch, poll=0.05)
    assert [job.status for job in made] == ["done"] * 3 and [job.attempts for job in made] == [
        1
    ] * 3
    assert len(looks) == 6, "before all, three without a node, its return, and before the last"
    assert 0 in running[1:-1]
    said = capsys.readouterr().out
    assert said.count("no room for a job; waiting for nodes to come back: 1 workers of") == 1


def test_a_driver_that_stops_ends_its_jobs(tmp_path):
    made = jobs(tmp_path, a=("wait", 0))

    def stop(jobs):
        if jobs[0].status == "running" and list(tmp_path.glob("on-*")):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all(body, made, ONE_CORE, retries=0, watch=stop, poll=0.1)
    assert made[0].status == "running" and made[0].result is None

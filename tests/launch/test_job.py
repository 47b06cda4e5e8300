"""The driver: order of things, the record, the summary, and what becomes of errors."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from launch.claim import claimed
from launch.cluster import ClusterConfig, WorkerContext
from launch.engine import Diverged
from launch.failures import WorkerLost
from launch.job import attached, command, drive, write_json
from launch.store import StoreError, Unreachable, connect
from launch.tracking import SilentTracker, TrackingConfig

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Config:
    cluster: ClusterConfig
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    number: int = 7


@pytest.fixture(scope="module")
def uri(tmp_path_factory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('record') / 'mlflow.db'}"


@pytest.fixture
def config(tmp_path, uri) -> Config:
    cluster = ClusterConfig(workers=0, output=str(tmp_path / "out"))
    return Config(cluster, TrackingConfig(uri=uri, experiment="driver"))


def doubles(payload, context):
    with attached(payload, context) as tracker:
        tracker.log({"seen": 1.0}, 3)
    return {"twice": 2 * payload["config"]["number"], "seed": payload["origin"]["seed"]}


def nothing(handle, output, summary):
    return {}


def test_the_summary_says_what_was_made_and_where(config, tmp_path, uri):
    (tmp_path / "list.txt").write_text("x")
    calls = []

    def publish(handle, output, summary):
        calls.append((output, summary["twice"], connect(uri).get_run(handle.run_id).info.status))
        return {"model": "models:/m/1"}

    inputs = {"list": tmp_path / "list.txt"}
    result = drive(doubles, config, seed=5, inputs=inputs, publish=publish)
    assert calls == [(tmp_path / "out", 14, "RUNNING")], "published while the run is open"
    assert (result["twice"], result["seed"], result["model"]) == (14, "5", "models:/m/1")
    assert json.loads((tmp_path / "out/summary.json").read_text()) == result
    run = connect(result["tracking_uri"]).get_run(result["run_id"])
    assert run.info.status == "FINISHED" and run.data.metrics == {"seen": 1.0}
    assert run.data.params["number"] == "7" and run.data.tags["input.list.sha256"]


def test_a_failed_worker_closes_the_record_and_publishes_nothing(config, tmp_path, uri):
    def fails(payload, context):
        (tmp_path / "run").write_text(payload["run"][1])
        raise ValueError("no face in s0_1; ingest again")

    with pytest.raises(ValueError, match="no face in s0_1"):
        drive(fails, config, seed=0, inputs={}, publish=lambda *_: pytest.fail("published"))
    run = connect(uri).get_run((tmp_path / "run").read_text())
    assert run.info.status == "FAILED"
    assert run.data.tags["ended_by"] == "ValueError: no face in s0_1; ingest again"
    assert list((tmp_path / "out").iterdir()) == []


HOLDER = """
import sys, time
from pathlib import Path
from launch.claim import claimed
with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""


def test_a_folder_that_another_job_works_in_is_refused_until_that_one_is_gone(config, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(out)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=rf"in use by another job \(process {holder.pid} on "):
            drive(doubles, config, seed=0, inputs={}, publish=nothing)
        assert [path.name for path in out.iterdir()] == [".driver"], "nothing was begun"
    finally:
        holder.kill()  # as by a machine that runs out of memory: nothing is cleared away
        holder.wait()
    assert drive(doubles, config, seed=0, inputs={}, publish=nothing)["twice"] == 14
    assert sorted(path.name for path in out.iterdir()) == ["summary.json"]


def test_a_job_may_wait_for_one_that_is_ending(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "new")], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert holder.stdout and holder.stdout.readline() == b"held\n"
    with pytest.raises(ValueError, match="in use by another"), claimed(tmp_path / "new"):
        pass
    killer = threading.Timer(1.0, holder.kill)
    killer.start()
    with claimed(tmp_path / "new", patience=60):
        assert not killer.is_alive()
    holder.wait()


STOPPED = """
import sys
from dataclasses import dataclass
from launch.cluster import ClusterConfig
from launch.job import command, drive
from launch.tracking import TrackingConfig
from sleeper import sleeps
@dataclass(frozen=True)
class Config:
    cluster: ClusterConfig
    tracking: TrackingConfig
config = Config(ClusterConfig(workers=1, output=sys.argv[1]), TrackingConfig())
sys.exit(command(lambda: drive(sleeps, config, seed=0, inputs={}, publish=lambda *_: {})))
"""
SLEEPER = """
import time
from pathlib import Path
def sleeps(payload, context):
    Path(payload["config"]["cluster"]["output"], "begun").touch()
    time.sleep(200)
    return {}
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_job_that_is_stopped_says_so_and_is_no_success(number, tmp_path):
    """Ray has handlers of its own, with which a stopped job ended with status 1 or by SIGABRT."""
    (tmp_path / "main.py").write_text(STOPPED)
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    out = tmp_path / "runs/out"
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    job = subprocess.Popen(
        [sys.executable, "main.py", str(out)], cwd=tmp_path, env=clean | {"PYTHONPATH": str(ROOT)}
    )
    try:
        deadline = time.monotonic() + 200
        while not (out / "begun").exists() and time.monotonic() < deadline:
            assert job.poll() is None
            time.sleep(0.2)
        job.send_signal(number)
        assert job.wait(60) == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    finally:
        job.kill()
    client = connect(f"sqlite:///{tmp_path}/runs/mlflow.db")
    [run] = client.search_runs([client.get_experiment_by_name("mira").experiment_id])
    assert run.info.status == "KILLED"
    assert sorted(path.name for path in out.iterdir()) == ["begun"]


def test_what_mlflow_did_not_take_is_delivered_before_the_model_is_published(
    config, tmp_path, uri, monkeypatch, capsys
):
    """The tracking server is away from before the worker starts until after it has ended."""
    away = {"now": False}

    def usable(_uri):
        if away["now"]:
            raise Unreachable("no MLflow server answers")

    def works(payload, context):
        away["now"] = True
        with attached(payload, context, files=[tmp_path / "notes.txt"]) as tracker:
            tracker.log({"loss": 0.5}, 3)
            tracker.figure("strip", b"\x89PNG", 3)
        (tmp_path / "kept").write_text(f"{len(list((tmp_path / 'out/.outbox').glob('*/0*')))}")
        threading.Timer(1.5, away.update, kwargs={"now": False}).start()
        return {}

    def publish(handle, output, summary):
        run = connect(uri).get_run(handle.run_id)
        files = connect(uri).list_artifacts(handle.run_id, "pictures")
        return {"then": [run.data.metrics["loss"], len(files)]}

    (tmp_path / "notes.txt").write_text("x")
    monkeypatch.setattr("launch.store.require_usable", usable)
    monkeypatch.setattr("launch.delivery.require_usable", usable)
    monkeypatch.setattr("launch.tracking.CLOSING", 0.2)
    with pytest.warns(UserWarning, match="3 messages did not reach MLflow.* are kept in"):
        result = drive(works, config, seed=0, inputs={}, publish=publish)
    assert result["then"] == [0.5, 1] and (tmp_path / "kept").read_text() == "3"
    said = capsys.readouterr().out
    assert "takes nothing now; the run goes on" in said and "waiting for MLflow" in said
    assert not (tmp_path / "out/.outbox").exists()


def test_an_mlflow_that_stays_away_loses_nothing_of_a_finished_job(config, tmp_path, monkeypatch):
    def works(payload, context):
        monkeypatch.setattr("launch.store.require_usable", refuses)
        return {}

    def refuses(_uri):
        raise Unreachable("no MLflow server answers there.")

    config = replace(config, tracking=replace(config.tracking, patience=0.0))
    with pytest.raises(
        StoreError, match=r"is done and lies in .*/out, but no MLflow.*same command"
    ):
        drive(works, config, seed=0, inputs={}, publish=lambda *_: pytest.fail("published"))


def test_a_model_that_cannot_be_published_fails_the_run(config, tmp_path, uri):
    seen = []

    def publish(handle, output, summary):
        seen.append(handle.run_id)
        raise OSError("registry is read-only")

    with pytest.raises(OSError, match="read-only"):
        drive(doubles, config, seed=0, inputs={}, publish=publish)
    assert connect(uri).get_run(seen[0]).info.status == "FAILED"
    assert not (tmp_path / "out/summary.json").exists()


def test_missing_inputs_stop_the_run_before_it_is_recorded(config, tmp_path, uri):
    config = replace(config, tracking=replace(config.tracking, experiment="never"))
    with pytest.raises(FileNotFoundError):
        drive(doubles, config, seed=0, inputs={"x": tmp_path / "none"}, publish=nothing)
    assert connect(uri).get_experiment_by_name("never") is None


def test_only_the_first_worker_writes_to_the_record():
    context = WorkerContext(rank=1, world=2, device=None)
    with attached({"run": ["sqlite:////nowhere/mlflow.db", "none"]}, context) as tracker:
        assert isinstance(tracker, SilentTracker)


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "summary.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


class OutOfPatience(RuntimeError):
    """An error of a package that the driver does not know."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("data.shards is empty"), "data.shards is empty"),
        (OSError(28, "no room in /x; free some"), "no room in /x; free some"),
        (FileNotFoundError(2, "No such file or directory", "/x/a"), "/x/a: No such file or dir"),
        (OSError("no number"), "no number"),
        (WorkerLost("worker 1 died"), "worker 1 died"),
        (Diverged("5 steps in a row"), "5 steps in a row"),
        (OutOfPatience("enough"), "enough"),
    ],
)
def test_what_the_user_can_mend_is_one_line_without_a_trace(error, said, capsys):
    error.add_note("on worker 1 of 2:\nTraceback (most recent call last):")

    def fails():
        raise error

    assert command(fails, told=(OutOfPatience,)) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: {said}") and err.count("\n") == 1


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("shapes"), OutOfPatience("enough")])
def test_a_bug_keeps_its_trace(error):
    def fails():
        raise error

    with pytest.raises(type(error)):
        command(fails)


def test_interrupting_says_how_to_go_on(capsys):
    def stopped():
        raise KeyboardInterrupt

    assert command(stopped) == 130
    assert "the same line goes on" in capsys.readouterr().err


def test_success_is_silent(capsys, tmp_path):
    assert command(lambda: Path(tmp_path, "made").touch()) == 0
    assert capsys.readouterr() == ("", "")

"""The record of a run, against real MLflow stores: an SQLite file, and a server."""

import contextlib
import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED, TEMPORARILY_UNAVAILABLE

from launch import registry
from launch.fetching import fetch
from launch.outbox import Outbox
from launch.provenance import provenance, source_hash, source_revision
from launch.record import closing_run, continue_run, create_run, remember
from launch.store import StoreError, connect, store_uri
from launch.tracking import RunHandle, SilentTracker, Tracker, TrackingConfig, latest

ROOT = Path(__file__).resolve().parents[2]
CONFIG = {"run": {"steps": 4, "betas": [0.9, 0.95], "clip": None}, "name": "debug", "flag": True}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return str(tmp_path_factory.mktemp("store") / "mlflow.db")


@pytest.fixture
def handle(store, tmp_path):
    return open_run(f"sqlite:///{store}", tmp_path)


def open_run(uri, folder, **settings) -> RunHandle:
    origin = {"seed": "3", "git.dirty": "false"}
    tracking = TrackingConfig(uri=uri, **settings)
    return create_run(tracking, output=str(folder / "out"), config=CONFIG, origin=origin)


def steps_of(handle: RunHandle, key: str) -> list[int]:
    return [m.step for m in connect(handle.uri).get_metric_history(handle.run_id, key)]


def tracker_of(handle: RunHandle) -> Tracker:
    return Tracker(*handle, system_metrics_seconds=0)


def test_a_run_may_be_listed_under_another(handle, tmp_path):
    child = open_run(handle.uri, tmp_path, parent=handle.run_id)
    client = connect(handle.uri)
    assert client.get_run(child.run_id).data.tags["mlflow.parentRunId"] == handle.run_id
    assert "mlflow.parentRunId" not in client.get_run(handle.run_id).data.tags


def test_the_latest_of_a_figure_is_known_to_others(handle):
    assert latest(handle, "train/loss") == (None, 0.0)
    tracker = tracker_of(handle)
    for step in (1, 2, 3):
        tracker.log({"train/loss": 1 / step}, step)
    tracker.close()
    assert latest(handle, "train/loss") == (3, 1 / 3)


def test_a_run_holds_parameters_config_and_origin(handle):
    client = connect(handle.uri)
    run = client.get_run(handle.run_id)
    assert run.data.params["run.steps"] == "4"
    assert run.data.params["run.betas"] == "[0.9, 0.95]"
    assert run.data.params["run.clip"] == "null"
    assert run.data.tags["git.dirty"] == "false"
    assert run.info.run_name == "out"
    path = client.download_artifacts(handle.run_id, "config.json")
    assert json.loads(Path(path).read_text()) == CONFIG


def test_more_parameters_than_one_request_takes(store, tmp_path):
    config = {f"key{i}": i for i in range(250)}
    tracking = TrackingConfig(uri=f"sqlite:///{store}")
    handle = create_run(tracking, output=str(tmp_path / "out"), config=config, origin={})
    assert len(connect(handle.uri).get_run(handle.run_id).data.params) == 250


def test_artifacts_of_a_database_lie_beside_it_and_not_in_the_current_folder(handle, store):
    run = connect(handle.uri).get_run(handle.run_id)
    assert run.info.artifact_uri.startswith(str(Path(store).parent / "mlartifacts"))


def test_the_default_store_is_an_absolute_file_beside_the_output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert store_uri("", "runs/demo") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert store_uri("sqlite:///here.db", "runs/demo") == f"sqlite:///{tmp_path}/here.db"
    assert store_uri("https://mlflow.example", "runs/demo") == "https://mlflow.example"


def test_a_relative_database_is_refused_in_a_submitted_job(monkeypatch):
    """It would lie in the temporary copy of the folder, which Ray deletes."""
    here = store_uri("sqlite:///runs/mlflow.db", "runs/out")
    assert here == f"sqlite:///{Path.cwd()}/runs/mlflow.db"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ValueError, match=r"'runs/mlflow\.db' is a relative path, and a submitted"):
        store_uri("sqlite:///runs/mlflow.db", "runs/out")
    assert store_uri("sqlite:////shared/mlflow.db", "x") == "sqlite:////shared/mlflow.db"


def test_a_run_that_cannot_be_asked_for_is_not_another_run(handle, tmp_path, monkeypatch):
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    config = TrackingConfig(uri=handle.uri)
    known = {"output": str(tmp_path), "config": {}, "origin": {}}
    remember(handle, tmp_path)

    def busy(*_):
        raise MlflowException("503 Service Unavailable", error_code=TEMPORARILY_UNAVAILABLE)

    with monkeypatch.context() as away:
        away.setattr(MlflowClient, "get_run", busy)
        with pytest.raises(StoreError, match=rf"does not tell of run {handle.run_id}: 503"):
            continue_run(tmp_path, config, **known)
    assert continue_run(tmp_path, config, **known) == handle
    remember(handle._replace(run_id="0" * 32), tmp_path)
    assert continue_run(tmp_path, config, **known) is None


def test_a_store_without_the_right_to_write_says_so(tmp_path, store, monkeypatch):
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    def denied(*_, **__):
        raise MlflowException("you may only read", error_code=PERMISSION_DENIED)

    monkeypatch.setattr(MlflowClient, "create_run", denied)
    with pytest.raises(StoreError, match=r"opens no run in experiment 'mira': you may only read"):
        open_run(f"sqlite:///{store}", tmp_path)


@pytest.mark.parametrize("uri", ["file:///data/mlruns", "./mlruns", "mlruns", "/data/mlruns"])
def test_a_plain_folder_as_store_is_refused_with_the_uri_to_use(uri):
    with pytest.raises(StoreError, match=r"mlruns/mlflow\.db"):
        store_uri(uri, "out")


def test_a_server_that_does_not_answer_is_named_at_once(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    started = time.monotonic()
    with pytest.raises(StoreError, match=rf"no MLflow server answers at {uri} \(\[Errno"):
        open_run(uri, tmp_path)
    assert time.monotonic() - started < 5


def test_a_database_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file/deep"):
        open_run(f"sqlite:///{tmp_path}/file/deep/mlflow.db", tmp_path)


def test_a_run_that_is_not_in_the_store_is_named(handle):
    with pytest.raises(StoreError, match="no run 0123"):
        Tracker(handle.uri, "0123")


def test_a_deleted_experiment_is_named_with_the_way_back(store, tmp_path):
    uri = f"sqlite:///{store}"
    open_run(uri, tmp_path, experiment="gone")
    client = connect(uri)
    client.delete_experiment(client.get_experiment_by_name("gone").experiment_id)
    with pytest.raises(StoreError, match="mlflow experiments restore"):
        open_run(uri, tmp_path, experiment="gone")


def test_figures_arrive_in_order_and_logging_does_not_wait(handle, monkeypatch):
    from mlflow.tracking import MlflowClient

    store = MlflowClient.log_batch

    def slowly(*arguments, **named):
        time.sleep(1.0)
        return store(*arguments, **named)

    monkeypatch.setattr(MlflowClient, "log_batch", slowly)
    tracker = tracker_of(handle)
    started = time.monotonic()
    for step in range(60):
        tracker.log({"loss": 1 / (step + 1), "lr": 0.1}, step)
    queued = time.monotonic() - started
    tracker.close()
    assert steps_of(handle, "loss") == list(range(60))
    assert queued < (time.monotonic() - started) / 2


def test_steps_replayed_after_a_restart_appear_once_for_each_figure(handle):
    first = tracker_of(handle)
    for step in range(1, 7):
        first.log({"loss": float(step)}, step)
    first.log({"uar": 0.5}, 4)
    first.flush()
    second = tracker_of(handle)
    for step in range(5, 9):
        second.log({"loss": float(step)}, step)
    second.log({"uar": 0.6}, 6)
    second.close()
    assert steps_of(handle, "loss") == list(range(1, 9))
    assert steps_of(handle, "uar") == [4, 6]


def test_a_killed_writer_is_continued_by_the_next(handle):
    code = (
        "import os, signal, sys\n"
        "from launch.tracking import Tracker\n"
        "tracker = Tracker(*sys.argv[1:], system_metrics_seconds=0)\n"
        "[tracker.log({'loss': 1.0}, step) for step in range(5)]\n"
        "tracker.flush()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *handle], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    tracker = tracker_of(handle)
    for step in range(3, 8):
        tracker.log({"loss": 1.0}, step)
    tracker.close()
    assert steps_of(handle, "loss") == list(range(8))


def test_figures_that_cannot_be_stored_are_reported_at_flush(handle, monkeypatch):
    refuse = Outbox.refuse

    def slowly(outbox, path):
        refuse(outbox, path)
        time.sleep(0.5)  # whoever waits sees an empty outbox meanwhile

    monkeypatch.setattr(Outbox, "refuse", slowly)
    tracker, client = tracker_of(handle), connect(handle.uri)
    client.delete_run(handle.run_id)
    tracker.log({"loss": 1.0}, 1)
    with pytest.raises(StoreError, match="1 messages were refused by MLflow"):
        tracker.flush()
    client.restore_run(handle.run_id)
    tracker.log({"loss": 1.0}, 2)
    tracker.flush()
    assert steps_of(handle, "loss") == [2]


def test_lost_figures_do_not_fail_a_finished_job(handle):
    tracker = tracker_of(handle)
    connect(handle.uri).delete_run(handle.run_id)
    tracker.log({"loss": 1.0}, 1)
    with pytest.warns(UserWarning, match="refused by MLflow"):
        tracker.close()


def test_pictures_and_files_are_found_again(handle, tmp_path):
    tracker = tracker_of(handle)
    tracker.figure("strip", np.full((4, 6, 3), 200, np.uint8), 20)
    tracker.figure("confusion", b"\x89PNG", None)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/notes.txt").write_text("kept")
    tracker.log_file(str(tmp_path / "folder"), "extra")
    tracker.close()
    client = connect(handle.uri)
    names = {a.path for a in client.list_artifacts(handle.run_id, "pictures")}
    assert names == {"pictures/strip_step_000020.png", "pictures/confusion.png"}
    path = client.download_artifacts(handle.run_id, "pictures/strip_step_000020.png")
    from matplotlib.image import imread

    assert imread(path).shape[:2] == (4, 6)
    assert Path(client.download_artifacts(handle.run_id, "extra/notes.txt")).read_text() == "kept"


def test_the_load_of_the_machine_is_recorded(handle):
    tracker = Tracker(*handle, system_metrics_seconds=0.2)
    client, name = connect(handle.uri), "system/system_memory_usage_megabytes"
    deadline = time.monotonic() + 30
    while name not in client.get_run(handle.run_id).data.metrics and time.monotonic() < deadline:
        time.sleep(0.2)
    tracker.close()
    assert client.get_run(handle.run_id).data.metrics[name] > 0


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("bad"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (SystemExit(143), "KILLED")],
)
def test_a_run_ends_as_its_block_ends(handle, error, status):
    with pytest.raises(type(error)), closing_run(handle):
        raise error
    run = connect(handle.uri).get_run(handle.run_id)
    assert run.info.status == status
    assert run.data.tags["ended_by"].startswith(type(error).__name__)


def test_a_block_without_exception_ends_the_run_as_finished(handle):
    with closing_run(handle):
        pass
    assert connect(handle.uri).get_run(handle.run_id).info.status == "FINISHED"


@pytest.fixture
def default_termination():
    """A Ray of an earlier test leaves its own handler, which would end this process."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


def test_a_termination_signal_ends_the_run_as_killed(default_termination, handle):
    with pytest.raises(SystemExit), closing_run(handle):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert connect(handle.uri).get_run(handle.run_id).info.status == "KILLED"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_error_of_a_job_survives_a_store_that_is_gone(tmp_path):
    handle = RunHandle("http://127.0.0.1:9", "0")
    with pytest.raises(ValueError, match="the real reason") as caught, closing_run(handle):
        raise ValueError("the real reason")
    assert "was not told" in caught.value.__notes__[0]


def test_the_silent_tracker_takes_every_call():
    silent = SilentTracker()
    for name in [n for n in vars(Tracker) if not n.startswith("_")]:
        assert callable(getattr(silent, name))
    silent.log({"loss": 1.0}, 1)
    silent.figure("strip", b"", 1)


def test_a_new_database_is_made_without_a_word(tmp_path):
    code = (
        "import sys\n"
        "from launch.record import *\n"
        "from launch.tracking import *\n"
        "h = create_run(TrackingConfig(), output=sys.argv[1], config={'a': 1}, origin={})\n"
        "t = Tracker(*h)\n"
        "t.log({'loss': 1.0}, 1); t.close(); end_run(h, 'FINISHED')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "runs/a")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["mlartifacts", "mlflow.db"]


def test_importing_the_module_does_not_import_mlflow():
    code = "import sys, launch.tracking, launch.registry; print('mlflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_a_server_that_answers_with_an_error_counts_as_reachable(tmp_path):
    """A managed server may have no /health; what it then says is MLflow's to report."""
    from launch.store import require_usable

    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        require_usable(f"http://127.0.0.1:{server.server_port}")
        thread.join()


@contextlib.contextmanager
def server_of(folder: Path, port: int):
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    env = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = subprocess.Popen(command, env=env, cwd=folder, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", server)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def a_free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.slow
def test_a_run_on_a_server_is_the_same(tmp_path):
    port = a_free_port()
    uri = f"http://127.0.0.1:{port}"
    with server_of(tmp_path, port):
        handle = open_run(uri, tmp_path)
        with closing_run(handle):
            tracker = tracker_of(handle)
            tracker.log({"loss": 1.0}, 1)
            tracker.figure("strip", b"\x89PNG", 1)
            tracker.close()
        assert steps_of(handle, "loss") == [1]
        (tmp_path / "encoder").mkdir()
        (tmp_path / "encoder/model.safetensors").write_text("weights")
        how = {"kind": "encoder", "weights": tmp_path / "encoder/model.safetensors"}
        registry.publish(handle, tmp_path / "encoder", **how, name="faces", alias="champion")
        found = fetch("models:/faces@champion", uri=uri, into=tmp_path / "got")
        assert (found / "model.safetensors").read_text() == "weights"
        assert connect(uri).list_artifacts(handle.run_id, "pictures")[0].file_size == 4


@pytest.mark.slow
def test_a_server_that_goes_away_in_the_middle_of_a_run_loses_nothing(tmp_path, capsys):
    """Meanwhile the run goes on, loses its worker and goes on from a checkpoint."""
    port, outbox = a_free_port(), tmp_path / "outbox"
    uri = f"http://127.0.0.1:{port}"
    with server_of(tmp_path, port):
        handle = open_run(uri, tmp_path)
        first = Tracker(*handle, outbox=outbox, system_metrics_seconds=0.2)
        first.log({"loss": 1.0}, 1)
        first.flush()
    started = time.monotonic()
    for step in range(2, 400):
        first.log({"loss": float(step)}, step)
    first.figure("strip", b"\x89PNG", 399)
    assert time.monotonic() - started < 5, "the training does not wait"
    with pytest.warns(UserWarning, match=r"messages did not reach MLflow.*are kept in"):
        first.close(seconds=2)
    second = Tracker(*handle, outbox=outbox, system_metrics_seconds=0.2)
    for step in range(390, 410):  # replayed from a checkpoint, with other figures
        second.log({"loss": -1.0}, step)
    with server_of(tmp_path, port):
        second.close(seconds=150)
        history = connect(uri).get_metric_history(handle.run_id, "loss")
        assert [m.step for m in history] == list(range(1, 410))
        assert [m.value for m in history] == [float(s) for s in range(1, 400)] + 10 * [-1.0]
        assert connect(uri).list_artifacts(handle.run_id, "pictures")[0].file_size == 4
        load = "system/system_memory_usage_megabytes"
        assert len(connect(uri).get_metric_history(handle.run_id, load)) > 1
    assert not outbox.exists()
    said = capsys.readouterr().out
    assert "takes nothing now; the run goes on" in said and "is back: all is delivered" in said


def test_a_message_that_is_refused_holds_up_no_other(handle, tmp_path):
    outbox = tmp_path / "outbox"
    tracker = Tracker(*handle, outbox=outbox, system_metrics_seconds=0)
    for step in (1, 2, 3):
        tracker.log({"loss": 1.0} | ({"no//name": 1.0} if step == 2 else {}), step)
    with pytest.raises(StoreError, match="1 messages were refused .*and lie in") as error:
        tracker.flush()
    assert "no//name" in str(error.value) and steps_of(handle, "loss") == [1, 3]
    assert [path.name for path in outbox.iterdir()] == ["000000002.figures.refused"]


def test_a_name_that_mlflow_would_refuse_keeps_nothing_back(handle, tmp_path):
    tracker = Tracker(*handle, outbox=tmp_path / "outbox", system_metrics_seconds=0)
    tracker.log({"recall/fear (mild) & ärger?": 0.5, "war": 0.25}, 1)
    tracker.flush()
    assert steps_of(handle, "war") == steps_of(handle, "recall/fear _mild_ _ ärger_") == [1]


def test_a_message_that_a_crash_of_the_machine_emptied_holds_up_no_other(handle, tmp_path, capsys):
    outbox = tmp_path / "outbox"
    outbox.mkdir()
    (outbox / "000000001.figures").write_text("")
    (outbox / "000000002.figures").write_text("[2, 17000")
    tracker = Tracker(*handle, outbox=outbox, system_metrics_seconds=0)
    tracker.log({"loss": 1.0}, 3)
    tracker.close()
    assert steps_of(handle, "loss") == [3] and not outbox.exists()
    said = capsys.readouterr().out
    assert said.count("holds no figures, as after a crash of the machine: left out") == 2
    assert "takes nothing now" not in said


def test_an_artifact_store_that_fails_holds_up_no_figures(handle, tmp_path, monkeypatch):
    from mlflow.tracking import MlflowClient

    store, broken = MlflowClient.log_artifacts, {"now": True}

    def stores(*arguments):
        if broken["now"]:
            raise ConnectionError("the bucket is away")
        return store(*arguments)

    monkeypatch.setattr(MlflowClient, "log_artifacts", stores)
    tracker = Tracker(*handle, outbox=tmp_path / "outbox", system_metrics_seconds=0)
    tracker.figure("strip", b"\x89PNG", 1)
    tracker.log({"loss": 1.0}, 1)
    with pytest.raises(StoreError, match="1 messages did not reach"):
        tracker.flush(seconds=2)
    assert steps_of(handle, "loss") == [1]
    broken["now"] = False
    tracker.close()
    assert connect(handle.uri).list_artifacts(handle.run_id, "pictures")[0].file_size == 4


def wait_for(url: str, server: subprocess.Popen, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except OSError:
            time.sleep(0.3)
    raise TimeoutError(url)


def test_provenance_names_source_versions_machine_and_inputs(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    facts = provenance(
        seed=5, inputs={"manifest": tmp_path / "manifest.json"}, command=["a", "b c"]
    )
    assert facts["seed"] == "5"
    assert facts["command"] == "a 'b c'"
    assert facts["input.manifest.sha256"].startswith("44136fa355b3678a")
    assert re.match(r"\d+\.\d+", facts["version.torch"])
    assert int(facts["host.cpus"]) >= 1
    assert all(isinstance(value, str) for value in facts.values())


def test_a_continued_run_keeps_its_curve_and_says_what_changed(store, tmp_path):
    uri = f"sqlite:///{store}"
    tracking, out = TrackingConfig(uri=uri), str(tmp_path / "out")
    first = create_run(tracking, output=out, config=CONFIG, origin={"command": "a", "seed": "3"})
    tracker = tracker_of(first)
    for step in (1, 2):
        tracker.log({"loss": 1.0}, step)
    tracker.close()
    with pytest.raises(ValueError), closing_run(first):
        raise ValueError("the disk is full")

    known = {"output": out, "config": CONFIG, "origin": {"command": "b", "seed": "3"}}
    remember(first, tmp_path / "checkpoints")
    again = continue_run(tmp_path / "checkpoints", tracking, **known)
    assert again == first
    tracker = tracker_of(again)
    for step in (2, 3):
        tracker.log({"loss": 0.5}, step)
    tracker.close()
    with closing_run(again):
        pass
    run = connect(uri).get_run(first.run_id)
    assert run.info.status == "FINISHED" and "ended_by" not in run.data.tags
    assert (run.data.tags["resumed"], run.data.tags["resumed.1.command"]) == ("1", "b")
    assert "resumed.1.seed" not in run.data.tags and run.data.tags["command"] == "a"
    assert steps_of(first, "loss") == [1, 2, 3]
    files = {file.path for file in connect(uri).list_artifacts(first.run_id)}
    assert {"config.json", "config_resumed_1.json"} <= files


def test_a_run_that_is_gone_or_kept_elsewhere_is_not_continued(store, tmp_path):
    tracking, out = TrackingConfig(uri=f"sqlite:///{store}"), str(tmp_path / "out")
    known = {"output": out, "config": CONFIG, "origin": {}}
    kept = tmp_path / "checkpoints"
    assert continue_run(kept, tracking, **known) is None
    handle = create_run(tracking, **known)
    remember(handle, kept)
    elsewhere = TrackingConfig(uri=f"sqlite:///{tmp_path / 'other.db'}")
    assert continue_run(kept, elsewhere, **known) is None
    connect(handle.uri).delete_run(handle.run_id)
    assert continue_run(kept, tracking, **known) is None


def test_the_source_hash_is_that_of_any_copy_and_changes_with_a_line(tmp_path):
    for room in ("mira", "launch"):
        shutil.copytree(ROOT / room, tmp_path / room)
    before = source_hash(tmp_path)
    shutil.copytree(tmp_path, tmp_path / "copy")
    assert source_hash(tmp_path / "copy") == before
    with (tmp_path / "mira/cores.py").open("a") as file:
        file.write("# one more line\n")
    assert source_hash(tmp_path) != before
    assert provenance(seed=1)["source.sha256"] == source_hash(ROOT)


def test_the_source_revision_tells_a_changed_checkout_from_a_clean_one(tmp_path):
    assert source_revision(tmp_path)["git.revision"] == "unknown"

    def git(*arguments):
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.com"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True)

    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "first")
    assert len(source_revision(tmp_path)["git.revision"]) == 40
    assert source_revision(tmp_path)["git.dirty"] == "false"
    (tmp_path / "a").write_text("2")
    assert source_revision(tmp_path)["git.dirty"] == "true"

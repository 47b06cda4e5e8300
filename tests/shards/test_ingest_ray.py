"""Ingest over Ray: the same bytes as on one machine, whatever happens to the workers."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from shards.ingest import cluster
from shards.ingest.publish import aside_of
from shards.ingest.run import ingest
from shards.ingest.settings import IngestSettings
from shards.render.dataset import render_dataset
from shards.verify import verify
from tests.runs import local_ray

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = IngestSettings(size=64, min_frames=8)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Nine rendered faces, and one file that is none."""
    folder = tmp_path_factory.mktemp("ray") / "videos"
    render_dataset(
        folder, subjects=3, clips_per_subject=3, seed=1, size=(160, 128), seconds=0.6, workers=1
    )
    (folder / "none.mp4").write_text("not a video")
    return folder


@pytest.fixture(scope="module")
def whole(videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("ray") / "whole"
    made = ingest(videos, out, settings=SETTINGS, jobs=2, shard_samples=4)
    assert made.clips >= 8
    return out


@pytest.fixture(scope="module")
def ray():
    with local_ray():
        yield


def same(folder, other):
    assert sorted(os.listdir(folder)) == sorted(os.listdir(other))
    for path in folder.iterdir():
        assert path.read_bytes() == (other / path.name).read_bytes(), path.name
    return True


def test_a_cluster_makes_the_same_bytes(ray, videos, whole, tmp_path):
    ingest(videos, tmp_path / "o", settings=SETTINGS, shard_samples=4, ray="")
    assert same(tmp_path / "o", whole) and verify(tmp_path / "o") == []
    assert os.listdir(tmp_path) == ["o"]


def test_a_lost_worker_is_replaced(ray, videos, whole, tmp_path):
    lost = []

    def kill():
        """The worker whose process began the first video, and with it its disposable process."""
        end = time.monotonic() + 30
        while not lost and time.monotonic() < end:
            for folder in (aside_of(tmp_path / "o") / "work").glob("00000001-*"):
                lost.append(int(folder.name.rpartition("-")[2]))
                os.kill(lost[0], signal.SIGKILL)
            time.sleep(0.002)

    killer = threading.Thread(target=kill)
    killer.start()
    ingest(videos, tmp_path / "o", settings=SETTINGS, shard_samples=4, ray="")
    killer.join()
    assert lost and lost[0] != os.getpid() and same(tmp_path / "o", whole)


def test_a_stopped_run_goes_on_there(ray, videos, whole, tmp_path):
    def stop(done, total, rejected):
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(videos, tmp_path / "o", settings=SETTINGS, shard_samples=4, jobs=1, progress=stop)
    made = ingest(videos, tmp_path / "o", settings=SETTINGS, shard_samples=4, ray="")
    assert "went on after 1 shards of a run that was stopped" in made.notes
    assert same(tmp_path / "o", whole)


def test_a_machine_that_does_not_see_the_files_is_named(videos, tmp_path):
    from shards.ingest.inputs import scan

    asked = list(enumerate(scan(videos)[0]))
    (reply, *_) = cluster._group(asked, str(tmp_path / "gone"), SETTINGS, cluster.versions())
    with pytest.raises(cluster.ClusterError, match=r"does not see .*gone; .* share"):
        cluster._outcome(reply)
    (reply, *_) = cluster._group(asked, str(tmp_path), SETTINGS, cluster.versions() | {"av": "1"})
    with pytest.raises(cluster.ClusterError, match=r"other versions: .*\(not 1\).*install"):
        cluster._outcome(reply)


def test_without_a_cluster_the_command_says_what_to_do(videos, tmp_path):
    command = [sys.executable, "-m", "shards", "ingest", str(videos), "--out", str(tmp_path / "o")]
    env = os.environ | {"PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(tmp_path)}
    env.pop("RAY_ADDRESS", None)
    run = subprocess.run(
        [*command, "--ray", "127.0.0.1:9"], env=env, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 2 and "ray start --head" in run.stderr, run.stderr
    assert "Traceback" not in run.stderr and not (tmp_path / "o").exists()

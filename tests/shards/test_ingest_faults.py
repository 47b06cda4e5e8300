"""Faults while ingesting that are no fault of a video: of its storage, and of this machine."""

import errno
import os
import signal
import threading
import time
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pytest

from shards import patience
from shards.ingest import IngestSettings, Rejected, isolate, storage
from shards.ingest.isolate import Sandbox, job
from shards.ingest.numbering import FrameFolder
from tests.shards.test_ingest import child_of, pictures, save

UNREADABLE = Path("/proc/self/mem")
"""A regular file whose first byte gives an input/output error."""
pytestmark = pytest.mark.skipif(not UNREADABLE.exists(), reason="needs /proc")


@pytest.fixture
def sandbox(monkeypatch):
    monkeypatch.setattr(patience, "FIRST_WAIT", 0.02)
    with Sandbox() as sandbox:
        yield sandbox


def frames_job(path: Path, out: Path):
    out.mkdir()
    return job(path, out, IngestSettings(detector="none", size=64, max_seconds=999), kind="frames")


def frames_of(result: dict) -> int:
    return result["clips"][0]["num_frames"]


def test_storage_that_fails_for_long_stops_the_run_and_rejects_nothing(
    tmp_path, sandbox, monkeypatch
):
    monkeypatch.setattr(sandbox, "_patience", 0.5)
    said = r"given up after \d+ tries .*Input/output error"
    with pytest.raises(OSError, match=said) as stopped:
        sandbox.run(frames_job(UNREADABLE, tmp_path / "out"))
    assert stopped.value.errno == errno.EIO


def test_storage_that_fails_for_a_moment_is_waited_for(tmp_path, sandbox, monkeypatch):
    video = save(tmp_path / "v.mkv", pictures(20))
    link = tmp_path / "a.mkv"
    link.symlink_to(UNREADABLE)

    def mended(_: float) -> None:
        link.unlink()
        link.symlink_to(video)

    monkeypatch.setattr(sandbox._closed, "wait", mended)
    assert frames_of(sandbox.run(frames_job(link, tmp_path / "out"))) == 20


def test_a_rotten_picture_rejects_its_folder_where_the_others_can_be_read(
    tmp_path, sandbox, monkeypatch
):
    folder = tmp_path / "clip"
    folder.mkdir()
    for i in range(20):
        cv2.imwrite(str(folder / f"{i:03d}.png"), np.full((64, 64, 3), 9 * i, np.uint8))
    (folder / "011.png").unlink()
    (folder / "011.png").symlink_to(UNREADABLE)
    monkeypatch.setattr(sandbox, "_patience", 0.5)
    with pytest.raises(Rejected, match=r"a part of it cannot be read \(given up after"):
        sandbox.run(frames_job(folder, tmp_path / "out") | {"frames": asdict(FrameFolder(25))})


def test_a_place_that_cannot_be_written_rejects_no_video(tmp_path, sandbox, monkeypatch):
    video = save(tmp_path / "v.mkv", pictures(20))
    asked = frames_job(video, tmp_path / "out")
    monkeypatch.setattr(sandbox, "_patience", 0.5)
    monkeypatch.setattr(sandbox, "_ask", lambda _: asked_of(isolate.OTHER_EXIT))
    with pytest.raises(OSError, match="given up after"):
        sandbox.run(asked)


def asked_of(code: int) -> dict:
    """What the zygote answers of a process that ended so."""
    return {"code": code, "timed_out": False, "peak_bytes": 0}


def test_closing_a_sandbox_ends_its_waiting(tmp_path, monkeypatch):
    monkeypatch.setattr(patience, "FIRST_WAIT", 100.0)
    sandbox = Sandbox()
    threading.Timer(1.0, sandbox.close).start()
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="closed"):
        sandbox.run(frames_job(UNREADABLE, tmp_path / "out"))
    assert time.monotonic() - began < 25


def test_what_a_decoder_calls_an_input_error_is_damage_where_all_can_be_read(tmp_path):
    (tmp_path / "sound").write_bytes(b"sound")
    storage.check_bytes(tmp_path / "sound")
    assert storage.begins(tmp_path / "sound") and not storage.begins(UNREADABLE)
    with pytest.raises(storage.StorageFault, match="Input/output error"):
        storage.check_bytes(UNREADABLE)
    storage.check_bytes(tmp_path / "missing")  # that does not pass: the decoder has the word


@pytest.mark.parametrize("whose", ["the zygote's", "the video's"])
def test_a_process_that_is_killed_from_outside_is_begun_anew(tmp_path, sandbox, whose):
    long = save(tmp_path / "long.mkv", pictures(1500), preset="ultrafast")
    zygote = sandbox._started().pid

    def kill() -> None:
        for _ in range(500):
            try:
                child = child_of(zygote)
                return os.kill(zygote if whose == "the zygote's" else child, signal.SIGKILL)
            except (IndexError, OSError):
                time.sleep(0.005)

    killer = threading.Thread(target=kill)
    killer.start()
    assert frames_of(sandbox.run(frames_job(long, tmp_path / "out"))) == 1500
    killer.join()
    assert (sandbox._started().pid == zygote) == (whose == "the video's")

"""Faults while ingesting that are no fault of a video: of its storage, and of this machine."""

import csv
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pytest

from shards import patience
from shards.__main__ import main
from shards.ingest import isolate, pool, storage
from shards.ingest.annotations import read_annotations
from shards.ingest.folder import PictureFolder
from shards.ingest.isolate import Sandbox, job
from shards.ingest.numbering import FrameFolder
from shards.ingest.request import listing, request_of
from shards.ingest.run import ingest
from shards.ingest.settings import IngestSettings, Rejected
from tests.shards.make import video
from tests.shards.test_ingest import child_of, pictures, save

ROOT = Path(__file__).resolve().parents[2]
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
    with pytest.raises(storage.Unreadable, match="No such file"):
        storage.check_bytes(tmp_path / "missing")


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


def test_a_process_that_does_not_start_is_tried_again_and_then_told_in_a_line(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(patience, "FIRST_WAIT", 0.02)
    monkeypatch.setattr(pool, "Sandbox", lambda: Sandbox(patience=0.3))
    monkeypatch.setattr(isolate, "START", "import os; {root!r}; os._exit(1)")
    many(tmp_path / "v", 1)
    assert main(["ingest", str(tmp_path / "v"), "--out", str(tmp_path / "o")]) == 2
    told = capsys.readouterr().err
    assert "decodes videos does not start" in told and "Traceback" not in told


# --- what is gone for one video, and what for all ---------------------------------------------

PLAIN = IngestSettings(detector="none", size=64)


@pytest.fixture
def hasty(monkeypatch):
    """Sandboxes of little patience."""
    monkeypatch.setattr(patience, "FIRST_WAIT", 0.02)
    monkeypatch.setattr(pool, "Sandbox", lambda: Sandbox(patience=0.3))


def many(folder: Path, count: int = 12) -> Path:
    folder.mkdir(parents=True)
    for i in range(count):
        (folder / f"{i:02d}.mp4").write_bytes(video(40 + i))
    return folder


@pytest.mark.parametrize("linked", [False, True], ids=["files", "links"])
def test_a_share_that_is_unmounted_midway_stops_the_run_which_then_goes_on(tmp_path, hasty, linked):
    share, asked = many(tmp_path / "share"), {"settings": PLAIN, "jobs": 1, "shard_samples": 2}
    videos = share
    if linked:
        videos = tmp_path / "links"
        videos.mkdir()
        for file in share.iterdir():
            (videos / file.name).symlink_to(file)
    whole = ingest(videos, tmp_path / "whole", **asked)

    def unmount(done: int, total: int, rejected: int) -> None:
        if done == 5:
            share.rename(tmp_path / "away")

    with pytest.raises(OSError, match=r"No such file or directory\), nor can anything beside it"):
        ingest(videos, tmp_path / "o", **asked, progress=unmount)
    (tmp_path / "away").rename(share)
    made = ingest(videos, tmp_path / "o", **asked)
    assert made.clips == whole.clips == 12 and not made.rejected
    for file in whole.out.iterdir():
        assert file.read_bytes() == (made.out / file.name).read_bytes()


def test_a_video_that_is_deleted_midway_is_one_also_where_nothing_lies_beside_it(tmp_path, hasty):
    for name in "abc":
        (tmp_path / "v" / name / "clip").mkdir(parents=True)
        (tmp_path / "v" / name / "clip" / "one.mp4").write_bytes(video())

    def withdraw(done: int, total: int, rejected: int) -> None:
        if not done:
            (tmp_path / "v" / "c" / "clip" / "one.mp4").unlink()

    made = ingest(tmp_path / "v", tmp_path / "o", settings=PLAIN, jobs=1, progress=withdraw)
    assert made.clips == 2
    assert [(row.path, row.reason) for row in made.rejected] == [
        ("c/clip/one.mp4", "cannot be read (No such file or directory)")
    ]


@pytest.fixture
def locked(monkeypatch):
    """What is put into it cannot be opened, though it is listed, as without a valid ticket."""
    away: set[Path] = set()
    opens = storage._opens
    monkeypatch.setattr(storage, "_opens", lambda path: Path(path) not in away and opens(path))
    return away


def test_one_file_that_can_be_read_up_to_the_root_says_that_the_storage_is_there(tmp_path, locked):
    root, outside = tmp_path / "v" / "root", tmp_path / "v" / "beside.mp4"
    gone = root / "a" / "b" / "gone.mp4"
    gone.parent.mkdir(parents=True)
    outside.write_bytes(b"x")
    assert not storage.alone(gone, root), "an empty root, as a share leaves it"
    (root / "empty").mkdir()
    (root / "link").symlink_to(outside.parent)
    assert not storage.alone(gone, root)
    gone.touch()
    locked.add(gone)
    assert storage.alone(gone, root), "there, and the only one"
    sound = root / "c" / "d" / "empty.mp4"
    sound.parent.mkdir(parents=True)
    sound.touch()
    for i in range(5):
        for folder in (root, sound.parent):
            (folder / f"{i}.mp4").symlink_to(f"{i}.mp4")  # to itself: looking at it is an error
    assert storage.alone(gone, root)
    gone.unlink()
    assert storage.alone(gone, root)
    locked.add(sound)
    assert not storage.alone(gone, root)
    assert not storage.alone(root / "nowhere" / "gone.mp4", root)


def test_of_a_file_that_a_link_leads_to_its_own_folder_is_asked(tmp_path):
    root, disk = tmp_path / "root", tmp_path / "disk"
    for folder in (root, disk):
        folder.mkdir()
    (root / "sound.mp4").write_bytes(b"x")
    (root / "a.mp4").symlink_to(disk / "a.mp4")
    assert not storage.alone(root / "a.mp4", root)
    (disk / "b.mp4").touch()
    assert storage.alone(root / "a.mp4", root)


def test_many_locked_files_hide_no_sound_one_and_few_of_a_large_folder_are_asked(
    tmp_path, monkeypatch
):
    asked: list[str] = []

    def opens(path: str) -> bool:
        asked.append(path)
        return Path(path).name == "sound.mp4"

    monkeypatch.setattr(storage, "_opens", opens)
    (tmp_path / "locked").mkdir()
    for i in range(3000):
        (tmp_path / "locked" / f"{i}.mp4").touch()
    assert not storage.alone(tmp_path / "locked" / "gone.mp4", tmp_path)
    assert len(asked) <= 2 * storage.WITNESSES
    (tmp_path / "sound").mkdir()
    (tmp_path / "sound" / "sound.mp4").touch()
    assert storage.alone(tmp_path / "locked" / "gone.mp4", tmp_path)


UNPRIVILEGED = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
"""Root opens locked files, too; without these rights it does not."""


@pytest.fixture
def guarded(tmp_path):
    """Runs a command for which modes of files count; skips where that cannot be had."""

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        before = () if os.geteuid() else UNPRIVILEGED
        told = {"capture_output": True, "text": True, "timeout": 100, "cwd": ROOT}
        return subprocess.run([*before, *command], **told)

    (tmp_path / "probe").touch(0o000)
    try:
        if run("cat", str(tmp_path / "probe")).returncode != 1 or run("true").returncode:
            pytest.skip("locked files can be read here")
    except FileNotFoundError:
        pytest.skip("needs setpriv, as root opens locked files")
    return run


@pytest.mark.parametrize("table", [False, True], ids=["folder", "table"])
def test_videos_that_are_locked_are_left_out_and_stop_nothing(tmp_path, guarded, table):
    videos, closed, out = tmp_path / "v", tmp_path / "closed", tmp_path / "o"
    closed.mkdir()
    for name in ("locked", "sound"):
        many(videos / name, 2)
    for i in range(2):
        (videos / "locked" / f"{i:02d}.mp4").chmod(0)
    (videos / "link.mp4").symlink_to(closed / "a.mp4")
    closed.chmod(0)
    names = ["link.mp4", *(f"{of}/{i:02d}.mp4" for of in ("locked", "sound") for i in range(2))]
    (tmp_path / "t.csv").write_text("\n".join(["path", *names]))
    told = ("--annotations", str(tmp_path / "t.csv")) if table else ()
    asked = ("--out", str(out), "--jobs", "1", "--detector", "none", "--max-rejected-share", "0.6")
    done = guarded(sys.executable, "-m", "shards", "ingest", str(videos), *asked, *told)
    closed.chmod(0o700)
    assert done.returncode == 0, done.stderr
    at = " (line 2 of t.csv)" if table else ""
    assert {(row["path"], row["reason"]) for row in rejected(out)} == {
        ("link.mp4", f"cannot be looked at{at}"),
        ("locked/00.mp4", "cannot be read (Permission denied)"),
        ("locked/01.mp4", "cannot be read (Permission denied)"),
    }


def rejected(out: Path) -> list[dict[str, str]]:
    with (out / "rejected.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_where_no_video_may_be_looked_at_the_request_ends(tmp_path, monkeypatch):
    listed = listing(many(tmp_path / "v", 2), None, None, {})
    (tmp_path / "t.csv").write_text("path\n00.mp4\n01.mp4\n")
    stat = Path.stat

    def denied(self: Path, **more) -> os.stat_result:
        if self.suffix == ".mp4":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return stat(self, **more)

    monkeypatch.setattr(Path, "stat", denied)
    with pytest.raises(PermissionError, match="check the rights of the folders on the way"):
        request_of(listed, PLAIN, samples=1, size=1)
    with pytest.raises(PermissionError, match="check the rights of the folders on the way"):
        read_annotations(tmp_path / "t.csv", tmp_path / "v")


def test_a_picture_that_is_deleted_midway_is_one_and_all_of_them_are_a_fault(tmp_path, sandbox):
    frames = tmp_path / "share" / "clip"
    frames.mkdir(parents=True)
    for i in range(4):
        cv2.imwrite(str(frames / f"{i}.png"), np.full((64, 64, 3), 40 * i, np.uint8))
    how = FrameFolder(25)
    with PictureFolder(frames, how, max_side=64) as opened:
        (frames / "2.png").unlink()
        with pytest.raises(storage.Unreadable, match=r"2\.png cannot be read"):
            list(opened.pictures())
    assert storage.alone(frames, frames.parent)
    asked = frames_job(frames, tmp_path / "out") | {"frames": asdict(how)}
    frames.parent.rename(tmp_path / "away")
    with pytest.raises(storage.StorageFault, match="nor can anything beside it"):
        sandbox._result(asked)


def test_a_link_that_leads_nowhere_from_the_start_is_refused_at_once(tmp_path, hasty):
    folder = tmp_path / "v"
    (folder / "b").mkdir(parents=True)
    (folder / "a.mp4").write_bytes(video())
    (folder / "b" / "c.mp4").symlink_to(tmp_path / "nowhere" / "c.mp4")
    made = ingest(folder, tmp_path / "o", settings=PLAIN, jobs=1)
    assert [(row.path, row.reason[:16]) for row in made.rejected] == [
        ("b/c.mp4", "nothing is there")
    ]


@pytest.fixture
def stale(monkeypatch):
    """`stale(path, times)`: looking at it gives a stale handle so often."""
    monkeypatch.setattr(patience, "FIRST_WAIT", 0.01)
    left: dict[Path, int] = {}
    stat = os.stat

    def flaky(path, *args, **more):
        if not isinstance(path, int) and left.get(Path(os.fsdecode(path)), 0):
            left[Path(path)] -= 1
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return stat(path, *args, **more)

    monkeypatch.setattr(os, "stat", flaky)
    return left.__setitem__


def test_a_fault_while_a_table_is_read_costs_no_row(tmp_path, stale):
    many(tmp_path / "v", 2)
    table = tmp_path / "t.csv"
    table.write_text("path,label\n00.mp4,happy\n01.mp4,sad\n")
    stale(tmp_path / "v" / "01.mp4", 3)
    items, refused, _ = read_annotations(table, tmp_path / "v")
    assert len(items) == 2 and not refused


def test_a_fault_at_the_start_makes_no_other_request(tmp_path, stale):
    listed = listing(many(tmp_path / "v", 2), None, None, {})
    asked = request_of(listed, PLAIN, samples=1, size=1)
    stale(tmp_path / "v" / "01.mp4", 2)
    assert request_of(listed, PLAIN, samples=1, size=1) == asked


def test_a_fault_that_lasts_and_a_folder_that_is_locked_end_the_request(
    tmp_path, stale, monkeypatch
):
    file = many(tmp_path / "v", 1) / "00.mp4"
    monkeypatch.setattr(storage, "PATIENCE", 0.1)
    stale(file, 999)
    with pytest.raises(OSError, match="given up after"):
        storage.found(file)

    def denied(self: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "stat", denied)
    with pytest.raises(PermissionError, match="check the rights of the folders on the way"):
        storage.found(file)

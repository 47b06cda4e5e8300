"""`python -m shards`: what a user types, reads and gets as exit status."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest

from shards.__main__ import main

ROOT = Path(__file__).resolve().parents[2]


def film(path, frames=24, size=64):
    """A small moving pattern."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width = stream.height = size
        y, x = np.mgrid[:size, :size]
        for t in range(frames):
            rgb = np.stack([(x + 3 * t) % 256, (y + 2 * t) % 256, (x + y) % 256], -1)
            frame = av.VideoFrame.from_ndarray(rgb.astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "videos"
    folder.mkdir()
    for name in ("one.mp4", "two.mp4"):
        film(folder / name)
    (folder / "cut.mp4").write_bytes((folder / "one.mp4").read_bytes()[:200])
    labels = "path,label,subject_id,split\none.mp4,joy,s1,train\ntwo.mp4,anger,s2,test\n"
    (folder / "labels.csv").write_text(labels)
    return folder


def ingest(videos, out, *more):
    plain = ("--detector", "none", "--size", "64", "--jobs", "1")
    return main(["ingest", str(videos), "--out", str(out), *plain, *more])


@pytest.fixture(scope="module")
def shards(videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "shards"
    assert ingest(videos, out, "--annotations", str(videos / "labels.csv")) == 0
    return out


def copy(folder, to):
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def test_ingest_ends_with_a_short_summary(videos, tmp_path, capsys):
    assert ingest(videos, tmp_path / "o") == 0
    out = capsys.readouterr().out
    assert "2 clips" in out and "from 3 videos" in out
    assert "rejected: 1" in out and "1 × cut before its index was written" in out
    assert len(out.splitlines()) <= 8


def test_verify_passes_what_ingest_wrote(shards, capsys):
    assert main(["verify", str(shards)]) == 0
    assert "1 shard, 2 samples, all intact" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-1000]), "was cut"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1000] + bytes(999) + b"x"), "was changed"),
        (lambda p: p.unlink(), "is missing"),
    ],
    ids=["cut", "changed", "missing"],
)
def test_verify_names_a_broken_shard_and_the_fix(shards, tmp_path, capsys, damage, message):
    folder = copy(shards, tmp_path / "o")
    damage(folder / "shard-000000.tar")
    assert main(["verify", str(folder)]) == 1
    said = capsys.readouterr().err
    assert "shard-000000.tar" in said and message in said and "ingest" in said


@pytest.mark.parametrize("command", ["verify", "stats"])
def test_a_folder_without_shards_is_named(tmp_path, capsys, command):
    assert main([command, str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_stats_is_a_short_readable_table(shards, capsys):
    assert main(["stats", str(shards)]) == 0
    out = capsys.readouterr().out
    for words in ("2 in 1 shard", "kB", "24 frames", "25 (2)", "joy", "anger", "train", "test"):
        assert words in out
    assert len(out.splitlines()) < 30


def test_stats_tells_why_videos_were_rejected(videos, tmp_path, capsys):
    ingest(videos, tmp_path / "o")
    capsys.readouterr()
    assert main(["stats", str(tmp_path / "o")]) == 0
    assert "1 × cut before its index" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--overwrite", "--max-rejected-share", "0"], 1, "1 of 3 videos were rejected"),
        (["--min-frames", "999"], 1, "none of 3 videos is usable"),
        (["--size", "63"], 2, "size is 63; take an even number"),
        (["--holdout", "test"], 2, "NAME=SHARE"),
        (["--holdout", "test=0.7", "val=0.4"], 2, "less than 1"),
        (["--annotations", "nowhere.csv"], 2, "nowhere.csv cannot be read"),
    ],
)
def test_what_goes_wrong_has_a_message_and_a_status(
    videos, tmp_path, capsys, arguments, status, message
):
    assert ingest(videos, tmp_path / "o", *arguments) == status
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said
    assert not (tmp_path / "o").exists() and not list(tmp_path.glob(".*"))


def test_an_empty_or_missing_folder_is_named(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert ingest(tmp_path / "empty", tmp_path / "o") == 2
    assert "no video in" in capsys.readouterr().err
    assert ingest(tmp_path / "gone", tmp_path / "o") == 2
    assert f"no folder {tmp_path / 'gone'}" in capsys.readouterr().err


def test_a_wrong_flag_value_is_refused_by_its_name(videos, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        ingest(videos, tmp_path / "o", "--max-rejected-share", "2")
    assert stop.value.code == 2 and "--max-rejected-share" in capsys.readouterr().err


def test_without_or_with_an_unknown_command_the_commands_are_listed(capsys):
    assert main([]) == 2 and "ingest VIDEOS" in capsys.readouterr().out
    assert main(["--help"]) == 0
    assert main(["digest"]) == 2 and "'digest'" in capsys.readouterr().err


def test_render_is_handed_on(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["render", "--help"])
    assert stop.value.code == 0 and "--subjects" in capsys.readouterr().out


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_ingest_leaves_no_shards_and_no_process(tmp_path, way):
    (tmp_path / "v").mkdir()
    for i in range(3):
        film(tmp_path / "v" / f"{i}.mp4", frames=1400)
    command = [sys.executable, "-m", "shards", "ingest", "v", "--out", "o", "--detector", "none"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    # A shell that runs these tests in the background has its children ignore SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen([*command, "--jobs", "2"], cwd=tmp_path, env=env)
    signal.signal(signal.SIGINT, before)
    partial = wait_for(lambda: list(tmp_path.glob(".o.partial-*/work/*/stderr.txt")))
    assert partial, "no video was begun"
    process.send_signal(way)
    assert process.wait(20) == (-9 if way == signal.SIGKILL else 130)
    left = wait_for(lambda: not zygotes(tmp_path) and "gone")
    assert left == "gone" and not (tmp_path / "o").exists()
    if way != signal.SIGKILL:
        assert os.listdir(tmp_path) == ["v"]
    else:  # nobody could tidy up; the next run does
        film(tmp_path / "v" / "short.mp4")
        assert ingest(tmp_path / "v" / "short.mp4", tmp_path / "o") == 0
        assert sorted(os.listdir(tmp_path)) == ["o", "v"]


def wait_for(what, seconds=20.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.02)
    return None


def zygotes(folder):
    """Processes that have our test's folder as their own."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if path.readlink() == folder:
                found.append(path)
        except OSError:
            continue
    return found

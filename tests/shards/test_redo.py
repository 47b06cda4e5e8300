"""`ingest --redo`: what a training could not read is made anew, and nothing else changes."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from shards.__main__ import main
from shards.config import DataConfig
from shards.index import index_name
from shards.ingest.inputs import InputError
from shards.ingest.journal import finished_shards
from shards.ingest.publish import aside_of
from shards.ingest.redo import redo, settings_of
from shards.ingest.run import IngestError, ingest
from shards.ingest.settings import IngestSettings
from shards.ledger import Failure, Ledger
from shards.manifest import Manifest
from shards.stream import open_clips
from shards.verify import verify
from tests.shards.make import video
from tests.shards.test_ingest import rows_of

ROOT = Path(__file__).resolve().parents[2]
PLAIN = IngestSettings(detector="none", size=64, clip_seconds=0.64)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Four videos of three clips each, one of one clip, and one that is none."""
    folder = tmp_path_factory.mktemp("redo") / "videos"
    folder.mkdir()
    for i in range(4):
        (folder / f"v{i}.mp4").write_bytes(video(40 + i * 20, frames=48))
    (folder / "v1c.mp4").write_bytes(video(200, frames=20))
    (folder / "v2b.mp4").write_text("not a video")
    return folder


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """Thirteen clips, two a shard: v0 v0 | v0 v1 | v1 v1 | v1c v2 | v2 v2 | v3 v3 | v3."""
    out = tmp_path_factory.mktemp("redo") / "whole"
    ingest(source, out, settings=PLAIN, jobs=2, shard_samples=2, max_rejected_share=0.6)
    assert [s.samples for s in Manifest.open(out).shards] == [2, 2, 2, 2, 2, 2, 1]
    return out


@pytest.fixture
def videos(source, tmp_path):
    return shutil.copytree(source, tmp_path / "videos")


@pytest.fixture
def out(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "o")


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


def ledger(tmp_path, out, *named):
    """Of (number of a shard, key), or of a number alone for a shard that is lost."""
    path, shards = tmp_path / "ledger.jsonl", Manifest.open(out).shards
    path.unlink(missing_ok=True)
    for name in named:
        number, key = name if isinstance(name, tuple) else (name, "")
        shard, kind = shards[number], "sample" if key else "shard"
        failure = Failure(f"/elsewhere/{shard.name}", key, "why", 7, shard.sha256, "", kind)
        Ledger(path).add(failure)
    return str(path)


def again(videos, out, *ledgers, **more):
    settings = settings_of(out, {})
    return redo(videos, out, ledgers, settings=settings, **{"jobs": 1} | more)


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


def test_what_a_training_could_not_read_comes_back_with_the_same_bytes(
    videos, whole, out, tmp_path, capsys
):
    rows, tar = rows_of(out), out / "shard-000002.tar"
    flip(tar, rows[4].offset + rows[4].size // 2)
    data = DataConfig((str(out),), streams=1, frames=4, size=32, loader_workers=0)
    kept = Ledger(tmp_path / "ledger.jsonl")
    asked = {"global_batch": 1, "micro_batch": 1, "rank": 0, "world": 1, "train": False}
    with open_clips(replace(data, max_failed_share=1), **asked, ledger=kept) as stream:
        list(stream)
    assert stream.failed == 1
    plain = ("--out", str(out), "--jobs", "1")
    assert main(["ingest", str(videos), *plain, "--redo", str(kept.path)]) == 0
    said = capsys.readouterr().out
    assert "2 clips made anew in 1 shard, of which 1 has the same bytes" in said
    assert "the ledger is done: do not give it as data.skip" in said
    assert "--cluster.output" not in said, "nothing changed, so a training goes on"
    assert contents(out) == contents(whole) and verify(out) == []
    assert sorted(os.listdir(tmp_path)) == ["ledger.jsonl", "o", "videos"]


@pytest.mark.parametrize("index", [False, True], ids=["tar", "tar and index"])
@pytest.mark.parametrize("number", [0, 1, 3, 4, 6])
def test_a_lost_shard_comes_back(source, whole, out, tmp_path, number, index):
    named = ledger(tmp_path, out, number)
    name = Manifest.open(out).shards[number].name
    (out / name).unlink()
    if index:
        (out / index_name(name)).unlink()
    made = again(source, out, named)
    assert (made.shards, made.same, made.rejected) == (1, 1, ())
    assert contents(out) == contents(whole)


def test_a_lost_index_comes_back_without_a_video(source, whole, out, tmp_path):
    named = ledger(tmp_path, out, 2)
    (out / "shard-000002.index.jsonl").write_text("{}\n")
    made = again(source, out, named, progress=lambda done, total, rejected: total and 1 / 0)
    assert (made.clips, made.same) == (0, 1) and contents(out) == contents(whole)


def test_only_the_named_sample_is_made_anew(videos, whole, out, tmp_path):
    (out / "mine").mkdir()
    (out / "mine" / "notes.txt").write_text("mine")
    (videos / "v1.mp4").write_bytes(video(120, frames=48))
    made = again(videos, out, ledger(tmp_path, out, (2, "v1_mp4-0002")))
    assert (made.shards, made.same, made.clips) == (1, 0, 1) and verify(out) == []
    assert "start it with a new --cluster.output" in made.notes[1]
    new, old = contents(out), contents(whole) | {"mine/notes.txt": b"mine"}
    changed = {name for name in old if new[name] != old[name]}
    assert changed == {"shard-000002.tar", "shard-000002.index.jsonl", "manifest.json"}
    before, now = rows_of(whole), rows_of(out)
    assert [row.key for row in now] == [row.key for row in before]
    assert now[4] == before[4] and now[5].crc32 != before[5].crc32


@pytest.mark.parametrize("link", [False, True], ids=["deleted", "dangling"])
def test_a_video_that_fails_again_is_left_out_and_says_why(videos, whole, out, tmp_path, link):
    (videos / "v0.mp4").write_text("rotten")
    (videos / "v3.mp4").unlink()
    if link:
        (videos / "v3.mp4").symlink_to(tmp_path / "nowhere" / "v3.mp4")
    named = ledger(tmp_path, out, (0, "v0_mp4-0000"), (0, "v0_mp4-0001"), (5, "v3_mp4-0001"))
    made = again(videos, out, named)
    assert [row.path for row in made.rejected] == ["v0.mp4", "v0.mp4", "v3.mp4"]
    manifest = Manifest.open(out)
    assert verify(out) == [] and manifest.samples == 10
    assert "shard-000000.tar" not in os.listdir(out)
    assert [s.samples for s in manifest.shards] == [2, 2, 2, 2, 1, 1]
    with (out / "rejected.csv").open(newline="") as file:
        reasons = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    assert "not a video" in reasons["v0.mp4"] and "its video is gone" in reasons["v3.mp4"]
    assert "not a video" in reasons["v2b.mp4"], "what was rejected before stays"
    assert "v0" not in (whole / "rejected.csv").read_text()


def test_a_video_with_fewer_clips_than_before_says_so(videos, out, tmp_path):
    (videos / "v1.mp4").write_bytes(video(60, frames=32))
    made = again(videos, out, ledger(tmp_path, out, (2, "v1_mp4-0002")))
    assert "gives 2 clips now" in made.rejected[0].reason and verify(out) == []


def stop_after(videos_done):
    def progress(done, total, rejected):
        if done == videos_done:
            raise KeyboardInterrupt

    return progress


def test_stopped_midway_the_old_folder_is_valid_and_the_same_call_goes_on(
    source, whole, out, tmp_path
):
    named = ledger(tmp_path, out, 0, 2, (5, "v3_mp4-0000"))
    for name in ("shard-000000.tar", "shard-000002.tar"):
        (out / name).write_bytes(b"cut")
    before = contents(out)
    with pytest.raises(KeyboardInterrupt):
        again(source, out, named, progress=stop_after(2))
    assert contents(out) == before and aside_of(out).exists()
    with pytest.raises(InputError, match="--restart"):
        again(source, out, ledger(tmp_path, out, 0))
    made = again(source, out, ledger(tmp_path, out, 0, 2, (5, "v3_mp4-0000")))
    assert "went on after 1 shards" in made.notes[-1]
    assert made.same == made.shards == 3 and contents(out) == contents(whole)
    assert not aside_of(out).exists()


def test_killed_midway_the_old_folder_stays_and_the_same_command_goes_on(
    source, whole, out, tmp_path, capsys
):
    named = ledger(tmp_path, out, 0, 2, 3, 5)
    for number in (0, 2, 3, 5):
        (out / f"shard-00000{number}.tar").write_bytes(b"cut")
    before = contents(out)
    words = ["ingest", str(source), "--out", str(out), "--jobs", "1", "--redo", named]
    run = subprocess.Popen([sys.executable, "-m", "shards", *words], cwd=ROOT)
    end = time.monotonic() + 60
    while not finished_shards(aside_of(out)) and time.monotonic() < end:
        time.sleep(0.002)
    run.send_signal(signal.SIGKILL)
    assert run.wait(20) == -9 and contents(out) == before
    assert main(words) == 0
    assert "went on after" in capsys.readouterr().out and contents(out) == contents(whole)


def test_a_kill_between_the_two_renames_loses_nothing(source, whole, out, tmp_path):
    named = ledger(tmp_path, out, (0, "v0_mp4-0000"))
    out.rename(aside_of(out).with_name(aside_of(out).name + ".old"))
    assert again(source, out, named).same == 1 and contents(out) == contents(whole)


def test_what_a_running_run_holds_aside_is_left_to_it(source, whole, out, tmp_path):
    old = aside_of(out).with_name(aside_of(out).name + ".old")
    words = ["ingest", str(source), "--out", str(out)]
    command = [sys.executable, "-m", "shards", *words, "--redo", ledger(tmp_path, out, 0)]

    def between_the_renames(done, total, rejected):
        out.rename(old)
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert run.returncode == 2 and f"process {os.getpid()} on" in run.stderr
        assert old.exists() and not out.exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(source, out, settings=PLAIN, overwrite=True, progress=between_the_renames)
    assert contents(old) == contents(whole)


def labelled(tmp_path, label="joy", split="train"):
    path = tmp_path / "labels.csv"
    rows = [
        ("path", "label", "onset", "apex", "offset", "split"),
        ("v0.mp4", "anger", 1, 9, 20, "test"),
        ("v1.mp4", label, 2, 8, 18, split),
        ("v2.mp4", "joy", 3, 7, 30, "train"),
    ]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_what_is_stored_beside_a_clip_is_kept_and_splits_stay_counted(videos, tmp_path):
    settings = replace(PLAIN, derived=("flow", "keyframes"))
    out, table = tmp_path / "o", labelled(tmp_path)
    ingest(videos, out, annotations=table, settings=settings, jobs=1)
    before = contents(out)
    named = ledger(tmp_path, out, (0, "v1_mp4"))
    assert again(videos, out, named, annotations=table).same == 1 and contents(out) == before
    (videos / "v0.mp4").write_text("rotten")
    again(videos, out, ledger(tmp_path, out, (0, "v0_mp4")), annotations=table)
    assert verify(out) == [] and Manifest.open(out).splits == {"train": 2}
    assert Manifest.open(out).labels == ("anger", "joy"), "classes keep their numbers"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"label": "fear"}, "label was 'joy', is 'fear' now"),
        ({"split": "val"}, "split was 'train'"),
    ],
)
def test_other_annotations_are_refused(videos, tmp_path, more, words):
    out = tmp_path / "o"
    ingest(videos, out, annotations=labelled(tmp_path), settings=PLAIN, jobs=1)
    before, named = contents(out), ledger(tmp_path, out, (0, "v1_mp4"))
    with pytest.raises(InputError, match=words):
        again(videos, out, named, annotations=labelled(tmp_path, **more))
    assert contents(out) == before and not aside_of(out).exists()


def test_what_cannot_be_redone_is_told_with_the_fix(source, out, tmp_path, capsys):
    before, good = contents(out), ledger(tmp_path, out, (0, "v0_mp4-0000"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "x.mp4").write_bytes(video())

    def refused(words, *more, videos=source, ledger=good):
        command = ["ingest", str(videos), "--out", str(out), "--redo", ledger, *more]
        assert main(command) == 2
        assert words in capsys.readouterr().err
        assert contents(out) == before

    refused("written with size 64, not 96", "--size", "96")
    refused("leave out --overwrite", "--overwrite")
    refused("none of the videos of 1 samples, such as v0_mp4-0000", videos=tmp_path / "empty")
    refused("nowhere.jsonl cannot be read", ledger=str(tmp_path / "nowhere.jsonl"))
    for text in ("[" * 100_000, '{"sha256": "a"}', "[]", "\x00\xff"):
        (bad := tmp_path / "bad.jsonl").write_text(text)
        refused("is no ledger that this version wrote", ledger=str(bad))
    bad.write_text(json.dumps({"sha256": "0" * 64, "kind": "sample", "key": "k"}))
    refused("names no shard of", ledger=str(bad))
    refused("are whole here", ledger=ledger_of_whole(tmp_path, out))


def ledger_of_whole(tmp_path, out):
    return ledger(tmp_path, out, 1)


def test_two_neighbours_lost_with_their_indexes_are_refused(source, out, tmp_path):
    named = ledger(tmp_path, out, 2, 3)
    for number in (2, 3):
        (out / f"shard-00000{number}.tar").unlink()
        (out / f"shard-00000{number}.index.jsonl").unlink()
    with pytest.raises(InputError, match="restore one of the index files"):
        again(source, out, named)


def test_a_folder_of_which_nothing_would_be_left_stays(videos, tmp_path):
    out = tmp_path / "o"
    ingest(videos / "v1c.mp4", out, settings=PLAIN, jobs=1)
    before, named = contents(out), ledger(tmp_path, out, (0, "v1c_mp4"))
    (videos / "v1c.mp4").write_text("rotten")
    with pytest.raises(IngestError, match="no sample of .* would be left, .*not a video"):
        again(videos / "v1c.mp4", out, named)
    assert contents(out) == before


def test_without_links_files_are_copied(source, whole, out, tmp_path, monkeypatch):
    def no_links(*args, **more):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    (out / "shard-000000.tar").write_bytes(b"")
    named = ledger(tmp_path, whole, 0)
    assert again(source, out, named).same == 1 and contents(out) == contents(whole)

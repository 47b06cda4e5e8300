"""Input that means harm: a reason in rejected.csv, within the limits, and no write elsewhere."""

import csv
import io
import os
import tarfile
import time

import pytest

from shards.index import ManifestError, index_shard
from shards.ingest import IngestSettings, ingest
from tests.shards.make import video

SETTINGS = IngestSettings(detector="none", size=64, timeout=20, memory_limit_gib=0.5)


def rejected(out):
    with (out / "rejected.csv").open(newline="", encoding="utf-8") as file:
        return {row["path"]: row["reason"] for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def reasons(tmp_path_factory):
    """Of a folder with one good video and much else, by name."""
    root = tmp_path_factory.mktemp("hostile")
    folder = root / "videos"
    folder.mkdir()
    (folder / "good.mp4").write_bytes(video())
    (folder / "zero.mp4").symlink_to("/dev/zero")
    (folder / "random.mp4").symlink_to("/dev/urandom")
    (folder / "terminal.mp4").symlink_to("/dev/tty")
    (folder / "passwd.mp4").symlink_to("/etc/passwd")
    (folder / "nowhere.mp4").symlink_to(folder / "gone.mp4")
    (folder / "self.mp4").symlink_to(folder / "self.mp4")
    (folder / "up").symlink_to(folder, target_is_directory=True)
    os.mkfifo(folder / "pipe.mp4")
    with (folder / "sparse.mp4").open("wb") as file:
        file.truncate(50 << 30)
    (folder / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\n/etc/passwd\n")
    (folder / "concat.mp4").write_text("ffconcat version 1.0\nfile good.mp4\n" * 9)
    (folder / "moov.mp4").write_bytes(video()[:32] + b"\xff\xff\xff\xffmoov" * 4000)
    (folder / "=cmd|calc!A0.mp4").write_text("no video")
    (folder / "a\nb.mp4").write_text("no video")
    before = set(root.rglob("*"))
    began = time.monotonic()
    ingest(folder, root / "o", settings=SETTINGS, jobs=2, max_rejected_share=1)
    assert time.monotonic() - began < 60
    assert {p for p in root.rglob("*") if root / "o" not in (p, *p.parents)} == before
    return rejected(root / "o")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("zero.mp4", "neither a file"),
        ("random.mp4", "neither a file"),
        ("terminal.mp4", "neither a file"),
        ("pipe.mp4", "neither a file"),
        ("passwd.mp4", "not a video"),
        ("nowhere.mp4", ""),
        ("self.mp4", ""),
        ("sparse.mp4", ""),
        ("list.m3u8", "not a video"),
        ("concat.mp4", "not a video"),
        ("moov.mp4", ""),
        ("=cmd|calc!A0.mp4", "not a video"),
        ("a\nb.mp4", "not a video"),
    ],
)
def test_every_trap_has_a_reason(reasons, name, reason):
    assert reason in reasons[name] and len(reasons[name]) > 10


def test_the_good_video_is_not_touched_by_the_others(reasons):
    assert "good.mp4" not in reasons and not any("up/" in name for name in reasons)


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("[" * 100_000, "votes is"),
        ('{"a":' * 20_000 + "1" + "}" * 20_000, "votes is"),
        ('{"joy": 1e999}', "votes is"),
        ('{"joy": "' + "9" * 100_000 + '"}', "votes is"),
    ],
)
def test_json_bombs_in_a_cell_are_a_reason(tmp_path, cell, reason):
    (tmp_path / "v").mkdir()
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "v" / name).write_bytes(video())
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "votes"), ("a.mp4", cell), ("b.mp4", "")])
    table = tmp_path / "t.csv"
    ingest(tmp_path / "v", tmp_path / "o", annotations=table, settings=SETTINGS, jobs=1)
    assert reason in rejected(tmp_path / "o")["a.mp4"]


@pytest.mark.parametrize(
    "name", ["../evil.mp4", "/etc/evil.mp4", "a/b.mp4", "..\\evil.mp4", "a.exe", "k.flow.npz.sh"]
)
def test_members_that_lead_elsewhere_make_no_shard(tmp_path, name):
    with tarfile.open(tmp_path / "shard-000000.tar", "w") as tar:
        member = tarfile.TarInfo(name)
        member.size = 3
        tar.addfile(member, io.BytesIO(b"abc"))
    with pytest.raises(ManifestError, match="holds"):
        index_shard(tmp_path / "shard-000000.tar")
    assert os.listdir(tmp_path) == ["shard-000000.tar"]


def test_a_link_in_a_tar_makes_no_shard(tmp_path):
    with tarfile.open(tmp_path / "shard-000000.tar", "w") as tar:
        member = tarfile.TarInfo("key.mp4")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)
    with pytest.raises(ManifestError, match="holds 'key.mp4'"):
        index_shard(tmp_path / "shard-000000.tar")

"""Input that means harm: a reason in rejected.csv, within the limits, and no write elsewhere."""

import csv
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from shards.__main__ import main
from shards.index import IndexRow, ManifestError, index_shard
from shards.ingest.annotations import read_annotations
from shards.ingest.inputs import InputError
from shards.ingest.request import listing
from shards.ingest.run import ingest
from shards.ingest.settings import IngestSettings
from shards.ledger import Failure, Ledger, read_named
from shards.manifest import Manifest
from shards.verify import verify
from shards.wording import commonest
from tests.shards.make import record, video, write_folder
from tests.shards.test_ingest import pictures, rows_of, save

ROOT = Path(__file__).resolve().parents[2]

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


def test_a_member_that_claims_more_than_the_tar_takes_no_memory(tmp_path):
    member = tarfile.TarInfo("key.mp4")
    member.size = 1 << 40
    path = tmp_path / "shard-000000.tar"
    path.write_bytes(member.tobuf(format=tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(ManifestError, match=r"was cut|cannot be read"):
        index_shard(path)


def test_a_json_bomb_in_a_tar_makes_no_shard(tmp_path):
    with tarfile.open(tmp_path / "shard-000000.tar", "w") as tar:
        for name, data in (("k.mp4", video()), ("k.json", b'{"a":' * 50_000)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    with pytest.raises(ManifestError, match="cannot be read as a shard"):
        index_shard(tmp_path / "shard-000000.tar")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "\ufeff{}", "9" * 10_000, "", "[]"]
)
def test_a_manifest_that_is_a_bomb_or_none_is_told_by_every_command(tmp_path, text, capsys):
    (tmp_path / "manifest.json").write_text(text)
    for command in ("verify", "stats", "preview", "plan"):
        assert main([command, str(tmp_path)]) in (1, 2), command
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../../evil.tar"},
        {"name": "/etc/evil.tar"},
        {"name": 7},
        {"sha256": "../../../home/evil"},
        {"index_sha256": "x"},
        {"bytes": -1},
        {"samples": "1"},
        {"splits": None},
        {"splits": ["train"]},
        {"splits": {"train": "1"}},
        {"splits": {"train": True}},
        {"splits": {"train": 0.5}},
        {"splits": {"train": -1}},
        {"splits": {"train": 2}},
        {"splits": {"train": 1, "test": 1}},
        {"splits": {"": 1}},
    ],
)
def test_a_manifest_cannot_lead_out_of_its_folder_or_the_cache(tmp_path, change):
    write_folder(tmp_path / "s", [1])
    path = tmp_path / "s" / "manifest.json"
    data = json.loads(path.read_text())
    data["shards"][0] |= change
    path.write_text(json.dumps(data))
    with pytest.raises(ManifestError, match="lists a shard that is none"):
        Manifest.open(tmp_path / "s")


@pytest.mark.parametrize(("name", "value"), [("labels", 5), ("splits", []), ("clip", "x")])
def test_a_manifest_with_other_kinds_of_values_is_none(tmp_path, name, value):
    write_folder(tmp_path / "s", [1])
    path = tmp_path / "s" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(ManifestError, match=f"has {name}"):
        Manifest.open(tmp_path / "s")


@pytest.mark.parametrize("numbers", [[-1, 5], ["a", 5], [1.5, 5], [True, 5]])
def test_an_index_with_numbers_that_are_none_is_none(numbers):
    line = json.loads(IndexRow("k", 0, 5, 7, record("k")).to_line()) | {"video": numbers}
    with pytest.raises(ValueError, match="numbers that are none"):
        IndexRow.from_line(json.dumps(line))


def csv_of(path, *rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


@pytest.mark.parametrize(
    "path",
    [
        "../v/a.mp4",
        "a/../../v/a.mp4",
        "/etc/passwd",
        "..\\a.mp4",
        "C:\\a.mp4",
        "",
        "x" * 300,
        "x/" * 3000 + "a.mp4",
        "up/a.mp4",
    ],
)
def test_path_tricks_in_a_table_are_a_reason(tmp_path, path):
    (tmp_path / "v").mkdir()
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "v" / name).write_bytes(video())
    (tmp_path / "v" / "up").symlink_to("/etc")
    table = csv_of(tmp_path / "t.csv", ("path", "label"), (path, "joy"), ("b.mp4", "joy"))
    ingest(tmp_path / "v", tmp_path / "o", annotations=table, settings=SETTINGS, jobs=1)
    assert list(rejected(tmp_path / "o")) == [path]
    assert [row.key for row in rows_of(tmp_path / "o")] == ["b_mp4"]


def read_table(tmp_path, data: bytes):
    """What a table of two videos comes to: names and labels, reasons by name."""
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "t.csv").write_bytes(data)
    items, refused, _ = read_annotations(tmp_path / "t.csv", tmp_path)
    labels = {item.relative: item.annotation and item.annotation.label for item in items}
    return labels, [(row.path, row.reason) for row in refused]


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbfpath,label\r\na.mp4,glad\r\nb.mp4,sad\r\n",
        b"path,label\ra.mp4,glad\rb.mp4,sad",
        b'path;label;\n"a.mp4"; glad ;\n./b.mp4;sad;;\n\n',
    ],
    ids=["excel", "old mac", "trailing separators"],
)
def test_tables_as_other_programs_write_them(tmp_path, data):
    assert read_table(tmp_path, data) == ({"a.mp4": "glad", "b.mp4": "sad"}, [])


def test_a_video_under_two_spellings_is_one_and_two_labels_are_none(tmp_path):
    data = b"path,label\na.mp4,glad\n./a.mp4,sad\nb.mp4,sad\n.//b.mp4,sad\n"
    labels, refused = read_table(tmp_path, data)
    assert labels == {"b.mp4": "sad"}
    assert refused == [
        ("a.mp4", "has another label in line 2 (line 3 of t.csv)"),
        ("b.mp4", "is listed twice (line 5 of t.csv)"),
        ("a.mp4", "has another label in a later line (line 2 of t.csv)"),
    ]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'path,label\n"a.mp4,glad\nb.mp4,sad\n', "line 3: a quotation mark is not closed"),
        (b"path,label\na.mp4,glad, and sad\n", r"line 2: 3 cells under 2 names.*quotation"),
        (b"path,label,label\na.mp4,glad,sad\n", "two columns 'label'"),
        (b"path,label\n", "no rows"),
        (b"", "no column 'path'"),
        ("path,label\na.mp4,glad\n".encode("utf-16"), "UTF-8"),
    ],
)
def test_a_table_that_would_lose_cells_is_refused(tmp_path, data, words):
    with pytest.raises(InputError, match=words):
        read_table(tmp_path, data)


def test_frame_numbers_as_pandas_writes_them(tmp_path):
    (tmp_path / "a.mp4").touch()
    table = tmp_path / "t.csv"
    table.write_text("path,onset,apex,offset\na.mp4,2.0,,9.0\n")
    [item], refused, _ = read_annotations(table, tmp_path)
    assert item.annotation.marks == {"onset": 2, "offset": 9} and not refused
    table.write_text("path,onset,apex,offset\na.mp4,2.5,,9.0\n")
    assert "onset is '2.5', not a frame number" in read_annotations(table, tmp_path)[1][0].reason


def test_reasons_that_differ_in_lines_and_numbers_are_counted_as_one():
    lines = [f"is not a file in v (line {n} of t.csv)" for n in range(5)]
    faces = [f"no face (one seen in {n} of 9 frames looked at)" for n in range(3)]
    once = "a file (1).mp4 has no path (line 7 of t.csv)"
    told = commonest([once, *faces, *lines], 3)
    assert told == [("is not a file in v", 5), ("no face", 3), (once, 1)]


def test_labels_that_differ_in_case_alone_are_told(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.mp4").touch()
    (tmp_path / "t.csv").write_text("path,label\na.mp4,Happy\nb.mp4,happy\nc.mp4,sad\n")
    notes = listing(tmp_path, tmp_path / "t.csv", None, {}).notes
    assert "labels that differ in upper and lower case alone are classes: Happy, happy" in notes


def test_a_video_without_end_ends_at_the_time_limit_and_the_next_one_is_served(tmp_path):
    (tmp_path / "v").mkdir()
    save(tmp_path / "v" / "endless.mkv", pictures(3000), preset="ultrafast")
    (tmp_path / "v" / "good.mp4").write_bytes(video())
    settings = IngestSettings(detector="none", size=64, timeout=0.3)
    ingest(tmp_path / "v", tmp_path / "o", settings=settings, jobs=1)
    assert "took longer than 0.3 s" in rejected(tmp_path / "o")["endless.mkv"]
    assert [row.key for row in rows_of(tmp_path / "o")] == ["good_mp4"]


def test_a_size_that_changes_midway_never_passes_in_silence(tmp_path):
    (tmp_path / "v").mkdir()
    parts = [
        save(tmp_path / f"{i}.ts", pictures(30, size=size)).read_bytes()
        for i, size in enumerate([(64, 96), (128, 160)])
    ]
    (tmp_path / "v" / "a.ts").write_bytes(b"".join(parts))
    (tmp_path / "v" / "b.mp4").write_bytes(video())
    out = tmp_path / "o"
    ingest(tmp_path / "v", out, settings=SETTINGS, jobs=1)
    clips = [row.record for row in rows_of(out) if row.record.path == "a.ts"]
    assert verify(out) == [] and (clips or "a.ts" in rejected(out))
    assert sum(clip.num_frames for clip in clips) <= 60


# --- names and text that are no Unicode ---------------------------------------------------------


def command(*words):
    """As a user types it: bytes that are not UTF-8 included."""
    run = subprocess.run(
        [sys.executable.encode(), b"-m", b"shards", *words], cwd=ROOT, capture_output=True
    )
    return run.returncode, run.stdout.decode("utf-8"), run.stderr.decode("utf-8", "replace")


def test_names_that_are_not_utf8_are_written_out_and_stop_no_command(tmp_path):
    root = os.fsencode(tmp_path)
    os.makedirs(root + b"/v\xff/deep\xfe")
    for name in (b"/v\xff/a\xff.mp4", b"/v\xff/a\xfe.mp4", b"/v\xff/deep\xfe/b.mp4"):
        Path(os.fsdecode(root + name)).write_bytes(video())
    Path(os.fsdecode(root + b"/v\xff/bad\xff.mp4")).write_text("no video")
    out, page = root + b"/o\xff", root + b"/p\xff.html"
    plain = (b"--detector", b"none", b"--size", b"64", b"--jobs", b"1")
    code, said, error = command(b"ingest", root + b"/v\xff", b"--out", out, *plain)
    assert code == 0 and "\\udcff: 3 clips" in said, error
    folder = Path(os.fsdecode(out))
    assert list(rejected(folder)) == ["bad\\xff.mp4"]
    rows = rows_of(folder)
    assert sorted(row.record.path for row in rows) == [
        "a\\xfe.mp4",
        "a\\xff.mp4",
        "deep\\xfe/b.mp4",
    ]
    for words in ((b"verify", out), (b"stats", out), (b"preview", out, b"--out", page)):
        code, said, error = command(*words)
        assert code == 0 and not error, error
    assert "a\\xff.mp4" in Path(os.fsdecode(page)).read_text()
    ledger = Ledger(Path(os.fsdecode(root + b"/l\xff.jsonl")))
    sha256 = Manifest.open(folder).shards[0].sha256
    ledger.add(Failure(f"{folder}/x.tar", rows[0].key, "why", 1, sha256))
    assert read_named([str(ledger.path)], asked="")[sha256].keys == {rows[0].key}
    redo = (b"--out", out, b"--redo", os.fsencode(ledger.path))
    code, said, error = command(b"ingest", root + b"/v\xff", *redo)
    assert code == 0 and "1 clip made anew in 1 shard" in said, error


def test_pictures_with_such_names_are_told_as_text(tmp_path):
    import cv2

    folder = tmp_path / "v" / "clip"
    folder.mkdir(parents=True)
    for i, rgb in enumerate(pictures(40)):
        cv2.imwrite(str(folder / f"{i:04d}.png"), rgb)
    broken = folder / os.fsdecode(b"\xff0007.png")
    (folder / "0007.png").unlink()
    broken.write_text("no picture")
    table = csv_of(tmp_path / "t.csv", ("path", "fps", "label"), ("clip", 25, "joy"))
    ingest(tmp_path / "v", tmp_path / "o", annotations=table, settings=SETTINGS, jobs=1)
    (row,) = rows_of(tmp_path / "o")
    assert "\\xff0007.png" in row.record.damaged and verify(tmp_path / "o") == []


def test_half_a_surrogate_pair_in_a_table_is_a_reason(tmp_path):
    (tmp_path / "v").mkdir()
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "v" / name).write_bytes(video())
    rows = [("path", "votes"), ("a.mp4", '{"\\ud800": 3}'), ("b.mp4", '{"joy": 3}')]
    table = csv_of(tmp_path / "t.csv", *rows)
    ingest(tmp_path / "v", tmp_path / "o", annotations=table, settings=SETTINGS, jobs=1)
    assert "no Unicode" in rejected(tmp_path / "o")["a.mp4"]
    assert [row.record.votes for row in rows_of(tmp_path / "o")] == [{"joy": 3}]


def test_two_names_that_are_written_alike_are_refused(tmp_path):
    for name in (b"a\xff.mp4", b"a\\xff.mp4"):
        (tmp_path / os.fsdecode(name)).write_bytes(video())
    with pytest.raises(ValueError, match=r"two files in .* rename one"):
        ingest(tmp_path, tmp_path.with_name("o"), settings=SETTINGS, jobs=1)

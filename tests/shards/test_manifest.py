"""The disk format: written and read back, strict, and every damage noticed."""

import json
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shards.index import IndexRow, ManifestError, index_shard, write_aside
from shards.manifest import Manifest
from shards.presence import lost_files
from shards.schema import Record, SchemaError
from shards.verify import verify
from tests.shards.make import LABELS, record, video, write_folder, write_samples, write_tar

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path / "set", [3, 2], test_every=2)
    return tmp_path / "set"


def rewrite(folder, change):
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_a_written_folder_reads_back_and_verifies(folder):
    manifest = Manifest.open(folder)
    assert verify(folder) == []
    assert manifest.samples == 5
    assert manifest.labels == LABELS
    assert manifest.splits == {"train": 3, "test": 2}
    assert [row.key for row in manifest.index(1)] == ["s1_0", "s1_1"]
    row = manifest.index(0)[2]
    tar = (folder / "shard-000000.tar").read_bytes()
    assert tar[row.offset : row.offset + row.size] == video(40)


def test_the_same_samples_make_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_folder(tmp_path / name, [2, 2])
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_the_manifest_counts_the_splits_of_every_shard(folder):
    manifest = Manifest.open(folder)
    assert [shard.splits for shard in manifest.shards] == [
        {"test": 1, "train": 2},
        {"test": 1, "train": 1},
    ]
    assert manifest.splits == {"test": 2, "train": 3}
    assert [manifest.count(split) for split in ("test", "train", "val", None)] == [2, 3, 0, 5]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(schema="face-shards/9"), "face-shards/9.*face-shards/2"),
        (
            lambda d: d.update(schema="face-shards/1"),
            "face-shards/1.*ingest the videos again: `python -m shards ingest .*set --overwrite`",
        ),
        (lambda d: d.update(colour=1), "colour"),
        (lambda d: d.pop("labels"), "labels"),
        (lambda d: d.update(samples=6), "counts 6 samples, its shards 5"),
        (lambda d: d["splits"].update(test=1), "counts the splits .*'test': 1.*'test': 2"),
        (lambda d: d["splits"].update(val=1), "counts the splits .*'val': 1"),
        (lambda d: d["splits"].pop("train"), "counts the splits .* its shards .*'train': 3"),
        (lambda d: d["splits"].update(train=[3]), "counts the splits"),
        (lambda d: d["shards"][0].pop("splits"), "splits"),
        (lambda d: d["shards"][0].pop("sha256"), "sha256"),
    ],
)
def test_another_manifest_is_refused(folder, change, words):
    rewrite(folder, change)
    with pytest.raises(ManifestError, match=words):
        Manifest.open(folder)


@pytest.mark.parametrize("text", [None, "", "{", "[]", "\xff"])
def test_an_unreadable_manifest_names_file_and_fix(folder, text):
    path = folder / "manifest.json"
    path.unlink()
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ManifestError, match=r"manifest.json.*python -m shards ingest"):
        Manifest.open(folder)


def cut(path):
    path.write_bytes(path.read_bytes()[:-600])


def flip(path):
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["shard-000001.tar", "shard-000001.index.jsonl"])
@pytest.mark.parametrize("damage", [cut, flip, lambda path: path.unlink()])
def test_verify_names_a_damaged_file(folder, name, damage):
    damage(folder / name)
    problems = verify(folder)
    assert len(problems) == 1
    assert name in problems[0]


def test_verify_sees_an_index_that_belongs_to_another_tar(folder):
    def claim(data):  # hashes that fit, rows that do not
        other = index_shard(folder / "shard-000000.tar")
        data["shards"][1] |= {"samples": 3, "index_sha256": other.index_sha256}
        data["samples"] = 6

    text = (folder / "shard-000000.index.jsonl").read_bytes()
    (folder / "shard-000001.index.jsonl").write_bytes(text)
    rewrite(folder, claim)
    assert "does not hold what its index says" in verify(folder)[0]


def test_verify_sees_records_that_contradict_themselves(tmp_path):
    manifest = write_folder(tmp_path / "set", [1])
    tar = tmp_path / "set" / "shard-000000.tar"
    odd = [record(key, onset=9, apex=5, label="other", split="train") for key in ("x", "y")]
    write_tar(tar, [(r, video()) for r in odd])
    shard = index_shard(tar)
    counts = {"samples": 2, "splits": {"train": 2}}
    rewrite(manifest.folder, lambda d: d.update(shards=[vars(shard)], **counts))
    problems = verify(manifest.folder)
    assert sum("onset 9 lies after apex 5" in problem for problem in problems) == 2
    assert sum("'other' is unlisted" in problem for problem in problems) == 2


def test_verify_sees_videos_of_another_length_and_what_is_none(tmp_path):
    samples = [
        (record("a"), video()),
        (record("b", num_frames=19), video()),
        (record("c"), b"no video"),
    ]
    short, none = verify(write_samples(tmp_path / "set", [samples]).folder)
    assert short.endswith("shard-000000.tar: b: its video has 20 frames, its record says 19")
    assert none.endswith("c: its video is no mp4 file")


@pytest.mark.parametrize("name", ["../evil", "a.b", "sub/dir"])
def test_a_tar_with_other_names_is_no_shard(tmp_path, name):
    write_tar(tmp_path / "shard.tar", [(record(name), video())])
    with pytest.raises(ManifestError, match=r"shard\.tar"):
        index_shard(tmp_path / "shard.tar")


def test_what_is_missing_or_cut_is_told_by_names_and_sizes(folder):
    manifest = Manifest.open(folder)
    assert lost_files(manifest) == {}
    cut(folder / "shard-000001.tar")
    [(number, lost)] = lost_files(manifest).items()
    assert number == 1 and "shard-000001.tar was cut" in str(lost)
    (folder / "shard-000001.tar").unlink()
    [lost] = lost_files(manifest).values()
    assert "shard-000001.tar is missing" in str(lost) and "ingest" in str(lost)


@pytest.mark.parametrize("link", ["gone.tar", "shard-000001.tar"], ids=["nowhere", "itself"])
def test_a_link_that_leads_nowhere_is_one_lost_shard(folder, link):
    manifest = Manifest.open(folder)
    tar = folder / "shard-000001.tar"
    tar.unlink()
    tar.symlink_to(folder / link)
    [(number, lost)] = lost_files(manifest).items()
    assert number == 1 and "shard-000001.tar cannot be read (" in str(lost)


def test_a_record_survives_json():
    facts = record("a", onset=1, apex=3, offset=9, action_units=("L10", "14?"), votes={"glad": 3})
    assert Record.from_json(json.loads(json.dumps(facts.to_json()))) == facts
    row = IndexRow("a", 512, 9, 7, facts)
    assert IndexRow.from_line(row.to_line()) == row


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"colour": 1}, "record.colour is no field"),
        ({"num_frames": "3"}, "record.num_frames is '3', expected int"),
        ({"fps": True}, "record.fps is True"),
        ({"apex_source": "guess"}, "record.apex_source is 'guess', expected one of"),
        ({"track": {"detector": "x", "found": 1, "box": [1, 2, "3", 4]}}, r"record.track.box\[2\]"),
        ({"votes": {"glad": 1.5}}, "record.votes.glad"),
        ({"action_units": "4"}, "record.action_units is '4', expected a list"),
    ],
)
def test_a_wrong_record_names_the_field(change, words):
    with pytest.raises(SchemaError, match=words):
        Record.from_json(record("a").to_json() | change)


def test_a_missing_field_is_named():
    with pytest.raises(SchemaError, match=r"record\.path is missing"):
        Record.from_json({"clip_id": "a"})


def test_writing_aside_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_aside(path, b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_aside(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_hundred_thousand_shards_open_quickly(tmp_path):
    shard = {"samples": 1000, "bytes": 10**8, "sha256": "0" * 64, "index_sha256": "1" * 64}
    data = {"schema": "face-shards/2", "created_by": {}, "clip": {}, "labels": []}
    counts = [{"test": 100 + i % 9, "train": 800 - i % 7, "val": 90} for i in range(100_000)]
    named = [(f"shard-{i:06d}.tar", splits) for i, splits in enumerate(counts)]
    data["shards"] = [{"name": name, "splits": splits, **shard} for name, splits in named]
    data["splits"] = {split: sum(of[split] for of in counts) for split in counts[0]}
    (tmp_path / "manifest.json").write_text(json.dumps(data | {"samples": 10**8}))
    start = time.process_time()
    assert Manifest.open(tmp_path).samples == 10**8
    assert time.process_time() - start < 3
    program = (
        "from shards.manifest import Manifest;"
        "from shards.reader import Collection;"
        f"c = Collection([Manifest.open({str(tmp_path)!r})], split='val');"
        "assert c.counts == [90] * 100_000;"
        # What getrusage tells includes the size of the process that started this one.
        "[peak] = [line for line in open('/proc/self/status') if line.startswith('VmHWM')];"
        "print(int(peak.split()[1]) // 1024)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert int(run.stdout) < 500, f"MB; {run.stderr}"


def test_the_disk_format_needs_no_torch_and_no_decoder():
    """A command line that only looks at a folder starts at once."""
    program = (
        "import sys, shards.manifest; "
        "print(sorted({'torch', 'numpy', 'cv2', 'av', 'decord'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert run.stdout.strip() == "[]", run.stderr


def test_a_manifest_travels_to_processes_as_it_is_packed_but_once(tmp_path, monkeypatch):
    write_folder(tmp_path / "s", [2, 1])
    manifest = Manifest.open(tmp_path / "s")
    packed = pickle.dumps(manifest)
    assert pickle.loads(packed) == manifest and pickle.loads(packed).index(1)[0].key == "s1_0"
    monkeypatch.setattr("shards.manifest.fields", None)  # packing it again would fail
    assert pickle.dumps(manifest) == packed

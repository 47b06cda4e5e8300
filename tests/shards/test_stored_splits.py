"""Splits of the records: the manifest counts them, and a shard's samples are found when it is
opened."""

import hashlib
import itertools
import json
import pickle
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.index import IndexRow, ManifestError, Shard, ShardLost, index_name, split_counts
from shards.manifest import Manifest
from shards.reader import Collection
from shards.stream import DataConfig, open_clips, open_collection
from shards.survey import survey
from shards.verify import verify
from tests.shards.make import record, video, write_samples

SPLITS = (
    ("train", "test", "train", "val"),
    ("train", "train", None),
    ("test", "test"),
    (),
    (None, None),
    ("val", "train", "test", "train", "test"),
)
KEYS = {f"s{i}_{j}": split for i, of in enumerate(SPLITS) for j, split in enumerate(of)}


@pytest.fixture
def folder(tmp_path):
    shards = [
        [(record(f"s{i}_{j}", split=split, label="calm"), video()) for j, split in enumerate(of)]
        for i, of in enumerate(SPLITS)
    ]
    write_samples(tmp_path / "set", shards)
    return tmp_path / "set"


def config(folder, **fields):
    small = {"streams": 2, "frames": 2, "stride": 2, "size": 16, "loader_workers": 0}
    return DataConfig(shards=(str(folder),), **small | fields)


def opened(data, *, train=False):
    place = {"rank": 0, "world": 1, "global_batch": 2, "micro_batch": 1}
    return open_clips(data, train=train, ledger=None, **place)


def served(data, **how):
    """[(key, weight)] in order, an epoch."""
    with opened(data, **how) as stream:
        batches = list(itertools.islice(stream, 2 * stream.steps_per_epoch))
    return [(k, float(w)) for b in batches for k, w in zip(b.keys, b.weights, strict=True)]


def no_index(*_):
    raise AssertionError("an index was read")


@pytest.mark.parametrize("split", ["train", "test", "val", None])
def test_opening_a_split_reads_no_index(folder, split, monkeypatch):
    monkeypatch.setattr(Manifest, "open_index", no_index)
    with opened(config(folder, split=split), train=True) as stream:
        counts = [sum(split in (None, s) for s in of) for of in SPLITS]
        assert stream.collection.counts == counts
        assert stream.samples == sum(counts)
        with pytest.raises(AssertionError, match="index was read"):
            next(iter(stream))


@pytest.mark.parametrize("loader_workers", [0, 2])
@pytest.mark.parametrize("split", ["train", "test", "val", None])
def test_a_split_that_some_shards_lack_is_served_once_in_the_order_on_disk(
    folder, split, loader_workers
):
    data = config(folder, split=split, loader_workers=loader_workers, streams=1)
    with open_clips(
        data, global_batch=1, micro_batch=1, rank=0, world=1, train=False, ledger=None
    ) as stream:
        assert [key for batch in stream for key in batch.keys] == [
            key for key, of in KEYS.items() if split in (None, of)
        ]
    epoch = Counter(key for key, _ in served(replace(data, streams=2), train=True) if key)
    assert epoch == {key: 1 for key, of in KEYS.items() if split in (None, of)}


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("lost", [(0,), (0, 5), (1, 2, 5)])
def test_shards_without_their_indexes_keep_the_places_of_the_split(folder, lost, train):
    data = config(folder, split="train")
    whole = served(data, train=train)
    for i in lost:
        (folder / f"shard-{i:06d}.index.jsonl").unlink()
    with pytest.raises(ShardLost, match=rf"index\.jsonl is missing.*Lost are {len(lost)}"):
        opened(data)
    rest = served(replace(data, allow_missing=len(lost)), train=train)
    gone = {key for key in KEYS if int(key[1]) in lost}
    assert any(key in gone for key, _ in whole)
    expected = [(key, 0.0) if key in gone else (key, weight) for key, weight in whole]
    assert [weight for _, weight in rest] == [weight for _, weight in expected]
    assert [key for key, weight in rest if weight] == [key for key, weight in expected if weight]


def lie(folder, shard, **splits):
    """Other counts of a shard, with a sum that agrees."""
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    data["shards"][shard]["splits"] = splits
    data["splits"] = dict(sum((Counter(s["splits"]) for s in data["shards"]), Counter()))
    path.write_text(json.dumps(data))


def test_verify_names_shards_whose_splits_are_counted_wrong(folder):
    assert verify(folder) == []
    lie(folder, 0, train=3, test=1)
    lie(folder, 4, val=1)
    first, second = verify(folder)
    assert "counts the splits of shard-000000.tar as {'train': 3, 'test': 1}" in first
    assert "found {'test': 1, 'train': 2, 'val': 1}" in first and "ingest" in first
    assert "shard-000004.tar as {'val': 1}, found {}" in second


@pytest.mark.parametrize(
    ("shard", "told", "found"),
    [
        (0, {"train": 3, "test": 1}, 2),
        (0, {"train": 1}, 2),
        (1, {"train": 3}, 2),  # as if the whole shard were of the split
        (4, {"train": 1}, 0),
        (5, {"test": 2, "train": 1, "val": 1}, 2),
    ],
)
def test_a_shard_that_is_counted_wrong_ends_the_run_when_it_is_read(folder, shard, told, found):
    lie(folder, shard, **told)
    data = config(folder, split="train", max_failed_share=1.0, allow_missing=6)
    words = (
        rf"shard-00000{shard}\.index\.jsonl has {found} samples of split 'train', manifest.json "
    )
    words += rf"counts {told['train']}; restore it or write the folder anew"
    with opened(data) as stream, pytest.raises(ManifestError, match=words):
        list(stream)
    with pytest.raises(ManifestError, match=words):
        _ = open_collection(data).classes
    everything = served(replace(data, split=None, streams=1))
    assert {key for key, _ in everything if key} == set(KEYS), "nothing hangs on these counts"


@pytest.mark.parametrize("line", ["", "[]", "{}", '{"record":[]}', '{"record":{}}', "[" * 9999])
def test_a_line_that_is_none_is_told_with_its_index(folder, line):
    path = folder / "shard-000002.index.jsonl"
    path.write_text(f"{line}\n{line}\n")
    data = json.loads((folder / "manifest.json").read_text())
    data["shards"][2]["index_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(data))
    stream = opened(config(folder, split="test", max_failed_share=1.0))
    with stream, pytest.raises(ManifestError, match=r"shard-000002\.index\.jsonl \("):
        list(stream)


def test_a_collection_travels_without_what_it_looked_up(folder, monkeypatch):
    collection = open_collection(config(folder, split="train"))
    before = pickle.dumps(collection)
    assert sum(len(of) for of in collection.classes) == 6
    monkeypatch.setattr("shards.reader.survey", no_index)
    assert sum(len(of) for of in collection.classes) == 6, "looked up once"
    assert len(pickle.dumps(collection)) == len(before)
    there = pickle.loads(pickle.dumps(collection))
    keys = [there.row(i, n).key for i, count in enumerate(there.counts) for n in range(count)]
    assert keys == [key for key, split in KEYS.items() if split == "train"]


names = st.sampled_from(["train", "test", 'a"b\\', "split", "é\u2028\n", "null", " "])


@settings(max_examples=80, deadline=None)
@given(
    folders=st.lists(
        st.lists(st.lists(st.none() | names, max_size=6), min_size=1, max_size=4),
        min_size=1,
        max_size=3,
    ),
    split=st.none() | names,
)
def test_what_is_found_on_opening_is_what_a_survey_finds(folders, split, tmp_path_factory):
    place, manifests = tmp_path_factory.mktemp("drawn"), []
    for f, shards in enumerate(folders):
        entries = []
        for i, of in enumerate(shards):
            facts = [
                record(f"f{f}_{i}_{j}", split=s, label=s, dataset="split") for j, s in enumerate(of)
            ]
            rows = [IndexRow(r.clip_id, 0, 1, 0, r) for r in facts]
            text = "".join(row.to_line() for row in rows).encode()
            name = f"f{f}-{i}.tar"
            (place / index_name(name)).write_bytes(text)
            digest = hashlib.sha256(text).hexdigest()
            entries.append(Shard(name, len(rows), split_counts(rows), 0, "0" * 64, digest))
        samples, counts = sum(map(len, shards)), Counter(s for of in shards for s in of if s)
        manifests.append(Manifest(place, tuple(entries), samples, (), dict(counts), {}, {}))
    collection = pickle.loads(pickle.dumps(Collection(manifests, split=split)))
    looked = survey(manifests, split=split, classes={})
    assert collection.counts == [len(of) for of in looked.positions]
    for shard, positions in enumerate(looked.positions):
        found = [collection.row(shard, n).key for n in range(len(positions))]
        manifest, i = manifests[0], shard
        for manifest in manifests:
            if i < len(manifest.shards):
                break
            i -= len(manifest.shards)
        rows = manifest.index(i)
        assert found == [rows[at].key for at in positions]
        assert found == [row.key for row in rows if split in (None, row.record.split)]

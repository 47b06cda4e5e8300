"""Split files: one experiment's splits, and maybe classes, in place of those in the shards."""

import csv
import itertools
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.job import identity
from launch.provenance import provenance
from shards.index import IndexRow, Shard, ShardLost, split_counts
from shards.manifest import Manifest
from shards.splitfile import SplitFile, read_split_file
from shards.stream import DataConfig, open_clips, open_collection
from shards.survey import survey
from tests.shards.flaky import serving
from tests.shards.make import LABELS, record, video, write_folder, write_samples

HEADER = ("dataset", "key", "split")
COUNTS = (5, 3, 0, 7)
KEYS = [f"s{i}_{j}" for i, count in enumerate(COUNTS) for j in range(count)]
FOLD = {key: ("train", "val", "test")[n % 3] for n, key in enumerate(KEYS) if n % 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("splits") / "set"
    write_folder(path, COUNTS, test_every=3)
    return path


def write(path, rows, header=HEADER):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([header, *rows])
    return str(path)


@pytest.fixture
def fold(tmp_path):
    return write(tmp_path / "fold.csv", [("", key, split) for key, split in FOLD.items()])


def config(*folders, **fields):
    small = {"streams": 4, "frames": 2, "stride": 2, "size": 16, "loader_workers": 0}
    return DataConfig(shards=tuple(str(f) for f in folders), **small | fields)


def opened(data, *, train=False, rank=0, world=1, start_step=0):
    place = {"rank": rank, "world": world, "start_step": start_step}
    return open_clips(data, global_batch=4, micro_batch=1, train=train, ledger=None, **place)


def served(data):
    """{key: label} of an evaluation."""
    with opened(data) as stream:
        labels = [(k, int(n)) for b in stream for k, n in zip(b.keys, b.labels, strict=True) if k]
    assert len(dict(labels)) == len(labels) == stream.samples
    return dict(labels)


# Which clips


@pytest.mark.parametrize("split", ["train", "val", "test", None])
def test_the_file_alone_says_which_clips_are_of_a_split(folder, fold, split):
    found = served(config(folder, splits=fold, split=split))
    assert set(found) == {key for key, of in FOLD.items() if split in (None, of)}
    assert found.items() <= served(config(folder)).items(), "labels stay the shards'"


def test_an_epoch_of_training_holds_the_split_once(folder, fold):
    with opened(config(folder, splits=fold, split="train"), train=True) as stream:
        batches = itertools.islice(stream, 4 * stream.steps_per_epoch)
        keys = Counter(key for batch in batches for key in batch.keys if key)
    assert keys == {key: 1 for key, split in FOLD.items() if split == "train"}


def test_data_sets_with_the_same_keys_are_told_apart(tmp_path):
    for name in ("one", "two"):
        facts = [record(key, dataset=name, label="calm") for key in ("a", "b")]
        write_samples(tmp_path / name, [[(f, video()) for f in facts]])
    rows = [("one", "a", "train"), ("two", "b", "train"), ("two", "a", "test")]
    data = config(tmp_path / "one", tmp_path / "two", splits=write(tmp_path / "f.csv", rows))
    positions = {}
    for split in ("train", "test"):
        collection = open_collection(replace(data, split=split))
        records = [
            collection.row(shard, n).record
            for shard, count in enumerate(collection.counts)
            for n in range(count)
        ]
        positions[split] = [(facts.dataset, facts.clip_id) for facts in records]
    assert positions == {"train": [("one", "a"), ("two", "b")], "test": [("two", "a")]}


def test_two_clips_of_one_name_are_refused_if_they_are_named(tmp_path):
    for name in ("one", "two"):
        write_samples(tmp_path / name, [[(record(key), video()) for key in ("a", name)]])
    folders = tmp_path / "one", tmp_path / "two"
    rows = [("", "one", "train"), ("", "two", "train")]
    data = config(*folders, splits=write(tmp_path / "f.csv", rows))
    assert set(served(data)) == {"one", "two"}
    data = config(*folders, splits=write(tmp_path / "f.csv", [*rows, ("", "a", "test")]))
    with pytest.raises(ValueError, match=r"f\.csv names a, and 2 clips .* in a column dataset"):
        opened(data)


def test_a_clip_that_no_folder_has_is_named(folder, fold, tmp_path):
    rows = [
        ("", "s0_0", "train"),
        ("x", "s0_1", "test"),
        *(("", f"no{i}", "val") for i in range(4)),
    ]
    data = config(folder, splits=write(tmp_path / "more.csv", rows), split="train")
    for allowed in (0, 1):
        with pytest.raises(
            ValueError, match=r"more\.csv names 5 clips that .*s0_1 of x, no0, no1 and 2"
        ):
            opened(replace(data, allow_missing=allowed))


@pytest.mark.parametrize(("unknown", "fits"), [(1, True), (2, False)])
def test_as_many_clips_may_be_absent_as_lost_shards_have(folder, fold, tmp_path, unknown, fits):
    write_folder(tmp_path / "set", COUNTS)
    (tmp_path / "set" / "shard-000000.index.jsonl").unlink()
    named = [("", key, split) for key, split in FOLD.items()]
    hidden = sum(key.startswith("s0_") for key in FOLD)
    rows = [*named, *(("", f"no{i}", "train") for i in range(COUNTS[0] - hidden + unknown - 1))]
    data = config(tmp_path / "set", splits=write(tmp_path / "f.csv", rows), allow_missing=1)
    if fits:
        assert len(open_collection(data).absent) == COUNTS[0]
    else:
        with pytest.raises(ValueError, match=r"names 6 clips .*lost shards can have 5 of them"):
            open_collection(data)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_lost_index_leaves_the_places_what_they_were(folder, fold, tmp_path, split):
    whole = open_collection(config(folder, splits=fold, split=split))
    write_folder(tmp_path / "set", COUNTS)
    (tmp_path / "set" / "shard-000000.index.jsonl").unlink()
    data = config(tmp_path / "set", splits=fold, split=split)
    with pytest.raises(ShardLost, match="is missing"):
        open_collection(data)
    rest = open_collection(replace(data, allow_missing=1))
    assert rest.counts == whole.counts
    assert sum(rest.classes[0] == -1) == whole.counts[0] > 0


def test_folds_by_subject_number_the_subjects_of_their_split(tmp_path):
    facts = [
        record(f"c{i}", dataset="d", subject_id=f"s{i % 3}", apex=3 if i else None)
        for i in range(6)
    ]
    write_samples(
        tmp_path / "set", [[(f, video()) for f in facts[:4]], [(f, video()) for f in facts[4:]]]
    )
    rows = [("d", f"c{i}", "test" if i % 3 == 1 else "train") for i in range(6)]
    data = config(tmp_path / "set", splits=write(tmp_path / "f.csv", rows), extra=("subject",))
    with opened(replace(data, split="train")) as stream:
        assert stream.subjects == (("d", "s0"), ("d", "s2"))
        assert stream.collection.unmarked == 1
        found = {
            key: int(s) for b in stream for key, s in zip(b.keys, b.extra["subject"], strict=True)
        }
    assert found == {"c0": 0, "c2": 1, "c3": 0, "c5": 1}


@dataclass(frozen=True)
class Indexes:
    """What `survey` needs of a folder: the rows of every index, None for a lost one."""

    rows: list[list[IndexRow]]
    lost: frozenset[int]
    folder: Path = Path()

    @property
    def shards(self):
        return [
            Shard(f"{i}.tar", len(rows), split_counts(rows), 0, "0" * 64, "0" * 64)
            for i, rows in enumerate(self.rows)
        ]

    def index(self, i):
        if i in self.lost:
            raise ShardLost("gone")
        return self.rows[i]

    check_count = Manifest.check_count


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_look_through_any_folders_finds_what_belongs(draw):
    choices = st.sampled_from
    folders, everything = [], []
    for f in range(draw.draw(st.integers(1, 3))):
        counts = draw.draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))
        dataset = draw.draw(choices(["", f"d{f}"]))
        rows = []
        for i, count in enumerate(counts):
            facts = [
                record(
                    f"f{f}_{i}_{j}",
                    dataset=dataset,
                    label=draw.draw(choices([None, *LABELS])),
                    subject_id=draw.draw(choices([None, "a", "b"])),
                    apex=draw.draw(choices([None, 3])),
                    split=draw.draw(choices([None, "train", "test"])),
                )
                for j in range(count)
            ]
            rows.append([IndexRow(r.clip_id, 0, 1, 0, r) for r in facts])
        everything += [row for shard in rows for row in shard]
        folders.append(Indexes(rows, frozenset()))
    split_of = {(row.record.dataset, row.key): row.record.split for row in everything}
    chosen = None
    if draw.draw(st.booleans()):
        drawn = {name: draw.draw(choices(["train", "test", None])) for name in split_of}
        split_of = {name: split for name, split in drawn.items() if split}
        chosen = SplitFile("f.csv", "", split_of)
    split = draw.draw(choices(["train", "test", None]))
    classes = {label: i for i, label in enumerate(LABELS)}

    found = survey(folders, split=split, classes=classes, chosen=chosen)
    shards = [shard for folder in folders for shard in folder.rows]
    kept = [shard[at] for shard, of in zip(shards, found.positions, strict=True) for at in of]
    of_split = [(split_of.get((r.record.dataset, r.key), "unnamed"), r) for r in everything]
    wanted = [row for s, row in of_split if s != "unnamed" and split in (None, s)]
    assert kept == wanted
    labels = [classes.get(row.record.label or "", -1) for row in wanted]
    assert [int(c) for of in found.classes for c in of] == labels
    known = {(r.record.dataset, r.record.subject_id) for r in wanted if r.record.subject_id}
    assert found.subjects == tuple(sorted(known))
    assert found.unmarked == sum(row.record.apex is None for row in wanted)
    assert found.absent == ()

    places = [(f, i) for f, folder in enumerate(folders) for i in range(len(folder.rows))]
    most = None if chosen is None else 1  # of a split file's shards nobody knows the counts
    gone = draw.draw(st.sets(choices(places), min_size=1, max_size=most))
    for f, folder in enumerate(folders):
        folders[f] = replace(folder, lost=frozenset(i for g, i in gone if g == f))
    without = survey(folders, split=split, classes=classes, chosen=chosen)
    assert set(without.lost) == {places.index(place) for place in gone}
    sizes = [len(of) for of in without.positions]
    assert sizes == [len(of) for of in found.positions], "every place stays what it was"


def test_a_split_file_may_lie_at_a_url(folder, fold):
    with serving(Path(fold).parent) as server:
        url = f"{server.url}/fold.csv"
        data = config(folder, splits=url, split="val")
        assert set(served(data)) == {key for key, split in FOLD.items() if split == "val"}
        with opened(data) as stream:
            assert stream.inputs["splits"] == (url, read_split_file(fold).sha256)
        with pytest.raises(ValueError, match=r"data\.splits: .*none\.csv cannot be read"):
            opened(config(folder, splits=f"{server.url}/none.csv"))


# The run


@pytest.mark.parametrize(("world", "loader_workers"), [(1, 0), (2, 0), (4, 0), (2, 2)])
def test_a_run_goes_on_the_same_on_other_workers(folder, fold, world, loader_workers):
    data = config(folder, splits=fold, split="train", balance=0.5)

    def steps(data, first, last, world):
        found = [[] for _ in range(last - first)]
        for rank in range(world):
            with opened(data, train=True, rank=rank, world=world, start_step=first) as stream:
                for n, batch in enumerate(itertools.islice(stream, (last - first) * 4 // world)):
                    found[n * world // 4] += zip(batch.seeds.tolist(), batch.keys, strict=True)
        return [sorted(step) for step in found]

    alone = steps(data, 0, 7, 1)
    assert steps(replace(data, loader_workers=loader_workers), 3, 7, world) == alone[3:]


def test_the_content_of_the_file_belongs_to_the_run(folder, fold, tmp_path):
    def agreed(data):
        with opened(data) as stream:
            origin = provenance(seed=0, inputs=stream.inputs)
        order = {**vars(data), "frames": 2}
        return identity({"data": order, "run": {"seed": 0, "global_batch": 4}}, origin)

    data = config(folder, splits=fold, split="train")
    with opened(data) as stream:
        assert stream.inputs["splits"] == (fold, read_split_file(fold).sha256)
    first = agreed(data)
    assert any("splits" in name for name in first["inputs"])
    assert agreed(config(folder, split="train")) != first
    moved = tmp_path / "moved.csv"
    moved.write_bytes((tmp_path / "fold.csv").read_bytes())
    assert agreed(replace(data, splits=f"file://{moved}")) == first, "wherever the file lies"
    moved.write_bytes(moved.read_bytes().replace(b"train", b"val", 1))
    assert agreed(replace(data, splits=str(moved))) != first
    assert agreed(replace(data, pair=True)) != first
    assert agreed(replace(data, extra=("votes",))) != first


# Classes of the file


def test_a_column_label_replaces_the_labels_of_folders_that_differ(tmp_path):
    write_folder(tmp_path / "one", [4], labels=("joy", "fear"), name="one_")
    write_folder(tmp_path / "two", [4], labels=("happiness", "disgust", "joy"), name="two_")
    rows = [
        ("", f"{name}_s0_{i}", "train" if i else "test", cls)
        for name in ("one", "two")
        for i, cls in enumerate(("surprise", "positive", "negative", ""))
    ]
    data = config(tmp_path / "one", tmp_path / "two")
    with pytest.raises(ValueError, match="different labels"):
        opened(data)
    data = replace(data, splits=write(tmp_path / "f.csv", rows, (*HEADER, "label")))
    for split in ("train", "test"):
        with opened(replace(data, split=split)) as stream:
            assert stream.labels == ("negative", "positive", "surprise"), "those of the whole file"
    found = served(replace(data, split="train"))
    assert found == {
        f"{name}_s0_{i}": n for name in ("one", "two") for i, n in ((1, 1), (2, 0), (3, -1))
    }
    with opened(replace(data, split="train", balance=1.0), train=True) as stream:
        [classes, more] = stream.collection.classes
        assert classes.tolist() == more.tolist() == [1, 0, -1]
        keys = Counter(k for b in itertools.islice(stream, 16) for k in b.keys if k)
    assert not any(key.endswith("_3") for key in keys), "no place without a label"
    with pytest.raises(ValueError, match=r"votes for the labels in the shards, .*f\.csv replaces"):
        opened(replace(data, split="train", extra=("votes",)))


def test_loader_processes_see_the_labels_of_the_file(folder, tmp_path):
    rows = [("", key, "train", "xyz"[n % 3]) for n, key in enumerate(KEYS)]
    splits = write(tmp_path / "f.csv", rows, (*HEADER, "label"))
    assert served(config(folder, splits=splits, loader_workers=2)) == {
        key: n % 3 for n, key in enumerate(KEYS)
    }


# The file


names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).map(str.strip)


@given(rows=st.dictionaries(st.tuples(names, names.filter(bool)), names.filter(bool)))
def test_any_names_come_back(rows, tmp_path_factory):
    path = write(
        tmp_path_factory.mktemp("f") / "f.csv", [(*name, split) for name, split in rows.items()]
    )
    assert read_split_file(path).splits == rows


def test_files_of_spreadsheet_programs_are_read(tmp_path):
    path = tmp_path / "f.csv"
    path.write_bytes("\ufeffkey, split ,dataset\r\na,train,\r\n\r\n b ,test,d\r\n".encode())
    read = read_split_file(str(path))
    assert read.splits == {("", "a"): "train", ("d", "b"): "test"}
    assert read.labels is None and read.classes is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"line 1 names the columns none; they are dataset, key, split"),
        ("dataset,key\n", r"line 1 names the columns 'dataset', 'key'; they are"),
        ("dataset,key,split,fold\n", r"line 1 names .*'fold'; they are"),
        ("dataset;key;split\n", r"line 1 names the columns 'dataset;key;split'"),
        ("dataset,key,split\n,a,train\n,b\n", r"line 3 has 2 cells, not 3"),
        ("dataset,key,split\n,a,train,x\n", r"line 2 has 4 cells, not 3"),
        ("dataset,key,split\n,,train\n", r"line 2 has no key"),
        ("dataset,key,split\nd,a, \n", r"line 2 has no split"),
        ("dataset,key,split\nd,a,x\ne,a,x\nd,a,y\n", r"line 4 names a of d a second time"),
        ('dataset,key,split\n,"a"b,train\n', r"line 2 is no line of a CSV file"),
        ("dataset,key,split\n,a\u202e,x\n,a\u202e,x\n", r"line 3 names a\\u202e a second"),
        (b"dataset,key,split\n\xff,a,x\n", r"line 2 is not UTF-8"),
        (None, r"cannot be read \(is not there"),
    ],
)
def test_what_is_wrong_with_a_file_is_named_with_its_line(folder, tmp_path, text, words):
    path = tmp_path / "fold.csv"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=rf"data\.splits: .*fold\.csv,? ?{words}"):
        opened(config(folder, splits=str(path)))


def test_a_split_that_the_file_does_not_have_is_named_with_those_it_has(folder, fold):
    with pytest.raises(
        ValueError, match=r"'dev', but .*fold\.csv .*splits there: test, train, val"
    ):
        opened(config(folder, splits=fold, split="dev"))

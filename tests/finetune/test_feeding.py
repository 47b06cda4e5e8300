"""What a fine-tuning reads before it starts: every index at most once a process, and only where all
records count."""

import csv
from dataclasses import replace

import pytest

import shards.reader
from finetune import job
from finetune.config import HeadsConfig
from finetune.feeding import check_labelled, open_split, open_train
from shards.index import ShardLost
from tests.finetune.annotated import UNITS, training, write_annotated
from tests.shards.make import record, video, write_samples


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("feeding")
    write_annotated(folder / "shards", train=3, test=2)
    return folder


@pytest.fixture
def surveyed(monkeypatch):
    """The splits that were looked through, one after the other."""
    splits, whole = [], shards.reader.survey

    def survey(manifests, *, split, **how):
        splits.append(split)
        return whole(manifests, split=split, **how)

    monkeypatch.setattr("shards.reader.survey", survey)
    return splits


def test_a_start_reads_all_records_once_for_the_driver_alone(place, tmp_path, surveyed):
    job.run(training("debug", place / "shards", tmp_path / "out", steps=2, eval_every=1))
    assert surveyed == ["train"]


def test_a_worker_reads_all_records_once_for_all_that_needs_them(place, tmp_path, surveyed):
    config = training("hsta_debug", place / "shards", tmp_path / "out", steps=2, eval_every=1)
    config = replace(
        config,
        data=replace(config.data, balance=1.0),
        losses=replace(config.losses, balance=1.0),
        identity=replace(config.identity, weight=1.0),
    )
    job.run(config)
    assert surveyed == ["train", "train"], "the driver and the worker, no evaluation"


def test_a_split_file_is_looked_up_once_a_split_and_process(place, tmp_path, surveyed):
    rows = [("", f"c{n:03d}", "test" if n < 4 else "train") for n in range(10)]
    with (tmp_path / "fold.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("dataset", "key", "split"), *rows])
    config = training("debug", place / "shards", tmp_path / "out", steps=3, eval_every=1)
    config = replace(config, data=replace(config.data, splits=str(tmp_path / "fold.csv")))
    job.run(config)
    assert surveyed == ["test", "train", "train", "test"]


def test_who_is_seen_does_not_matter_where_nothing_is_learnt(place):
    config = training("debug", place / "shards", place / "out")
    config = replace(config, identity=replace(config.identity, weight=1.0))
    with open_train(config, rank=0, world=1) as stream:
        assert "subject" in next(iter(stream)).extra
    with open_split(config, "test", rank=0, world=1) as stream:
        assert "subject" not in next(iter(stream)).extra
    asked = replace(config, data=replace(config.data, extra=("subject",)))
    with open_split(asked, "test", rank=0, world=1) as stream:
        assert "subject" in next(iter(stream)).extra


def test_an_index_that_was_changed_is_refused_where_all_records_are_read(tmp_path):
    facts = [record(f"k{n}", label="calm", split="train") for n in range(4)]
    write_samples(tmp_path / "s", [[(f, video())] for f in facts])
    path = tmp_path / "s" / "shard-000001.index.jsonl"
    path.write_bytes(path.read_bytes().replace(b"calm", b"glad"))
    config = training("debug", tmp_path / "s", tmp_path / "out")
    with (
        open_train(config, rank=0, world=1) as stream,
        pytest.raises(
            ShardLost, match=r"000001\.index\.jsonl is not the file.*allow_missing 1 goes"
        ),
    ):
        check_labelled(config, stream)
    config = replace(config, data=replace(config.data, allow_missing=1))
    with open_train(config, rank=0, world=1) as stream:
        check_labelled(config, stream)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (
            {"losses": {"balance": 1.0}},
            r"losses\.balance needs the classes .*set losses\.balance 0",
        ),
        ({"identity": {"weight": 1.0}}, r"identity\.weight needs the subj.*set identity\.weight 0"),
        ({"data": {"extra": ("subject",)}}, r"data\.extra subject needs .*leave it out"),
        ({"data": {"balance": 1.0}}, r"data\.balance needs the classes .*leave data\.balance None"),
    ],
)
def test_what_counts_all_records_is_refused_beside_a_lost_index(tmp_path, setting, words):
    facts = [
        record(f"k{n}", label=("calm", "glad")[n % 2], subject_id=f"p{n}", split="train")
        for n in range(6)
    ]
    write_samples(tmp_path / "s", [[(f, video()) for f in facts[i : i + 2]] for i in (0, 2, 4)])
    plain = training("debug", tmp_path / "s", tmp_path / "out")
    plain = replace(plain, data=replace(plain.data, allow_missing=1))
    config = plain
    for name, changes in setting.items():
        config = replace(config, **{name: replace(getattr(config, name), **changes)})
    open_train(config, rank=0, world=1).close()
    gone = tmp_path / "s" / "shard-000001.index.jsonl"
    gone.unlink()
    with pytest.raises(ShardLost, match=f"{words}") as no:
        open_train(config, rank=0, world=1)
    assert gone.name in str(no.value) and "--redo" in str(no.value)
    open_train(plain, rank=0, world=1).close()


def test_action_units_are_looked_for_beside_a_lost_index(place, tmp_path):
    facts = [record(f"k{n}", split="train", action_units=UNITS[:n]) for n in range(2)]
    write_samples(tmp_path / "s", [[(f, video())] for f in facts])
    config = training("debug", tmp_path / "s", tmp_path / "out")
    config = replace(
        config,
        heads=HeadsConfig(labels=False, units=UNITS),
        data=replace(config.data, allow_missing=1),
    )
    for gone, refused in ((0, False), (1, True)):
        path = tmp_path / "s" / f"shard-00000{gone}.index.jsonl"
        aside = path.rename(tmp_path / "aside")
        with open_train(config, rank=0, world=1) as stream:
            if refused:
                with pytest.raises(ValueError, match="none of the 2 clips"):
                    check_labelled(config, stream)
            else:
                check_labelled(config, stream)
        aside.rename(path)

"""`python -m shards plan` and what a trainer says of its data: verdicts at the edges, and fixes."""

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import finetune.job
import pretrain.job
from shards.__main__ import main
from shards.config import DataConfig
from shards.manifest import write_manifest
from shards.order import Order, check_world
from shards.plan import plan
from shards.plan.finding import Demand, Finding
from shards.plan.measure import Speed, measure
from shards.plan.preflight import WaitWatch, advice, preflight
from shards.plan.rate import cores, loaders_needed
from shards.plan.workers import divisors, padding, padding_fix, steps_per_epoch
from shards.stream import open_clips
from tests.runs import finetuning, pretraining
from tests.shards.make import write_folder

SMALL = {"streams": 4, "frames": 4, "stride": 2, "size": 32}
FAST = ("--frames", "4", "--stride", "2", "--size", "32", "--seconds", "0.05")
EASY = Demand(gpus=2, gpus_per_node=2, clips_per_second=10.0, global_batch=4)


def config(*folders, **more) -> DataConfig:
    return DataConfig(shards=tuple(map(str, folders)), **SMALL | more)


def planned(data: DataConfig, demand: Demand = EASY, seconds=0.02) -> dict[str, Finding]:
    findings = plan(data, demand, seconds=seconds)
    return {finding.about: finding for finding in findings}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """12 clips of 20 frames in two shards: 8 to train on, 4 to test."""
    where = tmp_path_factory.mktemp("plan") / "s"
    write_folder(where, [7, 5], test_every=3)
    return where


def test_a_sound_folder_passes_with_a_number_for_every_question(folder, capsys, monkeypatch):
    monkeypatch.setattr("shards.plan.rate.cores", lambda: 64)
    monkeypatch.setattr("shards.plan.rate.BUSY", 1.0)  # other tests may run beside this one
    demand = ("--gpus", "2", "--clips-per-second", "50", "--streams", "4", "--global-batch", "4")
    assert main(["plan", str(folder), *demand, *FAST]) == 0
    said = capsys.readouterr().out
    for words in (
        "12 clips in 2 shards",
        "2: calm, glad",
        "test 4, train 8",
        "shared by 1, 2, 4 workers",
        "2 GPUs on 1 node, 2 streams each",
        "3 steps of 4",
        "clips/s a core",
        "set data.loader_workers 1",
        "B/s a node",
    ):
        assert words in said, words
    assert "cannot" not in said and "→" not in said


def test_json_holds_the_same_numbers(folder, capsys):
    assert main(["plan", str(folder), "--gpus", "3", "--json", *FAST]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["verdict"] == "cannot"
    numbers = {f["about"]: f["numbers"] for f in told["findings"]}
    assert numbers["world sizes"]["world_sizes"] == [1, 2, 4, 8, 16, 32, 64]
    assert numbers["decoding"]["clips_per_second_per_core"] > 0
    assert numbers["content"]["clips"] == 12


def test_gpus_that_do_not_divide_the_streams_are_told_what_does(folder, capsys):
    assert main(["plan", str(folder), "--gpus", "48", *FAST]) == 1
    said = capsys.readouterr().out
    assert "48 GPUs cannot share 64 streams evenly" in said
    assert "use 32 GPUs, or in a new run data.streams 96" in said
    check_world(48, 96)


@pytest.mark.parametrize(
    ("batch", "verdict", "words"),
    [
        (None, "ok", "any multiple of the 4 streams"),
        (4, "ok", "1 a step from every stream"),
        (16, "ok", "8 a GPU, in micro-batches of 1, 2, 4, 8"),
        (6, "cannot", "of their world sizes it has 1, 2"),
        (3, "cannot", "not a multiple of the 4 streams"),
    ],
)
def test_the_global_batch_is_a_multiple_of_the_streams(folder, batch, verdict, words):
    found = planned(config(folder), replace(EASY, global_batch=batch))["global batch"]
    assert found.verdict == verdict and words in found.found
    if verdict == "cannot":
        assert "run.global_batch 4" in found.fix


def test_fewer_shards_than_streams_work_and_it_says_how(folder):
    found = planned(config(folder, streams=8), replace(EASY, global_batch=8))["streams"]
    assert found.verdict == "ok"
    assert "about 4 streams read different parts of each of 2 shards" in found.found
    order = Order([7, 5], streams=8, global_batch=8, seed=0, shuffle=True)
    epoch = [s for step in range(order.steps_per_epoch) for s in order.slots(step)]
    real = [(s.shard, s.sample) for s in epoch if s.shard >= 0]
    assert len(real) == len(set(real)) == 12, "and it is true: every clip is served once"
    assert {s.stream for s in epoch if s.shard >= 0} == set(range(8)), "no stream is empty"


def test_fewer_clips_than_streams_leave_some_empty(folder):
    found = planned(config(folder, streams=64), replace(EASY, global_batch=64))
    assert found["streams"].verdict == "warning"
    assert "52 stay empty" in found["streams"].found and "data.streams 12" in found["streams"].fix
    assert found["epoch"].verdict == "warning" and "81% of its places" in found["epoch"].found


@pytest.mark.parametrize("samples", [1, 2, 7, 15, 16, 17, 63, 97])
@pytest.mark.parametrize("streams", [1, 2, 3, 8, 16])
@pytest.mark.parametrize("per_stream", [1, 2, 5])
def test_steps_and_padding_are_those_of_the_order(samples, streams, per_stream):
    batch = streams * per_stream
    order = Order([samples], streams=streams, global_batch=batch, seed=0, shuffle=False)
    assert steps_per_epoch(samples, streams, batch) == order.steps_per_epoch
    slots = [s for step in range(order.steps_per_epoch) for s in order.slots(step)]
    empty = sum(s.shard < 0 for s in slots) / len(slots)
    assert padding(samples, streams, batch) == pytest.approx(empty)
    assert divisors(streams) == [w for w in range(1, streams + 1) if streams % w == 0]


def test_the_fix_of_a_batch_that_pads_is_one_that_does_not():
    assert padding(100, 4, 64) > 0.2
    assert padding_fix(100, 4, 64) == "run.global_batch 52 pads 4%"
    assert "add clips" in padding_fix(3, 4, 64)


@pytest.mark.parametrize(
    ("frames", "stride", "verdict", "words"),
    [
        (4, 6, "ok", "of 12 clips looked at none has fewer than 19 frames"),
        (4, 7, "warning", "data.stride 6 fits 95% of them"),
        (20, 1, "ok", "none has"),
        (21, 1, "warning", "in 100% frames repeat"),
    ],
)
def test_clips_shorter_than_what_is_taken(folder, frames, stride, verdict, words):
    found = planned(config(folder, frames=frames, stride=stride))["length"]
    assert found.verdict == verdict and words in found.found + found.fix


def test_missing_and_cut_shards_are_named(tmp_path, capsys):
    write_folder(tmp_path / "s", [1, 1, 1])
    (tmp_path / "s" / "shard-000001.tar").unlink()
    cut = tmp_path / "s" / "shard-000002.tar"
    cut.write_bytes(cut.read_bytes()[:-1000])
    assert main(["plan", str(tmp_path / "s"), "--gpus", "2", "--json", *FAST]) == 1
    said = capsys.readouterr().out
    assert "2 of 3 shards missing or not whole: shard-000001.tar, shard-000002.tar" in said
    assert "not measured" in said and "ingest" in said


def test_no_folder_an_empty_one_and_a_foreign_one(tmp_path, folder, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "manifest.json").write_text('{"schema": "other/9"}')
    for name in ("gone", "empty", "foreign"):
        assert main(["plan", str(tmp_path / name), str(folder), *FAST]) == 1
        said = "".join(capsys.readouterr().out.split())
        assert name in said and "cannot" in said and "12clipsin2shards" in said
    assert main(["plan", str(tmp_path / "gone"), *FAST]) == 1


def test_a_manifest_without_clips_cannot_work(tmp_path):
    (tmp_path / "s").mkdir()
    write_manifest(tmp_path / "s", [], labels=(), clip={}, created_by={})
    found = planned(config(tmp_path / "s"))
    assert found["content"].verdict == "cannot" and "rejected.csv" in found["content"].fix
    assert "epoch" not in found and found["decoding"].verdict == "warning"


def test_labels_and_splits_that_are_missing_or_differ(tmp_path, folder):
    write_folder(tmp_path / "bare", [2], labels=())
    write_folder(tmp_path / "other", [2], labels=("glad", "calm"))
    assert planned(config(tmp_path / "bare"))["labels"].verdict == "warning"
    both = planned(config(tmp_path / "bare", folder))["labels"]
    assert both.verdict == "ok" and f"none in {tmp_path / 'bare'}" in both.found
    assert planned(config(tmp_path / "other", folder))["labels"].verdict == "cannot"
    found = planned(config(folder, split="val"))["splits"]
    assert found.verdict == "cannot" and "--split test or train" in found.fix


def test_a_damaged_clip_among_those_measured_is_a_warning(tmp_path):
    write_folder(tmp_path / "s", [3], replaced={"s0_1": b"\0\0\0\x18ftypisom" + bytes(64)})
    found = planned(config(tmp_path / "s"), seconds=0.2)
    assert found["clips"].verdict == "warning" and "cannot be decoded" in found["clips"].found
    assert found["decoding"].numbers["clips_per_second_per_core"] > 0


def test_where_no_clip_can_be_read_nothing_works(tmp_path):
    write_folder(tmp_path / "s", [1], replaced={"s0_0": b"no video"})
    found = planned(config(tmp_path / "s"), seconds=0.05)
    assert found["clips"].verdict == "cannot" and "cores" not in found


def test_measuring_ends_after_so_many_clips_and_leaves_opencv_as_it_was(folder):
    import cv2

    threads = cv2.getNumThreads()
    speed = measure(config(folder), seconds=60, most=16)
    assert speed.tried == 16 and speed.clips == 12 and not speed.troubles
    assert speed.per_core > 0 and cv2.getNumThreads() == threads


def test_cores_and_loaders_follow_from_the_rate(folder, monkeypatch):
    speed = Speed(clips=100, core_seconds=4.0, seconds=4.0, tried=100, troubles=())
    monkeypatch.setattr("shards.plan.rate.measure", lambda *_, **__: speed)
    monkeypatch.setattr("shards.plan.rate.cores", lambda: 16)
    demand = Demand(gpus=2, gpus_per_node=2, clips_per_second=200, global_batch=4)
    found = planned(config(folder), demand)["cores"]
    assert found.numbers == {"cores_per_gpu": 4.0, "loader_workers": 5, "cores_per_node": 12}
    assert found.verdict == "ok"
    found = planned(config(folder), replace(demand, clips_per_second=400))["cores"]
    assert found.verdict == "warning" and "reach about 350 clips/s" in found.fix
    monkeypatch.setattr("shards.plan.rate.cores", lambda: 2)
    assert planned(config(folder), demand)["cores"].fix == "run this on a node"


def test_a_measurement_that_waited_is_in_doubt(folder, monkeypatch):
    speed = Speed(clips=100, core_seconds=4.0, seconds=10.0, tried=100, troubles=())
    monkeypatch.setattr("shards.plan.rate.measure", lambda *_, **__: speed)
    found = planned(config(folder))["decoding"]
    assert found.verdict == "warning" and "60% of the time went to waiting" in found.found


def test_a_disk_that_must_be_local(folder):
    found = planned(config(folder), replace(EASY, clips_per_second=1e6))["disk"]
    assert found.verdict == "warning" and "NVMe" in found.fix


@pytest.mark.parametrize(
    "flag",
    [("--gpus", "0"), ("--clips-per-second", "nan"), ("--streams", "x"), ("--size", "9" * 12)],
)
def test_a_wrong_flag_is_refused_by_its_name(folder, capsys, flag):
    with pytest.raises(SystemExit) as stop:
        main(["plan", str(folder), *flag])
    assert stop.value.code == 2 and flag[0] in capsys.readouterr().err


def test_file_names_are_no_markup(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a long path would be folded
    where = Path("[red]x[/red]\x1b[2J")
    write_folder(where, [1])
    main(["plan", str(where), "--gpus", "1", "--streams", "1", *FAST])
    said = capsys.readouterr().out
    assert "\x1b" not in said and "[red]x[/red]\\u001b[2J" in "".join(said.split())


def asked(data: DataConfig, *, batch: int, world: int) -> list[str]:
    """The lines that a trainer prints before it starts."""
    numbers = {"global_batch": batch, "micro_batch": 1, "rank": 0, "world": world}
    with open_clips(data, **numbers, train=True, ledger=None) as stream:
        return preflight(data, stream, global_batch=batch, world=world).splitlines()


@pytest.mark.filterwarnings("ignore:This DataLoader will create 99 worker processes")
def test_a_trainer_is_told_its_limit_and_in_one_line_what_is_off(folder):
    lines = asked(config(folder), batch=4, world=2)
    assert len(lines) == 1 and "2 workers x 2 loader processes: at most" in lines[0]
    assert "a step of 4 takes at least" in lines[0]
    lines = asked(config(folder, loader_workers=99, frames=30), batch=64, world=1)
    assert len(lines) == 2 and lines[1].startswith("warning: data.loader_workers is 99")
    assert "81% of the places" in lines[1] and "100% of the clips are shorter" in lines[1]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 99 worker processes")
@pytest.mark.parametrize("application", [pretraining, finetuning])
def test_both_trainers_ask_before_they_start(folder, tmp_path, capsys, monkeypatch, application):
    job = pretrain.job if application is pretraining else finetune.job
    monkeypatch.setattr(job, "drive", lambda *_, **__: {})
    made = application(folder, tmp_path / "o", f"sqlite:///{tmp_path / 'm.db'}")
    made = replace(made, data=replace(made.data, loader_workers=99))
    job.run(made)
    said = capsys.readouterr().out
    assert "1 worker x 99 loader processes" in said
    assert "warning: data.loader_workers is 99" in said


def test_shards_elsewhere_are_not_fetched_to_be_measured():
    """A start must not wait for whole shards to come."""
    data = config("memory://nowhere")
    collection = SimpleNamespace(manifests=[])
    stream = SimpleNamespace(samples=12, steps_per_epoch=3, collection=collection)
    assert "not measured" in preflight(data, stream, global_batch=4, world=1)
    said = []
    watch = WaitWatch(Log(), data, world=1, say=said.append)
    for step in range(4):
        watch.log({"train/data_wait": 0.9}, step)
    assert "raise data.loader_workers" in said[0]


class Log:
    def __init__(self):
        self.steps = []

    def log(self, metrics, step):
        self.steps.append(step)

    def log_file(self, path, artifact_dir): ...

    def figure(self, name, image, step): ...


@pytest.mark.parametrize(
    ("waits", "hints"),
    [
        ([0.9, 0.5, 0.5, 0.5, 0.9, 0.9], 1),
        ([0.9, 0.1, 0.1, 0.1, 0.9, 0.9], 0),
        ([0.9, 0.9, 0.9], 0),
        ([0.1, 0.0, 0.0, 0.61, 0.0], 1),
    ],
    ids=["waits", "only at the start or later", "too few steps", "on the mean"],
)
def test_a_run_that_waits_for_data_says_so_once(folder, waits, hints):
    tracker, said = Log(), []
    watch = WaitWatch(tracker, config(folder, loader_workers=0), world=1, say=said.append)
    for step, wait in enumerate(waits):
        watch.log({"train/data_wait": wait, "train/clips_per_second": 100.0}, step)
        watch.log({"test/uar": 0.5}, step)
    assert len(said) == hints and len(tracker.steps) == 2 * len(waits)
    assert all("data.loader_workers" in line and "\n" not in line for line in said)


def test_a_hint_never_ends_a_run(folder, tmp_path):
    said = []
    watch = WaitWatch(Log(), config(tmp_path / "gone"), world=1, say=said.append)
    for step in range(5):
        watch.log({"train/data_wait": 0.9}, step)
    assert len(said) == 1 and "gone" in said[0]


def test_the_advice_names_what_limits(folder, monkeypatch):
    monkeypatch.setattr("shards.plan.preflight.cores", lambda: 8)
    speed = Speed(clips=100, core_seconds=4.0, seconds=4.0, tried=100, troubles=())  # 25 a core
    data = config(folder, loader_workers=2)
    assert "set data.loader_workers 5" in advice(data, speed, wait=0.5, rate=50, world=1)
    assert "local disk" in advice(data, speed, wait=0.9, rate=10, world=1)
    taken = replace(data, loader_workers=8)
    assert "smaller clips" in advice(taken, speed, wait=0.5, rate=200, world=1)
    none = replace(data, loader_workers=0)
    assert "set data.loader_workers 2" in advice(none, speed, wait=0.5, rate=12, world=1)


def test_loaders_are_never_none():
    assert loaders_needed(0.001, 30.0) == 1 and loaders_needed(60, 30.0) == 3
    assert 1 <= cores() <= (os.cpu_count() or 1)


def test_repeats_divide_what_is_decoded_and_read(folder, monkeypatch):
    speed = Speed(clips=100, core_seconds=4.0, seconds=4.0, tried=100, troubles=())  # 25 a core
    monkeypatch.setattr("shards.plan.rate.measure", lambda *_, **__: speed)
    demand = Demand(gpus=2, gpus_per_node=2, clips_per_second=200, global_batch=4)
    once, four = planned(config(folder), demand), planned(config(folder, repeats=4), demand)
    assert once["cores"].numbers["cores_per_gpu"] == 4 * four["cores"].numbers["cores_per_gpu"]
    rates = [found["disk"].numbers["bytes_per_second"] for found in (once, four)]
    assert rates[0] == 4 * rates[1]
    assert "200 views/s need 50 clips/s" in four["repeats"].found and "repeats" not in once


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """3 clips, two of them calm."""
    where = tmp_path_factory.mktemp("plan") / "small"
    write_folder(where, [3], name="small")
    return where


def test_weights_say_how_often_each_folder_is_shown_as_the_order_does(folder, small):
    data = config(folder, small, weights=(3.0, 1.0))
    found = planned(data, replace(EASY, global_batch=8))
    told = found["weights"]
    assert told.verdict == "ok" and told.numbers == {"places": [6, 2], "clips": [12, 3]}
    assert "12 clips 1 times" in told.found and "3 clips 1.3 times an epoch" in told.found
    assert "padding" not in found["epoch"].found
    with open_clips(
        data, global_batch=8, micro_batch=8, rank=0, world=1, train=True, ledger=None
    ) as s:
        assert found["epoch"].numbers["steps"] == s.steps_per_epoch
        slots = s._places.order.slots(0)
    assert [sum(slot.shard in of for slot in slots) for of in ((0, 1), (2,))] == [6, 2]


@pytest.mark.parametrize(
    ("weights", "verdict", "words"),
    [
        ((1.0,), "cannot", "1 weight for 2 folders"),
        ((1.0, 1.0, 1.0), "cannot", "3 weights for 2 folders"),
        ((1.0, 0.001), "cannot", "gets none of the 4 places"),
    ],
)
def test_weights_that_cannot_work(folder, small, weights, verdict, words):
    found = planned(config(folder, small, weights=weights))["weights"]
    assert found.verdict == verdict and words in found.found and found.fix


def test_a_folder_that_is_shown_too_often_is_a_warning(tmp_path, folder):
    write_folder(tmp_path / "one", [1])
    found = planned(config(folder, tmp_path / "one", weights=(1.0, 1.0)), EASY)["weights"]
    assert found.verdict == "ok"
    write_folder(tmp_path / "many", [30])
    data = config(tmp_path / "many", tmp_path / "one", weights=(1.0, 1.0))
    found = planned(data, EASY)["weights"]
    assert found.verdict == "warning" and "16 times an epoch" in found.fix


def test_balance_says_how_often_a_class_is_shown(tmp_path, folder, small):
    found = planned(config(small, balance=1.0, streams=1), replace(EASY, global_batch=2, gpus=1))
    told = found["balance"]
    assert told.verdict == "ok" and sum(told.numbers["times"].values()) == pytest.approx(2, abs=1)
    found = planned(config(folder, balance=1.0, split="train"))["balance"]
    assert set(found.numbers["times"]) == {"calm", "glad"}
    both = planned(config(folder, small, balance=1.0, weights=(1.0, 1.0)))["balance"]
    assert str(small) in both.found, "each folder of a mixture is balanced for itself"
    write_folder(tmp_path / "bare", [2], labels=())
    found = planned(config(tmp_path / "bare", balance=0.5))["balance"]
    assert found.verdict == "cannot" and "--annotations" in found.fix


def test_a_rare_class_that_comes_too_often_is_a_warning(monkeypatch):
    import numpy as np

    from shards.plan.mixing import _balanced

    classes = [np.array([0] * 99 + [-1] * 5), np.array([1])]
    found = _balanced(classes, ("calm", "glad"), 1.0, "")
    assert found.verdict == "warning" and "glad come 50 times" in found.fix
    assert "5 without a label are left out" in found.found
    assert _balanced(classes, ("calm", "glad"), 0.0, "").numbers["times"] == {"calm": 1, "glad": 1}


@pytest.fixture
def fold(tmp_path):
    """A split file of the folder: 4 clips in `in`, 2 in `out`, the other 6 in none."""
    rows = [f",s0_{j},{'in' if j < 4 else 'out'}\n" for j in range(6)]
    (tmp_path / "fold.csv").write_text("dataset,key,split\n" + "".join(rows))
    return str(tmp_path / "fold.csv")


def test_a_split_file_says_what_is_counted(folder, small, fold):
    found = planned(config(folder, splits=fold, split="in"))
    assert found["splits"].verdict == "ok"
    assert found["epoch"].found.startswith("4 clips make 1 step")
    assert found["splits"].found == "in 4, out 2, without a split 6"
    assert found["length"].found.startswith("of 12 clips looked at")
    assert planned(config(folder, splits=fold))["epoch"].found.startswith("6 clips")
    mixed = config(folder, small, splits=fold, split="in", weights=(1.0, 1.0))
    assert f"{small} has no clip" in planned(mixed)["weights"].found
    missing = planned(config(folder, splits=fold, split="train"))
    assert missing["splits"].verdict == "cannot" and "--split in or out" in missing["splits"].fix


def test_a_split_file_that_a_training_would_refuse_cannot_work(folder, fold, tmp_path):
    gone = planned(config(folder, splits=str(tmp_path / "gone.csv"), split="in"))
    assert gone["splits"].verdict == "cannot" and "gone.csv" in gone["splits"].found
    (tmp_path / "more.csv").write_text("dataset,key,split\n,elsewhere,in\n")
    found = planned(config(folder, splits=str(tmp_path / "more.csv"), weights=(1.0,)))
    assert found["split file"].verdict == "cannot" and "elsewhere" in found["split file"].found
    assert "epoch" not in found and found["weights"].verdict == "cannot"


def test_a_trainer_is_told_of_short_clips_with_a_split_file_too(folder, fold):
    lines = asked(config(folder, splits=fold, split="in", frames=30), batch=4, world=1)
    assert "100% of the clips are shorter" in lines[1]
    lines = asked(config(folder, splits=fold, split="in", pair=True, frames=0), batch=4, world=1)
    assert len(lines) == 1


def test_the_command_takes_a_split_file_and_the_pair(folder, fold, capsys):
    asked = ("--splits", fold, "--split", "in", "--gpus", "2", "--streams", "4", "--json")
    assert main(["plan", str(folder), *asked, *FAST, "--pair", "--frames", "0"]) == 0
    found = {f["about"]: f for f in json.loads(capsys.readouterr().out)["findings"]}
    assert found["epoch"]["found"].startswith("4 clips") and "length" not in found
    assert main(["plan", str(folder), *FAST, "--frames", "0"]) == 2
    assert "data.frames is 0" in capsys.readouterr().err


def test_the_command_takes_them(folder, small, capsys):
    more = ("--weights", "3", "1", "--balance", "0.5", "--repeats", "2", "--json")
    asked = ("--gpus", "2", "--streams", "4", "--global-batch", "8", "--clips-per-second", "9")
    assert main(["plan", str(folder), str(small), *more, *asked, *FAST]) == 0
    about = {f["about"] for f in json.loads(capsys.readouterr().out)["findings"]}
    assert {"repeats", "weights", "balance"} <= about
    assert main(["plan", str(folder), "--balance", "3"]) == 2
    assert "data.balance is 3.0: use 0..1" in capsys.readouterr().err

"""Mixtures, class balance, repeated augmentation and skipped samples; and, whatever is combined, an
order that is exact, elastic and resumable."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shards.augment import AugmentConfig
from shards.chance import apportion
from shards.index import ShardLost
from shards.ledger import Ledger
from shards.lines import Balanced
from shards.order import PADDING, Balance, Mixture, Order
from shards.stream import DataConfig, TooManyFailures, open_clips
from tests.shards.make import write_folder

# The order, for any sizes


@st.composite
def orders(draw, *, mixed=None, balanced=None):
    """An order as a function that makes it anew, and what it was made of."""
    streams = draw(st.sampled_from([1, 2, 3, 4, 6, 8, 12]))
    batch = streams * draw(st.integers(1, 4))
    folders = draw(st.integers(1, min(3, batch)))
    sizes = [draw(st.lists(st.integers(0, 30), min_size=1, max_size=6)) for _ in range(folders)]
    for counts in sizes:
        counts[draw(st.integers(0, len(counts) - 1))] += 1
    counts = [count for folder in sizes for count in folder]
    mixture = balance = None
    if draw(st.booleans()) if mixed is None else mixed:
        weights = tuple(draw(st.integers(1, 3)) * 1.0 for _ in sizes)
        names = tuple(f"folder{i}" for i in range(folders))
        mixture = Mixture(tuple(len(counts) for counts in sizes), weights, names)
        assume(apportion(batch, np.array(weights)).min() > 0)
    if draw(st.booleans()) if balanced is None else balanced:
        rng = np.random.default_rng(draw(st.integers(0, 99)))
        classes = [rng.integers(-1, 3, count) for count in counts]
        first = 0
        for folder in sizes:  # every folder has a sample with a label
            classes[first + int(np.argmax(folder))][0] = 0
            first += len(folder)
        balance = Balance(classes, draw(st.sampled_from([0.0, 0.5, 1.0])))
    facts = {"streams": streams, "global_batch": batch, "seed": draw(st.integers(0, 2**31))}
    made = {"mixture": mixture, "balance": balance, "shuffle": True}
    return lambda: Order(counts, **facts, **made), counts, sizes, mixture, balance


def worlds(order):
    return [w for w in range(1, order.streams + 1) if order.streams % w == 0]


@settings(max_examples=150, deadline=None)
@given(orders(), st.integers(0, 60))
def test_every_world_serves_the_same_places_from_any_step_on(case, step):
    make = case[0]
    straight = make()
    for earlier in range(max(0, step - 3), step):
        straight.slots(earlier)
    expected = sorted(straight.slots(step))
    for world in worlds(straight):
        resumed = make()  # knows nothing of the steps before
        ranks = [resumed.slots(step, rank=rank, world=world) for rank in range(world)]
        assert sorted(slot for slots in ranks for slot in slots) == expected


@settings(max_examples=150, deadline=None)
@given(orders(mixed=False, balanced=False), st.integers(0, 3))
def test_an_epoch_is_exact_and_nothing_comes_twice(case, epoch):
    make, counts, *_ = case
    order = make()
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    seen = [(s.shard, s.sample) for t in steps for s in order.slots(t) if s.shard != PADDING]
    assert sorted(seen) == [(i, j) for i, count in enumerate(counts) for j in range(count)]


@settings(max_examples=100, deadline=None)
@given(orders(mixed=True, balanced=False), st.integers(1, 40))
def test_a_mixture_keeps_its_shares_in_every_step_and_shows_everything_alike(case, steps):
    make, _, sizes, mixture, _ = case
    order = make()
    folder_of = np.repeat(np.arange(len(sizes)), mixture.shards)
    batch = order.streams * order.per_stream
    shares = dict(enumerate(apportion(batch, np.array(mixture.weights)).tolist()))
    seen = Counter()
    for step in range(steps):
        for number, folder in enumerate(sizes):
            first, total = sum(mixture.shards[:number]), sum(folder)
            samples = [(first + i, j) for i, count in enumerate(folder) for j in range(count)]
            times = [seen[sample] for sample in samples]
            if step <= total // shares[number]:
                assert max(times) <= 1, "nothing twice before everything once"
            if step >= -(-total // shares[number]):
                assert min(times) >= 1
        slots = order.slots(step)
        assert all(slot.shard != PADDING for slot in slots)
        assert Counter(folder_of[slot.shard] for slot in slots) == shares
        seen.update((slot.shard, slot.sample) for slot in slots)


@settings(max_examples=100, deadline=None)
@given(orders(mixed=False, balanced=True), st.integers(0, 20))
def test_a_balanced_epoch_has_the_classes_in_their_shares(case, epoch):
    make, *_, balance = case
    order = make()
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    seen = [(s.shard, s.sample) for t in steps for s in order.slots(t) if s.shard != PADDING]
    found = Counter(int(balance.classes[shard][sample]) for shard, sample in seen)
    sizes = Counter(int(c) for classes in balance.classes for c in classes if c >= 0)
    wanted = np.array([sizes[c] ** (1 - balance.exponent) for c in sorted(sizes)])
    quotas = apportion(sum(sizes.values()), wanted).tolist()
    assert found == Counter(dict(zip(sorted(sizes), quotas, strict=True)))


def test_a_balanced_class_shows_its_samples_in_turn():
    """6 of class 0 and 2 of class 1: 4 places an epoch each; no sample is ever ahead by two."""
    line = Balanced([np.array([0, 0, 0, 1]), np.array([0, 0, 0, 1, -1])], exponent=1.0, seed=3)
    assert line.places == 8
    times = Counter()
    for epoch in range(9):
        shards, samples = line.locate(np.arange(8), epoch)
        times.update(zip(shards.tolist(), samples.tolist(), strict=True))
        zeros = [times[s, i] for s in (0, 1) for i in range(3)]
        assert max(zeros) - min(zeros) <= 1
        assert times[0, 3] == times[1, 3] == 2 * (epoch + 1)
    assert (1, 4) not in times, "no place without a label"


def test_a_balanced_line_reads_a_shard_in_one_go():
    classes = [np.arange(50) % 3 for _ in range(20)]
    shards, _ = Balanced(classes, exponent=0.5, seed=1).locate(np.arange(1000), 4)
    assert (np.diff(shards) != 0).sum() == 19


def test_the_places_of_a_folder_are_spread_over_a_step():
    order = Order(
        [1000] * 4,
        streams=8,
        global_batch=64,
        seed=0,
        shuffle=True,
        mixture=Mixture((2, 2), (0.75, 0.25), ("a", "b")),
    )
    for rank in range(8):  # every worker has its share of both
        assert sum(s.shard >= 2 for s in order.slots(5, rank=rank, world=8)) == 2


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"weights": (0.5,)}, "data.weights has 1 numbers for 2 of data.shards"),
        ({"weights": (0.99, 0.01)}, r"gives .*two no place in a step of run.global_batch 8: use"),
    ],
)
def test_weights_that_cannot_be_kept_are_refused(two, fields, words):
    with pytest.raises(ValueError, match=words):
        opened(config(*two, **fields))


@pytest.mark.parametrize("fields", [{"weights": (1.0, 0.0)}, {"balance": 1.5}, {"repeats": 0}])
def test_impossible_numbers_name_the_field(fields):
    with pytest.raises(ValueError, match=f"data.{next(iter(fields))} is"):
        DataConfig(shards=("a", "b"), **fields)


# Batches


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixtures")
    write_folder(folder / "one", [9, 6], name="one_", labels=("calm", "glad", "sad"))
    write_folder(folder / "two", [5], name="two_", labels=("calm", "glad", "sad"))
    return folder / "one", folder / "two"


def config(*folders, **fields):
    small = {"streams": 4, "frames": 4, "stride": 2, "size": 32, "loader_workers": 0}
    return DataConfig(shards=tuple(str(f) for f in folders), **small | fields)


def opened(data, *, rank=0, world=1, start_step=0, train=True, ledger=None):
    place = {"rank": rank, "world": world, "start_step": start_step}
    return open_clips(data, global_batch=8, micro_batch=2, train=train, ledger=ledger, **place)


def steps(data, count, *, world=1, start_step=0):
    """Of every step the sorted (seed, key, label, weight), all ranks together."""
    found = [[] for _ in range(count)]
    for rank in range(world):
        with opened(data, rank=rank, world=world, start_step=start_step) as stream:
            for number, batch in zip(range(count * 4 // world), stream, strict=False):
                columns = batch.seeds, batch.keys, batch.labels, batch.weights
                values = [c if isinstance(c, list) else c.tolist() for c in columns]
                found[number * world // 4] += zip(*values, strict=True)
    return [sorted(step) for step in found]


@pytest.mark.parametrize("loader_workers", [0, 2])
@pytest.mark.parametrize("fields", [{"weights": (0.75, 0.25)}, {"balance": 1.0}, {"repeats": 3}])
def test_batches_are_the_same_on_other_workers_and_resumed(two, fields, loader_workers):
    data = config(*two, **fields)
    alone = steps(data, 5)
    shared = replace(data, loader_workers=loader_workers)
    assert steps(shared, 2, world=2, start_step=3) == alone[3:]


def test_a_mixture_of_folders_and_an_evaluation_that_has_none(two):
    data = config(*two, weights=(3, 1), balance=0.5, repeats=2)
    for step in steps(replace(data, repeats=1), 12):
        assert Counter(key[:4] for _, key, _, _ in step) == {"one_": 6, "two_": 2}
    with opened(data, train=False) as stream:
        keys = [key for batch in stream for key in batch.keys if key]
    assert len(keys) == len(set(keys)) == 20, "every clip once"


def test_views_of_a_clip_share_its_frames_and_nothing_else(two):
    crops = AugmentConfig(crop="resized", flip=0.5, randaugment_ops=2, erase=0.5)
    data = config(two[0], augment=crops)
    with opened(data) as once, opened(replace(data, repeats=3)) as thrice:
        for _, plain, many in zip(range(6), once, thrice, strict=False):
            assert many.views == 1 and len(many) == 3 * len(plain) == 6
            assert many.keys == plain.keys * 3, "clips of one video are no neighbours"
            assert torch.equal(many.pixels[:2], plain.pixels), "the first is what it would be alone"
            assert torch.equal(many.seeds[:2], plain.seeds)
            assert len(set(many.seeds.tolist())) == 6
            assert torch.equal(many.labels, plain.labels.repeat(3))
            if plain.weights.all():
                assert not torch.equal(many.pixels[2:4], many.pixels[:2])
        assert once.served == thrice.served > 0, "views are not counted"
        assert once.steps_per_epoch == thrice.steps_per_epoch


def test_views_are_of_the_same_frames(two):
    with opened(config(two[0], repeats=2, augment=AugmentConfig(crop="none"))) as stream:
        batch = next(iter(stream))
    assert torch.equal(batch.pixels[:2], batch.pixels[2:])


def test_labels_are_needed_for_balance(tmp_path):
    write_folder(tmp_path / "bare", [4], labels=())
    with pytest.raises(ValueError, match=r"data\.balance needs labels"):
        opened(config(tmp_path / "bare", balance=1.0))


@pytest.mark.parametrize("split", [None, "train"])
def test_balance_without_an_index_is_refused_as_shares_would_change(tmp_path, split):
    write_folder(tmp_path / "set", [6, 6], test_every=3)
    gone = tmp_path / "set" / "shard-000001.index.jsonl"
    gone.unlink()
    data = config(tmp_path / "set", split=split, allow_missing=1, balance=0.5)
    words = rf"data\.balance needs .*{gone.name} cannot be read.*--redo.*leave data\.balance None"
    with pytest.raises(ShardLost, match=words):
        opened(data)
    for allowed, train in ((data, False), (replace(data, balance=None), True)):
        with opened(allowed, train=train) as stream:
            assert stream.samples == (12 if split is None else 8)


# The ledger of an earlier run


@pytest.fixture
def broken(tmp_path):
    write_folder(tmp_path / "set", [8, 8], replaced={"s0_3": b"no video", "s1_5": b"nor this"})
    return tmp_path / "set"


def test_a_ledger_is_taken_by_the_next_run_wherever_the_shards_lie(broken, tmp_path):
    ledger = Ledger(tmp_path / "first" / "ledger.jsonl")
    data = config(broken, max_failed_share=0.0)
    with opened(replace(data, max_failed_share=0.5), train=False, ledger=ledger) as stream:
        list(stream)
    [first, _] = lines = [json.loads(line) for line in ledger.path.read_text().splitlines()]
    assert first.keys() == {"shard", "sha256", "key", "path", "reason", "kind", "step", "rank"}
    assert {(line["key"], line["path"], line["kind"]) for line in lines} == {
        ("s0_3", "s0_3.mp4", "sample"),
        ("s1_5", "s1_5.mp4", "sample"),
    }
    broken.rename(tmp_path / "moved")
    data = replace(data, shards=(str(tmp_path / "moved"),), skip=(str(ledger.path),))
    again = Ledger(tmp_path / "second" / "ledger.jsonl")
    with opened(data, train=False, ledger=again) as stream:
        served = {k: float(w) for b in stream for k, w in zip(b.keys, b.weights, strict=True)}
    assert len(served) == 16
    assert {key for key, weight in served.items() if weight == 0} == {"s0_3", "s1_5"}
    assert stream.left_out == {"skipped": 2} and stream.failed == 0
    assert not again.path.exists(), "nothing new"


def test_a_shard_that_was_written_anew_is_tried_anew(broken, tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    with pytest.raises(TooManyFailures), opened(config(broken), ledger=ledger) as stream:
        list(stream)
    write_folder(tmp_path / "mended", [8, 8])
    data = config(tmp_path / "mended", skip=(str(ledger.path),))
    with opened(data, train=False) as stream:
        assert all(float(w) == 1 for b in stream for w in b.weights)


@pytest.mark.parametrize("text", ["{", "[]\n", '{"key": "a"}\n', None])
def test_what_is_no_ledger_is_named(broken, tmp_path, text):
    path = tmp_path / "other.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=r"data\.skip: .*other\.jsonl"):
        opened(config(broken, skip=(str(path),)))

"""The order of samples: exact epochs, the same on any number of workers."""

import hashlib
import itertools
import random
import time
from collections import Counter

import numpy as np
import pytest

from shards.chance import hashed, permutation
from shards.order import PADDING, Balance, Mixture, Order, check_micro_batch, check_world
from shards.places import Places

PUBLISHED = "7f425cee482a0ec7a81f40eed6ef4ab255092feb5ba277dbd3d41d867c71f8dd"


def make(counts, *, streams=4, global_batch=8, seed=0, shuffle=True):
    return Order(counts, streams=streams, global_batch=global_batch, seed=seed, shuffle=shuffle)


def epoch(order, number, *, world=1):
    """The (shard, sample) pairs of one epoch, all ranks together, padding left out."""
    steps = range(number * order.steps_per_epoch, (number + 1) * order.steps_per_epoch)
    slots = [s for t in steps for r in range(world) for s in order.slots(t, rank=r, world=world)]
    return [(slot.shard, slot.sample) for slot in slots if slot.shard != PADDING]


def every_sample(counts):
    return [(shard, sample) for shard, count in enumerate(counts) for sample in range(count)]


def random_case(draw):
    streams = draw.choice([1, 2, 3, 4, 6, 12])
    counts = [draw.choice([0, 1, 2, draw.randrange(40)]) for _ in range(draw.randint(1, 9))]
    counts[draw.randrange(len(counts))] += 1  # at least one sample
    case = {"streams": streams, "global_batch": streams * draw.randint(1, 4)}
    return counts, case | {"seed": draw.randrange(2**31), "shuffle": draw.random() < 0.8}


@pytest.mark.parametrize("case", range(150))
def test_an_epoch_holds_every_sample_once_on_any_number_of_workers(case):
    counts, settings = random_case(random.Random(case))
    order = make(counts, **settings)
    worlds = [w for w in range(1, settings["streams"] + 1) if settings["streams"] % w == 0]
    for number, world in itertools.product((0, 1), worlds):
        assert Counter(epoch(order, number, world=world)) == Counter(every_sample(counts))


@pytest.mark.parametrize("case", range(50))
def test_a_step_holds_the_same_places_on_any_number_of_workers(case):
    counts, settings = random_case(random.Random(1000 + case))
    step = random.Random(case).randrange(50)
    alone = make(counts, **settings).slots(step)
    assert len(alone) == settings["global_batch"]
    for world in (w for w in range(2, settings["streams"] + 1) if settings["streams"] % w == 0):
        other = make(counts, **settings)  # knows nothing of the steps before
        ranks = [other.slots(step, rank=rank, world=world) for rank in range(world)]
        assert {len(slots) for slots in ranks} == {settings["global_batch"] // world}
        assert all(slot.stream % world == r for r, slots in enumerate(ranks) for slot in slots)
        assert sorted(itertools.chain(*ranks)) == sorted(alone)


def test_fewer_samples_than_streams_leave_padding():
    order = make([2, 1], streams=8, global_batch=8)
    assert order.steps_per_epoch == 1
    assert sum(slot.shard == PADDING for slot in order.slots(0)) == 5


def test_padding_stands_only_at_the_end_of_an_epoch():
    order = make([7, 6, 9], streams=4, global_batch=8)
    full = range(order.steps_per_epoch - 1)
    assert all(slot.shard != PADDING for step in full for slot in order.slots(step))


@pytest.mark.parametrize(("world", "micro"), [(1, 8), (1, 4), (4, 4), (4, 16), (16, 2)])
def test_clips_side_by_side_are_of_different_streams(world, micro):
    """Mixing pairs neighbours, the last with the first: of one shard half were of one class."""
    order = make((40, 40, 40, 40), streams=16, global_batch=64)
    for rank in range(world):
        places = Places(order, micro, rank, world, start_step=3, endless=True)
        step = list(itertools.islice(places, places.a_step))
        assert sorted(itertools.chain(*step)) == order.slots(3, rank=rank, world=world)
        pairs = [
            (a, b) for batch in step for a, b in zip(batch, batch[1:] + batch[:1], strict=True)
        ]
        assert all(a.stream != b.stream for a, b in pairs) == (world < 16)


@pytest.mark.parametrize("world", [1, 2, 4, 8])
@pytest.mark.parametrize("weights", [(1, 1), (2, 1), (3, 1), (3, 2), (1, 2)])
@pytest.mark.parametrize("per_stream", [1, 2, 3, 4, 5, 8])
def test_micro_batches_hold_the_folders_of_a_mixture_in_their_shares(per_stream, weights, world):
    order = Order(
        (90,) * 4,
        streams=16,
        global_batch=16 * per_stream,
        seed=0,
        shuffle=True,
        mixture=Mixture((2, 2), weights, ("a", "b")),
    )
    for rank in range(world):
        for micro in (n for n in (2, 4, 8) if 16 // world * per_stream % n == 0):
            places = Places(order, micro, rank, world, start_step=3, endless=True)
            step = list(itertools.islice(places, places.a_step))
            own = sorted(itertools.chain(*step))
            assert own == order.slots(3, rank=rank, world=world)
            share = sum(slot.shard < 2 for slot in own) / len(own)
            for batch in step:
                first = sum(slot.shard < 2 for slot in batch)
                assert abs(first - share * micro) <= 1


def test_evaluation_keeps_the_order_on_disk():
    counts = [3, 0, 4]
    order = make(counts, streams=1, global_batch=2, shuffle=False)
    assert epoch(order, 0) == every_sample(counts)


def test_shards_and_samples_are_shuffled_anew_each_epoch():
    counts = [20] * 20
    order = make(counts, streams=1, global_batch=10)
    first, second = epoch(order, 0), epoch(order, 1)
    for line in (first, second):
        assert line != every_sample(counts)
        shards = [shard for shard, _ in itertools.groupby(line, key=lambda pair: pair[0])]
        assert len(shards) == 20, "a shard is read in one go"
        assert shards != sorted(shards)
    assert first != second
    assert epoch(make(counts, streams=1, global_batch=10, seed=1), 0) != first


def test_all_orders_of_a_small_shard_come_equally_often():
    seen = Counter(tuple(permutation(3, 5, trial)) for trial in range(6000))
    assert len(seen) == 6
    assert max(seen.values()) - min(seen.values()) < 200  # six standard deviations


def test_every_place_has_a_seed_of_its_own():
    order = make([1000], streams=8, global_batch=32)
    seeds = [slot.seed for step in range(500) for slot in order.slots(step)]
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) >= 0
    assert max(seeds) < 2**63
    assert abs(np.mean(seeds) / 2**62 - 1) < 0.02


def test_the_hash_is_splitmix64():
    # First output of the generator's published reference for seed 0.
    assert int(hashed(0)[0]) == 0xE220A8397B1DCDAF


def test_a_hundred_thousand_shards_take_no_time():
    order = make([1000] * 100_000, streams=64, global_batch=1024)
    start = time.process_time()
    order.slots(12_345, rank=3, world=8)
    assert time.process_time() - start < 2


def test_the_order_is_the_published_one():
    """Runs in progress, ledgers and results name steps: the same step must hold the same samples
    for ever, so a change of this digest is a new order and needs a new name."""
    counts = [(7 * i * i + 3) % 23 for i in range(24)]
    classes = [np.arange(count) % 4 - 1 for count in counts]
    mixture = Mixture((9, 15), (1.0, 3.0), ("a", "b"))
    digest = hashlib.sha256()
    for mixed, exponent in itertools.product((None, mixture), (None, 0.7)):
        balance = None if exponent is None else Balance(classes, exponent)
        facts = {"streams": 8, "global_batch": 32, "seed": 3, "shuffle": True}
        order = Order(counts, mixture=mixed, balance=balance, **facts)
        for step in (0, 1, 5, 60, 12_345):
            digest.update(repr([tuple(slot) for slot in order.slots(step)]).encode())
    assert digest.hexdigest() == PUBLISHED


def test_a_rank_is_inside_one_shard_of_every_folder_that_a_stream_serves():
    facts = {"seed": 0, "shuffle": True}
    two = Mixture((4, 4), (0.5, 0.5), ("a", "b"))
    assert make([9] * 8, streams=8, global_batch=16).shards_at_once(2) == 4
    each = Order([9] * 8, streams=8, global_batch=16, mixture=two, **facts)
    assert (each.shards_at_once(1), each.shards_at_once(8)) == (16, 2)
    one = Order([9] * 8, streams=8, global_batch=8, mixture=two, **facts)
    assert one.shards_at_once(1) == 8, "a stream with one place serves one folder"


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: make([9], streams=64, global_batch=100), "global_batch 64 or 128"),
        (lambda: make([9], streams=64, global_batch=32), "data.streams 1, 2, 4, 8, 16, 32"),
        (lambda: check_world(3, 64), "cluster.workers 1, 2, 4, 8, 16, 32, 64"),
        (lambda: check_micro_batch(5, 64, 4), "run.micro_batch 1, 2, 4, 8, 16"),
        (lambda: make([0, 0]), "no sample"),
    ],
)
def test_numbers_that_do_not_divide_are_refused_with_those_that_do(act, words):
    with pytest.raises(ValueError, match=words):
        act()

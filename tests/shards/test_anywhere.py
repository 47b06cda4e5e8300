"""Shards from URLs: the same batches, through a bounded cache, whatever a server does."""

import contextlib
import errno
import fcntl
import hashlib
import importlib
import itertools
import json
import logging
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.utils.data import DataLoader, IterableDataset

from shards import ahead, cache, patience, place, workers
from shards.__main__ import main
from shards.ahead import Ahead
from shards.cache import Cache, CacheError, NoRoom
from shards.index import ManifestError, ShardLost, index_name
from shards.ledger import Ledger
from shards.manifest import Manifest
from shards.order import Order
from shards.place import Remote, locate
from shards.places import Places
from shards.stream import DataConfig, open_clips, open_collection
from tests.shards.flaky import (
    answers,
    cut,
    hangs_up,
    serving,
    short,
    slow,
    stalled,
    wrong,
)
from tests.shards.make import write_folder

COUNTS = (5, 3, 7)
TAR = "shard-000001.tar"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("anywhere") / "set"
    write_folder(path, COUNTS, test_every=3)
    return path


@pytest.fixture
def server(folder):
    with serving(folder.parent) as server:
        yield server


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(patience, "FIRST_WAIT", 0.02)


def config(*folders, cache, **fields):
    small = {"streams": 4, "frames": 4, "stride": 2, "size": 32, "loader_workers": 0}
    small |= {"cache": str(cache), "cache_gb": 0.01, "retry_seconds": 10.0}
    return DataConfig(shards=tuple(str(f) for f in folders), **small | fields)


def opened(data, *, train=False, ledger=None, **place):
    where = {"rank": 0, "world": 1, "start_step": 0} | place
    return open_clips(data, global_batch=8, micro_batch=2, train=train, ledger=ledger, **where)


def served(data, *, count=None, **how):
    with opened(data, **how) as stream:
        batches = (
            (b.keys, b.labels.tolist(), b.weights.tolist(), b.pixels.numpy().tobytes())
            for b in stream
        )
        return list(itertools.islice(batches, count))


def mess(cache: Path) -> list[str]:
    """What lies in a cache besides whole files."""
    return [p.name for p in cache.iterdir() if len(p.name) != 64 and p.name != ".lock"]


def left(cache: Path) -> list[str]:
    """The mess once the threads that look ahead are done."""
    end = time.monotonic() + 5
    while mess(cache) and time.monotonic() < end:
        time.sleep(0.01)
    return mess(cache)


@pytest.mark.parametrize("loader_workers", [0, 2])
@pytest.mark.parametrize("split", [None, "test"])
def test_a_url_serves_what_the_folder_serves(server, folder, tmp_path, split, loader_workers):
    at_hand = config(folder, cache=tmp_path / "cache", split=split)
    away = config(f"{server.url}/set", cache=tmp_path / "cache", split=split)
    away = replace(away, loader_workers=loader_workers)
    assert served(away) == served(at_hand)
    assert served(away, train=True, count=8, start_step=3) == served(
        at_hand, train=True, count=8, start_step=3
    )
    tars = [server.asked[f"shard-00000{i}.tar"] for i in range(3)]
    assert tars == [1, 1, 1], "fetched once, by however many processes and runs"
    assert left(tmp_path / "cache") == []


def test_anything_that_fsspec_opens(folder, tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/bucket/set", recursive=True)
    data = config("memory://bucket/set", cache=tmp_path / "cache")
    assert served(data) == served(config(folder, cache=tmp_path))
    assert served(config(f"file://{folder}", cache=tmp_path)) == served(data)


@pytest.mark.parametrize("name", ["manifest.json", "shard-000001.index.jsonl", TAR])
@pytest.mark.parametrize(
    "faults",
    [[answers(500), answers(503), answers(429)], [cut, hangs_up], [slow]],
    ids=["5xx", "cut", "slow"],
)
def test_faults_that_pass_are_outlived(server, folder, tmp_path, name, faults):
    server.faults[name] = list(faults)
    data = config(f"{server.url}/set", cache=tmp_path / "cache")
    assert served(data) == served(config(folder, cache=tmp_path))
    assert server.asked[name] == len([f for f in faults if f is not slow]) + 1
    assert left(tmp_path / "cache") == []


@pytest.mark.parametrize("fault", [short, wrong])
def test_other_bytes_than_the_manifest_promises_are_fetched_again(server, folder, tmp_path, fault):
    server.faults[TAR] = [fault, fault]
    data = config(f"{server.url}/set", cache=tmp_path / "cache")
    assert served(data) == served(config(folder, cache=tmp_path))


def test_a_stalled_answer_is_given_up_and_asked_again(server, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(place, "STALL", 0.3)
    server.faults[TAR] = [stalled]
    # Another address, as fsspec keeps the settings of one that it knows.
    url = server.url.replace("127.0.0.1", "localhost")
    start = time.monotonic()
    assert served(config(f"{url}/set", cache=tmp_path / "cache"))
    assert time.monotonic() - start < 5
    assert server.asked[TAR] == 2


@pytest.mark.parametrize(
    ("fault", "words", "asked"),
    [
        (answers(404), r"shard-000001\.tar cannot be read \(is not there \(404\)\)", 1),
        (answers(403), r"shard-000001\.tar .*access was denied \(403 Forbid.*credentials", 1),
        (answers(416), r"shard-000001\.tar .*the server answered 416", 1),
        (answers(500), r"shard-000001\.tar .*given up after \d+ tries in \d s.*answered 500", None),
        (wrong, r"shard-000001\.tar .*given up after 3 tries.*other bytes than the manifest", 3),
    ],
)
def test_a_shard_lost_for_good_ends_the_run_by_name(server, tmp_path, fault, words, asked):
    server.faults[TAR] = [fault] * 1000
    data = config(f"{server.url}/set", cache=tmp_path / "cache", retry_seconds=0.5)
    start = time.monotonic()
    with pytest.raises(ShardLost, match=f"{words}.*--data.allow_missing 1"):
        served(data)
    assert time.monotonic() - start < 5
    # The thread that looks ahead may ask too, once for every time the reader does.
    assert asked is None or asked <= server.asked[TAR] <= 2 * asked
    assert left(tmp_path / "cache") == []


def test_a_missing_manifest_is_named(server, tmp_path):
    with pytest.raises(ManifestError, match=r"nowhere/manifest\.json cannot be read.*404.*address"):
        served(config(f"{server.url}/nowhere", cache=tmp_path))
    nobody = "http://127.0.0.1:9/set"
    with pytest.raises(ManifestError, match=r"127.0.0.1:9/set/manifest\.json .*given up after"):
        served(config(nobody, cache=tmp_path, retry_seconds=0.2))


@pytest.mark.parametrize(("protocol", "package"), [("s3", "s3fs"), ("gs", "gcsfs")])
def test_a_store_without_its_package_says_what_to_install(
    protocol, package, tmp_path, monkeypatch, capsys
):
    imported = importlib.import_module("fsspec.registry")._registry
    monkeypatch.delitem(imported, protocol, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    url = f"{protocol}://bucket/set"
    with pytest.raises(ValueError, match=f"{url}.*pip install {package}"):
        served(config(url, cache=tmp_path))
    for command in ("stats", "verify", "preview", "plan"):
        assert main([command, url]) != 0
        told = "".join(capsys.readouterr())
        assert f"pip install {package}" in " ".join(told.split())


def test_a_protocol_that_nobody_knows_is_asked_back(tmp_path):
    with pytest.raises(ValueError, match="is htp:// right"):
        served(config("htp://bucket/set", cache=tmp_path))


class Environment(IterableDataset):
    def __iter__(self):
        yield os.environ.get("SET_LATE", "")


def test_loader_processes_have_the_environment_of_their_start(monkeypatch):
    """Credentials may be set after the server process that they are forked from has started."""

    def told() -> list[str]:
        processes = {"num_workers": 1, "multiprocessing_context": workers.start_context()}
        loader = DataLoader(Environment(), None, worker_init_fn=workers.preparation(), **processes)
        return list(loader)

    assert told() == [""]
    monkeypatch.setenv("SET_LATE", "secret")
    assert told() == ["secret"]


@pytest.mark.parametrize("where", ["cache", "~/cache"])
@pytest.mark.parametrize("damage", [b"", bytes(10**5)], ids=["emptied", "zeroed"])
def test_a_file_damaged_in_the_cache_is_fetched_again(
    server, folder, tmp_path, monkeypatch, where, damage
):
    """As a machine that lost its power may leave it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    data = config(f"{server.url}/set", cache=where if "~" in where else tmp_path / where)
    served(data)
    shard = Manifest.open(folder).shards[1]
    for digest in (shard.sha256, shard.index_sha256):
        (tmp_path / "cache" / digest).write_bytes(damage)
    assert served(data) == served(config(folder, cache=tmp_path))
    assert server.asked[TAR] == server.asked[index_name(TAR)] == 2


def test_a_look_through_all_indexes_takes_no_room_in_the_cache(server, folder, tmp_path):
    """To make room it adds up what is there: for every index anew that took minutes."""
    index = index_name(TAR)
    server.faults[index] = [short]
    found = open_collection(config(f"{server.url}/set", cache=tmp_path / "cache")).classes
    expected = open_collection(config(folder, cache=tmp_path)).classes
    assert [of.tolist() for of in found] == [of.tolist() for of in expected]
    assert not (tmp_path / "cache").exists() and server.asked[index] == 2


@pytest.mark.parametrize("name", [TAR, index_name(TAR)])
def test_verify_looks_at_what_lies_there_not_at_what_the_cache_holds(
    folder, tmp_path, monkeypatch, capsys, name
):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(folder, tmp_path / "root/set")
    with serving(tmp_path / "root") as server:
        url = f"{server.url}/set"
        served(DataConfig((url,), streams=4, frames=4, size=32, loader_workers=0))
        assert main(["verify", url]) == 0
        (tmp_path / "root/set" / name).write_bytes(b"{}")
        assert main(["verify", url]) == 1
    wrong = "cannot be read" if name == TAR else "is not the file"
    assert f"{name} {wrong}" in capsys.readouterr().err


# A lost shard that is allowed


def places(data, *, train, steps):
    return [keys for keys, *_ in served(data, train=train, count=4 * steps)]


@pytest.mark.parametrize("split", [None, "train"])
@pytest.mark.parametrize("gone", [[TAR], [TAR, "shard-000001.index.jsonl"]], ids=["tar", "both"])
@pytest.mark.parametrize("away", [True, False], ids=["url", "folder"])
def test_samples_of_an_allowed_lost_shard_keep_their_places(folder, tmp_path, away, gone, split):
    shutil.copytree(folder, tmp_path / "root/set")
    for name in gone:
        (tmp_path / "root/set" / name).unlink()
    with serving(tmp_path / "root") as server:
        where = f"{server.url}/set" if away else tmp_path / "root/set"
        data = config(where, cache=tmp_path / "cache", split=split, max_failed_share=0.0)
        with pytest.raises(ShardLost, match="shard-000001.*--data.allow_missing 1 goes on"):
            served(data, train=True, count=8)
        data = replace(data, allow_missing=1)
        ledger = Ledger(tmp_path / "ledger.jsonl")
        with opened(data, train=True, ledger=ledger) as stream:
            found = [(b.keys, b.weights.tolist()) for _, b in zip(range(8), stream, strict=False)]
            lost = sum(w == 0 and k != "" for ks, ws in found for k, w in zip(ks, ws, strict=True))
            assert stream.left_out == {"shard": lost} and lost > 0
            assert len(stream.missing) == 1 and not stream.unreadable
    intact = places(config(folder, cache=tmp_path, split=split), train=True, steps=2)
    keyed = len(gone) == 1  # without its index, the keys of a shard are not known
    for (keys, weights), expected in zip(found, intact, strict=True):
        for key, weight, sound in zip(keys, weights, expected, strict=True):
            assert weight == float(sound != "" and not sound.startswith("s1_"))
            assert key == sound if keyed or weight or not sound else key.startswith(f"{TAR}#")
    lines = [json.loads(line) for line in ledger.path.read_text().splitlines()]
    assert len(lines) == lost
    assert {line["kind"] for line in lines} == {"shard"}
    assert all(line["shard"].endswith(TAR) and "shard-000001" in line["reason"] for line in lines)


# The cache


def fill(cache: Cache, number: int, *, size: int = 1000, pause: float = 0.0) -> int:
    data = number.to_bytes(4, "big") * (size // 4)

    def fetch(part: Path) -> None:
        time.sleep(pause)
        with part.open("r+b") as file:
            file.write(data)

    return cache.open(hashlib.sha256(data).hexdigest(), size, fetch)


def digests(cache: Cache) -> set[str]:
    return {p.name for p in cache.folder.iterdir() if len(p.name) == 64}


def name_of(number: int, *, size: int = 1000) -> str:
    return hashlib.sha256(number.to_bytes(4, "big") * (size // 4)).hexdigest()


def test_the_least_recently_opened_goes_first_and_nothing_that_is_open(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "ROOM_PATIENCE", 0.2)
    place = Cache(tmp_path / "cache", limit=3000)
    held = fill(place, 0)
    for number in (1, 2):
        os.close(fill(place, number))
        time.sleep(0.01)
    os.close(fill(place, 1))
    before = digests(place)
    os.close(fill(place, 3))
    [gone] = before - digests(place)
    assert gone == name_of(2)
    others = [fill(place, 4), fill(place, 5)]
    with pytest.raises(NoRoom, match=r"may hold 3e-06 GB.*--data\.cache_gb"):
        fill(place, 6)
    assert os.pread(held, 4, 0) == bytes(4)
    os.close(others[0])
    os.close(fill(place, 6))
    for file in (held, others[1]):
        os.close(file)
    assert left(place.folder) == []


def test_who_waits_for_room_gets_it_when_a_reading_ends(tmp_path):
    place = Cache(tmp_path, limit=1000)
    held = fill(place, 0)
    threading.Timer(0.3, os.close, [held]).start()
    start = time.monotonic()
    os.close(fill(place, 1))
    assert 0.2 < time.monotonic() - start < 5
    assert digests(place) == {name_of(1)}


def test_looking_ahead_sends_nothing_away_that_is_in_use(tmp_path, monkeypatch):
    place = Cache(tmp_path, limit=2000)
    early = replace(place, ahead=True)
    os.close(fill(place, 0))
    os.close(fill(early, 1))
    start = time.monotonic()
    with pytest.raises(NoRoom):
        fill(early, 2)
    assert time.monotonic() - start < 1, "and does not wait"
    assert digests(place) == {name_of(0), name_of(1)}
    monkeypatch.setattr(cache, "IN_USE", 0.0)
    os.close(fill(early, 2))
    assert digests(place) == {name_of(1), name_of(2)}


@pytest.fixture
def quiet_root():
    """The root logger as Ray leaves it in a driver and in its workers."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    yield
    root.setLevel(before)


@pytest.mark.usefixtures("quiet_root")
def test_a_cache_in_which_shards_go_while_they_are_in_use_says_so_once(tmp_path, caplog):
    place = Cache(tmp_path / "cache", limit=1000)
    for number in (0, 1, 0, 1, 0):
        os.close(fill(place, number))
    assert [r.getMessage() for r in caplog.records if "cache_gb higher" in r.getMessage()] == [
        caplog.records[0].getMessage()
    ]
    assert str(place.folder) in caplog.records[0].getMessage()


def test_a_file_larger_than_the_cache_says_what_to_set(tmp_path):
    with pytest.raises(CacheError, match=r"take 1e-06 GB: set --data\.cache_gb 0\.001"):
        fill(Cache(tmp_path, limit=900), 1)


def test_what_a_killed_process_left_is_cleared_and_foreign_files_stay(tmp_path):
    cache = Cache(tmp_path, limit=1500)
    (tmp_path / "mine.txt").write_bytes(bytes(5000))
    (tmp_path / f"{'a' * 64}.1400.part").write_bytes(bytes(700))
    os.close(fill(cache, 1))
    assert mess(tmp_path) == ["mine.txt"]


def test_a_download_of_another_process_counts_and_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "ROOM_PATIENCE", 0.2)
    place = Cache(tmp_path, limit=1500)
    part = tmp_path / f"{'a' * 64}.1400.part"
    with part.open("wb") as claim:
        fcntl.flock(claim, fcntl.LOCK_EX)
        with pytest.raises(NoRoom):
            fill(place, 1)
        assert part.exists()


def _hammer(folder: str, seed: int, results) -> None:
    import random

    cache, draw, peak = Cache(Path(folder), limit=5000), random.Random(seed), 0
    for _ in range(150):
        number = draw.randrange(12)
        try:
            file = fill(cache, number, pause=draw.random() * 0.002)
        except NoRoom:
            continue
        if os.pread(file, 1000, 0) != number.to_bytes(4, "big") * 250:
            results.put("another file's bytes")
            return
        with cache._counting():
            peak = max(peak, sum(_sizes(folder)))
        os.close(file)
    results.put("bounded" if peak <= 5000 else f"{peak} bytes")


def _sizes(folder: str):
    for path in Path(folder).iterdir():
        with contextlib.suppress(FileNotFoundError):
            if len(path.name) == 64:
                yield path.stat().st_size


def test_many_processes_share_a_cache_that_is_too_small_for_them(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    workers = [
        context.Process(target=_hammer, args=(str(tmp_path), seed, results)) for seed in range(4)
    ]
    for worker in workers:
        worker.start()
    assert [results.get() for _ in workers] == ["bounded"] * 4
    for worker in workers:
        worker.join(10)
    assert left(tmp_path) == []


def _stuck(folder: str) -> None:
    fill(Cache(Path(folder), limit=5000), 1, pause=60)


def test_a_process_killed_while_it_fetches_holds_nobody_up(tmp_path):
    worker = multiprocessing.get_context("fork").Process(target=_stuck, args=(str(tmp_path),))
    worker.start()
    while not mess(tmp_path):
        time.sleep(0.01)
    worker.kill()
    start = time.monotonic()
    os.close(fill(Cache(tmp_path, limit=5000), 1))
    assert time.monotonic() - start < 5
    assert left(tmp_path) == []


def _fill_and_hold(folder: str, ready, go) -> None:
    cache = Cache(Path(folder), limit=5000)
    file = fill(cache, 1, pause=0.3)
    ready.set()
    go.wait(20)
    os.close(file)


def test_who_waits_for_a_download_gets_it_while_others_read_it(tmp_path):
    """The lock of a file being written is, once it is whole, the lock that its readers hold."""
    context = multiprocessing.get_context("fork")
    ready, go = context.Event(), context.Event()
    worker = context.Process(target=_fill_and_hold, args=(str(tmp_path), ready, go))
    worker.start()
    while not mess(tmp_path):
        time.sleep(0.01)
    start = time.monotonic()
    os.close(fill(Cache(tmp_path, limit=5000), 1))
    assert time.monotonic() - start < 5 and ready.wait(5)
    go.set()
    worker.join(10)


def test_coming_shards_are_fetched_ahead(server, tmp_path):
    data = config(f"{server.url}/set", cache=tmp_path / "cache", streams=1)
    with opened(data, train=True) as stream:
        batches = iter(stream)
        next(batches)  # its clips are of one shard, or of two
        end = time.monotonic() + 5
        while len([name for name in server.asked if name.endswith(".tar")]) < 3:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_an_epoch_after_the_first_is_fetched_ahead_too(monkeypatch):
    """The cache may have let go what the epoch before has used."""
    monkeypatch.setattr(ahead, "CLIPS", 4)
    order = Order([8] * 6, streams=2, global_batch=4, seed=0, shuffle=True)
    places = Places(order, micro_batch=2, rank=0, world=1, start_step=0, endless=True)
    asked = []
    collection = SimpleNamespace(manifests=[SimpleNamespace(folder="url")], warm=asked.append)
    looking = Ahead(collection, places)
    looking.reach(3 * order.steps_per_epoch * places.a_step)
    end = time.monotonic() + 5
    while min(map(asked.count, range(6))) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    looking.close()
    assert min(map(asked.count, range(6))) >= 2
    assert len(asked) < 40, "and not for every batch"


def test_an_idle_process_keeps_no_room_that_another_needs(server, folder, tmp_path, monkeypatch):
    """Room for one tar: the readers take turns, and each takes away what the other has read."""
    monkeypatch.setattr(cache, "ROOM_PATIENCE", 1.0)
    manifest = Manifest.open(folder)
    room = max(s.bytes for s in manifest.shards) + 20_000
    data = config(f"{server.url}/set", cache=tmp_path / "cache", cache_gb=room / 1e9)
    one, two = open_collection(data), open_collection(data)
    sound = open_collection(config(folder, cache=tmp_path))
    for sample in range(3):
        for reader, shard in ((one, 0), (two, 2)):
            row = reader.row(shard, sample)
            assert row == sound.row(shard, sample)
            assert reader.video(shard, row) == sound.video(shard, row)
            held = sum(path.stat().st_size for path in (tmp_path / "cache").iterdir())
            assert held <= room


def test_a_cache_smaller_than_a_set_serves_it_all_the_same(server, folder, tmp_path, monkeypatch):
    """Room for two of three shards, and one stream: what is not being read goes."""
    sizes = sorted(shard.bytes for shard in Manifest.open(folder).shards)
    data = config(f"{server.url}/set", cache=tmp_path / "cache", streams=1)
    data = replace(data, cache_gb=(sizes[-1] + sizes[-2] + 20_000) / 1e9)
    expected = served(config(folder, cache=tmp_path, streams=1), train=True, count=32)
    assert served(data, train=True, count=32) == expected
    assert server.asked[TAR] > 1, "it had to be fetched again"
    assert sum(p.stat().st_size for p in (tmp_path / "cache").iterdir()) <= data.cache_gb * 1e9


@pytest.mark.parametrize("world", [1, 2, 4])
def test_whatever_is_combined_is_the_same_through_a_small_cache(
    folder, tmp_path, monkeypatch, world
):
    """Weights, balance and repeats, begun inside an epoch: the ranks take turns with one cache,
    which holds three of five shards."""
    monkeypatch.setattr("shards.stream._check_cache", lambda *_: None)
    shutil.copytree(folder, tmp_path / "root/one")
    write_folder(tmp_path / "root/two", (4, 9), name="two_")
    mixed = {"weights": (1.0, 3.0), "balance": 1.0, "repeats": 2, "streams": 4}

    def steps(where: object, **room: float) -> list[list[tuple]]:
        data = config(f"{where}/one", f"{where}/two", cache=tmp_path / "cache", **mixed, **room)
        found: list[list[tuple]] = [[] for _ in range(6)]
        with contextlib.ExitStack() as stack:
            ranks = [
                iter(stack.enter_context(opened(data, train=True, rank=r, world=n, start_step=5)))
                for n in [world if room else 1]
                for r in range(n)
            ]
            for step in found:
                for batches in ranks:
                    for _ in range(4 // len(ranks)):
                        b = next(batches)
                        facts = b.seeds.tolist(), b.keys, b.labels.tolist(), b.weights.tolist()
                        pixels = [p.numpy().tobytes() for p in b.pixels]
                        step.extend(zip(*facts, pixels, strict=True))
        return [sorted(step) for step in found]

    sizes = sorted(
        s.bytes for n in ("one", "two") for s in Manifest.open(tmp_path / "root" / n).shards
    )
    with serving(tmp_path / "root") as server:
        there = steps(server.url, cache_gb=(sum(sizes[2:]) + 20_000) / 1e9)
    assert there == steps(tmp_path / "root")
    assert all(weight == 1 for step in there for *_, weight, _ in step)


def test_a_cache_that_cannot_hold_what_is_read_at_once_is_refused_at_the_start(server, tmp_path):
    with pytest.raises(ValueError, match=r"data\.cache_gb 1e-05 cannot hold the 3 shards.*--data"):
        opened(config(f"{server.url}/set", cache=tmp_path, cache_gb=1e-5))


def test_a_cache_that_others_fill_ends_the_run_with_the_setting(server, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "ROOM_PATIENCE", 0.2)
    place = Cache(tmp_path / "cache", limit=10**6)
    held = fill(place, 1, size=999_000)
    data = config(f"{server.url}/set", cache=place.folder, cache_gb=1e-3)
    with pytest.raises(CacheError, match=r"--data\.cache_gb"):
        served(data)
    os.close(held)


def test_a_cache_folder_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match=r"file/cache cannot be used.*--data\.cache"):
        served(config(f"{server.url}/set", cache=tmp_path / "file/cache"))


def test_a_full_disk_says_so(server, tmp_path):
    """A file system of 200 kB, which only root may mount."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(disk)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here: it takes root")
    try:
        with pytest.raises(CacheError, match=r"disk is full|disk of the cache .* is full.*--data"):
            served(config(f"{server.url}/set", cache=disk / "cache"))
        assert left(disk / "cache") == []
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_room_is_made_on_a_network_disk_that_locks_only_what_may_be_written(tmp_path, monkeypatch):
    """As NFS does, where many have their home and so the default cache."""
    real = fcntl.flock

    def flock(file, how: int) -> None:
        number = file if isinstance(file, int) else file.fileno()
        mode = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE
        if mode == (os.O_RDONLY if how & fcntl.LOCK_EX else os.O_WRONLY):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    place = Cache(tmp_path, limit=1000)
    for number in (0, 1, 0):
        os.close(fill(place, number))
    assert digests(place) == {name_of(0)}


def test_what_another_user_fetched_is_read(tmp_path, monkeypatch):
    """Only the owner of a file may change its times."""

    def denied(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    here = Cache(tmp_path)
    os.close(fill(here, 0))
    monkeypatch.setattr(cache, "os", SimpleNamespace(**vars(os) | {"utime": denied}))
    file = fill(here, 0)
    assert len(os.pread(file, 2000, 0)) == 1000
    os.close(file)


def test_a_disk_without_locks_says_so(tmp_path, monkeypatch):
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(CacheError, match=r"without file locks.*local disk.*--data\.cache"):
        fill(Cache(tmp_path), 1)


def test_no_space_while_fetching_says_so(tmp_path):
    def full(part: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CacheError, match=r"is full \(No space.*--data\.cache_gb"):
        Cache(tmp_path).open("a" * 64, 10, full)
    assert left(tmp_path) == []


def test_places_print_as_they_are_written():
    assert str(locate("s3://bucket/set/") / "x.tar") == "s3://bucket/set/x.tar"
    assert locate("/a/b") == Path("/a/b")
    like = Remote("", Cache(Path("/c"), 5), 7.0)
    assert locate("gs://b/s", like) == Remote("gs://b/s", Cache(Path("/c"), 5), 7.0)

"""S3 and GCS as a user reads them: by URL, with the settings of the environment, whatever a store
does. The servers are moto and gcp-storage-emulator; what they cannot do, a relay does."""

import re
import shutil
import time
from importlib.util import find_spec
from pathlib import Path

import fsspec
import pytest

from shards import patience, place
from shards.__main__ import main
from shards.index import ManifestError, ShardLost
from shards.manifest import Manifest
from tests.shards import stores
from tests.shards.flaky import answers, cut, hangs_up, stalled, wrong
from tests.shards.make import write_folder
from tests.shards.test_anywhere import TAR, config, left, opened, served

NEEDED = {"s3": ("s3fs", "moto"), "gs": ("gcsfs", "gcp_storage_emulator")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("stores") / "set"
    write_folder(path, (5, 3, 7), test_every=3)
    return path


@pytest.fixture(scope="module", params=["s3", "gs"])
def running(request, folder, tmp_path_factory):
    """A store with the folder: whole (set), without a tar (holed), with a damaged one (bad)."""
    if missing := [name for name in NEEDED[request.param] if not find_spec(name)]:
        pytest.skip(f"not installed: {', '.join(missing)} (pip install -e .[dev])")
    around = tmp_path_factory.mktemp("copies")
    holed, bad = (Path(shutil.copytree(folder, around / name)) for name in ("holed", "bad"))
    (holed / TAR).unlink()
    (bad / TAR).write_bytes(bytes((folder / TAR).stat().st_size))
    with {"s3": stores.s3, "gs": stores.gs}[request.param]() as store:
        with pytest.MonkeyPatch.context() as patch:
            store.fill({"set": folder, "holed": holed, "bad": bad}, patch)
        yield store


@pytest.fixture
def store(running, monkeypatch, tmp_path):
    monkeypatch.setattr(patience, "FIRST_WAIT", 0.02)
    monkeypatch.setenv("HOME", str(tmp_path))  # nobody's own credentials
    for name, value in running.environment(running.relay.url).items():
        monkeypatch.setenv(name, value)
    forgotten(running)
    running.relay.asked.clear()
    running.relay.faults.clear()
    return running


def forgotten(store: stores.Store) -> None:
    """What fsspec keeps a process: connections, credentials, settings."""
    fsspec.get_filesystem_class(store.kind).clear_instance_cache()


@pytest.mark.parametrize("loader_workers", [0, 2])
def test_a_store_serves_what_the_folder_serves(store, folder, tmp_path, loader_workers):
    cache = tmp_path / "cache"
    away = config(f"{store.url}/set", cache=cache, loader_workers=loader_workers, split="train")
    at_hand = config(folder, cache=cache, split="train")
    assert served(away) == served(at_hand)
    assert served(away, train=True, count=8, start_step=3) == served(
        at_hand, train=True, count=8, start_step=3
    )
    assert store.relay.asked[TAR] == 1, "fetched once, by however many processes and runs"
    assert left(cache) == []


def test_a_cache_smaller_than_a_set_serves_it_all_the_same(store, folder, tmp_path):
    data = config(f"{store.url}/set", cache=tmp_path / "cache", streams=1, cache_gb=room(folder))
    expected = served(config(folder, cache=tmp_path, streams=1), train=True, count=32)
    assert served(data, train=True, count=32) == expected
    assert store.relay.asked[TAR] > 1, "it had to be fetched again"
    assert sum(p.stat().st_size for p in (tmp_path / "cache").iterdir()) <= room(folder) * 1e9


def test_what_is_lost_is_named_or_left_out(store, tmp_path):
    data = config(f"{store.url}/holed", cache=tmp_path / "cache", loader_workers=2)
    with pytest.raises(ShardLost, match=rf"{store.url}/holed/{TAR} .*is not there \(404\)"):
        served(data)
    data = config(f"{store.url}/holed", cache=tmp_path / "cache", allow_missing=1)
    with opened(data) as stream:
        keys = [(key, w) for b in stream for key, w in zip(b.keys, b.weights.tolist(), strict=True)]
    assert {key for key, weight in keys if key and not weight} == {"s1_0", "s1_1", "s1_2"}


def test_a_damaged_shard_is_named(store, tmp_path):
    with pytest.raises(ShardLost, match=rf"bad/{TAR} .*after 3 tries.*other bytes than the mani"):
        served(config(f"{store.url}/bad", cache=tmp_path / "cache"))
    assert left(tmp_path / "cache") == []


@pytest.mark.parametrize("bucket", ["nobody-has-it", "Not_A_Name!"])
def test_a_bucket_that_does_not_exist_is_told_at_once(store, tmp_path, bucket):
    data = config(f"{store.kind}://{bucket}/set", cache=tmp_path, retry_seconds=60.0)
    with pytest.raises(ManifestError, match=rf"{bucket}/set/manifest.json .*(404|[Bb]ucket name)"):
        served(data)


@pytest.mark.parametrize("fault", [cut, wrong, hangs_up, answers(503)])
def test_faults_that_pass_are_outlived(store, folder, tmp_path, fault):
    """gcsfs and s3fs try again themselves before we do."""
    store.relay.faults[TAR] = [fault]
    served_so = served(config(f"{store.url}/set", cache=tmp_path / "cache"))
    assert served_so == served(config(folder, cache=tmp_path))
    assert store.relay.asked[TAR] == 2
    assert left(tmp_path / "cache") == []


def test_a_stalled_answer_is_given_up_and_asked_again(store, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(place, "STALL", 0.5)
    if store.kind == "s3":
        monkeypatch.setattr("s3fs.S3FileSystem.read_timeout", 0.5)
    store.relay.faults[TAR] = [stalled]
    start = time.monotonic()
    served_so = served(config(f"{store.url}/set", cache=tmp_path / "cache"))
    assert time.monotonic() - start < 5
    assert served_so == served(config(folder, cache=tmp_path))


def test_a_store_may_die_within_an_epoch_and_return(store, folder, tmp_path):
    data = config(f"{store.url}/set", cache=tmp_path / "cache", streams=1, cache_gb=room(folder))
    expected = served(config(folder, cache=tmp_path, streams=1), train=True, count=40)
    with opened(data, train=True) as stream:
        batches = iter(stream)
        got = [next(batches).keys for _ in range(4)]
        asked = store.relay.asked.total()
        store.dies()
        back = stores.back_after(store, 1.0)
        got += [next(batches).keys for _ in range(36)]
    back.join()
    assert got == [keys for keys, *_ in expected]
    assert store.relay.asked.total() > asked, "the second epoch had to fetch again"


def test_a_store_may_be_away_when_loader_processes_begin(store, folder, tmp_path):
    data = config(f"{store.url}/set", cache=tmp_path / "cache", loader_workers=2)
    with opened(data) as stream:
        store.dies()
        back = stores.back_after(store, 1.0)
        got = [batch.keys for batch in stream]
    back.join()
    assert got == [keys for keys, *_ in served(config(folder, cache=tmp_path))]


def test_a_store_that_stays_away_ends_the_run(store, tmp_path):
    if store.kind == "gs":
        pytest.skip("gcsfs by itself tries for half a minute")
    store.dies()
    try:
        data = config(f"{store.url}/set", cache=tmp_path, retry_seconds=0.2)
        with pytest.raises(
            ManifestError, match=r"set/manifest.json .*given up after \d+ tr.*onnect"
        ):
            served(data)
    finally:
        store.returns()


@pytest.mark.parametrize("status", [401, 403])
def test_denied_access_is_told_at_once(store, tmp_path, status):
    store.relay.faults["manifest.json"] = [answers(status)] * 9
    with pytest.raises(ManifestError, match=rf"access was denied \({status} .*the credentials"):
        served(config(f"{store.url}/set", cache=tmp_path, retry_seconds=60.0))


def test_the_answer_of_another_region_is_told_at_once(store, tmp_path):
    store.relay.faults["manifest.json"] = [answers(400)] * 9
    with pytest.raises(ManifestError, match=r"manifest.json .*answered 400"):
        served(config(f"{store.url}/set", cache=tmp_path, retry_seconds=60.0))


def test_keys_that_nobody_made_and_none_at_all(store, tmp_path, monkeypatch):
    if store.kind == "gs":
        pytest.skip("the emulator of GCS takes any credentials")
    data = config(f"{store.url}/set", cache=tmp_path, retry_seconds=60.0)
    stores.checks_credentials(store, whether=True)
    try:
        with pytest.raises(ManifestError, match=r"denied \(403 The AWS Access Key Id .* not exist"):
            served(data)
    finally:
        stores.checks_credentials(store, whether=False)
    forgotten(store)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(ManifestError, match=r"after 3 tries in \d s: Unable to locate credentials"):
        served(data)


@pytest.mark.parametrize("command", ["plan", "stats", "verify"])
def test_commands_take_the_address(store, command, capsys):
    more = ["--gpus", "1", "--seconds", "0.1"] if command == "plan" else []
    assert main([command, f"{store.url}/set", *more]) == 0
    assert re.search(r"15 (samples|clips|in 3 shards)", capsys.readouterr().out)
    assert main([command, f"{store.url}/nowhere", *more]) == (1 if command == "plan" else 2)
    told = " ".join("".join(capsys.readouterr()).split())
    assert f"{store.url}/nowhere/manifest.json cannot be read (is not there (404))" in told


def test_verify_names_what_is_lost_and_damaged(store, capsys):
    for name, words in (("holed", "is not there"), ("bad", "other bytes than the manifest")):
        assert main(["verify", f"{store.url}/{name}"]) == 1
        assert re.search(rf"{store.url}/{name}/{TAR} .*{words}", capsys.readouterr().err)


def room(folder: Path) -> float:
    """GB for two of the three shards."""
    sizes = sorted(shard.bytes for shard in Manifest.open(folder).shards)
    return (sizes[-1] + sizes[-2] + 20_000) / 1e9

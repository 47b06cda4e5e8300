"""Whole pretrainings of a toy: what they leave, exact resume, samples that cannot be read."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from launch.registry import resolve
from launch.store import connect
from launch.tracking import RunHandle
from mira import MiraConstants
from mira.encoder import Encoder, EncoderConfig
from mira.loading import load_weights
from mira.weights import load_artifact
from pretrain import job
from pretrain.recipes import debug
from shards.augment import AugmentConfig
from shards.manifest import Manifest
from shards.stream import TooManyFailures
from tests.runs import (
    PLAIN,
    flags,
    ledger,
    logged,
    looks_at_files,
    pretraining,
    run_until,
    spoil,
    tree,
    write_stripes,
)
from tests.shards.flaky import serving


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pretrain")
    write_stripes(folder / "shards", [7, 5], test_every=5)
    return folder


@pytest.fixture(scope="module")
def uri(place) -> str:
    return f"sqlite:///{place / 'mlflow.db'}"


@pytest.fixture(scope="module")
def whole(place, uri):
    """An uninterrupted run, which is registered and measured on the split test."""
    config = pretraining(place / "shards", place / "whole", uri, eval_every=3)
    tracking = replace(config.tracking, register="stripes-encoder")
    return job.run(replace(config, tracking=tracking, validation_split="test"))


def weights(summary: dict) -> dict[str, torch.Tensor]:
    return load_artifact(summary["encoder"]).state_dict


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_a_run_leaves_an_encoder_that_opens_with_its_origin(whole, place):
    artifact = load_artifact(whole["encoder"])
    constants = MiraConstants(**artifact.config["constants"])
    encoder = Encoder(EncoderConfig(**artifact.config | {"constants": constants}))
    load_weights(encoder, artifact.state_dict)
    assert artifact.provenance["step"] == "6"
    assert artifact.provenance["input.manifest_0.path"] == str(place / "shards/manifest.json")
    assert len(artifact.provenance["input.manifest_0.sha256"]) == 64


def test_a_run_leaves_its_summary_and_nothing_half_written(whole):
    output = Path(whole["output"])
    assert json.loads((output / "summary.json").read_text()) == whole
    assert {p.name for p in output.iterdir()} == {"checkpoints", "encoder", "summary.json"}
    kept = {p.name for p in (output / "checkpoints").iterdir()}
    assert kept == {"mlflow_run.json", "step_000002", "step_000004", "step_000006"}


def test_a_run_is_recorded_with_figures_pictures_and_its_model(whole, uri):
    client = connect(uri)
    run = client.get_run(whole["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["encoder.dim"] == "24"
    assert list(logged(whole, "train/loss")) == [1, 2, 3, 4, 5, 6]
    measured = logged(whole, "test/loss")
    assert list(measured) == [3, 6] and whole["metrics"]["test/loss"] == measured[6]
    assert whole["metrics"]["test/clips"] == 2
    pictures = [a.path for a in client.list_artifacts(whole["run_id"], "pictures")]
    assert "pictures/reconstruction_step_000006.png" in pictures
    version = client.get_model_version_by_alias("stripes-encoder", "champion")
    assert version.run_id == whole["run_id"]
    assert whole["model"] == "models:/stripes-encoder/1"


def test_an_encoder_that_does_not_load_is_not_published(place, uri, whole):
    """A crash of the machine may leave a file of the right size and of zeros."""
    output = place / "crashed"
    shutil.copytree(whole["encoder"], output / "encoder")
    file = output / "encoder/model.safetensors"
    file.write_bytes(bytes(file.stat().st_size))
    config = pretraining(place / "shards", output, uri)
    config = replace(config, tracking=replace(config.tracking, register="stripes-encoder"))
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        job.publish(config, RunHandle(uri, whole["run_id"]), output, {})
    assert resolve("models:/stripes-encoder/latest", uri=uri) == "models:/stripes-encoder/1"


def test_files_are_looked_at_once_by_the_driver_alone(place, uri, monkeypatch):
    looks = looks_at_files(monkeypatch)
    config = pretraining(place / "shards", place / "looked", uri, steps=2, eval_every=1)
    job.run(replace(config, validation_split="test"))
    assert looks == [place / "shards"]


@pytest.mark.parametrize(("split", "times"), [(None, 2), ("test", 3)])
def test_folders_are_opened_once_whatever_the_evaluations(place, uri, monkeypatch, split, times):
    """By the driver, by the worker, and by it for the validation split."""
    opened, reads = [], Manifest.open
    monkeypatch.setattr(Manifest, "open", lambda folder: opened.append(folder) or reads(folder))
    config = pretraining(place / "shards", place / f"opened-{split}", uri, steps=3, eval_every=1)
    job.run(replace(config, validation_split=split))
    assert len(opened) == times


def test_one_batch_again_and_again_is_learnt(place, uri):
    write_stripes(place / "four", [4])
    run = {"steps": 40, "save_every": 40, "log_every": 40, "micro_batch": 4}
    config = pretraining(place / "four", place / "learnt", uri, base_lr=0.6, min_lr=0.6, **run)
    summary = job.run(replace(config, data=replace(config.data, augment=PLAIN)))
    assert summary["loss_first"] > 0.8
    assert summary["loss_last"] < 0.4 * summary["loss_first"]


def test_an_interrupted_run_ends_with_the_same_bits(place, uri, whole):
    config = pretraining(place / "shards", place / "torn", uri)
    run_until(5, job, config)
    assert tree(place / "torn") >= {"checkpoints/step_000002", "checkpoints/step_000004"}
    assert not (place / "torn/encoder").exists() and not (place / "torn/summary.json").exists()
    summary = job.run(config)
    assert summary["resumed_from"] == 4
    assert summary["loss_first"] == whole["loss_first"]
    assert summary["loss_last"] == whole["loss_last"]
    again, before = logged(summary, "train/loss"), logged(whole, "train/loss")
    assert again == before, "one run, one whole curve"
    assert same(weights(summary), weights(whole))


def test_the_device_augments_as_the_loader_does(place, uri):
    curves = {}
    for name in ("cpu", "device"):
        config = pretraining(place / "shards", place / name, uri, steps=2)
        moves = AugmentConfig(crop="none", randaugment_ops=4, erase=0.5)
        data = replace(config.data, augment=moves, augment_on=name)
        curves[name] = logged(job.run(replace(config, data=data)), "train/loss")
    assert curves["device"] == pytest.approx(curves["cpu"], rel=0.02)
    assert curves["device"] != curves["cpu"], "else only one of them was asked"


def test_another_seed_is_another_run(place, uri, whole):
    summary = job.run(pretraining(place / "shards", place / "seed", uri, seed=1))
    assert not same(weights(summary), weights(whole)), "else equal bits would say nothing"


def test_a_finished_run_is_not_trained_again(place, uri, whole):
    config = replace(pretraining(place / "shards", place / "whole", uri), validation_split="test")
    config = replace(config, tracking=replace(config.tracking, register="stripes-encoder"))
    again = job.run(config)
    assert again["model"] == whole["model"], "no other version of the same weights"
    assert (again["resumed_from"], again["steps"]) == (6, 6)
    assert again["loss_last"] == whole["loss_last"]
    assert again["run_id"] == whole["run_id"]
    assert same(weights(again), weights(whole))


def test_a_finished_run_is_not_told_as_another_recipes(place, uri, whole, tmp_path, capsys):
    """Its folder is often the recipe's own: nothing new would be trained."""
    shutil.copytree(place / "whole/checkpoints", tmp_path / "out/checkpoints")
    config = pretraining(place / "shards", tmp_path / "out", uri)
    other = replace(config, mask=replace(config.mask, ratio=0.5))
    with pytest.raises(ValueError, match=r"gone 6 steps with mask\.ratio 0\.\d+, now it is 0\.5"):
        job.run(other)
    hidden = replace(config, run=replace(config.run, micro_batch=1, log_every=3, save_every=2))
    assert job.run(hidden)["run_id"] == whole["run_id"]
    meant = replace(other, run=replace(other.run, allow_change=True))
    assert job.run(meant)["run_id"] == whole["run_id"]
    assert "from here on" not in capsys.readouterr().out, "there is no step left to take"
    tags = connect(uri).get_run(whole["run_id"]).data.tags
    assert "0.5" in [value for name, value in tags.items() if name.endswith(".mask.ratio")]


def test_a_damaged_sample_is_written_down_and_training_goes_on_without_it(tmp_path, uri):
    write_stripes(tmp_path / "shards", [7, 5])
    spoil(tmp_path / "shards", "s1_2")
    config = pretraining(tmp_path / "shards", tmp_path / "out", uri)
    data = replace(config.data, split=None, max_failed_share=0.1)
    summary = job.run(replace(config, data=data))
    assert summary["steps"] == 6 and summary["skipped_steps"] == 0
    found = ledger(tmp_path / "out")
    assert {(line["shard"], line["key"]) for line in found} == {
        (str(tmp_path / "shards/shard-000001.tar"), "s1_2")
    }
    assert "crc32" in found[0]["reason"]
    artifacts = [a.path for a in connect(uri).list_artifacts(summary["run_id"])]
    assert "ledger.jsonl" in artifacts
    left_out = logged(summary, "train/left_out")
    assert [left_out[step] for step in (3, 6)] == [1, 2], "once an epoch of three steps"
    with job.open_train(replace(config, data=data), rank=0, world=1) as stream:
        served = {
            key: (float(weight), int(label))
            for batch, _ in zip(stream, range(6), strict=False)  # an epoch: 3 steps of 2
            for key, weight, label in zip(batch.keys, batch.weights, batch.labels, strict=True)
        }
    assert served["s1_2"] == (0.0, -1), "it keeps its place, and does not count"
    assert all(served[key][0] == 1.0 for key in served if key != "s1_2")


def test_shards_from_a_url_train_to_the_same_bits(place, uri, whole):
    with serving(place) as server:
        config = pretraining(place / "shards", place / "away", uri)
        url = f"{server.url}/shards"
        data = replace(config.data, shards=(url,), cache=str(place / "cache"))
        summary = job.run(replace(config, data=data))
    assert same(weights(summary), weights(whole))
    origin = load_artifact(summary["encoder"]).provenance
    known = load_artifact(whole["encoder"]).provenance
    assert origin["input.manifest_0.path"] == f"{url}/manifest.json"
    assert origin["input.manifest_0.sha256"] == known["input.manifest_0.sha256"]


def test_too_many_damaged_samples_end_the_run_and_the_message_names_the_ledger(
    tmp_path, uri, capsys
):
    write_stripes(tmp_path / "shards", [7, 5])
    spoil(tmp_path / "shards", "s0_1", "s1_2")
    config = pretraining(tmp_path / "shards", tmp_path / "out", uri)
    argv = [*flags(config), "--data.split", "None", "--data.max_failed_share", "0.1"]
    assert job.main(argv) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: 2 of 12 samples cannot be read") and said.count("\n") == 1
    assert str(tmp_path / "out/ledger.jsonl") in said and "data.max_failed_share" in said
    assert {line["key"] for line in ledger(tmp_path / "out")} == {"s0_1", "s1_2"}
    assert not (tmp_path / "out/encoder").exists()
    client = connect(uri)
    [run] = client.search_runs(
        [client.get_experiment_by_name("pretrain").experiment_id],
        filter_string=f"params.`cluster.output` = '{tmp_path / 'out'}'",
    )
    assert run.info.status == "FAILED" and "TooManyFailures" in run.data.tags["ended_by"]


def test_pairs_are_refused_where_nobody_would_look_at_them():
    config = debug()
    with pytest.raises(ValueError, match=r"data\.pair is for fine-tuning"):
        replace(config, data=replace(config.data, pair=True))


def test_an_error_of_the_data_is_raised_as_it_is(tmp_path, uri):
    write_stripes(tmp_path / "shards", [4])
    spoil(tmp_path / "shards", "s0_0")
    config = pretraining(tmp_path / "shards", tmp_path / "out", uri)
    with pytest.raises(TooManyFailures, match="1 of 4 samples"):
        job.run(replace(config, data=replace(config.data, split=None)))


def test_fewer_clips_than_streams_are_enough(tmp_path, uri):
    """Most places of a step are padding then, also the first of those that are pictured."""
    write_stripes(tmp_path / "shards", [2])
    config = pretraining(tmp_path / "shards", tmp_path / "out", uri, micro_batch=1, steps=2)
    summary = job.run(replace(config, data=replace(config.data, split=None)))
    assert summary["steps"] == 2 and summary["skipped_steps"] == 0

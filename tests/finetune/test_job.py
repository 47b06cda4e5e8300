"""Whole fine-tunings of a toy: what they leave, which step is kept, exact resume, where the encoder
comes from."""

import hashlib
import io
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from finetune import job
from finetune.best import Best
from finetune.feeding import settle
from finetune.predictor import Predictor
from finetune.recipes import RECIPES
from launch.fetching import fetch
from launch.registry import resolve
from launch.store import connect
from launch.tracking import RunHandle
from mira.weights import load_artifact
from shards.augment import AugmentConfig
from shards.index import index_shard
from shards.manifest import write_manifest
from tests.runs import finetuning, ledger, logged, looks_at_files, run_until, spoil, write_stripes
from tests.shards.make import LABELS


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finetune")
    write_stripes(folder / "shards", [9, 6], test_every=5)
    return folder


@pytest.fixture(scope="module")
def uri(place) -> str:
    return f"sqlite:///{place / 'mlflow.db'}"


def noisy(config):
    """With everything that draws random numbers."""
    return replace(
        config,
        encoder=replace(config.encoder, drop_path=0.2),
        mixing=replace(config.mixing, mixup=0.8, cutmix=1.0),
    )


@pytest.fixture(scope="module")
def whole(place, uri):
    """An uninterrupted run, whose model is registered."""
    config = noisy(finetuning(place / "shards", place / "whole", uri, base_lr=0.5))
    return job.run(replace(config, tracking=replace(config.tracking, register="stripes")))


def same(one: Path, other: Path) -> bool:
    a, b = load_artifact(one).state_dict, load_artifact(other).state_dict
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_handful_of_clips_is_learnt_to_the_last(tmp_path, uri):
    write_stripes(tmp_path / "shards", [8])
    run = {"steps": 24, "base_lr": 0.5, "eval_every": 0, "save_every": 24, "log_every": 1}
    config = finetuning(tmp_path / "shards", tmp_path / "out", uri, **run)
    config = replace(config, data=replace(config.data, split=None), validation_split="train")
    summary = job.run(config)
    assert summary["loss_first"] == pytest.approx(0.693, abs=0.01), "two classes, by chance"
    accuracy = logged(summary, "train/accuracy")
    assert [accuracy[step] for step in range(21, 25)] == [1.0] * 4, "two epochs without a mistake"
    assert summary["metrics"]["train/war"] == 1.0 and summary["metrics"]["train/clips"] == 8


def test_files_are_looked_at_once_by_the_driver_alone(place, uri, monkeypatch):
    looks = looks_at_files(monkeypatch)
    config = finetuning(place / "shards", place / "looked", uri, steps=2, eval_every=1)
    job.run(replace(config, validation_split="test"))
    assert looks == [place / "shards"]


def test_without_a_validation_split_the_last_step_is_taken(place, uri):
    config = finetuning(place / "shards", place / "unmeasured", uri, steps=1)
    summary = job.run(replace(config, validation_split=None))
    assert summary["selection"] == "last" and summary["metrics"] == {}
    assert summary["predictor"] == str(place / "unmeasured/last")
    assert not (place / "unmeasured/best").exists()


def test_the_best_step_on_validation_is_kept_and_says_so(whole):
    scores = logged(whole, "test/uar")
    assert list(scores) == [2, 4, 6]
    best = max(scores, key=lambda step: (scores[step], -step))
    origin = load_artifact(whole["predictor"]).provenance
    assert (origin["step"], origin["score"]) == (best, scores[best])
    assert origin["selection"] == "best uar on test"
    assert whole["selection"] == "best"
    last = load_artifact(Path(whole["output"], "last")).provenance
    assert (last["step"], last["selection"], last["score"]) == (6, "last", None)


def test_scores_on_other_clips_do_not_compete(place, uri, tmp_path):
    """A step that another split picked is neither beaten by scores on this one nor published."""
    config = finetuning(place / "shards", tmp_path / "out", uri, steps=2, eval_every=0)
    job.run(replace(config, data=replace(config.data, split=None), validation_split="test"))
    record = tmp_path / "out/best/provenance.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"score": 2.0}))
    run = replace(config.run, steps=4, allow_change=True)
    other = replace(config, run=run, data=replace(config.data, split=None))
    summary = job.run(replace(other, validation_split="train"))
    origin = json.loads(record.read_text())
    assert (origin["selection"], origin["step"]) == ("best uar on train", 4)
    assert origin["score"] <= 1 and summary["selection"] == "best"

    left = Best(replace(other, validation_split="test"), record.parent, LABELS, {}).chosen()
    assert left["selection"] == "last", "one of another split is not taken for the best"


def test_a_run_leaves_folders_that_open_and_nothing_half_written(whole):
    output = Path(whole["output"])
    made = {"best", "checkpoints", "last", "model", "summary.json"}
    assert {p.name for p in output.iterdir()} == made
    assert json.loads((output / "summary.json").read_text()) == whole
    for name in ("best", "last", "model"):
        assert Predictor.load(output / name).config.labels == LABELS, "classes are the shards'"


def test_the_registered_model_is_the_one_that_was_selected(whole, uri, tmp_path):
    assert whole["model"] == "models:/stripes/1"
    fetched = fetch("models:/stripes@champion", uri=uri, into=tmp_path / "fetched")
    [inner] = (fetched / "artifacts").iterdir()
    assert same(inner, Path(whole["predictor"]))
    assert connect(uri).get_run(whole["run_id"]).info.status == "FINISHED"


def test_a_model_that_does_not_load_is_not_published(place, uri, whole):
    """A crash of the machine may leave a file of the right size and of zeros."""
    output = place / "crashed"
    shutil.copytree(whole["predictor"], output / "best")
    weights = output / "best/model.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))
    config = finetuning(place / "shards", output, uri)
    config = replace(config, tracking=replace(config.tracking, register="stripes"))
    handle = RunHandle(uri, whole["run_id"])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        job.publish(config, handle, output, {"predictor": str(output / "best")})
    assert resolve("models:/stripes@champion", uri=uri) == "models:/stripes/1"
    assert resolve("models:/stripes/latest", uri=uri) == "models:/stripes/1"


def test_a_damaged_record_of_the_best_step_is_named(place, whole, tmp_path):
    shutil.copytree(whole["predictor"], tmp_path / "best")
    (tmp_path / "best/provenance.json").write_text("")
    config = settle(finetuning(place / "shards", tmp_path, ""))
    best = Best(config, tmp_path / "best", LABELS, {})
    with pytest.raises(ValueError, match=r"best/provenance\.json is damaged.*remove"):
        best.score()


def test_the_best_step_survives_a_kill_between_two_renames(place, uri, whole):
    config = noisy(finetuning(place / "shards", place / "killed", uri, base_lr=0.5))
    run_until(5, job, config)
    (place / "killed/best").rename(place / "killed/.best.77.replaced")
    job.run(config)
    assert same(place / "killed/best", place / "whole/best")
    assert not list((place / "killed").glob(".best*"))


def test_an_interrupted_run_ends_with_the_same_bits_and_the_same_best(place, uri, whole):
    config = noisy(finetuning(place / "shards", place / "torn", uri, base_lr=0.5))
    run_until(5, job, config)
    assert (place / "torn/best").is_dir() and not (place / "torn/last").exists()
    summary = job.run(config)
    assert summary["resumed_from"] == 4
    assert summary["loss_last"] == whole["loss_last"]
    assert logged(summary, "train/loss") == logged(whole, "train/loss"), "one whole curve"
    for name in ("best", "last"):
        assert same(place / "torn" / name, place / "whole" / name)
        origins = [load_artifact(place / run / name).provenance for run in ("torn", "whole")]
        for field in ("step", "score", "selection"):
            assert origins[0][field] == origins[1][field]


def test_who_augments_may_change_when_a_run_goes_on(place, uri):
    """Trained on a CPU and continued on a GPU, for example: the same clips but for rounding."""
    summaries = {}
    for name in ("cpu", "device", "both"):
        config = finetuning(place / "shards", place / name, uri, base_lr=0.5, eval_every=0)
        moves = AugmentConfig(crop="none", flip=0.5, randaugment_ops=4, erase=0.5)
        data = replace(config.data, augment=moves, augment_on=name if name != "both" else "cpu")
        config = replace(config, data=data)
        if name == "both":
            run_until(5, job, config)
            config = replace(config, data=replace(data, augment_on="device"))
        summaries[name] = job.run(config)
    assert summaries["both"]["resumed_from"] == 4
    curves = {name: logged(summary, "train/loss") for name, summary in summaries.items()}
    assert curves["both"] == pytest.approx(curves["cpu"], rel=0.02)
    assert curves["device"] == pytest.approx(curves["cpu"], rel=0.02)
    assert curves["device"] != curves["cpu"], "else only one of them was asked"


def test_a_gpu_augments_unless_the_network_needs_flow():
    config = RECIPES["facesleuth"]()
    moves = AugmentConfig(randaugment_ops=2)
    config = replace(config, data=replace(config.data, augment=moves))
    without, with_gpu = (
        replace(config, cluster=replace(config.cluster, gpus_per_worker=gpus)) for gpus in (0, 1)
    )
    assert settle(without).data.augment_on == "cpu"
    assert settle(with_gpu).data.augment_on == "device"
    flow = replace(with_gpu, encoder=replace(config.encoder, motion="flow"))
    assert settle(flow).data.augment_on == "cpu"
    with pytest.raises(ValueError, match=r"flow.*data\.augment_on auto or cpu"):
        settle(replace(flow, data=replace(flow.data, augment_on="device")))


def test_balanced_classes_and_repeated_views_resume_exactly_and_are_part_of_the_run(place, uri):
    run = {"steps": 4, "eval_every": 0, "base_lr": 0.5}
    configs = []
    for name in ("straight2", "torn2"):
        config = finetuning(place / "shards", place / name, uri, **run)
        data = replace(config.data, balance=1.0, repeats=2)
        configs.append(noisy(replace(config, data=data)))
    straight = job.run(configs[0])
    run_until(3, job, configs[1])
    torn = job.run(configs[1])
    assert torn["resumed_from"] == 2 and torn["loss_last"] == straight["loss_last"]
    assert same(place / "torn2/last", place / "straight2/last")
    other = replace(configs[1], data=replace(configs[1].data, balance=0.5))
    with pytest.raises(ValueError, match=r"data\.balance was 1\.0, this run has 0\.5"):
        job.run(other)


def test_a_best_of_before_the_interruption_survives_worse_ones(place, uri):
    config = finetuning(place / "shards", place / "kept", uri, base_lr=0.5)
    run_until(3, job, config)
    origin = place / "kept/best/provenance.json"
    unbeatable = json.loads(origin.read_text()) | {"score": 2.0}
    origin.write_text(json.dumps(unbeatable))
    weights = (place / "kept/best/model.safetensors").read_bytes()
    summary = job.run(config)
    assert json.loads(origin.read_text()) == unbeatable
    assert (place / "kept/best/model.safetensors").read_bytes() == weights
    assert summary["selection"] == "best"


def test_a_run_from_the_beginning_does_not_keep_the_best_of_another(place, uri):
    """The network was changed and the checkpoints deleted, as the message for that advises."""
    config = finetuning(place / "shards", place / "stale", uri, steps=2)
    job.run(replace(config, encoder=replace(config.encoder, dim=48)))
    origin = place / "stale/best/provenance.json"
    origin.write_text(json.dumps(json.loads(origin.read_text()) | {"score": 2.0}))
    for path in sorted((place / "stale/checkpoints").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    summary = job.run(config)
    assert Predictor.load(summary["predictor"]).config.encoder.dim == 24
    assert json.loads(origin.read_text())["score"] <= 1.0


def test_a_pretrained_encoder_starts_it_and_is_reported(place, uri, whole, capsys, monkeypatch):
    monkeypatch.chdir(place)
    config = replace(finetuning(place / "shards", place / "init", uri), init="whole/last")
    task = job.build(config, LABELS, verbose=True)
    said = capsys.readouterr().out
    assert said.startswith("encoder from whole/last: ") and "tensors loaded" in said
    assert "4 new (fc_norm.weight, fc_norm.bias, head.weight, head.bias)" in said
    theirs = load_artifact(place / "whole/last").state_dict
    assert torch.equal(task.model.patch_embed.proj.weight, theirs["patch_embed.proj.weight"])
    job.run(config)
    kept = connect(uri).search_runs(
        [connect(uri).get_experiment_by_name("finetune").experiment_id],
        filter_string=f"params.`init` = '{place / 'whole/last'}'",
    )
    assert len(kept) == 1, "workers run in folders of their own: the path is made absolute"


def test_an_encoder_of_another_shape_is_refused_by_tensor_and_setting(place, uri, whole):
    config = finetuning(place / "shards", place / "shape", uri)
    config = replace(config, init=str(place / "whole/last"))
    config = replace(config, encoder=replace(config.encoder, dim=48))
    with pytest.raises(ValueError, match=r"patch_embed\.proj\.weight is \[24, .*dim of the enc"):
        job.run(config)
    assert {p.name for p in (place / "shape").iterdir()} <= {"checkpoints"}


def test_clips_without_a_label_do_not_count(place, uri, tmp_path, capsys):
    manifest = write_stripes(tmp_path / "shards", [4])
    manifest = unlabel(tmp_path / "shards", manifest, "s0_1")
    config = finetuning(tmp_path / "shards", tmp_path / "out", uri, steps=2)
    config = replace(config, data=replace(config.data, split=None), validation_split=None)
    job.run(config)
    assert "1 of these clips have no label and do not count" in capsys.readouterr().out
    with job.open_train(config, rank=0, world=1) as stream:
        batches = [
            batch
            for batch, _ in zip(job.Known(stream, config.outputs(LABELS)), range(2), strict=False)
        ]
    weights = {k: float(w) for b in batches for k, w in zip(b.keys, b.weights, strict=True)}
    assert weights == {"s0_0": 1.0, "s0_1": 0.0, "s0_2": 1.0, "s0_3": 1.0}


def unlabel(folder: Path, manifest, key: str):
    """The same folder with the label of one sample taken away."""
    tar = folder / manifest.shards[0].name
    with tarfile.open(tar) as old:
        members = [(m, old.extractfile(m).read()) for m in old.getmembers()]
    with tarfile.open(tar, "w") as new:
        for member, data in members:
            if member.name == f"{key}.json":
                data = json.dumps(json.loads(data) | {"label": None}).encode()
                member.size = len(data)
            new.addfile(member, io.BytesIO(data))
    facts = {"labels": manifest.labels, "clip": manifest.clip}
    return write_manifest(folder, [index_shard(tar)], created_by=manifest.created_by, **facts)


def test_a_damaged_validation_clip_is_written_down_too(tmp_path, uri):
    write_stripes(tmp_path / "shards", [9, 6], test_every=5)
    spoil(tmp_path / "shards", "s0_4")  # the first of the three of split test
    config = finetuning(tmp_path / "shards", tmp_path / "out", uri, steps=2)
    config = replace(config, data=replace(config.data, max_failed_share=0.4))
    summary = job.run(config)
    assert summary["metrics"]["test/unread"] == 1 and summary["metrics"]["test/clips"] == 2
    assert {line["key"] for line in ledger(tmp_path / "out")} == {"s0_4"}


@pytest.mark.parametrize("kind", ["registered", "public"])
def test_weights_that_lie_elsewhere_in_a_folder_start_it(kind, place, uri, whole):
    """Of a registered model in its artifacts, of Hugging Face's folders in pytorch_model.bin."""
    init, weights = "models:/stripes@champion", place / "whole/best/model.safetensors"
    if kind == "public":
        init, weights = str(place / "public"), place / "public/pytorch_model.bin"
        weights.parent.mkdir()
        torch.save(load_artifact(whole["predictor"]).state_dict, weights)
    config = finetuning(place / "shards", place / f"from_{kind}", uri, steps=1)
    job.run(replace(config, init=init))
    origin = load_artifact(place / f"from_{kind}/last").provenance
    assert origin["input.init.sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert job.run(replace(config, init=init))["resumed_from"] == 1

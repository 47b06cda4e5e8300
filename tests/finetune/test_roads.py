"""Every network from annotated shards to an answer: training, evaluation, the packaged model."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from finetune import evaluation, job
from finetune.evaluation import EvaluateConfig
from finetune.losses import LossesConfig
from finetune.outputs import HeadsConfig
from finetune.predictor import Predictor
from finetune.predictor_package import predict_videos
from finetune.predictor_pyfunc import ExpressionModel
from launch.cluster import ClusterConfig
from launch.store import connect
from launch.tracking import TrackingConfig
from mira.weights import load_artifact
from shards.stream import open_clips
from tests.finetune.annotated import UNITS, training, write_annotated
from tests.finetune.rendered import LABELS
from tests.runs import logged, rows


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("roads")
    write_annotated(folder / "shards", train=4, test=2)
    return folder


@pytest.fixture(scope="module")
def video(place) -> str:
    """The clip of one sample as a file."""
    tar, row = rows(place / "shards")["c001"]
    with tar.open("rb") as file:
        file.seek(row.offset)
        (place / "clip.mp4").write_bytes(file.read(row.size))
    return str(place / "clip.mp4")


def measuring(place: Path, model: str, name: str, **changes) -> EvaluateConfig:
    config = EvaluateConfig(
        model=model,
        shards=(str(place / "shards"),),
        batch=2,
        loader_workers=0,
        cluster=ClusterConfig(workers=0, output=str(place / name)),
        tracking=TrackingConfig(uri=f"sqlite:///{place / 'mlflow.db'}", experiment="evaluate"),
    )
    return replace(config, **changes)


def changed(config, *, encoder=None, **values):
    return replace(config, encoder=replace(config.encoder, **(encoder or {})), **values)


VARIANTS = {
    "hsta": ("hsta_debug", {"encoder": {"attention": "mira_flashlite"}}),
    "hsta_flow": ("hsta_debug", {"encoder": {"special_frames": 1, "special_channels": 2}}),
    "facesleuth": ("facesleuth_debug", {"heads": HeadsConfig(units=UNITS, affect=True)}),
    "facesleuth_predicted": (
        "facesleuth_debug",
        {"encoder": {"motion": "flow", "action_units": "predicted", "units": UNITS}},
    ),
    "orientation": (
        "debug",
        {"heads": HeadsConfig(soa=True, units=UNITS), "losses": LossesConfig(votes=True)},
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_training_evaluation_and_prediction_agree(name, place, video):
    recipe, values = VARIANTS[name]
    config = changed(training(recipe, place / "shards", place / name), **values)
    summary = job.run(config)
    assert summary["skipped_steps"] == 0
    measured = evaluation.run(measuring(place, summary["predictor"], f"{name}_measured"))
    figures = {k: v for k, v in measured.items() if f"test/{k}" in summary["metrics"]}
    assert {"war", "uar", "clips"} <= set(figures)
    for key, value in figures.items():
        assert value == pytest.approx(summary["metrics"][f"test/{key}"], abs=1e-6), key
    predictor = Predictor.load(summary["predictor"], device="cpu")
    [answer] = predictor.predict([video], pictures=True)
    assert answer.reason is None and answer.label in LABELS
    assert answer.picture.startswith(b"\x89PNG")
    looks = predictor.config.encoder
    assert len(answer.times) == len(answer.importance) == min(looks.frames, 12)
    assert sum(answer.importance) == pytest.approx(1 if looks.frames else 0, abs=1e-5)
    assert answer.apex_source == ("spotted" if looks.pair else None)
    assert set(answer.units or {}) == set(predictor.config.units)
    assert (answer.valence is None) == (not predictor.config.affect)


@pytest.mark.parametrize("name", ["hsta", "facesleuth"])
def test_the_packaged_model_answers_in_a_process_of_its_own(name, place, video):
    packed = place / name / "model"
    assert packed.is_dir(), "the test before this one trained it"
    [alone] = predict_videos(packed, [video], marks=(0.0, 0.2), pictures=True)
    [here] = Predictor.load(packed, device="cpu").predict([video], marks=(0.0, 0.2))
    assert alone.probabilities == pytest.approx(here.probabilities, abs=1e-5)
    assert (alone.onset, alone.apex, alone.apex_source) == (0.0, 0.2, "given")
    assert alone.valence == pytest.approx(here.valence, abs=1e-5)
    assert alone.units == pytest.approx(here.units or None, abs=1e-5)
    [spotted] = Predictor.load(packed, device="cpu").predict([video])
    assert spotted.onset == 0.0 and 0 < spotted.apex < 12 / 25
    entry = ExpressionModel()
    entry.load_context(SimpleNamespace(artifacts={"predictor": str(packed)}))
    table = pd.DataFrame({"video": [video] * 2, "onset": [0.0, None], "apex": [0.2, None]})
    by_row = [(a["apex"], a["apex_source"]) for a in entry.predict(None, table)]
    assert by_row == [(0.2, "given"), (spotted.apex, "spotted")]
    [outside] = Predictor.load(packed, device="cpu").predict([video], marks=(0.2, 9.0))
    assert "apex is at 9 s, the video has" in outside.reason and "spotted" in outside.action
    [turned] = Predictor.load(packed, device="cpu").predict([video], marks=(0.2, 0.1))
    assert "onset is frame 5" in turned.reason and "spotted" in turned.action


@pytest.mark.parametrize("name", ["hsta_flow", "facesleuth"])
def test_the_predictor_sees_the_pixels_of_the_evaluation_loader(name, place):
    """Of the clip's own marks, on the frames that the loader decodes."""
    import decord

    predictor = Predictor.load(place / name / "last", device="cpu")
    config = measuring(place, "", "unused", split=None)
    with open_clips(
        evaluation.data_of(config, predictor, streams=1),
        global_batch=1, micro_batch=1, rank=0, world=1, train=False, ledger=None,
    ) as stream:  # fmt: skip
        batch = next(iter(stream))
    tar, row = rows(place / "shards")[batch.keys[0]]
    with tar.open("rb") as file:
        file.seek(row.offset)
        (place / "seen.mp4").write_bytes(file.read(row.size))
    frames = decord.VideoReader(str(place / "seen.mp4"))[:].asnumpy()
    marks = (row.record.onset, row.record.apex, "given")
    views = predictor.views(frames, marks)
    seen = torch.from_numpy(views.pixels).permute(0, 4, 1, 2, 3)
    assert torch.equal(seen, batch.pixels)
    from finetune.task import ClassifyTask

    task = ClassifyTask(
        predictor.model, training("debug", place, place).mixing, outputs=predictor.config.outputs
    )
    with torch.no_grad():
        torch.testing.assert_close(
            task.eval().predict(batch)[0], predictor.explain(views.pixels)[0]
        )


def test_annotated_units_as_an_input_are_stamped_everywhere(place, video):
    config = changed(
        training("facesleuth_debug", place / "shards", place / "oracle"),
        encoder={"action_units": "oracle", "units": UNITS},
    )
    config = replace(config, tracking=replace(config.tracking, register="told"))
    summary = job.run(config)
    told = ["onset and apex", "action_units"]
    assert load_artifact(summary["predictor"]).provenance["privileged"] == told
    found = evaluation.run(measuring(place, "models:/told@champion", "oracle_measured"))
    written = json.loads((place / "oracle_measured/metrics.json").read_text())
    assert found["privileged"] == written["privileged"] == told
    version = connect(summary["tracking_uri"]).get_model_version("told", "1")
    assert version.tags["privileged"] == "onset and apex, action_units"
    picked = load_artifact(summary["predictor"]).provenance["selection"]
    assert version.tags["selection"] == found["selection"] == written["selection"] == picked
    [answer] = Predictor.load(summary["predictor"], device="cpu").predict([video])
    assert "takes action_units as an input, which no video shows" in answer.reason
    for name, given in (("hsta", ["onset and apex"]), ("orientation", [])):
        assert load_artifact(place / name / "last").provenance["privileged"] == given
        measured = json.loads((place / f"{name}_measured/metrics.json").read_text())
        assert measured["privileged"] == given


def test_units_and_affect_are_learnt_without_labels(place):
    shards = place / "unlabelled"
    write_annotated(shards, train=3, test=2, label=None)
    config = training("debug", shards, place / "affect")
    heads = HeadsConfig(labels=False, units=UNITS, affect=True)
    summary = job.run(replace(config, heads=heads))
    origin = load_artifact(summary["predictor"]).provenance
    assert origin["selection"] == "best units/f1 on test"
    assert {"test/units/f1", "test/affect/ccc", "test/clips"} <= set(summary["metrics"])
    assert "test/war" not in summary["metrics"] and summary["metrics"]["test/clips"] == 4
    found = evaluation.run(
        measuring(place, summary["predictor"], "affect_measured", shards=(str(shards),))
    )
    assert found["leaks"] == ["the step was selected on these clips (best units/f1 on test)"]
    with (place / "affect_measured/predictions.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 4 and "label" not in table[0] and "prediction" not in table[0]
    assert {row["true valence"] for row in table} == {"0.8", "0.1"}
    assert all(0 < float(row[f"unit {u}"]) < 1 for row in table for u in UNITS)
    assert "confusion" not in json.loads((place / "affect_measured/metrics.json").read_text())


def test_clips_without_anything_to_learn_are_refused(place):
    bare = {"action_units": (), "valence": None, "arousal": None}
    write_annotated(place / "bare", train=2, test=1, **bare)
    config = training("debug", place / "bare", place / "bare_out", steps=1)
    config = replace(config, heads=HeadsConfig(labels=False, units=UNITS), validation_split=None)
    with pytest.raises(ValueError, match="none of the 4 clips .* has action units or affect"):
        job.run(config)


def test_a_validation_that_cannot_pick_a_step_is_refused_before_anything_starts(place, tmp_path):
    """The clips of split test are known by the other folder alone, which training has."""
    bare = {"action_units": (), "valence": None, "arousal": None}
    write_annotated(tmp_path / "bare", train=0, test=1, label=None, dataset="other", **bare)
    write_annotated(tmp_path / "shards", train=2, test=0)
    config = training("debug", tmp_path / "shards", tmp_path / "out", steps=1)
    data = replace(config.data, shards=(str(tmp_path / "shards"), str(tmp_path / "bare")))
    config = replace(config, data=data)
    units, affect = HeadsConfig(labels=False, units=UNITS), HeadsConfig(labels=False, affect=True)
    for heads, by in ((HeadsConfig(), "uar"), (units, "units/f1"), (affect, "affect/ccc")):
        with pytest.raises(ValueError, match=f"none of the 2 clips of validation_split .*{by}"):
            job.run(replace(config, heads=heads))
    assert not (tmp_path / "out/checkpoints").exists()
    job.run(replace(config, heads=units, validation_split=None))


def test_a_validation_without_any_of_the_asked_units_picks_a_step(place, tmp_path):
    write_annotated(tmp_path / "shards", train=2, test=1)
    config = training("debug", tmp_path / "shards", tmp_path / "out", steps=1, eval_every=1)
    summary = job.run(replace(config, heads=HeadsConfig(labels=False, units=("45",))))
    assert summary["metrics"]["test/units/f1"] == 0.0 and summary["selection"] == "best"


def test_clips_of_which_nothing_is_known_do_not_count(place, tmp_path):
    """The clips of one of two folders have no action units."""
    write_annotated(tmp_path / "shards", train=1, test=0)
    write_annotated(tmp_path / "bare", train=2, test=0, action_units=(), dataset="other")
    config = training("debug", tmp_path / "shards", tmp_path / "out")
    data = replace(config.data, shards=(str(tmp_path / "shards"), str(tmp_path / "bare")))
    config = replace(config, heads=HeadsConfig(labels=False, units=UNITS), data=data)
    with job.open_train(config, rank=0, world=1) as stream:
        job.check_labelled(config, stream)
        known = job.Known(stream, config.outputs(()))
        batches = [batch for batch, _ in zip(known, range(8), strict=False)]
    weights = torch.cat([batch.weights for batch in batches])
    units = torch.cat([batch.extra["units"] for batch in batches])
    assert torch.equal(weights > 0, ~units.isnan().all(1))
    assert 0 < weights.sum() < len(weights), "clips of both folders came"


def test_an_adversary_is_trained_and_not_saved(place):
    config = training("hsta_debug", place / "shards", place / "adverse")
    config = replace(config, identity=replace(config.identity, weight=1.0))
    summary = job.run(config)
    assert set(logged(summary, "train/loss_identity")) == {1, 2, 3, 4}
    saved = load_artifact(summary["predictor"]).state_dict
    assert not [name for name in saved if "identity" in name]
    Predictor.load(summary["predictor"], device="cpu")
    unknown = place / "nobody"
    write_annotated(unknown, train=2, test=1, subject_id=None)
    config = replace(config, data=replace(config.data, shards=(str(unknown),)))
    with pytest.raises(ValueError, match="two known subjects, found 0"):
        job.run(config)


def test_the_direction_of_every_layer_is_logged(place):
    config = training("facesleuth_debug", place / "shards", place / "theta", base_lr=1.0)
    summary = job.run(config)
    for stage in range(3):
        curve = logged(summary, f"train/theta/motion.{stage}.soa")
        assert len(curve) == 4 and curve[1] == pytest.approx(torch.pi / 4)
        assert curve[4] != curve[1] and 0 <= curve[4] < torch.pi


def test_a_split_file_replaces_the_stored_splits(place):
    keys = list(rows(place / "shards"))
    lines = [
        "dataset,key,split",
        *(f",{key},{'val' if i < 3 else 'train'}" for i, key in enumerate(keys[:9])),
    ]
    (place / "fold.csv").write_text("\n".join(lines) + "\n")
    config = training("facesleuth_debug", place / "shards", place / "fold")
    data = replace(config.data, splits=str(place / "fold.csv"))
    summary = job.run(replace(config, data=data, validation_split="val"))
    assert summary["metrics"]["val/clips"] == 3
    asked = {"split": "val", "splits": str(place / "fold.csv")}
    found = evaluation.run(measuring(place, summary["predictor"], "fold_measured", **asked))
    assert found["clips"] == 3
    with (place / "fold_measured/predictions.csv").open(newline="") as file:
        assert [row["key"] for row in csv.DictReader(file)] == keys[:3]

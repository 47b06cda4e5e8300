"""The evaluation of a toy: figures and files, clips that cannot be read or have no label."""

import csv
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from finetune import evaluation, job
from finetune.evaluation import EvaluateConfig, in_words
from finetune.metrics import figures
from finetune.predictor import Predictor
from launch.cluster import ClusterConfig
from launch.fetching import fetch
from launch.store import connect
from launch.tracking import TrackingConfig
from mira.tubelets import normalise
from shards.stream import ClipStream, TooManyFailures, open_clips
from tests.runs import (
    finetuning,
    ledger,
    logged,
    looks_at_files,
    rows,
    spoil,
    stripes,
    tree,
    write_stripes,
)
from tests.shards.make import LABELS, record, write_samples

TEST_KEYS = ["s0_2", "s0_5", "s1_1", "s1_4", "s1_7"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    write_stripes(folder / "shards", [7, 8], test_every=3)
    return folder


@pytest.fixture(scope="module")
def uri(place) -> str:
    return f"sqlite:///{place / 'mlflow.db'}"


@pytest.fixture(scope="module")
def model(place, uri) -> str:
    """A registered classifier, after too few steps to be always right."""
    config = finetuning(place / "shards", place / "trained", uri, steps=4, base_lr=0.3)
    job.run(replace(config, tracking=replace(config.tracking, register="stripes")))
    return "models:/stripes@champion"


def measuring(model: str, shards: Path, output: Path, uri: str, **changes) -> EvaluateConfig:
    config = EvaluateConfig(
        model=model,
        shards=(str(shards),),
        batch=2,
        loader_workers=0,
        cluster=ClusterConfig(workers=0, output=str(output)),
        tracking=TrackingConfig(uri=uri, experiment="evaluate"),
    )
    return replace(config, **changes)


@pytest.fixture(scope="module")
def result(model, place, uri):
    return evaluation.run(measuring(model, place / "shards", place / "measured", uri))


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_clip_of_the_split_has_one_row(result, place):
    found = table(place / "measured")
    assert [row["key"] for row in found] == TEST_KEYS
    assert list(found[0])[:2] == ["dataset", "key"]
    truth = {key: row.record.label for key, (_, row) in rows(place / "shards").items()}
    assert all(row["label"] == truth[row["key"]] for row in found)
    for row in found:
        shares = {label: float(row[label]) for label in LABELS}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert row["prediction"] == max(shares, key=shares.__getitem__)


def test_the_figures_are_those_of_the_table(result, place):
    confusion = torch.zeros(2, 2)
    for row in table(place / "measured"):
        confusion[LABELS.index(row["label"]), LABELS.index(row["prediction"])] += 1
    written = json.loads((place / "measured/metrics.json").read_text())
    assert written["confusion"] == confusion.tolist()
    assert written["labels"] == list(LABELS)
    for name, value in figures(confusion, LABELS).items():
        assert written[name] == result[name] == pytest.approx(value)
    assert (written["clips"], written["unread"], written["unlabelled"]) == (5, 0, 0)


def test_probabilities_are_the_predictor_s_own(result, place, uri, tmp_path):
    model = fetch("models:/stripes@champion", uri=uri, into=tmp_path / "model")
    predictor = Predictor.load(model, device="cpu")
    config = measuring("", place / "shards", place, "")
    with open_clips(
        evaluation.data_of(config, predictor, streams=1),
        global_batch=5,
        micro_batch=5,
        rank=0,
        world=1,
        train=False,
        ledger=None,
    ) as stream:
        [batch] = list(stream)
    with torch.no_grad():
        shares = predictor.model(normalise(batch.pixels)).softmax(1)
    found = {row["key"]: float(row[LABELS[1]]) for row in table(place / "measured")}
    expected = dict(zip(batch.keys, shares[:, 1].tolist(), strict=True))
    assert found == pytest.approx(expected, abs=1e-5)


def test_it_is_recorded_and_leaves_nothing_half_written(result, place, uri):
    assert logged(result, "test/uar") == {0: result["uar"]}
    [weights] = (place / "measured/.fetched").rglob("model.safetensors")
    tags = connect(uri).get_run(result["run_id"]).data.tags
    assert tags["input.model.sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    paths = [a.path for a in connect(uri).list_artifacts(result["run_id"])]
    assert {"predictions.csv", "pictures", "config.json"} <= set(paths)
    left = {p.name for p in (place / "measured").iterdir()}
    assert left == {".fetched", "metrics.json", "predictions.csv", "summary.json"}


def test_a_local_folder_gives_the_same_figures_as_the_registry(result, place, uri, monkeypatch):
    monkeypatch.chdir(place)
    local = measuring("trained/best", Path("shards"), Path("local"), uri)
    found = evaluation.run(local)
    assert {k: found[k] for k in ("war", "uar", "f1")} == {
        k: result[k] for k in ("war", "uar", "f1")
    }
    assert table(place / "local") == table(place / "measured")


def test_all_splits_are_measured_together(model, place, uri):
    found = evaluation.run(
        measuring(model, place / "shards", place / "all", uri, split=None, batch=4)
    )
    assert found["clips"] == 15
    assert len(table(place / "all")) == 15


@pytest.fixture()
def damaged(tmp_path) -> Path:
    write_stripes(tmp_path / "shards", [7, 8], test_every=3)
    spoil(tmp_path / "shards", "s0_5")
    return tmp_path / "shards"


def test_files_are_looked_at_once_by_the_driver_alone(model, place, uri, tmp_path, monkeypatch):
    looks = looks_at_files(monkeypatch)
    evaluation.run(measuring(model, place / "shards", tmp_path / "out", uri))
    assert looks == [place / "shards"]


def test_a_damaged_clip_is_told_and_not_counted(model, damaged, tmp_path, uri):
    config = measuring(model, damaged, tmp_path / "out", uri, max_failed_share=0.2)
    found = evaluation.run(config)
    assert (found["clips"], found["unread"], found["coverage"]) == (4, 1, 0.8)
    assert [row["key"] for row in table(tmp_path / "out")] == [k for k in TEST_KEYS if k != "s0_5"]
    [line] = ledger(tmp_path / "out")
    assert (line["key"], line["shard"]) == ("s0_5", str(damaged / "shard-000000.tar"))
    assert "crc32" in line["reason"]
    paths = [a.path for a in connect(uri).list_artifacts(found["run_id"])]
    assert "ledger.jsonl" in paths


def test_videos_that_ingest_rejected_lower_the_coverage(model, place, tmp_path, uri, capsys):
    shards = shutil.copytree(place / "shards", tmp_path / "shards")
    entry = json.loads((shards / "manifest.json").read_text())
    entry["rejected"] = {"": 7, "test": 5, "train": 9}
    (shards / "manifest.json").write_text(json.dumps(entry))
    found = evaluation.run(measuring(model, shards, tmp_path / "out", uri))
    assert (found["clips"], found["rejected"], found["coverage"]) == (5, 5, 0.5)
    assert "(50.0% answered, 5 videos rejected by ingest included)" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/metrics.json").read_text())["coverage"] == 0.5


def test_figures_on_the_clips_that_picked_the_step_say_so(result, place, tmp_path, uri, capsys):
    """These weights are the best step on split test."""
    leak = f"the step was selected on these clips ({result['selection']})"
    assert result["selection"].endswith("on test") and result["leaks"] == [leak]
    found = evaluation.run(
        measuring(str(place / "trained/last"), place / "shards", tmp_path / "out", uri)
    )
    assert (found["selection"], found["leaks"]) == ("last", [])
    assert "LEAKS" not in capsys.readouterr().out
    assert "LEAKS: the step" in "; ".join(in_words(result))


@pytest.mark.parametrize("split", ["train", None])
def test_figures_on_clips_that_were_trained_on_say_so(place, tmp_path, uri, capsys, split):
    asked = measuring(str(place / "trained/last"), place / "shards", tmp_path / "out", uri)
    found = evaluation.run(replace(asked, split=split))
    assert found["leaks"] == ["some of these clips were trained on"]
    assert "LEAKS: some of these clips were trained on" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/metrics.json").read_text())["leaks"] == found["leaks"]


def test_clips_that_annotations_cut_are_privileged(model, tmp_path, uri):
    """Onset is the first frame and offset the last, as adapters of micro-expressions store them."""
    facts = [{"onset": 0, "offset": 19}, {"onset": 0, "offset": 19}, {"onset": 3, "offset": 19}]
    samples = [
        (record(f"c{i}", label=LABELS[i % 2], split="test", apex=9, **known), stripes(i % 2, i))
        for i, known in enumerate(facts)
    ]
    write_samples(tmp_path / "shards", [samples])
    found = evaluation.run(measuring(model, tmp_path / "shards", tmp_path / "out", uri))
    assert found["cut_at_marks"] == pytest.approx(2 / 3)
    assert found["privileged"] == ["where each clip begins and ends"]


@pytest.mark.parametrize("alone", [True, False])
def test_too_many_damaged_clips_give_no_figures(model, damaged, tmp_path, uri, monkeypatch, alone):
    if not alone:  # of several ranks, each lets pass what is not its share
        monkeypatch.setattr(ClipStream, "_tolerated", lambda _: 9)
    with pytest.raises(TooManyFailures, match=r"1 of 5 samples .*ledger\.jsonl"):
        evaluation.run(measuring(model, damaged, tmp_path / "out", uri))
    assert {p for p in tree(tmp_path / "out") if ".fetched" not in p} == {"ledger.jsonl"}


def test_labels_in_another_order_are_refused(model, tmp_path, uri):
    write_stripes(tmp_path / "shards", [6], test_every=3, labels=LABELS[::-1])
    with pytest.raises(ValueError, match="labels glad, calm, the model was trained on calm, glad"):
        evaluation.run(measuring(model, tmp_path / "shards", tmp_path / "out", uri))
    assert not (tmp_path / "out/metrics.json").exists()

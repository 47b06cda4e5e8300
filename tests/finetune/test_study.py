"""Studies of a toy: what they leave, what is run again, what is refused, what every result says."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from finetune import job as finetuning_job
from finetune.losses import LossesConfig
from finetune.models import build
from finetune.outputs import HeadsConfig, Outputs
from finetune.protocols import ProtocolConfig
from finetune.study import driver, room, table
from finetune.study.config import StudyConfig
from finetune.study.fold import Stamp, finished, rule_of, spent_before
from finetune.study.folder import fold_config
from finetune.study.folds import Refused
from finetune.study.leaks import check_weights
from finetune.study.page import Section, markdown, page
from finetune.study.report import Study, results_of
from finetune.study.sections import sections
from launch.parallel import Job
from launch.provenance import provenance
from launch.store import connect
from launch.tracking import RunHandle
from shards.__main__ import main as ingest_or_render
from shards.ledger import Failure, Ledger
from shards.manifest import Manifest
from shards.stream import TooManyFailures
from tests.finetune.test_leaks import folder
from tests.runs import ROOT, finetuning, run_until, spoil, stripes


def stripy(
    place: Path, *, people: int = 3, labels=("calm", "glad"), dataset: str = "", **facts
) -> Manifest:
    """Two clips of each of two labels of every person, no two alike; `facts` of every record."""
    samples = [
        (
            f"c{4 * s + i}",
            {"label": labels[i % 2], "subject_id": f"p{s}", "dataset": dataset, **facts},
            stripes(i % 2, 4 * s + i + 100 * len(dataset)),
        )
        for s in range(people)
        for i in range(4)
    ]
    return folder(place, samples)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("study")
    stripy(made / "shards")
    return made


@pytest.fixture(scope="module")
def uri(place) -> str:
    return f"sqlite:///{place / 'mlflow.db'}"


def config_of(shards: Path, out: Path, uri: str, *, run=None, plan=None, **more) -> StudyConfig:
    theirs = finetuning(shards, out, uri, **{"steps": 2, "base_lr": 0.5} | (run or {}))
    theirs = replace(theirs, validation_split="val")
    return StudyConfig(theirs, ProtocolConfig(**(plan or {})), out=str(out), **more)


CODE = {"source.sha256": "c" * 64}  # also where somebody works on the code meanwhile


@contextmanager
def here(*, failing: str | None = None):
    """Folds run in this process, one after the other; returns the names of those that are run."""
    ran: list[str] = []

    def run_all(body, jobs, cluster, *, retries, at_once, watch):
        for job in jobs:
            if job.status == "waiting":
                ran.append(job.name)
                if job.name == failing:
                    job.status, job.reason = "failed", "ValueError: no face"
                else:
                    job.status, job.attempts, job.result = "done", 1, body(job.payload)
                watch(jobs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "run_all", run_all)
        patch.setattr(driver, "provenance", lambda **of: provenance(**of) | CODE)
        yield ran


@pytest.fixture(scope="module")
def done(place, uri):
    """A finished study of three people."""
    config = config_of(place / "shards", place / "done", uri)
    with here() as ran:
        results = driver.run(config)
    assert ran == ["p0", "p1", "p2"]
    return config, results


def copy_of(done, tmp_path) -> StudyConfig:
    """The finished study in a folder of its own."""
    shutil.copytree(done[0].out, tmp_path / "copy")
    return replace(done[0], out=str(tmp_path / "copy"))


def split_files(config: StudyConfig) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in Path(config.out).rglob("split.csv")}


def study_of(done, **changes) -> Study:
    """What the report of the finished study reads."""
    config, results = done
    made, _ = driver.prepare(config)
    folds = [finished(Path(config.out, "folds", fold.name)) for fold in made.folds]
    splits = {fold["fold"]: fold["splits"] for fold in folds}
    study = Study(made, folds, splits, results["origin"], Path(config.out), seed=0)
    return replace(study, **changes)


# --- what a study leaves ----------------------------------------------------------------------


def test_results_are_stamped_and_pool_what_the_folds_answered(done):
    config, results = done
    out = Path(config.out)
    assert json.loads((out / "results.json").read_text()) == results
    assert [one["stamp"]["selection"] for one in results["pooled"]] == [
        *("best on validation", "last")
    ]
    first = results["pooled"][0]
    assert (first["clips"], first["coverage"], first["by"], first["units"]) == (
        12,
        1.0,
        "subject",
        3,
    )
    rows = [row for row in results["folds"] if row["stamp"]["selection"] == "best on validation"]
    right = sum(row["war"] * row["clips"] for row in rows)
    assert first["war"] == pytest.approx(right / 12)
    assert [row["fold"] for row in rows] == ["p0", "p1", "p2"]
    for row in results["folds"]:
        stamp = row["stamp"]
        assert (stamp["protocol"], stamp["fold"], stamp["seed"]) == ("loso", row["fold"], 0)
        assert stamp["privileged"] == [] and len(stamp["code"]) == len(stamp["splits"]) == 64
        measured = finished(out / "folds" / row["fold"])["results"]
        (own,) = [m for m in measured if m["stamp"] == {**stamp, "privileged": []}]
        assert (own["war"], own["uar"]) == pytest.approx((row["war"], row["uar"]))
    assert results["subjects"] and sum(row["clips"] for row in results["subjects"]) == 12


def test_a_fold_is_trained_on_its_split_alone(done):
    config, _ = done
    fold = Path(config.out, "folds", "p1")
    table = (fold / "split.csv").read_text().splitlines()
    assert table[0] == "dataset,key,split" and len(table) == 13
    tested = {row.split(",")[1] for row in table if row.endswith("test")}
    assert tested == {"c4", "c5", "c6", "c7"}
    answered = (fold / "test-best/predictions.csv").read_text().splitlines()[1:]
    assert {row.split(",")[1] for row in answered} == tested
    origin = json.loads((fold / "run/best/provenance.json").read_text())
    assert origin["selection"] == "best uar on val"


def test_pages_say_figures_selection_and_origin(done):
    config, results = done
    text = Path(config.out, "results.md").read_text()
    html = Path(config.out, "results.html").read_text()
    first = results["pooled"][0]
    figure = f"{100 * first['uf1']:.1f} [{100 * first['interval']['uf1'][0]:.1f},"
    assert first["mean_over_folds"] is None, "that of LOSO means nothing"
    for written in (html, text):
        assert figure in written and "Mean over folds" not in written
        for needed in ("best on validation", "loso, 3 folds", "privileged inputs", "none", "p2"):
            assert needed in written
        assert first["stamp"]["code"] in written and first["stamp"]["splits"] in written
    assert html.count("data:image/png;base64,") == 1 and "<script" not in html


def test_folds_are_child_runs_and_the_pages_are_the_parents(done, uri):
    config, results = done
    client = connect(uri)
    handle = json.loads(Path(config.out, "mlflow_run.json").read_text())
    parent = client.get_run(handle["run_id"])
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["pooled/uf1"] == results["pooled"][0]["uf1"]
    assert parent.data.tags["stamp"] == "best on validation"
    kept = {file.path for file in client.list_artifacts(handle["run_id"])}
    assert {"results.html", "results.md", "results.json", "confusion.png"} <= kept
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{handle['run_id']}'"
    )
    names = {run.info.run_name for run in children}
    assert {"done p0", "done p1", "done p2", "done p0 test-best"} <= names and len(children) == 9


def test_folds_of_different_seeds_are_told_and_the_bootstrap_has_its_own(done):
    study = study_of(done)
    assert results_of(study)["pooled"] == done[1]["pooled"]
    varied = json.loads(json.dumps(study.folds))
    for seed, fold in enumerate(varied):
        for row in fold["results"]:
            row["stamp"]["seed"] = seed
    results = results_of(replace(study, folds=varied))
    assert results["pooled"][0]["stamp"]["seed"] == "0 … 2"
    assert results["pooled"][0]["interval"] == done[1]["pooled"][0]["interval"]
    assert sorted({row["stamp"]["seed"] for row in results["folds"]}) == [0, 1, 2]
    assert "| seed | 0 … 2 |" in markdown("t", sections(results))


def test_the_bootstrap_keeps_known_subjects_whole_where_others_are_not_known(done):
    study = study_of(done)
    first, *rest = study.made.folds
    unknown = replace(first.test[0], subject=None)
    first = replace(first, test=(unknown, *first.test[1:]))
    rest = [
        replace(fold, train=tuple(unknown if c.id == unknown.id else c for c in fold.train))
        for fold in rest
    ]
    made = replace(study.made, folds=(first, *rest))
    results = results_of(replace(study, made=made))
    pooled = results["pooled"][0]
    assert (pooled["by"], pooled["units"]) == ("subject where known, else clip", 4)
    text = markdown("t", sections(results))
    assert "bootstrap samples of 4 groups, by subject where known, else clip." in text
    assert results["protocol"]["validation_by"] == ["subject"]


def test_clips_that_a_ledger_names_do_not_fail_the_test_of_a_small_fold(tmp_path, uri):
    manifest = stripy(tmp_path / "shards", people=2)
    spoil(tmp_path / "shards", "c5")
    config = config_of(tmp_path / "shards", tmp_path / "out", uri, run={"steps": 1})
    config = replace(config, select_last=True)
    known = tmp_path / "known.jsonl"
    Ledger(known).add(Failure("shard", "c5", "torn", 0, sha256=manifest.shards[0].sha256))
    with here(), pytest.raises(TooManyFailures, match="c5 in "):
        driver.run(config)
    data = replace(config.finetune.data, skip=(str(known),))
    with here():
        results = driver.run(replace(config, finetune=replace(config.finetune, data=data)))
    first = results["pooled"][0]
    assert (first["clips"], first["answered"]) == (8, 7)


def test_a_fold_without_a_readable_clip_is_told_and_the_study_ends(tmp_path, uri):
    """All of one person is torn: the ledger names it, and the others have their figures."""
    manifest = stripy(tmp_path / "shards", people=3)
    config = config_of(tmp_path / "shards", tmp_path / "out", uri, run={"steps": 1})
    config = replace(config, select_last=True)
    made, _ = driver.prepare(config)
    known = tmp_path / "known.jsonl"
    for clip in made.folds[1].test:
        spoil(tmp_path / "shards", clip.key)
        torn = Failure("shard", clip.key, "torn", 0, sha256=manifest.shards[0].sha256)
        Ledger(known).add(torn)
    data = replace(config.finetune.data, skip=(str(known),))
    config = replace(config, finetune=replace(config.finetune, data=data))
    with here():
        results = driver.run(config)
    first, torn = results["pooled"][0], results["folds"][1]
    assert (first["clips"], first["answered"]) == (12, 8)
    assert (torn["answered"], torn["clips"]) == (0, 4) and "uf1" not in torn
    text = markdown("t", sections(results))
    assert "| – | – | – | 0 of 4 |" in text
    with here() as ran:
        assert driver.run(config)["pooled"] == results["pooled"] and ran == []


def test_a_study_of_a_network_that_tells_more_than_classes_has_no_other_classes(tmp_path, uri):
    facts = {"action_units": ("4",), "valence": 0.5, "arousal": 0.1}
    stripy(tmp_path / "shards", people=2, **facts)
    config = config_of(tmp_path / "shards", tmp_path / "out", uri, run={"steps": 1})
    heads = HeadsConfig(units=("4", "12"), affect=True)
    config = replace(config, finetune=replace(config.finetune, heads=heads), select_last=True)
    with here():
        results = driver.run(config)
    [pooled] = results["pooled"]
    assert pooled["labels"] == ["calm", "glad"] and len(pooled["confusion"]) == 2
    assert set(pooled["recall"]) == {"calm", "glad"}
    text = (tmp_path / "out/results.md").read_text()
    assert "unit 4" not in text and "valence" not in text


# --- what is run again ------------------------------------------------------------------------


def test_a_finished_study_runs_nothing_again_and_says_the_same(done, tmp_path):
    config = copy_of(done, tmp_path)
    changing_no_result = {"log_every": 7, "save_every": 9, "peak_tflops": 1.0}
    run = replace(config.finetune.run, **changing_no_result)
    config = replace(config, finetune=replace(config.finetune, run=run))
    with here() as ran:
        again = driver.run(config)
    assert ran == [] and again["pooled"] == done[1]["pooled"] and again["folds"] == done[1]["folds"]


def test_a_failed_fold_leaves_the_others_and_the_same_command_goes_on(place, uri, tmp_path):
    config = config_of(place / "shards", tmp_path / "out", uri, run={"eval_every": 0, "steps": 1})
    with here(failing="p1") as ran, pytest.raises(driver.StudyFailed) as no:
        driver.run(replace(config, select_last=True))
    assert ran == ["p0", "p1", "p2"]
    told = str(no.value)
    assert "1 of 3 folds failed" in told and "p1: ValueError: no face" in told
    assert str(tmp_path / "out/folds/p1/log.txt") in told
    assert not (tmp_path / "out/results.json").exists()
    with here() as ran:
        results = driver.run(replace(config, select_last=True))
    assert ran == ["p1"]
    (only,) = results["pooled"]
    assert only["stamp"]["selection"] == "last" and only["clips"] == 12
    assert results["protocol"]["validation_by"] == []


def test_a_half_finished_fold_goes_on_from_its_checkpoint(done, tmp_path, uri):
    config = copy_of(done, tmp_path)
    fold = tmp_path / "copy/folds/p0"
    (fold / "result.json").unlink()
    shutil.rmtree(fold / "run")
    made, _ = driver.prepare(config)
    handle = RunHandle(**json.loads((tmp_path / "copy/mlflow_run.json").read_text()))
    config = replace(config, finetune=replace(config.finetune, run=replace(
        config.finetune.run, save_every=1)))  # fmt: skip
    known = json.loads((tmp_path / "copy/study.json").read_text())
    known["config"]["finetune.run.save_every"] = 1
    (tmp_path / "copy/study.json").write_text(json.dumps(known))
    run_until(1, finetuning_job, fold_config(config, made.folds[0], handle))
    assert not (fold / "run/summary.json").exists()
    with here() as ran:
        driver.run(config)
    assert ran == ["p0"]
    assert json.loads((fold / "run/summary.json").read_text())["resumed_from"] == 1


def test_a_finished_training_is_tested_without_training_again(done, tmp_path, monkeypatch):
    config = copy_of(done, tmp_path)
    fold = tmp_path / "copy/folds/p2"
    (fold / "result.json").unlink()
    origin = fold / "run/best/provenance.json"
    known = json.loads(origin.read_text())
    assert known["source.sha256"] in done[1]["pooled"][0]["stamp"]["code"]
    other = {"privileged": ["action units"], "source.sha256": "a" * 64}
    origin.write_text(json.dumps(known | other))
    (fold / "spent.json").write_text(json.dumps({"seconds": 1000.0, "began": time.time() + 99}))
    monkeypatch.setattr(finetuning_job, "run", lambda config: pytest.fail("trained again"))
    with here() as ran:
        results = driver.run(config)
    assert ran == ["p2"]
    assert results["pooled"][0]["stamp"]["privileged"] == ["action units"]
    assert results["pooled"][1]["stamp"]["privileged"] == []
    row = next(row for row in results["folds"] if row["fold"] == "p2")
    assert row["stamp"]["code"] == "a" * 64, "of the code that trained it"
    assert "a" * 64 in results["pooled"][0]["stamp"]["code"]
    assert 1000 < finished(fold)["seconds"] < 1600
    text = (tmp_path / "copy/results.md").read_text()
    assert text.count("best on validation; privileged: action units") >= 4


def test_the_time_of_attempts_adds_up_to_the_last_line_of_each(tmp_path):
    assert spent_before(tmp_path) == 0
    log = tmp_path / "log.txt"
    log.write_text("step 1\n")
    (tmp_path / "spent.json").write_text(json.dumps({"seconds": 5.0, "began": 1000.0}))
    os.utime(log, (1030.0, 1030.0))
    assert spent_before(tmp_path) == pytest.approx(35)
    assert spent_before(tmp_path) == pytest.approx(35), "an attempt that said nothing"


def test_a_finished_fold_keeps_its_weights_and_nothing_to_go_on_from(done, uri):
    out, client = Path(done[0].out), connect(uri)
    for fold in sorted((out / "folds").iterdir()):
        kept = {file.name for file in fold.rglob("*") if file.suffix in (".safetensors", ".pt")}
        weights = [file.parent.name for file in fold.rglob("*.safetensors")]
        assert sorted(weights) == ["best", "last"] and kept == {"model.safetensors"}
        checkpoints = [file.name for file in (fold / "run/checkpoints").iterdir()]
        assert checkpoints == ["mlflow_run.json"]
        run = client.get_run(finished(fold)["run_id"])
        assert not run.outputs or not run.outputs.model_outputs


def test_a_fold_that_is_stopped_before_its_result_goes_on_without_checkpoints(done, tmp_path):
    config = copy_of(done, tmp_path)
    (tmp_path / "copy/folds/p1/result.json").unlink()
    with here() as ran:
        again = driver.run(config)
    assert ran == ["p1"] and again["pooled"] == done[1]["pooled"]


def test_a_study_that_the_disk_cannot_hold_is_refused_before_it_starts(
    place, uri, tmp_path, monkeypatch
):
    config = config_of(
        place / "shards", tmp_path / "out", uri, run={"steps": 6, "save_every": 1, "eval_every": 6}
    )
    made, _ = driver.prepare(config)
    network = build(config.finetune.encoder, Outputs(made.labels))
    parameters = sum(p.numel() for p in network.parameters())
    seldom = replace(config.finetune, run=replace(config.finetune.run, save_every=3))
    few = room.bytes_of(replace(config, finetune=seldom), made, made.folds)
    assert few == (3 * 2 * 4 + 2 * 16) * parameters, "after 3 and 6 steps"
    need = room.bytes_of(config, made, made.folds)
    assert need == (3 * 2 * 4 + 4 * 16) * parameters, "best and last; checkpoints of one fold"
    two = room.bytes_of(replace(config, at_once=2), made, made.folds)
    assert two == need + 4 * 16 * parameters

    def disk(free: int) -> None:
        monkeypatch.setattr(room.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))

    disk(need - 1)
    with here() as ran, pytest.raises(OSError, match=r"no room in .*3 folds take .*--run.keep_ch"):
        driver.run(config)
    assert ran == [] and not (tmp_path / "out/mlflow_run.json").exists()
    fewer = replace(config.finetune, run=replace(config.finetune.run, keep_checkpoints=1))
    with here(failing="p2") as ran, pytest.raises(driver.StudyFailed):
        driver.run(replace(config, finetune=fewer))
    assert ran == ["p0", "p1", "p2"], "the same study, which keeps less meanwhile"
    disk((2 * 4 + 4 * 16) * parameters)
    with here() as ran:
        driver.run(config)
    assert ran == ["p2"], "what is finished needs no more"


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plan": ProtocolConfig("kfold", k=3)}, "plan.protocol 'loso', this one has 'kfold'"),
        ({"select_on_test": True}, "select_on_test False, this one has True"),
        ({"steps": 3}, "finetune.run.steps 2, this one has 3"),
        ({"people": 4}, "other shards or initial weights"),
    ],
)
def test_a_folder_of_another_study_is_refused_with_what_differs(done, tmp_path, change, message):
    config = copy_of(done, tmp_path)
    theirs = config.finetune
    if "steps" in change:
        config = replace(config, finetune=replace(theirs, run=replace(theirs.run, **change)))
    elif "people" in change:
        stripy(tmp_path / "other", **change)
        data = replace(theirs.data, shards=(str(tmp_path / "other"),))
        config = replace(config, finetune=replace(theirs, data=data))
    else:
        config = replace(config, **change)
    before = split_files(config)
    with here() as ran, pytest.raises(ValueError, match=message):
        driver.run(config)
    assert ran == [] and split_files(config) == before


def test_folds_of_other_code_are_kept_by_request_alone_and_say_so(done, tmp_path, monkeypatch):
    config = copy_of(done, tmp_path)
    monkeypatch.setitem(CODE, "source.sha256", "f" * 64)
    with here() as ran:
        with pytest.raises(ValueError, match="another version of the code.*--accept_code"):
            driver.run(config)
        results = driver.run(replace(config, accept_code=True))
    assert ran == [] and results["origin"]["source.sha256"] == "f" * 64
    assert results["pooled"][0]["stamp"]["code"] == done[1]["pooled"][0]["stamp"]["code"]


def test_what_leaks_is_refused_before_anything_is_written(tmp_path, uri):
    samples = [
        (f"c{n}", {"label": ("calm", "glad")[n % 2], "subject_id": f"p{n % 3}"}, stripes(0, n % 5))
        for n in range(6)
    ]
    folder(tmp_path / "twins", samples)
    config = config_of(tmp_path / "twins", tmp_path / "out", uri)
    with pytest.raises(Refused, match="the same video under 2 names.*c0 .*c5"):
        driver.run(config)
    assert not (tmp_path / "out").exists()
    named = [(f"{k}_{f['label']}", f, stripes(0, n)) for n, (k, f, _) in enumerate(samples)]
    folder(tmp_path / "named", named)
    with pytest.raises(Refused, match="the key of 6 clips, such as c0_calm.*tells the label"):
        driver.run(config_of(tmp_path / "named", tmp_path / "out", uri))
    made, _ = driver.prepare(
        config_of(tmp_path / "named", tmp_path / "out", uri, allow_label_in_names=True)
    )
    assert any("tells the label" in note for note in made.notes)
    made, _ = driver.prepare(replace(config, drop_duplicates=True))
    assert len(made.clips) == 5 and any("c5" in note for note in made.notes)


def test_data_sets_must_agree_on_labels(tmp_path, uri):
    stripy(tmp_path / "a", dataset="a")
    stripy(tmp_path / "bb", dataset="bb", labels=("calm", "happy"))
    config = config_of(tmp_path / "a", tmp_path / "out", uri)
    data = replace(config.finetune.data, shards=(str(tmp_path / "a"), str(tmp_path / "bb")))
    config = replace(config, finetune=replace(config.finetune, data=data))
    with pytest.raises(Refused, match=r"labels differ \(calm, glad; calm, happy\): .*--rename"):
        driver.prepare(config)
    plan = ProtocolConfig("kfold", k=2, rename=("happy=glad",))
    made, _ = driver.prepare(replace(config, plan=replace(plan, protocol="loso")))
    assert made.labels == ("calm", "glad") and len(made.folds) == 6


def test_equal_keys_of_two_data_sets_are_two_clips(tmp_path, uri):
    stripy(tmp_path / "a", people=2, dataset="a")
    stripy(tmp_path / "bb", people=2, dataset="bb", labels=("glad", "calm"))
    plan = {"protocol": "kfold", "k": 2, "validation_share": 0.0}
    run = {"eval_every": 0, "steps": 1}
    config = config_of(tmp_path / "a", tmp_path / "out", uri, run=run, plan=plan, select_last=True)
    data = replace(config.finetune.data, shards=(str(tmp_path / "a"), str(tmp_path / "bb")))
    manifests = [Manifest.open(folder) for folder in data.shards]
    config = replace(config, finetune=replace(config.finetune, data=data))
    with here():
        results = driver.run(config)
    stored = {(r.record.dataset, r.key): r.record.label for m in manifests for r in m.index(0)}
    answered = {}
    for fold in ("fold1", "fold2"):
        with Path(config.out, "folds", fold, "test-last/predictions.csv").open(newline="") as file:
            answered |= {(row["dataset"], row["key"]): row for row in csv.DictReader(file)}
    assert {name: row["label"] for name, row in answered.items()} == stored
    [pooled] = results["pooled"]
    right = sum(row["label"] == row["prediction"] for row in answered.values())
    assert (pooled["clips"], pooled["answered"], pooled["war"]) == (16, 16, right / 16)


def test_answers_of_an_earlier_version_are_refused(done, tmp_path):
    config = copy_of(done, tmp_path)
    file = Path(config.out, "folds/p1/test-best/predictions.csv")
    lines = [line.partition(",")[2] for line in file.read_text().splitlines()]
    file.write_text("\n".join(lines))
    with here(), pytest.raises(ValueError, match=r"names no data sets: delete .*folds/p1, and"):
        driver.run(config)
    shutil.rmtree(file.parents[1])
    with here() as ran:
        driver.run(config)
    assert ran == ["p1"]


def test_answers_and_folds_that_somebody_changed_are_refused(done, tmp_path):
    config = copy_of(done, tmp_path)
    fold = Path(config.out, "folds/p1")
    file, kept = fold / "test-last/predictions.csv", (fold / "result.json").read_text()
    text = file.read_text()
    right = next(row for row in csv.DictReader(io.StringIO(text)))
    other = {"calm": "glad", "glad": "calm"}[right["prediction"]]
    begin = f"{right['dataset']},{right['key']},{right['label']},"
    file.write_text(text.replace(begin + right["prediction"], begin + other))
    with here() as ran, pytest.raises(ValueError, match="folds/p1 has answers in test-last that"):
        driver.run(config)
    file.write_text(text)
    other_split = kept.replace(json.loads(kept)["splits"], "0" * 64)
    (fold / "result.json").write_text(other_split)
    with here(), pytest.raises(ValueError, match="folds/p1 was made with another split file"):
        driver.run(config)
    (fold / "result.json").write_text(kept)
    Path(config.out, "results.json").write_text("{}")
    with here() as ran:
        again = driver.run(config)
    assert ran == [] and again["pooled"] == done[1]["pooled"]
    assert json.loads(Path(config.out, "results.json").read_text()) == again


def test_folds_of_an_unknown_study_are_refused(done, tmp_path):
    config = copy_of(done, tmp_path)
    Path(config.out, "study.json").unlink()
    before = split_files(config)
    with here() as ran, pytest.raises(ValueError, match=r"holds folds \(p0\) and no study.json"):
        driver.run(config)
    assert ran == [] and split_files(config) == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"select_last": True, "select_on_test": True}, "exclude each other"),
        ({"retries": -1}, "retries must be at least 0"),
        ({"at_once": 0}, "at_once at least 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(place, uri, more, message):
    with pytest.raises(ValueError, match=message):
        config_of(place / "shards", place / "out", uri, **more)


def test_a_study_writes_its_own_split_files(place, uri):
    config = config_of(place / "shards", place / "out", uri)
    data = replace(config.finetune.data, splits="mine.csv")
    with pytest.raises(ValueError, match="writes the split files itself"):
        replace(config, finetune=replace(config.finetune, data=data))


def test_a_study_registers_no_model_and_says_so(place, uri):
    config = config_of(place / "shards", place / "out", uri)
    tracking = replace(config.finetune.tracking, register="faces", alias="loso")
    with pytest.raises(ValueError, match=r"tracking.register: .* leave it out"):
        replace(config, finetune=replace(config.finetune, tracking=tracking))


def test_weights_of_a_folder_that_a_fold_leaves_out_are_refused(tmp_path, uri):
    stripy(tmp_path / "a", dataset="a")
    stripy(tmp_path / "bb", dataset="bb")
    config = config_of(tmp_path / "a", tmp_path / "out", uri)
    shards = (str(tmp_path / "a"), str(tmp_path / "bb"))
    data = replace(config.finetune.data, shards=shards, weights=(1.0, 2.0))
    config = replace(config, finetune=replace(config.finetune, data=data))
    with pytest.raises(Refused, match=r"weights gives .*/a a share, and fold a trains on none"):
        driver.run(replace(config, plan=ProtocolConfig("lodo")))
    assert not (tmp_path / "out").exists()
    made, _ = driver.prepare(config)
    assert made.name == "loso", "of every folder somebody is left"


# --- selection --------------------------------------------------------------------------------


def test_a_result_that_was_selected_on_test_says_so_in_every_table(place, uri, tmp_path):
    config = config_of(
        *(place / "shards", tmp_path / "out", uri),
        plan={"protocol": "kfold", "k": 2},
        select_on_test=True,
    )
    with here():
        results = driver.run(config)
    first = results["pooled"][0]
    assert first["stamp"]["selection"] == "best on test" and first["mean_over_folds"]
    for written in ("results.md", "results.html"):
        text = (tmp_path / "out" / written).read_text()
        tables = text.split("## " if written.endswith("md") else "<h2>")[1:]
        with_figures = [t for t in tables if not t.startswith("Origin")]
        assert len(with_figures) >= 6
        assert all("selected on test" in table for table in with_figures), written
    handle = json.loads((tmp_path / "out/mlflow_run.json").read_text())
    kept = connect(uri).get_run(handle["run_id"]).data
    assert kept.tags["stamp"] == "selected on test"
    assert kept.metrics["selected_on_test/uf1"] == first["uf1"]
    assert not any(name.startswith("pooled/") for name in kept.metrics)


def test_what_leaks_by_request_is_said_in_every_table(done):
    study = study_of(done)
    results = results_of(replace(study, made=replace(study.made, leaks=("who is tested",))))
    assert all(
        row["stamp"]["leaks"] == ["who is tested"] for row in results["pooled"] + results["folds"]
    )
    tables = markdown("t", sections(results)).split("## ")[1:]
    with_figures = [t for t in tables if not t.startswith("Origin")]
    assert len(with_figures) >= 5
    assert all("LEAKS: who is tested" in table for table in with_figures)
    assert "LEAKS" not in markdown("t", sections(done[1]))


def test_weights_that_were_trained_on_the_tested_clips_are_refused_or_told(done, tmp_path):
    config, known = copy_of(done, tmp_path), Path(done[0].out, "folds/p0/run/best")

    def with_init(folder: Path, out: str, **more) -> StudyConfig:
        theirs = replace(config.finetune, init=str(folder))
        return replace(config, finetune=theirs, out=str(tmp_path / out), **more)

    with (
        here() as ran,
        pytest.raises(Refused, match=r"best was fine-tuned on manifest_0 .*--allow_"),
    ):
        driver.run(with_init(known, "a"))
    assert ran == [] and not (tmp_path / "a/study.json").exists()
    with here():
        results = driver.run(with_init(known, "b", allow_trained_init=True, select_last=True))
    stamp = results["pooled"][0]["stamp"]
    assert stamp["leaks"] == ["initial weights were fine-tuned on these shards"]
    other = shutil.copytree(known, tmp_path / "other")
    origin = json.loads((other / "provenance.json").read_text())
    alone = {name: value for name, value in origin.items() if name != "selection"}
    plain, _ = driver.prepare(config)
    (other / "provenance.json").write_text(json.dumps(alone))  # as pretraining leaves it
    made = check_weights(plain, other, results["origin"], allowed=False)
    assert made.leaks == () and "pretrained on these shards, without labels" in made.notes[-1]
    strange = alone | {"input.manifest_0.sha256": "0" * 64}
    (other / "provenance.json").write_text(json.dumps(strange))
    made = check_weights(plain, other, results["origin"], allowed=False)
    assert made == plain


def test_votes_for_labels_that_a_study_renames_are_refused(done, tmp_path):
    config = copy_of(done, tmp_path)
    voting = replace(config.finetune, losses=LossesConfig(votes=True))
    driver.prepare(replace(config, finetune=voting))  # under their own names they are right
    old = Manifest.open(config.finetune.data.shards[0]).labels[0]
    plan = replace(config.plan, rename=(f"{old}=another",))
    with pytest.raises(Refused, match="losses.votes are votes for the labels in the shards"):
        driver.prepare(replace(config, finetune=voting, plan=plan))


def test_the_rule_comes_from_what_the_weights_say_of_themselves():
    assert rule_of("best uar on val") == "best on validation"
    assert rule_of("best uar on test") == "best on test" and rule_of("last") == "last"
    stamp = Stamp("loso", "all", "best on test", ("flow of the apex",), 0, "c", "s")
    assert stamp.words == "selected on test; privileged: flow of the apex"


def test_leaving_a_data_set_out_goes_by_three_classes_to_the_end(tmp_path, uri):
    stripy(tmp_path / "casme2", dataset="casme2", labels=("disgust", "happiness"))
    stripy(tmp_path / "smic", dataset="smic", labels=("negative", "positive"))
    config = config_of(tmp_path / "casme2", tmp_path / "out", uri, run={"steps": 1})
    shards = (str(tmp_path / "casme2"), str(tmp_path / "smic"))
    theirs = replace(config.finetune, data=replace(config.finetune.data, shards=shards))
    plan = ProtocolConfig("lodo", validation_share=0)
    with here() as ran:
        results = driver.run(replace(config, finetune=theirs, plan=plan))
    assert ran == ["casme2", "smic"]
    (only,) = results["pooled"]
    assert only["labels"] == ["negative", "positive"] and only["clips"] == 24
    assert only["stamp"]["selection"] == "last"


# --- what people see --------------------------------------------------------------------------


def test_foreign_names_become_no_markup():
    parts = [Section("T", "te|xt", ("a", "b"), [["<script>x</script>", "p|q*[l](u)\n\u202e"]])]
    html = page("<b>", parts, b"png", "c")
    assert "<script" not in html and "&lt;script&gt;" in html and "\\u202e" in html
    row = markdown("t", parts).splitlines()[-1]
    assert row == "| \\<script>x\\</script> | p\\|q\\*[l]\\(u) \\\\u202e |"


def test_a_log_has_a_line_for_every_change_and_no_more(capsys):
    jobs = [Job("a", {}), Job("b", {}, "done", result={"results": [{"uar": 0.5, "war": 0.25}]})]
    say = table.Lines()
    say(jobs)
    jobs[0].status, jobs[0].attempts = "running", 1
    say(jobs)
    say(jobs)
    jobs[0].status, jobs[0].reason = "waiting", "its process was lost"
    say(jobs)
    jobs[0].status, jobs[0].attempts = "failed", 2
    say(jobs)
    assert capsys.readouterr().out.splitlines() == [
        "fold b: finished before",
        "fold a: running [1 of 2]",
        "fold a: to be tried again (its process was lost) [1 of 2]",
        "fold a: failed: its process was lost [2 of 2]",
    ]


def test_the_table_shows_who_runs_how_far(monkeypatch):
    from rich.console import Console

    jobs = [
        Job(f"f{n}", {}, "done", result={"results": [{"uar": 0.5, "war": 0.25}]}) for n in range(9)
    ]
    jobs += [
        Job("now", {}, "running", 2),
        Job("bad", {}, "failed", reason="no [face]"),
        Job("w", {}),
    ]
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table.table(jobs, lambda fold: f"step 3 of {fold}"))
    text = console.export_text()
    assert "12 folds: 9 done, 1 running, 1 waiting, 1 failed" in text
    assert "step 3 of now" in text and "failed: no [face]" in text and "attempt 2" in text
    assert "f8" in text and "f1" not in text, "the last few finished ones"


def test_progress_is_asked_for_seldom_and_its_failure_is_no_failure():
    asked = []

    def progress(fold):
        asked.append(fold)
        if len(asked) == 2:
            raise OSError("no store")
        return f"step {len(asked)}"

    seldom = table.Seldom(progress, seconds=1000)
    assert [seldom("a"), seldom("a"), seldom("b")] == ["step 1", "step 1", "starting"]
    assert asked == ["a", "b"]
    assert table.Seldom(progress, seconds=0)("a") == "step 3"


# --- the command line, on Ray -----------------------------------------------------------------


@pytest.fixture(scope="module")
def rendered(tmp_path_factory) -> Path:
    """Shards of three rendered people, four clips each."""
    made = tmp_path_factory.mktemp("rendered")
    size = ("--size", "96x96", "--seconds", "0.6", "--workers", "1")
    videos, shards = str(made / "videos"), str(made / "shards")
    assert (
        ingest_or_render(["render", "--out", videos, "--subjects", "3", "--clips", "4", *size]) == 0
    )
    plain = ("--detector", "none", "--size", "64", "--jobs", "1", "--min-frames", "4")
    table = ("--annotations", f"{videos}/annotations.csv")
    assert ingest_or_render(["ingest", videos, "--out", shards, *table, *plain]) == 0
    return made / "shards"


@pytest.mark.slow
def test_a_killed_study_goes_on_where_it_was(rendered, uri, tmp_path):
    """The whole road: three people, every fold a Ray task; the driver is killed when the first is
    finished, and the same command does the rest."""
    line = ["debug", "--protocol", "loso", "--data.shards", str(rendered), "--run.steps", "2"]
    line += ["--out", str(tmp_path / "out"), "--at_once", "1", "--cluster.workers", "0"]
    line += ["--tracking.uri", uri, "--accept_code"]
    command = [sys.executable, str(ROOT / "launch/study.py"), *line]
    env = {**os.environ, "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    log = (tmp_path / "log").open("w")
    driver = subprocess.Popen(command, env=env, cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT)
    first = tmp_path / "out/folds/s000/result.json"
    until = time.monotonic() + 240
    while not first.is_file() and driver.poll() is None and time.monotonic() < until:
        time.sleep(0.1)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert first.is_file(), (tmp_path / "log").read_text()
    before = first.stat().st_mtime_ns
    assert not (tmp_path / "out/results.json").exists()
    again = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "fold s000: finished before" in again.stdout and "fold s002: done" in again.stdout
    assert "best on validation: UF1 " in again.stdout and "results.html" in again.stdout
    assert first.stat().st_mtime_ns == before
    printed = (tmp_path / "out/folds/s002/log.txt").read_text()
    assert "step 2/2" in printed and "4 clips of split test" in printed
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["pooled"][0]["clips"] == 12 and len(results["folds"]) == 6
    handle = json.loads((tmp_path / "out/mlflow_run.json").read_text())
    assert connect(uri).get_run(handle["run_id"]).info.status == "FINISHED"


def test_a_mistyped_option_ends_with_a_message(capsys):
    with pytest.raises(SystemExit) as no:
        driver.main(["debug", "--protocol", "lsoo"])
    assert no.value.code == 2 and "loso" in capsys.readouterr().err
    assert driver.main(["debug", "--protocol", "loso"]) == 1
    assert "data.shards is empty" in capsys.readouterr().err

"""The whole road on real people: the demo as a user runs it, with its Ray jobs, on real videos."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
VIDEOS = ROOT.parent / "shared/data/videos"
KINDS = {"grid": "speaking", "intel": "signing"}  # what people do in these two collections

pytestmark = pytest.mark.skipif(
    not VIDEOS.is_dir(),
    reason=f"{VIDEOS} does not exist: the real videos are not in this repository",
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """One run of the demo on labelled real videos; returns its folder and what it printed."""
    folder = tmp_path_factory.mktemp("road")
    annotations, videos = folder / "labels.csv", folder / "videos"
    videos.mkdir()
    for name, *_ in labelled():  # the long ones beside them have a test of their own
        shutil.copy(VIDEOS / name, videos)
    with annotations.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "subject_id"])
        rows.writerows(labelled())
    command = [sys.executable, "launch/demo.py", "--recipe", "debug", "--out", folder / "out"]
    command += ["--videos", videos, "--annotations", annotations]
    done = subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=540,
    )
    logs = "\n".join(p.read_text()[-3000:] for p in folder.glob("out/run-01/logs/*.log"))
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{logs}"
    return folder / "out", done.stdout


def labelled():
    """path, label and subject of the two large collections; the demo holds people out itself."""
    for kind, label in KINDS.items():
        for path in sorted(VIDEOS.glob(f"{kind}_*")):
            yield path.name, label, path.stem


def splits(out):
    """The splits of all stored clips that have a label."""
    lines = [line for p in out.glob("shards*/*.index.jsonl") for line in p.open()]
    records = [json.loads(line)["record"] for line in lines]
    people = {}
    for record in records:
        if record["label"] is not None:
            people.setdefault(record["subject_id"], set()).add(record["split"])
    assert all(len(found) == 1 for found in people.values()), "a person is in two splits"
    return set().union(*people.values())


@pytest.mark.timeout(600)
def test_every_step_leaves_what_the_next_one_needs(demo):
    out, _ = demo
    run = out / "run-01"
    manifest = json.loads(next(out.glob("shards*/manifest.json")).read_text())
    assert manifest["samples"] > 15
    assert set(manifest["labels"]) == set(KINDS.values())
    for stage in ("pretrain", "finetune"):
        summary = json.loads((run / stage / "summary.json").read_text())
        assert summary["steps"] == 8 and summary["loss_last"] != summary["loss_first"]
    assert (run / "pretrain/encoder/model.safetensors").is_file()
    measured = json.loads((run / "test/metrics.json").read_text())
    assert measured["clips"] >= 3
    assert {"train", "val", "test"} <= splits(out)
    assert sum(map(sum, measured["confusion"])) == measured["clips"]


@pytest.mark.timeout(600)
def test_the_registered_model_answers_for_a_video_it_has_not_seen(demo):
    out, _ = demo
    [answer] = json.loads((out / "run-01/prediction/predictions.json").read_text())
    assert answer["reason"] is None
    assert set(answer["probabilities"]) == set(KINDS.values())
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    assert sum(answer["importance"]) == pytest.approx(1, abs=1e-4)
    assert list((out / "run-01/prediction").glob("*.png"))


@pytest.mark.timeout(600)
def test_mlflow_holds_the_runs_their_pictures_and_the_model(demo):
    from launch.store import connect

    out, _ = demo
    client = connect(f"sqlite:///{out / 'mlflow.db'}")
    for stage, picture in (("pretrain", "reconstruction"), ("finetune", "confusion_val")):
        [run] = client.search_runs([client.get_experiment_by_name(stage).experiment_id])
        assert run.info.status == "FINISHED"
        assert {"train/loss", "train/clips_per_second", "train/data_wait"} <= set(run.data.metrics)
        assert any("manifest" in name for name in run.data.tags)
        shown = [f.path for f in client.list_artifacts(run.info.run_id, "pictures")]
        assert any(picture in path for path in shown), shown
    [model] = client.search_registered_models()
    assert model.aliases == {"champion": "1"} or model.aliases == {"champion": 1}


@pytest.mark.timeout(600)
def test_it_ends_with_a_table_and_what_to_do_next(demo):
    _, printed = demo
    for word in ("pretraining", "fine-tuning", "evaluation", "prediction", "next", "mlflow ui"):
        assert word in printed
    assert "Traceback" not in printed and "Warning" not in printed

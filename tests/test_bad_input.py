"""What a person mistypes or breaks: one message that names the thing and the fix, exit status not
zero, and nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from finetune import answers, evaluation
from finetune import job as finetune_job
from pretrain import job as pretrain_job
from tests.runs import ROOT, finetuning, flags, pretraining, tree, write_stripes

INGEST = "python -m shards ingest VIDEOS --out"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> SimpleNamespace:
    """Sound shards, damaged copies of them, a pretrained encoder and a registered classifier."""
    folder = tmp_path_factory.mktemp("bad")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    shards = folder / "shards"
    write_stripes(shards, [6, 4], test_every=5)
    write_stripes(folder / "unlabelled", [6, 4], test_every=5, labels=())
    for name in ("cut", "missing", "schema", "unindexed"):
        shutil.copytree(shards, folder / name)
    os.truncate(folder / "cut/shard-000000.tar", 5000)
    (folder / "missing/shard-000001.tar").unlink()
    (folder / "unindexed/shard-000001.index.jsonl").unlink()
    manifest = json.loads((folder / "schema/manifest.json").read_text())
    foreign = json.dumps(manifest | {"schema": "face-shards/9"})
    (folder / "schema/manifest.json").write_text(foreign)
    pretrain_job.run(pretraining(shards, folder / "pretrained", uri, steps=2))
    config = finetuning(shards, folder / "finetuned", uri, steps=1)
    finetune_job.run(replace(config, tracking=replace(config.tracking, register="stripes")))
    return SimpleNamespace(folder=folder, shards=shards, uri=uri)


def pretrain(place, out: Path, *more: str, shards: str = "shards") -> list[str]:
    return [*flags(pretraining(place.folder / shards, out, place.uri)), *more]


def finetune(place, out: Path, *more: str, shards: str = "shards") -> list[str]:
    return [*flags(finetuning(place.folder / shards, out, place.uri)), *more]


def evaluate(place, out: Path, model: str, *, shards: str = "shards") -> list[str]:
    where = ["--cluster.output", str(out), "--tracking.uri", place.uri]
    return ["--model", model, "--shards", str(place.folder / shards), *where]


def refusal(main: Callable[[list[str]], int], argv: list[str], capsys, *, status: int = 1) -> str:
    """What a refused command says, on the error stream alone, as one line where it is ours."""
    try:
        code = main(argv)
    except SystemExit as end:  # the reader of command lines ends the program itself
        code = end.code
    assert code == status
    said = capsys.readouterr().err
    assert "Traceback" not in said
    if status == 1:
        assert said.startswith("error: ") and said.count("\n") == 1, said
        assert not said.startswith("error: [Errno")
    return said


@pytest.mark.parametrize(
    ("shards", "named", "fix"),
    [
        ("nowhere", "nowhere is no shard folder", INGEST),
        ("cut", "cut/shard-000000.tar was cut: 5000 bytes", "restore it"),
        ("missing", "missing/shard-000001.tar is missing", "restore it"),
        ("unindexed", "shard-000001.index.jsonl is missing", "restore it"),
        ("schema", "has schema 'face-shards/9', this version reads 'face-shards/2'", INGEST),
    ],
)
@pytest.mark.parametrize("command", ["pretrain", "finetune", "evaluate"])
def test_shards_that_cannot_be_used(command, shards, named, fix, place, tmp_path, capsys):
    out = tmp_path / "out"
    main, argv = {
        "pretrain": (pretrain_job.main, pretrain(place, out, shards=shards)),
        "finetune": (finetune_job.main, finetune(place, out, shards=shards)),
        "evaluate": (
            evaluation.main,
            evaluate(place, out, "models:/stripes@champion", shards=shards),
        ),
    }[command]
    before = tree(place.folder)
    said = refusal(main, argv, capsys)
    assert named in said and fix in said
    assert not out.exists() and tree(place.folder) == before


@pytest.mark.parametrize(
    ("main", "argv", "flag"),
    [
        (pretrain_job.main, ["debug"], "--data.shards DIR"),
        (finetune_job.main, ["debug"], "--data.shards DIR"),
        (evaluation.main, ["--model", "models:/stripes@champion"], "--shards DIR"),
    ],
)
def test_no_shards_at_all(main, argv, flag, tmp_path, capsys):
    said = refusal(main, [*argv, "--cluster.output", str(tmp_path / "out")], capsys)
    assert "shards is empty" in said and flag in said
    assert tree(tmp_path) == set()


@pytest.mark.parametrize(
    ("more", "named", "fix"),
    [
        (["--run.global_batch", "6"], "run.global_batch 6", "use run.global_batch 4 or 8"),
        (["--cluster.workers", "3"], "3 workers", "use one of cluster.workers 1, 2, 4"),
        (["--run.micro_batch", "3"], "run.micro_batch 3", "use one of run.micro_batch 1, 2, 4"),
        (["--mask.ratio", "0.01"], "ratio=0.01 hides 0 of the 16 tokens", "change the ratio"),
        (["--data.split", "dev"], "data.split is 'dev'", "splits there: test, train"),
        (["--tracking.uri", "some/folder"], "tracking.uri 'some/folder'", "Use sqlite:///"),
        (["--tracking.uri", "http://127.0.0.1:9"], "http://127.0.0.1:9", "Start it (mlflow server"),
    ],
)
def test_settings_that_do_not_fit_the_data_the_cluster_or_the_store(
    more, named, fix, place, tmp_path, capsys
):
    said = refusal(pretrain_job.main, pretrain(place, tmp_path / "out", *more), capsys)
    assert named in said and fix in said
    assert [p for p in tree(tmp_path / "out") if p] == []


@pytest.mark.parametrize(
    ("more", "named", "fix"),
    [
        (["--run.stepz", "3"], "--run.stepz", "--run.steps"),
        (["--run.steps", "many"], "--run.steps", "INT"),
        (["--encoder.patch_size", "7"], "patch_size=7", "must be a positive multiple"),
        (["--data.size", "48"], "data.size is 48", "set both alike"),
        (["--tracking.register", "a/b"], "model name 'a/b'", "choose one"),
    ],
)
def test_settings_that_make_no_configuration(more, named, fix, place, tmp_path, capsys):
    argv = pretrain(place, tmp_path / "out", *more)
    said = refusal(pretrain_job.main, argv, capsys, status=2)
    assert named in said and fix in said
    assert tree(tmp_path) == set()


@pytest.mark.parametrize("main", [pretrain_job.main, finetune_job.main])
def test_a_recipe_that_does_not_exist(main, capsys):
    said = refusal(main, ["vit_x", "--run.steps", "3"], capsys, status=2)
    assert "vit_x" in said and "debug, demo, vit_s" in said


def test_a_checkpoint_of_another_network(place, capsys):
    out = place.folder / "pretrained"
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    said = refusal(pretrain_job.main, pretrain(place, out, "--encoder.dim", "48"), capsys)
    assert "checkpoints/step_000002" in said and "model.dim was 24, this run has 48" in said
    assert "another --cluster.output" in said
    after = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    assert after == before


def test_shards_without_labels_for_fine_tuning(place, tmp_path, capsys):
    argv = finetune(place, tmp_path / "out", shards="unlabelled")
    said = refusal(finetune_job.main, argv, capsys)
    assert f"{place.folder / 'unlabelled'}: fine-tuning needs at least two labels" in said
    assert "--annotations" in said
    assert tree(tmp_path) == set()


@pytest.mark.parametrize(
    ("model", "named", "fix"),
    [
        ("models:/strips@champion", "no model 'strips'", "Did you mean 'stripes'?"),
        ("models:/stripes@best", "no alias @best", "it has @champion (version 1)"),
        ("models:/stripes/9", "no version 9", "it has 1"),
        ("models:/", "'models:/' names no model", "write models:/NAME@ALIAS"),
        ("no/such/folder", "no/such/folder does not exist", "Give the folder that a training"),
    ],
)
@pytest.mark.parametrize("command", ["finetune", "evaluate", "predict"])
def test_a_model_that_does_not_exist(command, model, named, fix, place, tmp_path, capsys):
    out = tmp_path / "out"
    video = str(place.shards / "shard-000000.tar")
    main, argv = {
        "finetune": (finetune_job.main, finetune(place, out, "--init", model)),
        "evaluate": (evaluation.main, evaluate(place, out, model)),
        "predict": (
            answers.main,
            [model, video, "--out", str(out), "--tracking.uri", place.uri],
        ),
    }[command]
    said = refusal(main, argv, capsys)
    assert named in said and fix in said
    assert tree(tmp_path) == set()


def test_an_encoder_is_no_classifier(place, tmp_path, capsys):
    encoder = str(place.folder / "pretrained/encoder")
    said = refusal(evaluation.main, evaluate(place, tmp_path / "out", encoder), capsys)
    assert "not the configuration of a predictor" in said and "fine-tuning wrote" in said
    assert tree(tmp_path / "out") == set()
    argv = [encoder, str(place.shards / "shard-000000.tar"), "--out", str(tmp_path / "said")]
    said = refusal(answers.main, argv, capsys)
    assert f"{encoder} is not a packaged model" in said and "models:/NAME@ALIAS" in said
    assert not (tmp_path / "said").exists()


def test_a_video_that_does_not_exist(place, tmp_path, capsys):
    argv = ["models:/stripes@champion", str(tmp_path / "no.mp4"), "--out", str(tmp_path / "out")]
    said = refusal(answers.main, [*argv, "--tracking.uri", place.uri], capsys)
    assert f"no such video: {tmp_path / 'no.mp4'}" in said and "give paths" in said
    assert tree(tmp_path) == set()


@pytest.fixture
def disk(tmp_path, request):
    """A folder on a disk of so many kilobytes, if this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = ["mount", "-t", "tmpfs", "-o", f"size={request.param}k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(size, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("disk", [512], indirect=True)
def test_a_full_disk_under_a_checkpoint(disk, place, capsys):
    out = disk / "out"
    said = refusal(pretrain_job.main, pretrain(place, out), capsys)
    assert f"no room for a checkpoint in {out / 'checkpoints'}" in said
    assert "free some space" in said and "--run.keep_checkpoints" in said
    assert tree(out) == {"checkpoints", "checkpoints/mlflow_run.json"}


def test_a_disk_that_reports_too_little_room(place, tmp_path, capsys, monkeypatch):
    usage = SimpleNamespace(total=10**6, used=10**6 - 512_000, free=512_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    said = refusal(pretrain_job.main, pretrain(place, tmp_path / "out"), capsys)
    assert "0.5 MB are free; free some space" in said
    assert tree(tmp_path / "out") == {"checkpoints", "checkpoints/mlflow_run.json"}


@pytest.mark.parametrize("disk", [1000, 1400], indirect=True)
def test_a_full_disk_under_the_model_of_a_fine_tuning(disk, place, capsys):
    """The checkpoint finds room; then the weights do not, or what is packed around them."""
    out = disk / "out"
    said = refusal(finetune_job.main, finetune(place, out), capsys)
    name = "best" if not (out / "best").exists() else "model"
    assert f"{out / name} could not be written" in said and "No space left on device" in said
    assert "free some space" in said or "free space" in said
    assert {p.name for p in out.iterdir()} <= {"checkpoints", "best", "last"}
    kept = {"config.json", "model.safetensors", "provenance.json"}
    assert all(tree(out / n) == kept for n in ("best", "last") if (out / n).exists())


@pytest.mark.parametrize(
    ("script", "argv", "named", "fix"),
    [
        ("pretrain", ["debug", "--data.shards", "nowhere"], "nowhere is no shard folder", INGEST),
        ("predict", ["models:/a@b", "no.mp4"], "no such video: no.mp4", "give paths"),
    ],
)
def test_the_scripts_themselves_end_with_one_line(script, argv, named, fix, tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / f"launch/{script}.py"), *argv],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert named in done.stderr and fix in done.stderr
    assert tree(tmp_path) == set()

"""What weights have been through, from the record beside them."""

import json

import pytest

from finetune.history import fine_tuned, picked_on, record_of, shared_shards
from finetune.probes.driver import trained_with_labels

MANIFEST, OTHER = "a" * 64, "b" * 64
ORIGIN = {
    "input.manifest_0.path": "/faces",
    "input.manifest_0.sha256": MANIFEST,
    "input.model.sha256": OTHER,
    "seed": "0",
}


def trained(selection: str | None, manifest: str = MANIFEST) -> dict:
    how = {} if selection is None else {"selection": selection}
    return {"input.manifest_0.sha256": manifest, "step": 3, **how}


@pytest.mark.parametrize("inside", ["", "artifacts/predictor"])
def test_the_record_lies_beside_weights_in_a_folder_or_a_packaged_model(tmp_path, inside):
    folder = tmp_path / inside
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").touch()
    assert record_of(tmp_path) == {}
    (folder / "provenance.json").write_text(json.dumps(trained("last")))
    assert record_of(tmp_path) == record_of(folder / "model.safetensors") == trained("last")


def test_shards_are_told_by_their_manifest_and_nothing_else():
    assert shared_shards(trained("last"), ORIGIN) == ["manifest_0"]
    assert shared_shards(trained("last", OTHER), ORIGIN) == [], "that is the model's hash"
    assert shared_shards({}, ORIGIN) == []


@pytest.mark.parametrize(
    ("selection", "split", "picked"),
    [
        ("best uar on test", "test", True),
        ("best units/f1 on val", "val", True),
        ("best uar on val", None, True),
        ("best uar on val", "test", False),
        ("last", "test", False),
        ("last", None, False),
        (None, "test", False),
    ],
)
def test_figures_on_the_clips_that_picked_the_step_are_told(selection, split, picked):
    found = picked_on(trained(selection), split, ORIGIN)
    assert found == ([f"the step was selected on these clips ({selection})"] if picked else [])
    assert picked_on(trained(selection, "c" * 64), split, ORIGIN) == [], "other shards"


def test_a_probe_says_that_its_encoder_saw_labels_of_these_shards(tmp_path):
    for selection, told in (("last", ["the encoder was fine-tuned on /faces"]), (None, [])):
        record = trained(selection)
        (tmp_path / "provenance.json").write_text(json.dumps(record))
        assert trained_with_labels(tmp_path, ORIGIN) == told and fine_tuned(record) == bool(told)
    assert trained_with_labels(tmp_path / "public.pth", ORIGIN) == []

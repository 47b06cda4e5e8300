"""What weights have been through, from the record beside them."""

import json

import pytest

from finetune.history import SPLIT_FILE, leaks, picked_on, record_of, shared_shards, trained_on

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


SOME, PERHAPS = "some of these clips were trained on", "may have been trained on"


@pytest.mark.parametrize(
    ("learnt", "measured", "told"),
    [
        ("train", "test", None),
        ("train", "train", SOME),
        ("train", None, SOME),
        (None, "test", SOME),
        (None, None, SOME),
    ],
)
def test_figures_on_clips_that_were_trained_on_are_told(learnt, measured, told):
    record = trained("last") | {"train_split": learnt, "validation_split": "val"}
    assert leaks(record, measured, ORIGIN) == ([told] if told else [])
    tables = record | {SPLIT_FILE: "1"}, ORIGIN | {SPLIT_FILE: "1"}
    assert leaks(tables[0], measured, tables[1]) == leaks(record, measured, ORIGIN)
    for other in (
        (record, tables[1]),
        (tables[0], ORIGIN),
        (record | {SPLIT_FILE: "2"}, tables[1]),
    ):
        [found] = trained_on(other[0], measured, other[1])
        assert PERHAPS in found and "another split file" in found
    for strange in ({**record, "input.manifest_0.sha256": OTHER}, {**record, "selection": None}):
        strange = {name: value for name, value in strange.items() if value is not None}
        assert leaks(strange, measured, ORIGIN) == [], "other shards, or without labels"


@pytest.mark.parametrize("measured", ["test", "train"])
def test_of_weights_whose_record_names_no_split_it_is_told_that_nobody_knows(measured):
    assert leaks(trained("last"), None, ORIGIN) == [SOME], "whichever it was"
    (told,) = leaks(trained("last"), measured, ORIGIN)  # an earlier version wrote it
    assert "may have been trained on (the weights' record names no split)" in told

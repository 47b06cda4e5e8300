"""Weights on disk: artifacts, public layouts, refusals."""

import argparse
import os
import re
import shutil
from pathlib import Path

import pytest
import torch

from finetune.models import Classifier
from mira.encoder import Encoder, EncoderConfig
from mira.layouts import canonical, to_hugging_face
from mira.loading import CheckpointError, load_weights
from mira.weights import load_artifact, load_public, restore, save_artifact, save_public
from pretrain.model import DecoderConfig, VideoMAE

SMALL = EncoderConfig(image_size=32, patch_size=8, frames=8, dim=24, depth=2, heads=3)
SIZES = {"heads": 3, "frames": 8, "image_size": 32}


def randomised(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1)
    return model


def pretraining():
    return randomised(VideoMAE(SMALL, DecoderConfig(dim=16, depth=2, heads=2)))


def same(found, expected):
    assert list(found) and set(found) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_an_artifact_comes_back_as_it_was_written(tmp_path):
    state = randomised(Encoder(SMALL)).state_dict()
    config, provenance = {"heads": 3}, {"run": "r1", "step": 7}
    save_artifact(tmp_path / "new" / "encoder", state, config, provenance)
    found = load_artifact(tmp_path / "new" / "encoder")
    same(found.state_dict, state)
    assert (found.config, found.provenance) == (config, provenance)
    assert os.listdir(tmp_path / "new") == ["encoder"]


def test_an_artifact_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """A crash of the machine left files of zeros under the right names."""
    synced = []

    def fsync(handle, sync=os.fsync):
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        named.append((tmp_path / "encoder").exists())
        sync(handle)

    named: list[bool] = []
    monkeypatch.setattr(os, "fsync", fsync)
    save_artifact(tmp_path / "encoder", randomised(Encoder(SMALL)).state_dict(), {}, {})
    files = {"config.json", "model.safetensors", "provenance.json"}
    assert set(synced[:3]) == files and synced[3].endswith(".partial")
    assert synced[4:] == [tmp_path.name]
    assert named == [False] * 4 + [True]


@pytest.mark.parametrize("died", ["while writing", "between the renames", "before the last rename"])
def test_what_a_killed_write_left_is_put_right(died, tmp_path):
    state = randomised(Encoder(SMALL)).state_dict()
    save_artifact(tmp_path / "new", state, {"v": 2}, {})
    save_artifact(tmp_path / "best", state, {"v": 1}, {})
    aside, replaced = (tmp_path / f".best.77.{end}" for end in ("partial", "replaced"))
    (tmp_path / "new").rename(aside)
    if died != "while writing":
        (tmp_path / "best").rename(replaced)
    if died == "before the last rename":  # of a writer that went back to the old folder
        shutil.rmtree(aside)
    restore(tmp_path / "best")
    assert load_artifact(tmp_path / "best").config == {"v": 2 if "renames" in died else 1}
    assert os.listdir(tmp_path) == ["best"]


def test_a_failed_write_leaves_the_old_artifact_and_nothing_half_written(tmp_path):
    state = randomised(Encoder(SMALL)).state_dict()
    save_artifact(tmp_path / "encoder", state, {"v": 1}, {})
    with pytest.raises(ValueError, match=r"not JSON compliant|Out of range"):
        save_artifact(tmp_path / "encoder", state, {"v": float("nan")}, {})
    assert load_artifact(tmp_path / "encoder").config == {"v": 1}
    assert os.listdir(tmp_path) == ["encoder"]
    save_artifact(tmp_path / "encoder", state, {"v": 2}, {})
    assert load_artifact(tmp_path / "encoder").config == {"v": 2}
    assert os.listdir(tmp_path) == ["encoder"]


def test_a_missing_or_foreign_artifact_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model.safetensors does not exist"):
        load_artifact(tmp_path / "nothing")
    folder = save_artifact(tmp_path / "encoder", Encoder(SMALL).state_dict(), {}, {})
    save_public(folder / "model.safetensors", Encoder(SMALL).state_dict())
    with pytest.raises(ValueError, match="schema None, this version reads 'mira-artifact/1'"):
        load_artifact(folder)
    (folder / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_artifact(folder)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_pretraining_and_classifier_round_trip_through_files(tmp_path, suffix):
    model, path = pretraining(), tmp_path / f"model{suffix}"
    save_public(path, model.state_dict())
    found = VideoMAE.from_public(load_public(path), decoder_heads=2, **SIZES)
    same(found.state_dict(), model.state_dict())
    classifier = randomised(Classifier(SMALL, 5))
    save_public(path, classifier.state_dict())
    found = Classifier.from_public(load_public(path), **SIZES)
    same(found.state_dict(), classifier.state_dict())
    assert found.load_report.dropped == found.load_report.new == ()


@pytest.mark.parametrize("biases", ["on_disk", "in_memory"])
@pytest.mark.parametrize("kind", ["pretraining", "classifier"])
def test_hugging_face_names_round_trip_in_both_bias_spellings(kind, biases):
    model = pretraining() if kind == "pretraining" else randomised(Classifier(SMALL, 5))
    theirs = to_hugging_face(model.state_dict(), biases=biases)
    suffix = "attention.q_bias" if biases == "on_disk" else "attention.query.bias"
    assert sum(name.endswith(suffix) for name in theirs) == (4 if kind == "pretraining" else 2)
    found = canonical(theirs)
    assert (found.kind, found.layout, found.dropped) == (kind, "huggingface", ())
    same(found.state_dict, model.state_dict())


def test_the_same_weights_are_the_same_bytes(tmp_path):
    state = pretraining().state_dict()
    written = {
        save_artifact(tmp_path / f"{i}", state, {"a": 1}, {})
        .joinpath("model.safetensors")
        .read_bytes()
        for i in range(12)
    }
    assert len(written) == 1
    same(load_artifact(tmp_path / "0").state_dict, state)


def test_a_key_bias_is_dropped_and_reported():
    theirs = to_hugging_face(pretraining().state_dict(), biases="in_memory")
    extra = "videomae.encoder.layer.0.attention.attention.key.bias"
    found = canonical(theirs | {extra: torch.ones(24)})
    assert found.dropped == (extra,)
    same(found.state_dict, pretraining().state_dict())


def test_all_zero_biases_of_hugging_face_are_refused():
    model = pretraining()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("q_bias", "v_bias")):
                parameter.zero_()
    theirs = to_hugging_face(model.state_dict())
    with pytest.raises(ValueError, match=r"5.5 to 5.17"):
        VideoMAE.from_public(theirs, decoder_heads=2, **SIZES)
    VideoMAE.from_public(model.state_dict(), decoder_heads=2, **SIZES)


@pytest.mark.parametrize("around", ["module.", "_orig_mod.", "backbone.", "module._orig_mod."])
def test_wrappers_around_names_are_removed(around):
    state = randomised(Classifier(SMALL, 5)).state_dict()
    same(canonical({"module": {around + n: t for n, t in state.items()}}).state_dict, state)


def test_a_pickled_namespace_loads_and_other_code_does_not(tmp_path):
    state = pretraining().state_dict()
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": state, "epoch": 799, "args": argparse.Namespace(lr=1e-3)}, path)
    same(load_public(path).state_dict, state)
    torch.save({"model": state, "args": pytest.approx(1)}, path)
    with pytest.raises(ValueError, match="could run code"):
        load_public(path)


def test_unreadable_files_are_named_with_the_reason(tmp_path):
    cut = tmp_path / "cut.pth"
    torch.save({"model": pretraining().state_dict()}, cut)
    cut.write_bytes(cut.read_bytes()[:5000])
    with pytest.raises(ValueError, match=re.escape(str(cut))):
        load_public(cut)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_public(tmp_path / "absent.pth")
    with pytest.raises(FileNotFoundError, match="holds neither"):
        load_public(tmp_path)
    with pytest.raises(ValueError, match=r"write a .safetensors or .pth"):
        save_public(tmp_path / "x.npz", {})
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list.pth: it holds a list"):
        load_public(tmp_path / "list.pth")


def test_layouts_that_are_not_supported_say_so():
    with pytest.raises(ValueError, match=r"not a known checkpoint layout.*conv1.weight"):
        canonical({"conv1.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="'epoch' in the checkpoint is a int"):
        canonical({"epoch": 3})


def test_the_wrong_kind_of_checkpoint_is_told_apart():
    with pytest.raises(ValueError, match="classifier checkpoint, without a decoder"):
        VideoMAE.from_public(Classifier(SMALL, 5).state_dict(), decoder_heads=2, **SIZES)
    with pytest.raises(ValueError, match=r"pretraining checkpoint, without a head.*from_encoder"):
        Classifier.from_public(pretraining().state_dict(), **SIZES)


def test_missing_and_unknown_tensors_are_refused_by_name_and_nothing_is_loaded():
    state, model = pretraining().state_dict(), Encoder(SMALL)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    encoder = canonical(state).encoder_state()
    del encoder["blocks.1.attn.q_bias"]
    with pytest.raises(CheckpointError, match=r"1 tensors are in the model.*blocks.1.attn.q_bias"):
        load_weights(model, encoder)
    full = canonical(state).encoder_state() | {"blocks.2.norm1.weight": torch.zeros(24)}
    with pytest.raises(CheckpointError, match=r"not in the model.*blocks.2.norm1.weight"):
        load_weights(model, full)
    same(model.state_dict(), before)


def test_a_wrong_shape_names_tensor_both_shapes_and_the_fix():
    state = randomised(Encoder(SMALL)).state_dict()
    other = Encoder(EncoderConfig(image_size=32, patch_size=4, frames=8, dim=24, depth=2, heads=3))
    with pytest.raises(
        CheckpointError,
        match=r"patch_embed.proj.weight is \[24, 3, 2, 8, 8\] in the checkpoint and "
        r"\[24, 3, 2, 4, 4\] in the model: set patch_size",
    ):
        load_weights(other, state)


@pytest.mark.parametrize("attention", ["mira_exact", "mira_flashlite"])
def test_plain_and_mira_checkpoints_load_into_one_another(attention):
    plain = randomised(Classifier(SMALL, 5))
    mira = Classifier.from_public(plain.state_dict(), attention=attention, **SIZES)
    assert mira.load_report.new == ("blocks.0.attn.c_buf", "blocks.1.attn.c_buf")
    back = Classifier.from_public(mira.state_dict(), **SIZES)
    assert back.load_report.dropped == ("blocks.0.attn.c_buf", "blocks.1.attn.c_buf")
    same(back.state_dict(), plain.state_dict())


def test_a_report_reads_as_a_sentence():
    plain = Classifier(SMALL, 5).state_dict()
    report = Classifier.from_public(plain, attention="mira_exact", **SIZES).load_report
    assert str(report) == ("32 tensors loaded, 2 new (blocks.0.attn.c_buf, blocks.1.attn.c_buf)")


def test_the_documented_way_in_and_out_works(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).resolve().parents[2] / "docs/weights.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    config = EncoderConfig(dim=24, depth=1, heads=12, layer_norm_eps=1e-5)
    model = VideoMAE(config, DecoderConfig(dim=12, depth=1, heads=6))
    monkeypatch.chdir(tmp_path)
    save_public("checkpoint.pth", randomised(model).state_dict())
    exec(code, {})
    assert "videomae pretraining" in capsys.readouterr().out
    for name in ("videomae.pth", "huggingface.safetensors"):
        same(load_public(name).state_dict, model.state_dict())
    found = load_public("marlin.pth").state_dict  # which scales the embedding and back
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)

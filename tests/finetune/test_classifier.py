"""The classifier: golden tensors, transformers parity, starting from an encoder, layer decay."""

import pytest
import torch
from torch.nn import functional

from finetune.models import Classifier
from mira.encoder import Encoder, EncoderConfig
from mira.layouts import to_hugging_face
from mira.loading import CheckpointError
from mira.weights import load_public, save_artifact, save_public
from pretrain.model import DecoderConfig, VideoMAE
from tests.mira.golden import attention_of, load, names, relative_error, state_of

SMALL = EncoderConfig(image_size=32, patch_size=8, frames=8, dim=24, depth=2, heads=3)


def clips(batch=3):
    return torch.randn(batch, 3, 8, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", names("finetune"))
def test_a_public_checkpoint_reproduces_its_logits(name):
    case, golden = load(name)
    model = Classifier.from_public(
        state_of(golden),
        heads=case["heads"],
        frames=case["frames"],
        image_size=case["image"],
        attention=attention_of(case),
        mira_layers=case.get("fmp_num_last_layers"),
    ).eval()
    assert relative_error(model(golden["x"]), golden["logits"]) < 1e-6
    assert model.load_report.dropped == model.load_report.new == ()


def test_transformers_gives_the_same_logits_loss_and_gradients():
    transformers = pytest.importorskip("transformers")
    config = transformers.VideoMAEConfig(
        image_size=32,
        patch_size=8,
        num_frames=8,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=96,
        layer_norm_eps=1e-6,
        num_labels=5,
    )
    torch.manual_seed(0)
    theirs = transformers.VideoMAEForVideoClassification(config).eval()
    theirs.fc_norm.eps = 1e-6
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.2)
    ours = Classifier.from_public(theirs.state_dict(), heads=3, frames=8, image_size=32)
    x, labels = clips(), torch.tensor([0, 4, 2])
    expected = theirs(x.transpose(1, 2), labels=labels)
    logits = ours(x)
    assert relative_error(logits, expected.logits) < 1e-5
    functional.cross_entropy(logits, labels).backward()
    expected.loss.backward()
    grads = to_hugging_face({n: p.grad for n, p in ours.named_parameters()}, biases="in_memory")
    for name, parameter in theirs.named_parameters():
        assert relative_error(grads[name], parameter.grad) < 1e-4, name
    theirs.load_state_dict(to_hugging_face(ours.state_dict(), biases="in_memory"), strict=True)


def test_an_encoder_artifact_starts_a_classifier_with_a_fresh_head(tmp_path):
    torch.manual_seed(0)
    encoder = Encoder(SMALL)
    save_artifact(tmp_path / "encoder", encoder.state_dict(), {"heads": 3}, {"step": 1})
    model, report = Classifier.from_encoder(tmp_path / "encoder", SMALL, num_classes=5)
    assert set(report.dropped) == {"norm.weight", "norm.bias"}
    assert report.new == ("fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias")
    assert report.wrong_shape == ()
    for name, tensor in encoder.state_dict().items():
        if not name.startswith("norm."):
            assert torch.equal(model.state_dict()[name], tensor), name
    assert model.eval()(clips()).abs().max() < 0.01, "a fresh head is nearly indifferent"


def test_a_pretraining_file_or_another_classifier_starts_one_too(tmp_path):
    pretrained = VideoMAE(SMALL, DecoderConfig(dim=16, depth=1, heads=2)).state_dict()
    save_public(tmp_path / "pretrained.pth", pretrained)
    _model, report = Classifier.from_encoder(tmp_path / "pretrained.pth", SMALL, num_classes=5)
    assert set(report.dropped) == {"norm.weight", "norm.bias"}
    former = Classifier(SMALL, 400)
    again, report = Classifier.from_encoder(load_public(former.state_dict()), SMALL, num_classes=5)
    assert again.head.weight.shape == (5, 24)
    assert "head.weight" in report.new


def test_mira_starts_from_a_plain_encoder(tmp_path):
    save_public(tmp_path / "plain.safetensors", Encoder(SMALL).state_dict())
    config = EncoderConfig(**vars(SMALL) | {"attention": "mira_flashlite", "mira_layers": 1})
    _, report = Classifier.from_encoder(tmp_path / "plain.safetensors", config, num_classes=5)
    assert "blocks.1.attn.c_buf" in report.new


@pytest.mark.parametrize("config", [{"heads": 3}, {"encoder": {"heads": 3}}])
def test_another_number_of_heads_is_refused(tmp_path, config):
    save_artifact(tmp_path / "encoder", Encoder(SMALL).state_dict(), config, {})
    other = EncoderConfig(**vars(SMALL) | {"heads": 4})
    with pytest.raises(CheckpointError, match="trained with heads=3, the model has 4"):
        Classifier.from_encoder(tmp_path / "encoder", other, num_classes=5)


def test_another_depth_or_size_is_refused(tmp_path):
    save_artifact(tmp_path / "encoder", Encoder(SMALL).state_dict(), {}, {})
    for change, message in (
        ({"depth": 3}, "in the model but not in the checkpoint: blocks.2"),
        ({"dim": 48}, "patch_embed.proj.weight is .* set patch_size, tubelet, channels and dim"),
    ):
        other = EncoderConfig(**vars(SMALL) | change)
        with pytest.raises(CheckpointError, match=message):
            Classifier.from_encoder(tmp_path / "encoder", other, num_classes=5)


def test_layer_ids_cover_every_parameter():
    model = Classifier(SMALL, 5)
    ids = model.layer_ids()
    assert set(ids) == {name for name, _ in model.named_parameters()}
    assert ids["patch_embed.proj.weight"] == 0
    assert ids["blocks.0.attn.q_bias"] == 1 and ids["blocks.1.mlp.fc2.bias"] == 2
    assert ids["fc_norm.weight"] == ids["head.bias"] == 3


def test_features_are_the_normalised_mean_of_the_tokens():
    torch.manual_seed(0)
    model, x = Classifier(SMALL, 5).eval(), clips()
    tokens = model.run(model.embed(x), SMALL.depth)
    torch.testing.assert_close(model.features(x), model.fc_norm(tokens.mean(1)))


@pytest.mark.parametrize("attention", ["sdpa", "mira_exact", "mira_flashlite"])
def test_explaining_gives_logits_and_frame_importance_of_one_pass(attention):
    config = EncoderConfig(**vars(SMALL) | {"attention": attention, "mira_layers": 1})
    model, x = Classifier(config, 5).eval(), clips()
    logits, importance = model.explain(x)
    torch.testing.assert_close(logits, model(x))
    torch.testing.assert_close(importance, model.frame_importance(x))
    torch.testing.assert_close(importance.sum(1), torch.ones(3))


def test_recomputed_blocks_give_the_same_gradients():
    grads = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = Classifier(EncoderConfig(**vars(SMALL) | {"checkpoint_blocks": recompute}), 5)
        model(clips()).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize(
    ("size", "expected"),
    [((384, 12, 6), 114), ((768, 12, 12), 361), ((1024, 24, 16), 1194), ((1280, 32, 16), 2382)],
)
def test_operations_are_the_published_ones(size, expected):
    dim, depth, heads = size
    with torch.device("meta"):
        model = Classifier(EncoderConfig(dim=dim, depth=depth, heads=heads), 7)
    assert model.flops() / 1e9 == pytest.approx(expected, abs=0.5)


def test_an_impossible_head_is_refused():
    with pytest.raises(ValueError, match="num_classes=0"):
        Classifier(SMALL, num_classes=0)

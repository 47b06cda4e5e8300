"""transformers' VideoMAE with MiRA attention: the same numbers as ours, and what it refuses."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

import mira
from finetune.models import Classifier
from mira.huggingface import check_masks, register
from mira.layouts import to_hugging_face
from pretrain.model import VideoMAE
from tests.mira.golden import attention_of, load, names, relative_error, state_of

transformers = pytest.importorskip("transformers")
ROOT = Path(__file__).resolve().parents[2]
MODES = ("mira_exact", "mira_flashlite")
SIZES = {"heads": 3, "frames": 8, "image_size": 32}
SMALL = {
    "image_size": 32,
    "patch_size": 8,
    "num_frames": 8,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 64,
    "layer_norm_eps": 1e-6,
    "num_labels": 5,
}
NO_MASK = {"attn_mask": None, "is_causal": False}  # as timm's blocks pass them
CONSTANTS = {"alpha_min": 0.3, "alpha_max": 3.0, "temperature": 1.0, "residual_mix": 0.9}
HIDDEN = torch.tensor([1, 0, 1, 1] * 4, dtype=torch.bool)  # of 16 tokens a frame


@pytest.fixture(autouse=True)
def registered():
    register()


def theirs(kind="VideoMAEForVideoClassification", mode="mira_exact", mira=None, **changes):
    """A transformers model with random weights and our LayerNorm eps, from its configuration."""
    pooled = kind == "VideoMAEForVideoClassification"
    config = transformers.VideoMAEConfig(
        **SMALL | changes, use_mean_pooling=pooled, mira=mira or {}
    )
    torch.manual_seed(0)
    model = getattr(transformers, kind)._from_config(config, attn_implementation=mode).eval()
    return randomised(model)


def randomised(model):
    """Random weights, and our eps in the two LayerNorms that their configuration does not reach."""
    for module in (getattr(model, "fc_norm", None), getattr(model, "decoder", None)):
        norm = getattr(module, "norm", module)
        if norm is not None:
            norm.eps = 1e-6
    assert {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)} == {1e-6}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    return model


def clips(batch=3):
    """[B, T, C, h, w], as transformers takes them."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 8, 3, 32, 32, generator=generator)


def tubes(batch=3):
    """A tube mask of 4 frames, another one for every clip."""
    return torch.stack([HIDDEN.roll(clip).repeat(4) for clip in range(batch)])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("mira", [{}, {"statistics": "batch"}, {"backend": "reference"}])
def test_logits_loss_and_gradients_are_ours(mode, mira):
    model, x, labels = theirs(mode=mode, mira=mira), clips(), torch.tensor([0, 4, 2])
    statistics = mira.get("statistics", "instance")
    ours = Classifier.from_public(
        model.state_dict(), attention=mode, statistics=statistics, **SIZES
    )
    expected, found = ours(x.transpose(1, 2)), model(x, labels=labels)
    assert relative_error(found.logits, expected) < 1e-5
    functional.cross_entropy(expected, labels).backward()
    found.loss.backward()
    grads = to_hugging_face({n: p.grad for n, p in ours.named_parameters()}, biases="in_memory")
    for name, parameter in model.named_parameters():
        assert relative_error(parameter.grad, grads[name]) < 1e-4, name
    model.set_attn_implementation("sdpa")
    assert relative_error(model(x).logits, expected) > 1e-4, "MiRA changes something"


@pytest.mark.parametrize("name", [n for n in names("finetune") if "last1" not in str(n)])
def test_a_public_checkpoint_reproduces_its_golden_logits(name):
    case, golden = load(name)
    ours = Classifier.from_public(
        state_of(golden), heads=case["heads"], frames=case["frames"], image_size=case["image"]
    )
    config = transformers.VideoMAEConfig(
        image_size=ours.config.image_size,
        patch_size=ours.config.patch_size,
        num_frames=ours.config.frames,
        tubelet_size=ours.config.tubelet,
        hidden_size=ours.config.dim,
        num_hidden_layers=ours.config.depth,
        num_attention_heads=ours.config.heads,
        intermediate_size=round(ours.config.dim * ours.config.mlp_ratio),
        num_labels=ours.num_classes,
        layer_norm_eps=1e-6,
    )
    model = transformers.VideoMAEForVideoClassification._from_config(
        config, attn_implementation=attention_of(case), dtype=golden["x"].dtype
    ).eval()
    randomised(model)
    model.load_state_dict(to_hugging_face(ours.state_dict(), biases="in_memory"))
    assert relative_error(model(golden["x"].transpose(1, 2)).logits, golden["logits"]) < 1e-5


@pytest.mark.parametrize("mode", MODES)
def test_saving_and_loading_keeps_weights_and_settings(tmp_path, mode):
    model, x = theirs(mode=mode, mira={"constants": CONSTANTS}), clips()
    published = theirs(mode=mode)
    assert relative_error(model(x).logits, published(x).logits) > 1e-4, "constants count"
    model.save_pretrained(tmp_path)
    kind = transformers.VideoMAEForVideoClassification
    again = kind.from_pretrained(tmp_path, attn_implementation=mode).eval()
    again.fc_norm.eps = 1e-6
    assert again.config.mira == {"constants": CONSTANTS}
    torch.testing.assert_close(again(x).logits, model(x).logits, rtol=0, atol=0)


@pytest.mark.parametrize("mode", MODES)
def test_pretraining_with_tube_masks_is_ours_and_its_decoder_attends_plainly(mode):
    model, x, mask = theirs("VideoMAEForPreTraining", mode), clips().double(), tubes()
    check_masks(model)
    ours = VideoMAE.from_public(model.state_dict(), attention=mode, decoder_heads=2, **SIZES)
    expected = ours.double()(x.transpose(1, 2), mask)
    model.double()
    assert relative_error(model(x, bool_masked_pos=mask).logits, expected) < 1e-7
    model.set_attn_implementation("sdpa")
    assert relative_error(model(x, bool_masked_pos=mask).logits, expected) > 1e-6


def test_a_mask_is_refused_where_nothing_checks_it_and_where_frames_differ():
    model, x, mask = theirs("VideoMAEForPreTraining"), clips(), tubes()
    with pytest.raises(ValueError, match=r"got 16 tokens where a clip has 64.*check_masks\(model"):
        model(x, bool_masked_pos=mask)
    check_masks(model)
    model(x, bool_masked_pos=mask)
    uneven = mask.clone()
    uneven[0, :32] = torch.cat([mask[0, 1:16], mask[0, :1], ~mask[0, :16]])
    uneven[1:] = uneven[0]
    with pytest.raises(ValueError, match=r"unequal numbers. Use a tube mask"):
        model(x, bool_masked_pos=uneven)
    model.config.mira = {"frames": 5}
    with pytest.raises(ValueError, match="a mask of 64 tokens does not divide into 5 frames"):
        model(x, bool_masked_pos=mask)
    check_masks(model)
    assert len(model.videomae.embeddings._forward_pre_hooks) == 1, "a second call changes nothing"
    model.set_attn_implementation("sdpa")
    model(x, bool_masked_pos=uneven)
    with pytest.raises(ValueError, match="Linear is not a VideoMAE"):
        check_masks(nn.Linear(1, 1))


def test_a_decoder_is_refused_where_only_its_encoder_was_checked():
    """Its tokens are visible ones first, and as many as a whole clip has."""
    model, x, mask = theirs("VideoMAEForPreTraining"), clips(), tubes()
    check_masks(model.videomae)
    with pytest.raises(ValueError, match=r"sizes of a decoder.*check_masks\(model\).*whole model"):
        model(x, bool_masked_pos=mask)
    check_masks(model)
    model(x, bool_masked_pos=mask)


def test_an_encoder_of_a_decoders_sizes_runs_after_one_call():
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    model = theirs(**{f"decoder_{name}": SMALL[name] for name in sizes})
    with pytest.raises(ValueError, match=r"Call mira.huggingface.check_masks\(model\)"):
        model(clips())
    check_masks(model)
    assert relative_error(model(clips()).logits, theirs()(clips()).logits) == 0


def test_what_mira_does_not_define_is_refused():
    model, x = theirs(attention_probs_dropout_prob=0.1), clips()
    model(x)  # evaluation drops nothing
    with pytest.raises(ValueError, match=r"got 0.1; set config.attention_probs_dropout_prob = 0"):
        model.train()(x)
    attend = transformers.AttentionInterface()["mira_exact"]
    q = torch.randn(1, 3, 64, 8)
    module = model.videomae.encoder.layer[0].attention.attention
    for changed, message in (
        ({"attention_mask": torch.zeros(1, 1, 1, 64)}, "takes no attention_mask"),
        ({"is_causal": True}, "is not causal"),
        ({"softcap": 5.0}, "what softcap should change"),
        ({"output_attentions": True}, "attention maps: 'eager'"),
        ({"position_ids": torch.arange(64)}, "what position_ids should change"),
    ):
        with pytest.raises(ValueError, match=message):
            attend(module, q, q, q, **{"attention_mask": None} | changed)
    for_others = {"num_items_in_batch": torch.tensor(4), "output_hidden_states": True}
    attend(module, q, q, q, None, position_ids=None, **for_others)
    with pytest.raises(ValueError, match="output_attentions"):
        model.config.output_attentions = True


@pytest.mark.parametrize(
    ("mira", "message"),
    [
        (
            {"tau": 1},
            "config.mira has no field tau; choose of frames, tokens, statistics, constants, back",
        ),
        ({"constants": {"tau": 1}}, r"config.mira\['constants'\] has no field tau; choose of conf"),
        ({"constants": {"power": "2"}}, r"\['power'\] must be a number, not '2'"),
        ({"constants": [1.0]}, r"config.mira\['constants'\] must be a dict with fields of"),
        ("flashlite", "config.mira must be a dict with fields of frames, .* not 'flashlite'"),
        ({"tokens": 0}, r"config.mira\['tokens'\] must be a whole number above 0, not 0"),
        ({"tokens": 32}, "got 64 tokens where a clip has 32"),
        ({"frames": 0}, "must be a whole number above 0, not 0"),
        ({"frames": "8"}, "must be a whole number above 0, not '8'"),
        ({"statistics": ""}, "statistics '' does not exist"),
        ({"statistics": "batch_ema"}, "batch_ema needs state"),
        ({"backend": "fast"}, "no backend 'fast'"),
        ({"frames": 5}, "64 tokens where a clip has 80"),
    ],
)
def test_settings_that_cannot_be_are_refused(mira, message):
    with pytest.raises(ValueError, match=message):
        theirs(mira=mira)(clips())


def test_a_padding_mask_would_reach_our_refusal():
    mask = transformers.AttentionMaskInterface()["mira_exact"]
    assert mask is transformers.AttentionMaskInterface()["sdpa"]


def test_another_kind_of_configuration_must_tell_its_frames_and_tokens():
    attend = transformers.AttentionInterface()["mira_flashlite"]
    module, q = nn.Module(), torch.randn(2, 3, 20, 8)
    module.config = SimpleNamespace()
    with pytest.raises(ValueError, match=r"does not tell.*config.mira = {'frames': F}"):
        attend(module, q, q, q, None)
    module.config.mira = {"frames": 5}
    with pytest.raises(ValueError, match=r"does not tell the tokens.*{'frames': 5, 'tokens': N}"):
        attend(module, q, q, q, None)
    module.config.mira = {"frames": 5, "tokens": 20}
    assert attend(module, q, q, q, None)[0].shape == (2, 20, 3, 8)
    visible = q[:, :, :10]
    with pytest.raises(ValueError, match="got 10 tokens where a clip has 20. If some are masked"):
        attend(module, visible, visible, visible, None)


@pytest.mark.parametrize("mode", MODES)
def test_gradient_checkpointing_gives_the_same_gradients(mode):
    grads = []
    for recompute in (False, True):
        model = theirs(mode=mode)
        if recompute:
            model.gradient_checkpointing_enable()
        model.train()(clips(), labels=torch.tensor([0, 4, 2])).loss.backward()
        grads.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(grads[0], grads[1])


def test_without_transformers_importing_works_and_registering_says_what_to_install():
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "from mira.huggingface import register\n"
        "try: register()\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "pip install 'mira-video[hf]'" in done.stdout


def documented(start):
    """The five lines of docs/kernels.md after a sentence."""
    text = (ROOT / "docs/kernels.md").read_text()
    return text.split(start)[1].split("```python\n")[1].split("```")[0]


@pytest.fixture
def fast_path_off():
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


@pytest.mark.parametrize("training", [True, False])
def test_five_documented_lines_give_a_plain_pytorch_vit_mira(monkeypatch, fast_path_off, training):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(24, 3, 48, dropout=0.0, batch_first=True, norm_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).train(training)
    x = torch.randn(2, 40, 24)
    plain = model(x)
    monkeypatch.setattr(nn.MultiheadAttention, "forward", nn.MultiheadAttention.forward)
    lines = documented("## With a plain PyTorch")
    assert len(lines.splitlines()) == 5
    put_in(lines)
    assert relative_error(model(x), plain) > 1e-4
    with pytest.raises(AssertionError):
        model(x, src_key_padding_mask=torch.zeros(2, 40, dtype=torch.bool))
    put_in(lines.replace('"flashlite"', '"sdpa"'))
    assert relative_error(model(x), plain) < 1e-5
    if not training:
        with torch.no_grad():
            assert relative_error(model(x), plain) < 1e-5


def attend_of(lines):
    names = {"F": functional, "nn": nn, "attention": mira.attention}
    exec(lines, names)
    return names["attend"]


def put_in(lines):
    nn.MultiheadAttention.forward = attend_of(lines)


class OlderTimm(nn.Module):
    """timm's Attention as of 1.0.15: its attributes, and what it makes of them."""

    def __init__(self, attn_drop=0.0):
        super().__init__()
        self.num_heads = 3
        self.qkv, self.proj = nn.Linear(24, 72), nn.Linear(24, 24)
        self.q_norm, self.k_norm = nn.LayerNorm(8), nn.LayerNorm(8)
        self.attn_drop, self.proj_drop = nn.Dropout(attn_drop), nn.Dropout(0.5)

    def forward(self, x):
        return self.proj_drop(self.proj(self.attended(x)))

    def attended(self, x):
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 3, 8).permute(2, 0, 3, 1, 4)
        out = functional.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return out.transpose(1, 2).reshape(x.shape)


class Timm(OlderTimm):
    """The same as of 1.0.31. Its blocks pass a mask, since 1.0.20, and whether it is causal."""

    def __init__(self, attn_drop=0.0, gated=False):
        super().__init__(attn_drop)
        self.norm, self.gate = nn.LayerNorm(24), nn.Linear(24, 24) if gated else None

    def forward(self, x, attn_mask=None, is_causal=False):
        return self.proj_drop(self.proj(self.norm(self.attended(x))))


def randomly(module):
    """Random weights, so that no normalisation is the identity."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module


@pytest.mark.parametrize(
    ("kind", "how"), [(OlderTimm, {}), (Timm, {"attn_mask": None}), (Timm, NO_MASK)]
)
@pytest.mark.parametrize("training", [True, False])
def test_documented_lines_change_nothing_of_timms_attention_but_its_core(kind, how, training):
    lines, x = documented("For timm's"), torch.randn(2, 40, 24)
    assert len(lines.splitlines()) <= 6
    module = randomly(kind()).train(training)

    def run(forward):
        torch.manual_seed(0)  # of proj_drop
        return forward(module, x, **how)

    plain = run(kind.forward)
    torch.testing.assert_close(run(attend_of(lines.replace('"flashlite"', '"sdpa"'))), plain)
    assert relative_error(run(attend_of(lines)), plain) > 1e-3


def test_documented_lines_refuse_what_timm_has_and_mira_does_not_define():
    attend, x = attend_of(documented("For timm's")), torch.randn(2, 40, 24)
    for module, how in (
        (Timm(), {"attn_mask": torch.zeros(40, 40), "is_causal": False}),
        (Timm(), {"attn_mask": torch.zeros(40, 40)}),
        (Timm(), {"attn_mask": None, "is_causal": True}),
        (Timm(attn_drop=0.1), NO_MASK),
        (OlderTimm(attn_drop=0.1), {}),
        (Timm(gated=True), NO_MASK),
    ):
        with pytest.raises(AssertionError):
            attend(module, x, **how)
    with pytest.raises(ValueError, match="41 tokens do not divide into 8 frames"):
        attend(Timm(), torch.randn(2, 41, 24), **NO_MASK)  # a class token

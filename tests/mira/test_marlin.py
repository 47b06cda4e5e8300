"""MARLIN's checkpoints: the same function after loading, strict names, and the way back."""

import re

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from finetune.models import Classifier
from mira.encoder import Encoder, EncoderConfig
from mira.layouts import canonical
from mira.loading import CheckpointError
from mira.marlin import from_marlin, to_marlin
from mira.tubelets import IMAGENET_MEAN, IMAGENET_STD
from mira.weights import load_public
from pretrain.model import VideoMAE

DIM, DECODER_DIM, HEADS, FRAMES, IMAGE = 24, 16, 3, 4, 32
TOKENS = (FRAMES // 2) * (IMAGE // 16) ** 2
SIZES = {"heads": HEADS, "frames": FRAMES, "image_size": IMAGE}


def positions(n: int, dim: int) -> Tensor:
    """As MARLIN computes and stores them: float32 throughout."""
    rate = torch.tensor(10000).pow(2 * torch.div(torch.arange(dim), 2, rounding_mode="trunc") / dim)
    table = torch.stack([position / rate for position in range(n)])
    table[:, 0::2], table[:, 1::2] = table[:, 0::2].sin(), table[:, 1::2].cos()
    return table.float()[None]


def block(prefix: str, dim: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}.norm1.weight": (dim,),
        f"{prefix}.norm1.bias": (dim,),
        f"{prefix}.attn.q_bias": (dim,),
        f"{prefix}.attn.v_bias": (dim,),
        f"{prefix}.attn.qkv.weight": (3 * dim, dim),
        f"{prefix}.attn.proj.weight": (dim, dim),
        f"{prefix}.attn.proj.bias": (dim,),
        f"{prefix}.norm2.weight": (dim,),
        f"{prefix}.norm2.bias": (dim,),
        f"{prefix}.mlp.layers.0.linear.weight": (4 * dim, dim),
        f"{prefix}.mlp.layers.0.linear.bias": (4 * dim,),
        f"{prefix}.mlp.layers.1.linear.weight": (dim, 4 * dim),
        f"{prefix}.mlp.layers.1.linear.bias": (dim,),
    }


def marlin_state() -> dict[str, Tensor]:
    """A state dict with MARLIN's names and random weights."""
    shapes = {
        "encoder.patch_embedding.projection.weight": (DIM, 3, 2, 16, 16),
        "encoder.patch_embedding.projection.bias": (DIM,),
        **block("encoder.blocks.0", DIM),
        **block("encoder.blocks.1", DIM),
        "encoder.norm.weight": (DIM,),
        "encoder.norm.bias": (DIM,),
        "enc_dec_proj.weight": (DECODER_DIM, DIM),
        "decoder.mask_token": (1, 1, DECODER_DIM),
        **block("decoder.blocks.0", DECODER_DIM),
        "decoder.norm.weight": (DECODER_DIM,),
        "decoder.norm.bias": (DECODER_DIM,),
        "decoder.head.weight": (1536, DECODER_DIM),
        "decoder.head.bias": (1536,),
    }
    generator = torch.Generator().manual_seed(0)
    state = {n: 0.2 * torch.randn(s, generator=generator) for n, s in shapes.items()}
    state["encoder.pos_embedding.emb"] = positions(TOKENS, DIM)
    state["decoder.pos_embedding.emb"] = positions(TOKENS, DECODER_DIM)
    return state


def layer_norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    return functional.layer_norm(
        x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5
    )


def run_block(x: Tensor, state: dict[str, Tensor], name: str, heads: int) -> Tensor:
    y = layer_norm(x, state, f"{name}.norm1")
    q_bias, v_bias = state[f"{name}.attn.q_bias"], state[f"{name}.attn.v_bias"]
    bias = torch.cat([q_bias, torch.zeros_like(q_bias), v_bias])
    qkv = functional.linear(y, state[f"{name}.attn.qkv.weight"], bias)
    q, k, v = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    y = ((q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
    x = x + functional.linear(y, state[f"{name}.attn.proj.weight"], state[f"{name}.attn.proj.bias"])
    y = layer_norm(x, state, f"{name}.norm2")
    for layer in (0, 1):
        part = f"{name}.mlp.layers.{layer}.linear"
        y = functional.linear(y, state[f"{part}.weight"], state[f"{part}.bias"])
        y = functional.gelu(y) if layer == 0 else y
    return x + y


def marlin_forward(state: dict[str, Tensor], pixels: Tensor, visible: Tensor) -> tuple:
    """What MARLIN computes from clips in [0, 1]: its encoding, and hidden tubelets [c, t, h, w]."""
    x = functional.conv3d(
        pixels,
        state["encoder.patch_embedding.projection.weight"],
        state["encoder.patch_embedding.projection.bias"],
        stride=(2, 16, 16),
    )
    x = x.flatten(2).transpose(1, 2) + state["encoder.pos_embedding.emb"]
    x = x[visible].view(len(pixels), -1, DIM)
    for index in (0, 1):
        x = run_block(x, state, f"encoder.blocks.{index}", HEADS)
    encoded = layer_norm(x, state, "encoder.norm")
    x = functional.linear(encoded, state["enc_dec_proj.weight"])
    places = state["decoder.pos_embedding.emb"].expand(len(pixels), -1, -1)
    seen = places[visible].view(len(pixels), -1, DECODER_DIM)
    asked = places[~visible].view(len(pixels), -1, DECODER_DIM)
    x = torch.cat([x + seen, state["decoder.mask_token"] + asked], dim=1)
    x = run_block(x, state, "decoder.blocks.0", 2)[:, -asked.shape[1] :]
    x = layer_norm(x, state, "decoder.norm")
    head = functional.linear(x, state["decoder.head.weight"], state["decoder.head.bias"])
    return encoded, head.unflatten(2, (3, 2, 16, 16))


def clips(batch: int = 2) -> tuple[Tensor, Tensor]:
    """The same clips as MARLIN takes them, in [0, 1], and as we do."""
    pixels = torch.rand(batch, 3, FRAMES, IMAGE, IMAGE)
    mean, std = (torch.tensor(v).view(3, 1, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return pixels, (pixels - mean) / std


def hidden() -> Tensor:
    """The same three of four tokens hidden in both frames."""
    return torch.tensor([True, False, True, True] * 2).expand(2, -1)


def test_a_lightning_checkpoint_computes_what_marlin_computes(tmp_path):
    state = marlin_state()
    extra = {"discriminator.layers.0.linear.weight": torch.zeros(4, 4)}
    path = tmp_path / "marlin.ckpt"
    torch.save({"state_dict": state | extra, "epoch": 3}, path)
    found = load_public(path)
    assert (found.layout, found.kind, found.layer_norm_eps) == ("marlin", "pretraining", 1e-5)
    model = VideoMAE.from_public(found, decoder_heads=2, **SIZES).eval()
    report = str(model.load_report)
    assert "3 dropped" in report and "discriminator" in report, report

    pixels, x = clips()
    mask = hidden()
    encoded, predicted = marlin_forward(state, pixels, ~mask)
    torch.testing.assert_close(model.encoder(x, ~mask), encoded, rtol=1e-4, atol=1e-4)
    ours = model(x, mask).unflatten(2, (2, 16, 16, 3)).permute(0, 1, 5, 2, 3, 4)
    torch.testing.assert_close(ours, predicted, rtol=1e-4, atol=1e-4)


def test_the_encoder_alone_starts_a_classifier_if_eps_is_named():
    state = {n: t for n, t in marlin_state().items() if n.startswith("encoder.")}
    found = canonical(state)
    assert found.kind == "encoder"
    sizes = {"dim": DIM, "depth": 2, "heads": HEADS, "frames": FRAMES, "image_size": IMAGE}
    config = EncoderConfig(**sizes, layer_norm_eps=1e-5, attention="mira_flashlite")
    model, report = Classifier.from_encoder(found, config, num_classes=5)
    assert "encoder.pos_embedding.emb" in report.dropped and "norm.weight" in report.dropped
    assert model(clips()[1]).shape == (2, 5)
    with pytest.raises(CheckpointError, match=r"layer_norm_eps=1e-05, the model has 1e-06"):
        Classifier.from_encoder(found, EncoderConfig(**sizes), num_classes=5)


def test_there_and_back_is_the_same_state_dict():
    state = marlin_state()
    back = to_marlin(from_marlin(state)[0], tokens=TOKENS)
    assert set(back) == set(state)
    for name, tensor in state.items():
        torch.testing.assert_close(back[name], tensor, rtol=1e-5, atol=1e-5, msg=name)


def test_our_encoder_alone_is_written_with_marlins_names():
    config = EncoderConfig(dim=DIM, depth=1, heads=HEADS, frames=FRAMES, image_size=IMAGE)
    encoder = Encoder(config)
    theirs = to_marlin(encoder.state_dict(), tokens=TOKENS)
    assert "encoder.blocks.0.mlp.layers.1.linear.bias" in theirs
    again = canonical(theirs).encoder_state()
    assert set(again) == set(encoder.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.pos_embedding.emb": torch.randn(1, TOKENS, DIM)}, "trained or interpolated"),
        ({"encoder.pos_embedding.emb": torch.zeros(TOKENS, DIM)}, "not [1, N, E]"),
        ({"encoder.blocks.0.gamma_1": torch.ones(DIM)}, "layer scales"),
    ],
)
def test_what_this_encoder_cannot_hold_is_refused(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        canonical(marlin_state() | change)


@pytest.mark.parametrize("name", ["encoder.blocks.1.attn.v_bias", "decoder.head.bias"])
def test_a_missing_tensor_is_named(name):
    state = marlin_state()
    del state[name]
    with pytest.raises(CheckpointError, match=name.removeprefix("encoder.")):
        VideoMAE.from_public(state, decoder_heads=2, **SIZES)


def test_stored_positions_may_be_as_imprecise_as_float32_makes_them():
    state = marlin_state()
    state["encoder.pos_embedding.emb"] = positions(1568, DIM)
    from_marlin(state)


def test_a_classifier_has_no_place_in_marlins_layout():
    config = EncoderConfig(dim=DIM, depth=1, heads=HEADS, frames=FRAMES, image_size=IMAGE)
    with pytest.raises(ValueError, match="no classifier"):
        to_marlin(Classifier(config, 5).state_dict(), tokens=TOKENS)

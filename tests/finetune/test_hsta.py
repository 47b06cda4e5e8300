"""HSTA: its published size, its branches, MiRA beside a class token, learning ten clips."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from finetune.models.class_tokens import ClassAttention, Exchange, class_share
from finetune.models.hsta import Hsta, HstaConfig
from finetune.models.pairs import split_pair
from launch.parameters import decay_groups
from mira import MiraConstants
from mira.blocks import Attention
from mira.tubelets import to_pixels
from shards.labelling import flow_of
from tests.finetune.rendered import generalise, overfit, people, ten_clips

SMALL = HstaConfig(
    image_size=48, frames=6, patch_size=16, dim=24, special_patch=12, special_dim=16, heads=2,
    stages=2, video_blocks=2,
)  # fmt: skip
CORES = ("sdpa", "mira_exact", "mira_flashlite")
EVEN = MiraConstants(alpha_min=1.0, alpha_max=1.0, floor=0.0)
"""Constants at which MiRA weighs all frames alike."""


def clips(batch=2, config=SMALL, frames=None):
    generator = torch.Generator().manual_seed(1)
    frames = config.frames + 2 if frames is None else frames
    return torch.randn(batch, 3, frames, config.image_size, config.image_size, generator=generator)


def network(seed=0, **values):
    torch.manual_seed(seed)
    return Hsta(replace(SMALL, **values), 5)


@pytest.fixture(scope="module")
def published():
    with torch.device("meta"):
        return Hsta(HstaConfig(), 7)


def test_the_published_size_has_its_parameters(published):
    """81.7 M are the weight matrices; biases, norms and class tokens add 0.15 M."""
    sizes = {name: p.numel() for name, p in published.named_parameters()}
    matrices = [n for n, p in published.named_parameters() if sum(s > 1 for s in p.shape) > 1]
    assert sum(sizes[n] for n in matrices) / 1e6 == pytest.approx(81.7, abs=0.05)
    assert sum(sizes.values()) == 81_883_015
    assert published.config.special_grid.tokens == 324
    assert published.config.grid.tokens == 588


def test_the_published_size_has_its_operations(published):
    """43.4 GMAC are blocks and CSTA; the tubelet embeddings add 0.8, the head none to speak of."""
    assert published.stage_flops() / 2e9 == pytest.approx(43.4, abs=0.05)
    with FlopCounterMode(display=False) as counted, torch.device("meta"):
        published(torch.empty(1, 3, 8, 224, 224))
    assert published.flops() == counted.get_total_flops()
    assert published.flops() / 2e9 == pytest.approx(44.2, abs=0.05)


@pytest.mark.parametrize("attention", CORES)
def test_shapes_and_determinism(attention):
    model = network(attention=attention, dropout=0.3, drop_path=0.3)
    x = clips()
    assert model(x).shape == (2, 5) and model.features(x).shape == (2, 40)
    assert not torch.equal(model(x), model(x)), "dropout acts in training"
    model.eval()
    assert torch.equal(model(x), model(x))
    logits, importance = model.explain(x)
    torch.testing.assert_close(logits, model(x))
    assert importance.shape == (2, 3)
    torch.testing.assert_close(importance.sum(1), torch.ones(2))


@pytest.mark.parametrize("attention", CORES)
def test_gradients_reach_everything(attention):
    model, x = network(attention=attention), clips().requires_grad_()
    functional.cross_entropy(model(x), torch.tensor([0, 3])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert x.grad.abs().amax((0, 1, 3, 4)).min() > 0, "every frame counts"


def test_clips_do_not_affect_one_another():
    model, x = network(attention="mira_exact").eval(), clips(3)
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]))


def test_the_pair_may_come_with_the_clip_or_beside_it():
    model, x = network().eval(), clips()
    clip, pair = split_pair(x)
    assert clip.shape[2] == 6 and torch.equal(pair[:, :, 1], x[:, :, 7])
    torch.testing.assert_close(model(clip, pair), model(x))
    with pytest.raises(ValueError, match="onset and apex behind"):
        split_pair(clip[:, :, :1])


def test_the_pair_may_be_flow():
    model = network(special_frames=1, special_channels=2)
    clip, flow = clips(frames=6), torch.randn(2, 2, 1, 48, 48)
    assert model(clip, flow).shape == (2, 5)
    with pytest.raises(ValueError, match=r"\[B, 2, 1, 48, 48\].*special_channels"):
        model(clip, clip[:, :, :2])


def test_either_branch_hears_of_the_other():
    """A change of one picture reaches the class token of the other branch."""
    model, x = network().eval(), clips()
    clip, pair = split_pair(x)
    reference = model.features(x)
    other_pair, other_clip = model.features(clip, pair.flip(4)), model.features(clip.flip(4), pair)
    special, video = slice(0, 16), slice(16, 40)
    for changed in (other_pair, other_clip):
        assert (changed - reference)[:, special].abs().max() > 1e-4
        assert (changed - reference)[:, video].abs().max() > 1e-4


def tokens(batch=2, count=13, dim=24):
    return torch.randn(batch, count, dim, generator=torch.Generator().manual_seed(3)).double()


def attention_layer(name, constants=None, seed=0):
    torch.manual_seed(seed)
    layer = ClassAttention(24, 2, attention=name, frames=3, constants=constants).double()
    torch.nn.init.normal_(layer.q_bias)
    return layer


@pytest.mark.parametrize("name", CORES)
def test_with_even_weights_a_core_is_plain_attention_with_class_token(name):
    plain = Attention(24, 2).double()
    plain.load_state_dict(attention_layer("sdpa").state_dict())
    torch.testing.assert_close(attention_layer(name, EVEN)(tokens()), plain(tokens()))


@pytest.mark.parametrize("name", CORES[1:])
def test_frame_statistics_see_patch_tokens_only(name):
    layer, x = attention_layer(name), tokens()
    found, patches_alone = [], []
    layer(x, importance=found)
    changed = torch.cat([x[:, :1] + 5, x[:, 1:]], 1)
    layer(changed, importance=found)
    torch.testing.assert_close(found[0], found[1])
    Attention.forward(layer, x[:, 1:], importance=patches_alone)
    torch.testing.assert_close(found[0], patches_alone[0])
    assert not torch.allclose(layer(x)[:, 1:], layer(changed)[:, 1:]), "patches hear the class"
    plain = attention_layer("sdpa")
    assert not torch.allclose(layer(x)[:, 1:], plain(x)[:, 1:], atol=1e-5), "frames weigh"
    torch.testing.assert_close(layer(x)[:, 0], plain(x)[:, 0])


def test_the_share_of_the_class_token_is_that_of_the_softmax():
    q, k = torch.randn(2, 3, 4, 8).double(), torch.randn(2, 3, 5, 8).double()
    expected = (0.3 * q @ k.transpose(2, 3)).softmax(-1)[..., :1]
    torch.testing.assert_close(class_share(q, k, 0.3), expected)


def test_the_exchange_is_the_slow_obvious_one():
    torch.manual_seed(0)
    half = Exchange(6, 8, 2).double()
    own, patches = torch.randn(2, 1, 6).double(), torch.randn(2, 5, 8).double()
    asking = half.outward(own)
    everyone = half.norm(torch.cat([asking, patches], 1))
    q, k, v = functional.linear(everyone, half.attn.qkv.weight).chunk(3, -1)
    answers = []
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        scores = q[:, :1, part] @ k[:, :, part].transpose(1, 2) / 2.0
        answers.append(scores.softmax(-1) @ v[:, :, part])
    expected = half.back(asking + half.attn.proj(torch.cat(answers, -1)))
    torch.testing.assert_close(half(own, patches), expected)


def test_batch_ema_moves_its_average_in_training_only():
    model, x = network(attention="mira_flashlite", statistics="batch_ema"), clips()
    average = model.stages[0].video[0].attn.c_buf
    start = average.clone()
    model.eval()(x)
    assert torch.equal(average, start)
    model.train()(x)
    assert not torch.equal(average, start)
    assert "c_buf" not in " ".join(name for name in model.state_dict() if ".special." in name)


def test_layer_ids_cover_every_parameter():
    model = network()
    ids = model.layer_ids()
    assert set(ids) == {name for name, _ in model.named_parameters()}
    assert ids["special.patch_embed.proj.weight"] == ids["video.class_token"] == 0
    assert ids["stages.0.special.0.attn.q_bias"] == 1 and ids["stages.1.video_asks.norm.bias"] == 2
    assert ids["video_norm.weight"] == ids["head.bias"] == 3
    undecayed = next(g for g in decay_groups(model, 0.05) if g["weight_decay"] == 0.0)
    assert any(p is model.video.class_token for p in undecayed["params"])


@pytest.mark.parametrize("attention", CORES)
def test_it_learns_ten_rendered_clips(attention):
    x, labels, *_ = ten_clips()
    model = network(attention=attention)
    assert overfit(model, (x,), labels, steps=200, lr=2e-3) == 1.0


def with_flow(first, last):
    """Clips of people, the flow from onset to apex, and labels."""
    x, labels = people(first, last)
    pixels = (to_pixels(x[:, :, -2:]) * 255).round().to(torch.uint8).permute(0, 2, 3, 4, 1)
    fields = [flow_of(onset, apex) for onset, apex in pixels.numpy()]
    return x[:, :, :-2], torch.from_numpy(np.stack(fields))[:, :, None], labels


def test_it_tells_expressions_of_people_it_has_not_seen():
    """On flow. 17 of 20 would come by chance once in 776 times."""
    torch.manual_seed(0)
    model = Hsta(replace(SMALL, special_frames=1), 2)
    assert generalise(model, with_flow(0, 24), with_flow(24, 34), steps=100, lr=3e-3) >= 0.85


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dim": 25}, "HstaConfig.dim=25 must be a positive multiple of heads=2"),
        ({"heads": 0}, "HstaConfig.dim=24 must be a positive multiple of heads=0"),
        ({"patch_size": 0}, "patch_size=0"),
        ({"special_dim": 15}, "HstaConfig.special_dim=15"),
        ({"frames": 5}, "HstaConfig.frames=5 must be a positive multiple of tubelet=2"),
        ({"image_size": 40}, "HstaConfig.image_size=40 must be a positive multiple of patch_size"),
        ({"special_patch": 64}, "special_patch=64"),
        ({"stages": 0}, "HstaConfig.stages=0 must be positive"),
        ({"drop_path": 1.0}, "HstaConfig.drop_path=1.0 must lie in"),
        ({"statistics": "ema"}, "choose one of instance, batch, batch_ema"),
        ({"attention": "mira"}, "choose one of sdpa, mira_exact, mira_flashlite"),
    ],
)
def test_an_impossible_config_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **values)


def test_impossible_classes_and_clips_are_refused():
    with pytest.raises(ValueError, match="num_classes=0 must be positive"):
        Hsta(SMALL, 0)
    with pytest.raises(ValueError, match="clips have shape"):
        network()(clips(frames=7))

"""FaceSleuth-R: its streams, windows, action units and θ, learning ten clips."""

from dataclasses import replace
from math import pi

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from finetune.models.configs import predicted_units, privileged, unanswerable
from finetune.models.facesleuth import FaceSleuth, FaceSleuthConfig
from finetune.models.soa import SoaConfig, orientation_layers
from finetune.models.windows import WindowAttention, WindowTransformer
from launch.parameters import decay_groups
from mira.blocks import Attention
from tests.finetune.rendered import generalise, overfit, people, ten_clips

UNITS = ("1", "2", "4", "12")
SMALL = FaceSleuthConfig(
    image_size=48, dims=(8, 16, 24), depths=(1, 1, 2), heads=(1, 2, 2), window=3
)


def pairs(batch=2, channels=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, channels, 2, 48, 48, generator=generator)


def network(seed=0, outputs=9, **values):
    torch.manual_seed(seed)
    return FaceSleuth(replace(SMALL, **values), outputs)


def test_the_published_layout_fuses_at_fourteen_and_its_attention_is_light():
    with torch.device("meta"):
        model = FaceSleuth(FaceSleuthConfig(), 5)
        assert model.appearance(torch.empty(2, 3, 224, 224)).shape == (2, 512, 14, 14)
        assert model(torch.empty(2, 3, 2, 224, 224)).shape == (2, 5)
    assert [len(stage.blocks) for stage in model.appearance.stages] == [2, 2, 6]
    assert [stage.blocks[0].attn.heads for stage in model.appearance.stages] == [4, 8, 16]
    assert [(soa.rows, soa.bins) for _, soa in orientation_layers(model)] == [
        (56, 56),
        (28, 28),
        (14, 14),
    ]
    total = sum(p.numel() for p in model.parameters())
    soa = sum(p.numel() for _, layer in orientation_layers(model) for p in layer.parameters())
    assert soa / total < 0.0016, "the paper's adds 0.16 %"


VARIANTS = [{}, {"motion": "flow"}, {"action_units": "predicted", "units": UNITS}]


@pytest.mark.parametrize("values", VARIANTS, ids=["plain", "flow", "predicted"])
def test_operations_are_counted(values):
    with torch.device("meta"), FlopCounterMode(display=False) as counted:
        model, flow = FaceSleuth(replace(SMALL, **values), 9), torch.empty(1, 2, 48, 48)
        extra = {"flow": flow} if values.get("motion") == "flow" else {}
        model(torch.empty(1, 3, 2, 48, 48), **extra)
    assert model.flops() == counted.get_total_flops()


@pytest.mark.parametrize("values", VARIANTS, ids=["plain", "flow", "predicted"])
def test_shapes_determinism_and_gradients(values):
    model, x = network(dropout=0.3, drop_path=0.3, **values), pairs().requires_grad_()
    extra = {"flow": torch.randn(2, 2, 48, 48)} if values.get("motion") == "flow" else {}
    logits = model(x, **extra)
    assert logits.shape == (2, 9) and model.features(x, **extra).shape == (2, 24)
    assert not torch.equal(logits, model(x, **extra)), "dropout acts in training"
    model.eval()
    assert torch.equal(model(x, **extra), model(x, **extra))
    functional.cross_entropy(model(x, **extra), torch.tensor([0, 3])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert x.grad.abs().amax((0, 1, 3, 4)).min() > 0, "onset and apex count"


def test_frames_before_the_pair_are_not_looked_at():
    model, x = network().eval(), pairs()
    clip = torch.cat([torch.randn(2, 3, 6, 48, 48), x], 2)
    torch.testing.assert_close(model(clip), model(x))


def test_order_shows_in_the_motion_stream_only():
    model, x = network().eval(), pairs()
    assert not torch.allclose(model(x), model(x.flip(2)))
    for stage in model.motion:
        torch.nn.init.zeros_(stage.soa.expand.weight)
    still = x[:, :, :1].expand(-1, -1, 2, -1, -1)
    with torch.no_grad():
        model.fuse.weight[:, : SMALL.dims[-1]] = 0.0  # motion is not heard
    torch.testing.assert_close(model(x), model(x.flip(2)))
    assert not torch.allclose(model(x), model(still))


def test_every_direction_has_its_own_rate_and_no_decay():
    model = network()
    scales = model.rate_scales()
    assert scales == {f"motion.{i}.soa.theta": 10.0 for i in range(3)}
    thetas = [dict(model.named_parameters())[name] for name in scales]
    groups = decay_groups(model, 0.05, lr_scale=lambda name: scales.get(name, 1.0))
    own = [g for g in groups if g["lr_scale"] == 10.0]
    assert len(own) == 1 and own[0]["weight_decay"] == 0.0
    assert all(p is q for p, q in zip(own[0]["params"], thetas, strict=True))
    thetas = {name: float(soa.direction) for name, soa in orientation_layers(model)}
    assert thetas == pytest.approx({f"motion.{i}.soa": pi / 4 for i in range(3)})
    fixed = network(soa=SoaConfig(theta=pi / 2, learned=False))
    assert fixed.rate_scales() == {}
    fixed(pairs()).sum().backward()
    assert fixed.motion[0].soa.theta.grad is None


def test_layer_ids_cover_every_parameter():
    model = network(action_units="predicted", units=UNITS)
    ids = model.layer_ids()
    assert set(ids) == {name for name, _ in model.named_parameters()}
    assert ids["appearance.patch_embed.weight"] == 0
    assert ids["motion.0.down.weight"] == ids["appearance.stages.0.blocks.0.norm1.bias"] == 1
    assert ids["motion.2.soa.theta"] == ids["appearance.stages.2.blocks.1.norm1.bias"] == 3
    assert ids["appearance.halvings.0.proj.weight"] == 2
    assert ids["fuse.weight"] == ids["unit_head.bias"] == ids["head.weight"] == 4


def test_oracle_units_are_privileged_and_asked_for():
    units, x = torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 0]]), pairs()
    model = network(action_units="oracle", units=UNITS).eval()
    assert unanswerable(model.config) == ["action_units"] and model.config.inputs == ("units",)
    assert privileged(model.config) == ["onset and apex", "action_units"]
    assert not torch.allclose(model(x, units=units), model(x, units=1 - units))
    with pytest.raises(ValueError, match="needs `units`"):
        model(x)
    plain = network()
    assert unanswerable(plain.config) == [] and plain.config.inputs == ()
    assert privileged(plain.config) == ["onset and apex"]
    with pytest.raises(ValueError, match="action_units='off'; set oracle"):
        plain(x, units=units)


def test_predicted_units_need_no_annotation_and_are_trainable():
    torch.manual_seed(0)
    config = replace(SMALL, action_units="predicted", units=UNITS)
    model, x = FaceSleuth(config, 5 + 4 + 2, units_at=5).eval(), pairs()
    assert unanswerable(model.config) == [] and predicted_units(model.config) == UNITS
    pooled = model.features(x)
    units = model.unit_head(pooled)
    told = model.classify(pooled)
    assert told.shape == (2, 11) and torch.equal(told, model(x))
    assert torch.equal(told[:, 5:9], units), "between classes and affect"
    others = model.head(pooled + model.unit_embed(units.sigmoid()))
    torch.testing.assert_close(torch.cat([told[:, :5], told[:, 9:]], 1), others)
    with pytest.raises(ValueError, match="num_classes=4 logits cannot hold 4 predicted"):
        FaceSleuth(config, 4)
    with pytest.raises(ValueError, match="action_units='predicted'"):
        model(x, units=torch.zeros(2, 4))


@pytest.mark.parametrize("across", [False, True])
def test_windows_attend_inside_or_across(across):
    torch.manual_seed(0)
    attention = WindowAttention(4, 2, side=6, window=3, across=across)
    x = torch.randn(2, 36, 4)
    torch.testing.assert_close(attention._joined(attention._cut(x)), x)
    moved = x.clone()
    moved[:, 0] += 1  # the token at row 0, column 0
    seen = (attention(moved) - attention(x)).abs().amax((0, 2)).unflatten(0, (6, 6)) > 1e-7
    row, column = torch.meshgrid(torch.arange(6), torch.arange(6), indexing="ij")
    inside = (row < 3) & (column < 3)
    strided = (row % 2 == 0) & (column % 2 == 0)
    assert torch.equal(seen, strided if across else inside)
    alone = x.unflatten(1, (6, 6))[:, ::2, ::2] if across else x.unflatten(1, (6, 6))[:, :3, :3]
    expected = Attention.forward(attention, alone.flatten(1, 2))
    torch.testing.assert_close(
        attention(x).unflatten(1, (6, 6))[:, strided if across else inside], expected
    )


def test_the_map_is_a_sixteenth_and_pictures_do_not_affect_one_another():
    torch.manual_seed(0)
    sizes = {"dims": SMALL.dims, "depths": SMALL.depths, "heads": SMALL.heads, "window": 3}
    model, x = WindowTransformer(96, 3, **sizes).eval(), torch.randn(2, 3, 96, 96)
    assert model(x).shape == (2, 24, 6, 6)
    torch.testing.assert_close(model(x)[1:], model(x[1:]))


@pytest.mark.parametrize("action_units", ["off", "oracle", "predicted"])
def test_it_learns_ten_rendered_clips(action_units):
    x, labels, *_ = ten_clips()
    units = () if action_units == "off" else UNITS
    model = network(action_units=action_units, units=units, outputs=9)
    forward = model.forward
    # Units that tell nothing, so that the pictures must; the classes come first.
    given = {"units": torch.ones(len(x), 4)} if action_units == "oracle" else {}
    model.forward = lambda x: forward(x, **given)[:, :5]
    assert overfit(model, (x,), labels, steps=200, lr=3e-3) == 1.0


def test_it_tells_expressions_of_people_it_has_not_seen():
    """17 of 20 would come by chance once in 776 times."""
    model = network(outputs=2)
    assert generalise(model, people(0, 24), people(24, 34), steps=60, lr=3e-3) >= 0.85


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_size": 64}, "image_size=64 must be a positive multiple of 16 · window=48"),
        ({"window": 0}, "window=0"),
        ({"dims": (8, 16, 25)}, "must be positive multiples of heads"),
        ({"depths": (1, 1)}, "FaceSleuthConfig.depths=\\(1, 1\\) must have three values"),
        ({"motion": "both"}, "motion='both' does not exist; choose one of difference, flow"),
        ({"action_units": "on"}, "choose one of off, oracle, predicted"),
        ({"action_units": "oracle"}, r"units=\(\) does not go with action_units='oracle'"),
        ({"units": ("4",)}, r"units=\('4',\) does not go with action_units='off'"),
        ({"flow_channels": 0}, "flow_channels must be positive"),
        ({"dropout": 1.0}, "FaceSleuthConfig.dropout=1.0"),
    ],
)
def test_an_impossible_config_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **values)


def test_impossible_inputs_are_refused():
    with pytest.raises(ValueError, match="num_classes=0"):
        FaceSleuth(SMALL, 0)
    with pytest.raises(ValueError, match="motion='difference'; set motion='flow'"):
        network()(pairs(), flow=torch.randn(2, 2, 48, 48))
    with pytest.raises(ValueError, match=r"needs `flow` of shape \(2, 2, 48, 48\), not None"):
        network(motion="flow")(pairs())
    with pytest.raises(ValueError, match="image_size and channels of FaceSleuthConfig"):
        network()(pairs(channels=1))

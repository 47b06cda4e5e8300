"""The classification objective as the engine sees it: losses, views, layer decay, groups."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from finetune.inputs import inputs_of
from finetune.mixing import MixConfig
from finetune.models import build
from finetune.models.classifier import Classifier
from finetune.outputs import Outputs
from finetune.recipes_micro import facesleuth_debug
from finetune.task import ClassifyTask
from mira.encoder import EncoderConfig
from mira.tubelets import normalise
from shards.augment import AugmentConfig
from shards.batch import ClipBatch
from shards.draws_device import augmented

ENCODER = EncoderConfig(
    image_size=32, frames=4, patch_size=8, dim=24, depth=3, heads=3, attention="mira_flashlite"
)
UNMIXED = MixConfig(mixup=0.0, cutmix=0.0, label_smoothing=0.0)


def task(mixing: MixConfig = UNMIXED, *, layer_decay: float = 1.0, augment=None) -> ClassifyTask:
    torch.manual_seed(0)
    model = Classifier(ENCODER, num_classes=3)
    torch.nn.init.normal_(model.head.weight)
    return ClassifyTask(model, mixing, layer_decay=layer_decay, augment=augment)


def batch(labels: tuple[int, ...] = (0, 2, -1, 1), *, views: int = 1) -> ClipBatch:
    count = len(labels)
    pixels = torch.randint(0, 256, (count * views, 3, 4, 32, 32))
    return ClipBatch(
        pixels=pixels.to(torch.uint8),
        labels=torch.tensor(labels),
        weights=torch.tensor([float(label >= 0) for label in labels]),
        seeds=torch.arange(count),
        keys=[f"k{i}" for i in range(count)],
        views=views,
    )


def test_the_loss_of_a_clip_is_its_cross_entropy():
    model, clips = task().eval(), batch()
    losses, metrics = model(clips)
    logits = model.model(normalise(clips.pixels))
    kept = [0, 1, 3]
    expected = functional.cross_entropy(logits[kept], clips.labels[kept], reduction="none")
    torch.testing.assert_close(losses[kept], expected)
    assert losses.shape == (4,) and losses.dtype == torch.float32 and losses.requires_grad
    right = (logits[kept].argmax(1) == clips.labels[kept]).float()
    assert torch.equal(metrics["accuracy"][kept], right)


def test_a_clip_of_unknown_class_is_never_told_right():
    """It may count by its action units, and the network may say the first class of it."""
    model = task().eval()
    with torch.no_grad():
        model.model.head.weight.zero_()
        model.model.head.bias.copy_(torch.tensor([5.0, 0.0, 0.0]))
    _, metrics = model(batch((0, -1, 1)))
    assert metrics["accuracy"].tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("mixing", [UNMIXED, MixConfig()], ids=["unmixed", "mixed"])
def test_training_augments_before_it_mixes_and_prediction_never_does(mixing):
    config, clips = AugmentConfig(randaugment_ops=4, erase=0.5), batch()
    plain, augmenting = task(mixing).eval(), task(mixing, augment=config).eval()
    changed = replace(clips, pixels=augmented(clips, config))
    assert torch.equal(augmenting(clips)[0], plain(changed)[0])
    assert not torch.equal(augmenting(clips)[0], plain(clips)[0])
    assert torch.equal(augmenting.predict(clips), plain.predict(clips))


def test_smoothing_moves_mass_to_all_classes():
    model, clips = task(MixConfig(mixup=0.0, cutmix=0.0, label_smoothing=0.3)).eval(), batch((1,))
    logits = model.model(normalise(clips.pixels))
    expected = functional.cross_entropy(logits, clips.labels, label_smoothing=0.3)
    torch.testing.assert_close(model(clips)[0][0], expected)


def test_what_stands_in_a_slot_that_does_not_count_changes_no_other_loss():
    model, clips = task(MixConfig()).eval(), batch()
    before = model(clips)[0]
    other = replace(clips, pixels=clips.pixels.clone())
    other.pixels[2] = 255
    kept = [0, 1, 3]
    assert torch.equal(model(other)[0][kept], before[kept])


def with_statistics(kind: str) -> tuple[ClassifyTask, ClipBatch]:
    """A task in training whose network normalises by its batches, and eight clips."""
    torch.manual_seed(0)
    if kind == "soa":
        network = build(ENCODER, Outputs(("a", "b", "c")), soa=True)
        frames, extra = 4, {}
    else:
        config = facesleuth_debug().encoder
        config = replace(config, motion="flow", action_units="oracle", units=("1", "4"))
        network = build(config, Outputs(("a", "b", "c")))
        frames, extra = 2, {"flow": torch.randn(8, 3, 48, 48), "units": torch.ones(8, 2)}
    torch.nn.init.normal_(network.head.weight)
    clips = batch((0, 1, 2, 0, 1, 2, 0, 1))
    size = network.config.image_size
    pixels = torch.randint(0, 256, (8, 3, frames, size, size)).to(torch.uint8)
    return ClassifyTask(network, UNMIXED).train(), replace(clips, pixels=pixels, extra=extra)


def emptied(clips: ClipBatch, counted: int) -> ClipBatch:
    """The first clips count; the places of the others are as the loader leaves them."""
    there = torch.arange(len(clips)) < counted
    return replace(
        clips,
        weights=there.float(),
        labels=clips.labels.masked_fill(~there, -1),
        pixels=clips.pixels * there[:, None, None, None, None],
        extra={n: v * there.view(-1, *[1] * (v.ndim - 1)) for n, v in clips.extra.items()},
    )


def statistics(task: ClassifyTask) -> list[torch.Tensor]:
    return [b.clone() for n, b in task.named_buffers() if "running" in n]


@pytest.mark.parametrize("kind", ["soa", "facesleuth"])
def test_empty_places_leave_no_trace_in_statistics_of_batches(kind):
    (full, clips), (padded, _), (black, _) = (with_statistics(kind) for _ in range(3))
    order = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    copies = replace(
        clips,
        pixels=clips.pixels[order],
        labels=clips.labels[order],
        extra={name: value[order] for name, value in clips.extra.items()},
    )
    losses, found = full(copies)[0], padded(emptied(clips, 4))[0]
    torch.testing.assert_close(found[:4], losses[:4])
    for one, other in zip(statistics(padded), statistics(full), strict=True):
        torch.testing.assert_close(one, other)
    before = statistics(black)
    black(emptied(clips, 0))[0].sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(statistics(black), before, strict=True))
    black(emptied(clips, 1))
    assert not any(torch.equal(a, b) for a, b in zip(statistics(black), before, strict=True))


@pytest.mark.parametrize("kind", ["soa", "facesleuth"])
def test_a_full_batch_is_shown_as_it_is(kind):
    task, clips = with_statistics(kind)
    inputs = inputs_of(task.model, clips)
    expected = with_statistics(kind)[0].model(normalise(clips.pixels), **inputs)
    losses = functional.cross_entropy(expected, clips.labels, reduction="none")
    assert torch.equal(task(clips)[0], losses)


def test_without_mixing_micro_batches_of_any_size_give_the_same_losses():
    model, clips = task().eval(), batch()
    one = [
        model(
            ClipBatch(
                *(t[i : i + 1] for t in (clips.pixels, clips.labels, clips.weights, clips.seeds)),
                [clips.keys[i]],
            )
        )[0]
        for i in range(4)
    ]
    torch.testing.assert_close(torch.cat(one), model(clips)[0], rtol=1e-5, atol=1e-6)


def test_prediction_is_the_mean_probability_of_a_clip_s_views():
    model, clips = task().eval(), batch((0, 1), views=3)
    shares = model.model(normalise(clips.pixels)).softmax(1)
    found = model.predict(clips)
    torch.testing.assert_close(found, torch.stack([shares[:3].mean(0), shares[3:].mean(0)]))
    torch.testing.assert_close(found.sum(1), torch.ones(2))
    assert found.dtype == torch.float32


def test_prediction_ignores_labels_and_mixing():
    model, clips = task(MixConfig()).eval(), batch()
    unknown = replace(clips, labels=torch.full((4,), -1))
    assert torch.equal(model.predict(clips), model.predict(unknown))


def test_groups_hold_every_parameter_once_with_the_rate_of_its_layer():
    model = task(layer_decay=0.5)
    groups = model.param_groups(0.1)
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    layer = {"patch_embed": 0, "blocks.0": 1, "blocks.1": 2, "blocks.2": 3, "fc_norm": 4, "head": 4}
    for name, parameter in model.named_parameters():
        part = name.removeprefix("model.")
        [found] = [i for start, i in layer.items() if part.startswith(f"{start}.")]
        assert scales[id(parameter)] == 0.5 ** (4 - found), name
        vector = name.endswith("bias") or "norm" in name
        assert decays[id(parameter)] == (0.0 if vector else 0.1), name


@pytest.mark.parametrize("layer_decay", [1.0, 0.75])
def test_the_head_learns_at_the_full_rate(layer_decay):
    model = task(layer_decay=layer_decay)
    [group] = [
        g for g in model.param_groups(0.1) if any(p is model.model.head.weight for p in g["params"])
    ]
    assert group["lr_scale"] == 1.0


def test_a_fresh_head_starts_at_chance():
    torch.manual_seed(0)
    fresh = ClassifyTask(Classifier(ENCODER, num_classes=3), UNMIXED)
    losses, _ = fresh(batch((0, 1, 2)))
    assert losses.tolist() == pytest.approx([math.log(3)] * 3, abs=0.02)


def test_a_parameter_with_a_rate_of_its_own_keeps_it():
    torch.manual_seed(0)
    network = build(ENCODER, Outputs(("a", "b")), soa=True)
    model = ClassifyTask(network, UNMIXED, layer_decay=0.5)
    groups = model.param_groups(0.1)
    [own] = [g for g in groups if any(p is network.orientation.soa.theta for p in g["params"])]
    assert (own["lr_scale"], own["weight_decay"]) == (10.0, 0.0)
    assert len(own["params"]) == 1


def test_losses_of_several_outputs_add_up_and_mix_alike():
    torch.manual_seed(0)
    outputs = Outputs(("a", "b", "c"), units=("1", "4"), affect=True)
    model = ClassifyTask(build(ENCODER, outputs), MixConfig(cutmix=0.0), outputs=outputs)
    clips = batch((0, 2, -1, 1))
    nan = float("nan")
    clips.extra = {
        "units": torch.tensor([[1.0, 0.0], [nan, nan], [0.0, nan], [1.0, 1.0]]),
        "affect": torch.tensor([[0.5, 0.5], [nan, nan], [nan, nan], [0.0, 0.1]]),
    }
    losses, figures = model(clips)
    parts = [figures[f"loss_{name}"] for name in ("labels", "units", "affect")]
    torch.testing.assert_close(losses.detach(), sum(parts))
    assert losses.isfinite().all(), "unknown targets cost nothing, mixed or not"
    told = model.eval().predict(clips)
    assert told.shape == (4, 7)
    torch.testing.assert_close(told[:, :3].sum(1), torch.ones(4))

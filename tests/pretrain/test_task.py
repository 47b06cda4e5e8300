"""The pretraining objective as the engine sees it: losses a clip, masks, groups, the meter."""

from dataclasses import replace

import pytest
import torch

from mira.encoder import EncoderConfig
from pretrain.masking import MaskConfig, make_masks
from pretrain.model import DecoderConfig, VideoMAE
from pretrain.task import LossMeter, PretrainTask
from shards.augment import AugmentConfig
from shards.batch import ClipBatch
from shards.draws_device import augmented

ENCODER = EncoderConfig(
    image_size=32, frames=4, patch_size=8, dim=24, depth=2, heads=3, attention="mira_exact"
)


def task(mask: MaskConfig | None = None, augment: AugmentConfig | None = None) -> PretrainTask:
    torch.manual_seed(0)
    model = VideoMAE(ENCODER, DecoderConfig(dim=16, depth=1, heads=2))
    return PretrainTask(model, mask or MaskConfig(ratio=0.75), augment)


def batch(size: int = 4, *, weights: tuple[float, ...] = (1, 1, 0, 1)) -> ClipBatch:
    pixels = torch.randint(0, 256, (size, 3, 4, 32, 32), generator=torch.Generator().manual_seed(1))
    return ClipBatch(
        pixels=pixels.to(torch.uint8),
        labels=torch.full((size,), -1),
        weights=torch.tensor(weights),
        seeds=torch.arange(100, 100 + size),
        keys=[f"k{i}" for i in range(size)],
    )


def part(whole: ClipBatch, *, chosen: slice) -> ClipBatch:
    tensors = {name: getattr(whole, name)[chosen] for name in ("pixels", "labels", "weights")}
    return ClipBatch(**tensors, seeds=whole.seeds[chosen], keys=whole.keys[chosen])


def test_there_is_one_loss_a_clip_with_a_gradient():
    losses, metrics = task()(batch())
    assert losses.shape == (4,) and losses.dtype == torch.float32 and losses.requires_grad
    assert bool((losses > 0).all()) and metrics == {}


def test_training_augments_and_prediction_never_does():
    config, clips = AugmentConfig(randaugment_ops=4, erase=0.5), batch()
    plain, augmenting = task(), task(augment=config)
    changed = replace(clips, pixels=augmented(clips, config))
    assert torch.equal(augmenting(clips)[0], plain(changed)[0])
    assert not torch.equal(augmenting(clips)[0], plain(clips)[0])
    assert torch.equal(augmenting.predict(clips), plain.predict(clips))


@pytest.mark.parametrize("mask", [MaskConfig(ratio=0.75), MaskConfig(0.75, decoder_ratio=0.5)])
def test_micro_batches_of_any_size_give_the_same_losses(mask):
    model, whole = task(mask), batch()
    parts = [slice(0, 1), slice(1, 4)]
    apart = torch.cat([model(part(whole, chosen=chosen))[0] for chosen in parts])
    torch.testing.assert_close(apart, model(whole)[0], rtol=1e-5, atol=1e-6)


def test_losses_depend_on_the_clip_s_own_seed_and_on_no_global_generator():
    model, whole = task(), batch()
    torch.manual_seed(1)
    before = model(whole)[0]
    torch.manual_seed(2)
    assert torch.equal(model(whole)[0], before)
    seeds = whole.seeds.clone()
    seeds[1] = 7
    masks = [make_masks(model.mask, ENCODER, s)[0] for s in (whole.seeds, seeds)]
    assert (masks[0] != masks[1]).any(1).tolist() == [False, True, False, False]
    changed = model(replace(whole, seeds=seeds))[0] != before
    assert changed.tolist() == [False, True, False, False]


def test_what_stands_in_a_slot_that_does_not_count_changes_no_other_loss():
    model, whole = task(), batch()
    before = model(whole)[0]
    whole.pixels[2] = 0
    after = model(whole)[0]
    assert torch.equal(after[[0, 1, 3]], before[[0, 1, 3]])
    assert torch.isfinite(after).all(), "a slot of zeros is an ordinary clip to the network"


def test_groups_hold_every_parameter_once_and_only_matrices_decay():
    model = task()
    groups = model.param_groups(0.05)
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        vector = name.endswith(("bias", "mask_token")) or "norm" in name
        assert decays[id(parameter)] == (0.0 if vector else 0.05), name
    assert {group["lr_scale"] for group in groups} == {1.0}


def test_evaluation_gives_the_losses_themselves():
    model = task().eval()
    with torch.no_grad():
        assert torch.equal(model.predict(batch()), model(batch())[0])


def test_operations_of_a_step_are_three_times_those_of_a_forward_pass():
    model = task()
    assert model.flops_per_clip == 3 * model.model.flops(model.mask) > 0


def test_the_meter_takes_each_clip_once_over_batches_and_ranks():
    losses = torch.tensor([0.5, 0.25, float("nan"), 1.0])
    one, other = LossMeter(), LossMeter()
    one.update(losses, batch())
    one.update(torch.tensor([3.0]), batch(1, weights=(1.0,)))
    other.update(losses[:1], batch(1, weights=(1.0,)))
    found = one.compute(lambda mine: mine + other.total)
    mean = (0.5 + 0.25 + 1.0 + 3.0 + 0.5) / 5
    assert found == {"loss": mean, "clips": 5.0, "unread": 1.0, "coverage": 5 / 6}


def test_the_mean_of_no_clip_is_no_number():
    meter = LossMeter()
    meter.update(torch.ones(2), batch(2, weights=(0.0, 0.0)))
    found = meter.compute(lambda mine: mine)
    assert found["clips"] == 0 and found["loss"] != found["loss"]

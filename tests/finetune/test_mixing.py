import pytest
import torch

from finetune.mixing import MixConfig, mix
from finetune.outputs import Outputs
from finetune.targets import one_hot, targets_of
from shards.batch import ClipBatch

CLASSES = 5


def mixed_batch(pixels, labels, weights, seeds, *, mix_config):
    """Mixed pixels and soft targets of the classes."""
    mixed = mix(pixels, weights, seeds, mix_config)
    clips = ClipBatch(pixels, labels, weights, seeds, [f"k{i}" for i in range(len(labels))])
    outputs = Outputs(tuple("abcde"))
    targets = targets_of(clips, outputs, smoothing=mix_config.label_smoothing).labels
    return mixed.pixels, mixed.blend(targets)


def batch(size=6):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(size, 3, 2, 16, 16, generator=generator)
    labels = torch.arange(size) % CLASSES
    return pixels, labels, torch.ones(size), torch.arange(size) + 11


@pytest.mark.parametrize(
    "config",
    [MixConfig(cutmix=0), MixConfig(mixup=0), MixConfig()],
    ids=["mixup", "cutmix", "both"],
)
def test_targets_are_distributions_and_pixels_change(config):
    pixels, labels, weights, seeds = batch()
    mixed, targets = mixed_batch(pixels, labels, weights, seeds, mix_config=config)
    assert torch.allclose(targets.sum(1), torch.ones(len(labels)))
    assert (targets >= 0).all() and targets.dtype == torch.float32
    assert mixed.shape == pixels.shape and not torch.equal(mixed, pixels)


def test_cutmix_target_is_the_share_of_pixels_kept():
    pixels, labels, weights, seeds = batch()
    pixels = labels.float()[:, None, None, None, None].expand(-1, 3, 2, 16, 16)
    config = MixConfig(mixup=0, label_smoothing=0)
    mixed, targets = mixed_batch(pixels, labels, weights, seeds, mix_config=config)
    for clip, label in enumerate(labels.tolist()):
        kept = (mixed[clip] == label).float().mean()
        assert targets[clip, label] == pytest.approx(float(kept), abs=1e-6)


def test_turned_off_gives_smoothed_labels_alone():
    pixels, labels, weights, seeds = batch()
    config = MixConfig(mixup=0, cutmix=0, label_smoothing=0.1)
    mixed, targets = mixed_batch(pixels, labels, weights, seeds, mix_config=config)
    assert torch.equal(mixed, pixels)
    assert targets[0].tolist() == pytest.approx([0.92, 0.02, 0.02, 0.02, 0.02])


def test_a_clip_that_failed_is_nobody_s_partner():
    pixels, labels, weights, seeds = batch()
    weights[2], labels[2], pixels[2] = 0, -1, 1000.0
    mixed, targets = mixed_batch(pixels, labels, weights, seeds, mix_config=MixConfig(cutmix=0))
    others = [0, 1, 3, 4, 5]
    assert mixed[others].abs().max() < 100
    assert torch.allclose(targets[others].sum(1), torch.ones(5)) and targets[2].isnan().all()


def test_a_mixture_with_an_unknown_target_has_none():
    pixels, _, weights, seeds = batch(3)
    mixed = mix(pixels, weights, seeds, MixConfig(cutmix=0))
    targets = one_hot(torch.tensor([0, -1, 1]), 2)
    known = ~mixed.blend(targets).isnan().any(1)
    partners = mixed.partner.tolist()
    assert known.tolist() == [i != 1 and partner != 1 for i, partner in enumerate(partners)]
    plain = mix(pixels, weights, seeds, MixConfig(mixup=0, cutmix=0))
    assert torch.equal(plain.blend(targets).isnan(), targets.isnan())


def test_the_same_seeds_mix_alike_whatever_the_global_generator():
    pixels, labels, weights, seeds = batch()
    torch.manual_seed(1)
    first = mixed_batch(pixels, labels, weights, seeds, mix_config=MixConfig())
    torch.manual_seed(2)
    second = mixed_batch(pixels, labels, weights, seeds, mix_config=MixConfig())
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


@pytest.mark.parametrize(("field", "value"), [("label_smoothing", 1.5), ("mixup", -1.0)])
def test_impossible_settings_name_the_field(field, value):
    with pytest.raises(ValueError, match=field):
        MixConfig(**{field: value})

import pytest
import torch

from finetune.mixing import MixConfig, mix

CLASSES = 5


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
    mixed, targets = mix(pixels, labels, weights, seeds, classes=CLASSES, mix=config)
    assert torch.allclose(targets.sum(1), torch.ones(len(labels)))
    assert (targets >= 0).all() and targets.dtype == torch.float32
    assert mixed.shape == pixels.shape and not torch.equal(mixed, pixels)


def test_cutmix_target_is_the_share_of_pixels_kept():
    pixels, labels, weights, seeds = batch()
    pixels = labels.float()[:, None, None, None, None].expand(-1, 3, 2, 16, 16)
    config = MixConfig(mixup=0, label_smoothing=0)
    mixed, targets = mix(pixels, labels, weights, seeds, classes=CLASSES, mix=config)
    for clip, label in enumerate(labels.tolist()):
        kept = (mixed[clip] == label).float().mean()
        assert targets[clip, label] == pytest.approx(float(kept), abs=1e-6)


def test_turned_off_gives_smoothed_labels_alone():
    pixels, labels, weights, seeds = batch()
    config = MixConfig(mixup=0, cutmix=0, label_smoothing=0.1)
    mixed, targets = mix(pixels, labels, weights, seeds, classes=CLASSES, mix=config)
    assert torch.equal(mixed, pixels)
    assert targets[0].tolist() == pytest.approx([0.92, 0.02, 0.02, 0.02, 0.02])


def test_a_clip_that_failed_is_nobody_s_partner():
    pixels, labels, weights, seeds = batch()
    weights[2], labels[2], pixels[2] = 0, -1, 1000.0
    mixed, targets = mix(pixels, labels, weights, seeds, classes=CLASSES, mix=MixConfig(cutmix=0))
    others = [0, 1, 3, 4, 5]
    assert mixed[others].abs().max() < 100
    assert torch.allclose(targets.sum(1), torch.ones(6))


def test_the_same_seeds_mix_alike_whatever_the_global_generator():
    pixels, labels, weights, seeds = batch()
    torch.manual_seed(1)
    first = mix(pixels, labels, weights, seeds, classes=CLASSES, mix=MixConfig())
    torch.manual_seed(2)
    second = mix(pixels, labels, weights, seeds, classes=CLASSES, mix=MixConfig())
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


@pytest.mark.parametrize(("field", "value"), [("label_smoothing", 1.5), ("mixup", -1.0)])
def test_impossible_settings_name_the_field(field, value):
    with pytest.raises(ValueError, match=field):
        MixConfig(**{field: value})

"""What augmentation does to pixels: what it may change, and that one draw serves a whole clip."""

import itertools

import numpy as np
import pytest

from shards.augment import AugmentConfig, ViewConfig, augment, view_crops
from shards.randaugment import _OPERATIONS, blend_clip, rand_augment

PLAIN = AugmentConfig(crop="none")


def still(height=48, width=48, frames=5, seed=0):
    """A clip in which every frame is the same noise."""
    picture = np.random.default_rng(seed).integers(30, 220, (height, width, 3), dtype=np.uint8)
    return np.repeat(picture[None], frames, axis=0)


def coordinates(height, width):
    """A clip whose red tells the column, green the row."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns, rows, np.zeros_like(rows)], axis=-1)[None].astype(np.uint8)


def apply(clip, config, *, size=32, seed=0):
    return augment(clip, config, size=size, rng=np.random.default_rng(seed))


EVERYTHING = AugmentConfig(
    crop="resized", flip=0.5, colour_jitter=0.4, randaugment_ops=4, randaugment_magnitude=9
)


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("config", [AugmentConfig(), EVERYTHING], ids=["crops", "everything"])
def test_all_frames_of_a_clip_are_treated_alike(config, seed):
    clip = apply(still(60, 44), config, seed=seed)
    assert clip.shape == (5, 32, 32, 3)
    assert clip.dtype == np.uint8
    assert (clip == clip[:1]).all()


def test_a_seed_decides_everything():
    config = AugmentConfig(crop="resized", flip=0.5, randaugment_ops=4, erase=0.5)
    clips = [apply(still(), config, seed=seed) for seed in range(8)]
    again = [apply(still(), config, seed=seed) for seed in range(8)]
    assert all((a == b).all() for a, b in zip(clips, again, strict=True))
    assert all((a != b).any() for a, b in itertools.combinations(clips, 2))


def test_the_input_is_left_alone():
    clip = still()
    before = clip.copy()
    for seed in range(20):
        apply(clip, AugmentConfig(crop="none", flip=0.5, erase=1, randaugment_ops=4), seed=seed)
        apply(clip, AugmentConfig(crop="none", erase=1), size=48, seed=seed)
    assert (clip == before).all()


def test_no_crop_takes_the_square_in_the_middle():
    clip = apply(coordinates(32, 64), PLAIN)
    assert clip[0, 0, 0].tolist() == [16, 0, 0]
    assert clip[0, -1, -1].tolist() == [47, 31, 0]


def test_multi_scale_crops_have_the_published_sides_and_places():
    corners, sides = set(), set()
    for seed in range(400):
        clip = apply(coordinates(100, 100), AugmentConfig(), size=100, seed=seed)[0].astype(int)
        left, top = clip[50, 0, 0], clip[0, 50, 1]
        width, height = clip[50, -1, 0] - left + 1, clip[-1, 50, 1] - top + 1
        corners.add((left, top))
        sides |= {(width, height)}
    allowed = (100, 87, 75, 66)
    assert {w for w, _ in sides} == {h for _, h in sides} == set(allowed)
    near = [
        (a, b) for a in allowed for b in allowed if abs(allowed.index(a) - allowed.index(b)) < 2
    ]
    assert sides == set(near)
    assert (0, 0) in corners
    assert (32, 32) in corners, "a crop of 66 may end at the far corner"


def test_resized_crops_stay_within_area_and_aspect():
    config = AugmentConfig(crop="resized", area=(0.3, 0.6), aspect=(0.5, 2.0))
    areas, ratios = [], []
    for seed in range(200):
        clip = apply(coordinates(100, 100), config, size=100, seed=seed)[0].astype(int)
        width = clip[50, -1, 0] - clip[50, 0, 0] + 1
        height = clip[-1, 50, 1] - clip[0, 50, 1] + 1
        areas.append(width * height / 1e4)
        ratios.append(width / height)
    assert 0.28 < min(areas) < 0.35
    assert 0.55 < max(areas) < 0.62
    assert 0.47 < min(ratios) < 0.7
    assert 1.4 < max(ratios) < 2.1


def test_flips_come_as_often_as_asked():
    clip = coordinates(32, 32)
    flipped = [apply(clip, AugmentConfig(crop="none", flip=0.3), seed=s) for s in range(500)]
    share = np.mean([c[0, 0, 0, 0] == 31 for c in flipped])
    assert 0.24 < share < 0.36
    assert all((c[:, :, ::-1] == clip).all() for c in flipped if c[0, 0, 0, 0] == 31)


def test_erasing_fills_one_box_in_every_frame():
    shares = []
    for seed in range(40):
        clip = np.full((3, 64, 64, 3), 7, dtype=np.uint8)
        changed = apply(clip, AugmentConfig(crop="none", erase=1.0), size=64, seed=seed) != 7
        boxes = changed.any(axis=-1)
        rows, columns = boxes.any(axis=(0, 2)), boxes.any(axis=(0, 1))
        shares.append(boxes.mean())
        assert boxes[:, rows][:, :, columns].mean() > 0.95, "a box, and the same in all frames"
    assert min(shares) > 0.01
    assert 0.2 < max(shares) < 0.36


@pytest.mark.parametrize("operation", _OPERATIONS, ids=lambda op: op.__name__.strip("_"))
def test_every_randaugment_operation_changes_a_clip_and_keeps_its_form(operation):
    clip = still(32, 24)
    for sign in (-1, 1):
        out = operation(clip, 0.7, sign)
        assert out.shape == clip.shape
        assert out.dtype == np.uint8
        assert (out != clip).any()


@pytest.mark.parametrize("operation", _OPERATIONS, ids=lambda op: op.__name__.strip("_"))
@pytest.mark.parametrize("value", [0, 255])
def test_operations_survive_a_clip_of_one_colour(operation, value):
    for level in (0.0, 1.0):
        out = operation(np.full((2, 16, 16, 3), value, dtype=np.uint8), level, 1)
        assert out.shape == (2, 16, 16, 3)


def test_colour_operations_do_what_they_say():
    clip = still()
    assert (blend_clip(clip, "brightness", 0.5) <= clip).all()
    grey = blend_clip(clip, "saturation", 0.0)
    assert np.ptp(grey, axis=-1).max() <= 1
    assert blend_clip(clip, "contrast", 0.2).std() < 0.3 * clip.std()
    for what in ("brightness", "contrast", "saturation", "sharpness"):
        np.testing.assert_allclose(blend_clip(clip, what, 1.0).astype(int), clip, atol=1)


def test_statistics_are_those_of_the_clip():
    """A flash in one frame must not change that frame's contrast against its neighbours."""
    clip = still(frames=3)
    clip[1] = clip[1] // 2
    auto_contrast, equalise = _OPERATIONS[:2]
    for operation in (auto_contrast, equalise):
        out = operation(clip, 0.5, 1)
        values = {}
        for before, after in zip(clip[..., 0].ravel(), out[..., 0].ravel(), strict=True):
            assert values.setdefault(before, after) == after


def test_no_operations_leave_a_clip_as_it_is():
    clip = still()
    assert rand_augment(clip, ops=0, magnitude=7, rng=np.random.default_rng(0)) is clip


def test_views_spread_along_the_longer_side():
    wide = view_crops(coordinates(32, 64), spatial=3, size=28)
    assert wide.shape == (3, 1, 28, 28, 3)
    assert wide[:, 0, 0, 0, 0].tolist() == [0, 18, 36]
    assert (wide[:, 0, 0, 0, 1] == 2).all()
    tall = view_crops(coordinates(64, 32), spatial=3, size=28)
    assert tall[:, 0, 0, 0, 1].tolist() == [0, 18, 36]


def test_one_view_is_the_whole_square():
    view = view_crops(coordinates(32, 64), spatial=1, size=32)
    assert view[0, 0, :, :, 0].min() == 16
    assert view[0, 0, :, :, 0].max() == 47


@pytest.mark.parametrize(
    "fields",
    [
        {"flip": 1.5},
        {"erase": -0.1},
        {"randaugment_magnitude": 11},
        {"scales": ()},
        {"scales": (1.0, 1.2)},
        {"area": (0.0, 1.0)},
        {"area": (0.9, 0.5)},
        {"aspect": (2.0, 1.0)},
    ],
    ids=str,
)
def test_impossible_settings_name_the_field(fields):
    with pytest.raises(ValueError, match=f"augment.{next(iter(fields))}"):
        AugmentConfig(**fields)


def test_no_view_at_all_is_refused():
    with pytest.raises(ValueError, match=r"data\.views\.spatial"):
        ViewConfig(spatial=0)

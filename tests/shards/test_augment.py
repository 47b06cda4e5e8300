"""What augmentation does to pixels: what it may change, and that one draw serves a whole clip."""

import itertools

import numpy as np
import pytest

from shards.augment import AugmentConfig, Box, ViewConfig, crop_resized, cut, view_crops
from shards.draws import MOVES, OPERATIONS, Draw, Operation, amount, draw
from shards.draws_opencv import apply, operate

PLAIN = AugmentConfig(crop="none")


def still(height=48, width=48, frames=5, seed=0):
    """A clip in which every frame is the same noise."""
    picture = np.random.default_rng(seed).integers(30, 220, (height, width, 3), dtype=np.uint8)
    return np.repeat(picture[None], frames, axis=0)


def coordinates(height, width):
    """A clip whose red tells the column, green the row."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns, rows, np.zeros_like(rows)], axis=-1)[None].astype(np.uint8)


def made(clip, config, *, size=32, seed=0):
    clip = cut(clip, config, size=size, rng=np.random.default_rng(seed))
    return apply(clip, draw(config, seed, size=size))


def changed(clip, name, much=0.0):
    return operate(clip, Operation(name, much))


EVERYTHING = AugmentConfig(
    crop="resized", flip=0.5, colour_jitter=0.4, randaugment_ops=4, randaugment_magnitude=9
)


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("config", [AugmentConfig(), EVERYTHING], ids=["crops", "everything"])
def test_all_frames_of_a_clip_are_treated_alike(config, seed):
    clip = made(still(60, 44), config, seed=seed)
    assert clip.shape == (5, 32, 32, 3)
    assert clip.dtype == np.uint8
    assert (clip == clip[:1]).all()


def test_a_seed_decides_everything():
    config = AugmentConfig(crop="resized", flip=0.5, randaugment_ops=4, erase=0.5)
    clips = [made(still(), config, seed=seed) for seed in range(8)]
    again = [made(still(), config, seed=seed) for seed in range(8)]
    assert all((a == b).all() for a, b in zip(clips, again, strict=True))
    assert all((a != b).any() for a, b in itertools.combinations(clips, 2))


def test_the_input_is_left_alone():
    clip = still()
    before = clip.copy()
    for seed in range(20):
        made(clip, AugmentConfig(crop="none", flip=0.5, erase=1, randaugment_ops=4), seed=seed)
        made(clip, AugmentConfig(crop="none", erase=1), size=48, seed=seed)
    assert (clip == before).all()


def test_no_crop_takes_the_square_in_the_middle():
    clip = made(coordinates(32, 64), PLAIN)
    assert clip[0, 0, 0].tolist() == [16, 0, 0]
    assert clip[0, -1, -1].tolist() == [47, 31, 0]


def test_multi_scale_crops_have_the_published_sides_and_places():
    corners, sides = set(), set()
    for seed in range(400):
        clip = made(coordinates(100, 100), AugmentConfig(), size=100, seed=seed)[0].astype(int)
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
        clip = made(coordinates(100, 100), config, size=100, seed=seed)[0].astype(int)
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
    flipped = [made(clip, AugmentConfig(crop="none", flip=0.3), seed=s) for s in range(500)]
    share = np.mean([c[0, 0, 0, 0] == 31 for c in flipped])
    assert 0.24 < share < 0.36
    assert all((c[:, :, ::-1] == clip).all() for c in flipped if c[0, 0, 0, 0] == 31)


def test_erasing_fills_one_box_in_every_frame():
    shares = []
    for seed in range(40):
        clip = np.full((3, 64, 64, 3), 7, dtype=np.uint8)
        changed = made(clip, AugmentConfig(crop="none", erase=1.0), size=64, seed=seed) != 7
        boxes = changed.any(axis=-1)
        rows, columns = boxes.any(axis=(0, 2)), boxes.any(axis=(0, 1))
        shares.append(boxes.mean())
        assert boxes[:, rows][:, :, columns].mean() > 0.95, "a box, and the same in all frames"
    assert min(shares) > 0.01
    assert 0.2 < max(shares) < 0.36


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_changes_a_clip_and_keeps_its_form(name):
    clip = still(32, 24)
    for sign in (-1, 1):
        out = changed(clip, name, amount(name, 0.7, sign))
        assert out.shape == clip.shape
        assert out.dtype == np.uint8
        assert (out != clip).any()


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("value", [0, 255])
def test_operations_survive_a_clip_of_one_colour(name, value):
    for level in (0.0, 1.0):
        clip = np.full((2, 16, 16, 3), value, dtype=np.uint8)
        assert changed(clip, name, amount(name, level, 1)).shape == (2, 16, 16, 3)


def test_colour_operations_do_what_they_say():
    clip = still()
    assert (changed(clip, "brightness", 0.5) <= clip).all()
    assert np.ptp(changed(clip, "saturation", 0.0), axis=-1).max() <= 1
    assert changed(clip, "contrast", 0.2).std() < 0.3 * clip.std()
    for name in ("brightness", "contrast", "saturation", "sharpness"):
        np.testing.assert_allclose(changed(clip, name, 1.0).astype(int), clip, atol=1)


def test_sharpness_leaves_the_outermost_pixels():
    clip, sharp = still(), changed(still(), "sharpness", 1.8)
    edge = np.ones(clip.shape[1:3], dtype=bool)
    edge[1:-1, 1:-1] = False
    assert (sharp[:, edge] == clip[:, edge]).all()
    assert (sharp[:, ~edge] != clip[:, ~edge]).mean() > 0.9


@pytest.mark.parametrize("name", MOVES)
def test_moves_take_pixels_from_where_they_say(name):
    """A quarter turn, a shear of a pixel a pixel, a shift of half of the picture."""
    much = {"rotate": 90.0, "shear_x": 1.0, "shear_y": 1.0}.get(name, 0.5)
    x, y = 10, 21
    source = {
        "rotate": (31 - y, x),
        "shear_x": (x + y, y),
        "shear_y": (x, y + x),
        "shift_x": (x + 16, y),
        "shift_y": (x, y + 16),
    }[name]
    moved = changed(coordinates(32, 32), name, much)
    inside = all(0 <= at < 32 for at in source)
    assert moved[0, y, x].tolist() == ([*source, 0] if inside else [124, 116, 104])


def test_statistics_are_those_of_the_clip():
    """A flash in one frame must not change that frame's contrast against its neighbours."""
    clip = still(frames=3)
    clip[1] = clip[1] // 2
    for name in ("auto_contrast", "equalise"):
        after, values = changed(clip, name), {}
        for one, two in zip(clip[..., 0].ravel(), after[..., 0].ravel(), strict=True):
            assert values.setdefault(one, two) == two


def test_nothing_drawn_leaves_a_clip_as_it_is():
    clip = still()
    assert apply(clip, draw(AugmentConfig(), 3, size=32)) is clip
    assert draw(AugmentConfig(crop="resized", flip=1.0), 3, size=32) == Draw()


def test_a_draw_is_of_the_seed_alone_and_of_no_earlier_draw():
    config = AugmentConfig(randaugment_ops=4, colour_jitter=0.3, erase=0.5)
    draws = [draw(config, seed, size=64) for seed in range(50)]
    assert draws[::-1] == [draw(config, seed, size=64) for seed in reversed(range(50))]
    assert len(set(draws)) == 50


def test_operations_come_as_often_as_asked_and_as_strong():
    config = AugmentConfig(randaugment_ops=4, randaugment_magnitude=7)
    taken = [o for seed in range(1500) for o in draw(config, seed, size=64).operations]
    assert 1.9 < len(taken) / 1500 < 2.1, "each with probability 1/2"
    counts = [sum(o.name == name for o in taken) for name in OPERATIONS]
    assert min(counts) > 0.7 * max(counts)
    turns = np.array([o.amount for o in taken if o.name == "rotate"])
    assert 20 < np.abs(turns).mean() < 22 and 0.35 < (turns > 0).mean() < 0.65
    assert 1.2 < np.abs(turns).std() < 1.8, "30 degrees at 10, varied by 0.5 of it"


def test_erased_pixels_are_standard_normal_after_normalisation():
    clip = np.zeros((8, 96, 96, 3), dtype=np.uint8)
    clips = [made(clip, AugmentConfig(crop="none", erase=1.0), size=96, seed=s) for s in range(20)]
    values = np.concatenate([c[c.any(axis=-1)] for c in clips]) / 255
    values = (values - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert np.abs(values.mean(axis=0)).max() < 0.03
    assert np.abs(values.std(axis=0) - 0.97).max() < 0.03, "a little less: 0..255 bounds it"
    across = np.corrcoef(values.T)
    assert np.abs(across - np.eye(3)).max() < 0.02, "channels know nothing of one another"


@pytest.mark.parametrize("box", [Box(3, 5, 30, 20), Box(8, 2, 32, 32), Box(0, 0, 47, 40)], ids=str)
@pytest.mark.parametrize("flipped", [False, True], ids=["as_it_is", "flipped"])
def test_a_crop_is_made_in_its_place_and_nowhere_else(box, flipped):
    frames = [frame + np.uint8(i) for i, frame in enumerate(still(frames=4))]
    batch = np.full((3, 4, 32, 32, 3), 7, dtype=np.uint8)
    crop_resized(frames, box, size=32, flipped=flipped, out=batch[1])
    resized = crop_resized(np.stack(frames), box, size=32)
    np.testing.assert_array_equal(batch[1], resized[:, :, ::-1] if flipped else resized)
    assert (batch[[0, 2]] == 7).all()
    np.testing.assert_array_equal(frames[0], still()[0], err_msg="the frames are left alone")


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

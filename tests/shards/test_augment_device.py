"""Augmentation where the network is: the same clips as from the loader, but for rounding."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from shards import draws_device, draws_opencv
from shards.augment import AugmentConfig
from shards.batch import ClipBatch
from shards.draws import MOVES, OPERATIONS, Draw, Erased, Operation, amount, draw
from shards.draws_device import augmented
from shards.stream import DataConfig, open_clips
from tests.shards.make import write_folder

ROOT = Path(__file__).resolve().parents[2]
ALL = AugmentConfig(
    crop="resized",
    flip=0.5,
    colour_jitter=0.3,
    randaugment_ops=4,
    randaugment_magnitude=7,
    erase=0.4,
)
BLENDS = ("brightness", "contrast", "saturation", "sharpness")


def smooth(seed, *, frames=4, height=48, width=64):
    """A clip [T, h, w, 3] of soft shapes of all colours, other ones in every frame."""
    coarse = np.random.default_rng(seed).integers(0, 256, (frames, 12, 16, 3)).astype(np.uint8)
    return np.stack([cv2.resize(c, (width, height), interpolation=cv2.INTER_CUBIC) for c in coarse])


def tensor(clip):
    return torch.from_numpy(clip).permute(3, 0, 1, 2).contiguous()


def array(clip):
    return clip.permute(1, 2, 3, 0).numpy()


def apart(clip, drawn):
    """How many grey levels apart the two are, everywhere."""
    loader, device = draws_opencv.apply(clip, drawn), draws_device.apply(tensor(clip), drawn)
    assert device.dtype == torch.uint8 and device.shape == (3, *clip.shape[:3])
    return np.abs(loader.astype(int) - array(device))


def allowed(name):
    """Grey levels. OpenCV looks between pixels in steps of 1/32, which between the soft shapes are
    up to 3 levels; it rounds grey before it blends; all else is whole numbers."""
    return 3 if name in MOVES else 1 if name in BLENDS else 0


@pytest.mark.parametrize("level", [0.0, 0.1, 0.35, 0.7, 1.0])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_the_same_in_both(name, level):
    for sign in (1, -1):
        drawn = Draw((Operation(name, amount(name, level, sign)),))
        assert apart(smooth(3), drawn).max() <= allowed(name)


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_nearly_the_same_on_noise(name):
    """No picture is harder: neighbours differ by 85 levels on average."""
    clip = np.random.default_rng(0).integers(0, 256, (3, 32, 40, 3), dtype=np.uint8)
    difference = apart(clip, Draw((Operation(name, amount(name, 0.55, 1)),)))
    assert difference.mean() <= allowed(name) / 3
    assert difference.max() <= 3 * allowed(name)


@pytest.mark.parametrize("value", [0, 7, 255])
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_clip_of_one_colour_is_the_same_in_both(name, value):
    for level in (0.0, 1.0):
        clip = np.full((2, 16, 16, 3), value, dtype=np.uint8)
        assert apart(clip, Draw((Operation(name, amount(name, level, 1)),))).max() <= 2


@pytest.mark.parametrize("magnitude", [7, 10])
def test_whole_chains_are_nearly_the_same(magnitude):
    """What differs by a level before a threshold may differ by all of them behind it, and equalise
    and contrast multiply differences: so nearly all pixels, and the mean."""
    config = replace(ALL, randaugment_magnitude=magnitude)
    for seed in range(60):
        difference = apart(smooth(seed, height=48, width=48), draw(config, seed, size=48))
        assert (difference <= 4).mean() > 0.97
        assert difference.mean() < 1


def test_erased_pixels_are_the_same_in_both():
    config = AugmentConfig(erase=1.0)
    for seed in range(10):
        drawn = draw(config, seed, size=48)
        assert isinstance(drawn.erased, Erased) and not drawn.operations
        clip = smooth(seed, height=48, width=48)
        assert apart(clip, drawn).max() == 0
        assert (array(draws_device.apply(tensor(clip), drawn)) != clip).any()


def test_statistics_are_those_of_the_clip():
    """A flash in one frame must not change that frame against its neighbours."""
    clip = np.repeat(smooth(1, frames=1), 3, axis=0)
    clip[1] //= 2
    for name in ("auto_contrast", "equalise"):
        after = array(draws_device.operate(tensor(clip), Operation(name)))
        for channel in range(3):
            table = {}
            for one, two in zip(clip[..., channel].flat, after[..., channel].flat, strict=True):
                assert table.setdefault(one, two) == two
    contrast = array(draws_device.operate(tensor(clip), Operation("contrast", 0.1)))
    assert contrast[1].mean() < contrast[0].mean() - 3, "frames do not meet at means of their own"


def batch(*seeds):
    clips = [tensor(smooth(seed, height=32, width=32)) for seed in seeds]
    return ClipBatch(
        pixels=torch.stack(clips),
        labels=torch.zeros(len(seeds), dtype=torch.int64),
        weights=torch.ones(len(seeds)),
        seeds=torch.tensor(seeds),
        keys=[f"k{seed}" for seed in seeds],
    )


def test_a_clip_is_the_same_in_any_batch():
    whole = augmented(batch(1, 2, 3, 4, 5), ALL)
    for i, seed in enumerate((1, 2, 3, 4, 5)):
        assert torch.equal(augmented(batch(seed), ALL)[0], whole[i])
    assert whole.dtype == torch.uint8 and whole.is_contiguous()


def test_the_batch_itself_is_left_alone():
    clips = batch(1, 2, 3, 4)
    before = clips.pixels.clone()
    assert not torch.equal(augmented(clips, replace(ALL, erase=1.0)), before)
    assert torch.equal(clips.pixels, before)
    assert augmented(clips, None) is clips.pixels


def test_places_without_a_clip_stay_black():
    clips = batch(*range(12))
    clips.pixels[::2] = 0
    after = augmented(clips, replace(ALL, erase=1.0))
    assert not after[::2].any()
    assert after[1::2].flatten(1).any(1).all()


def test_mixed_precision_does_not_reach_pixels():
    clips = batch(*range(8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = augmented(clips, ALL)
    assert torch.equal(inside, augmented(clips, ALL))


class Crossings(TorchDispatchMode):
    """Refuses tensors of the host: what brings them to a device makes the host wait."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        there = {t.device.type for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        assert there <= {"meta"}, f"{func} takes tensors of {there}"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [*OPERATIONS, "erase"])
def test_the_host_never_waits_for_the_device(name, monkeypatch):
    """A tensor without values refuses to be read back; nothing is copied to where it is."""
    clip = tensor(smooth(0)).to("meta")
    erased = draw(AugmentConfig(erase=1.0), 0, size=48).erased
    drawn = Draw((), erased) if name == "erase" else Draw((Operation(name, amount(name, 0.5, 1)),))
    draws_device.apply(clip, drawn)  # copies constants, once
    for maker in ("tensor", "as_tensor", "from_numpy"):
        monkeypatch.setattr(torch, maker, None)
    with Crossings():
        assert draws_device.apply(clip, drawn).shape == clip.shape


def test_seeds_stay_on_the_host():
    clips = batch(1, 2)
    assert clips.to("meta").seeds is clips.seeds


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("shards") / "set"
    write_folder(path, (5, 3))
    return path


def config(folder, **fields):
    small = {"streams": 4, "frames": 4, "stride": 2, "size": 32, "loader_workers": 0}
    return DataConfig(shards=(str(folder),), **small | {"augment": ALL} | fields)


def clips_of(data, *, world=1):
    """The pixels of a step by seed, as they go into `normalise`."""
    found = {}
    for rank in range(world):
        how = {"global_batch": 8, "micro_batch": 2, "rank": rank, "world": world}
        with open_clips(data, **how, train=True, ledger=None) as stream:
            for _, clips in zip(range(4 // world), stream, strict=False):
                pixels = augmented(clips, data.on_device)
                found |= dict(zip(clips.seeds.tolist(), pixels, strict=True))
    return found


@pytest.mark.parametrize("fields", [{}, {"repeats": 2}, {"pair": True}], ids=str)
def test_loader_and_device_make_the_same_clips_on_any_number_of_workers(folder, fields):
    loader = clips_of(config(folder, augment_on="cpu", **fields))
    device = clips_of(config(folder, augment_on="device", **fields))
    spread = clips_of(config(folder, augment_on="device", **fields), world=2)
    assert loader.keys() == device.keys() == spread.keys()
    assert len(loader) == 8 * fields.get("repeats", 1)
    for seed, clip in loader.items():
        assert clip.shape[1] == 4 + 2 * fields.get("pair", False)
        assert torch.equal(device[seed], spread[seed])
    # All together: these clips have few colours, which equalise can drive apart in one of them.
    difference = torch.cat([(loader[seed].int() - device[seed].int()).abs() for seed in loader])
    assert (difference <= 4).float().mean() > 0.97


def test_the_loader_leaves_out_what_the_device_does(folder):
    crops = clips_of(config(folder, augment=AugmentConfig(crop="resized", flip=0.5)))
    bare = clips_of(replace(config(folder), augment_on="device"))
    how = {"global_batch": 8, "micro_batch": 8, "rank": 0, "world": 1}
    with open_clips(config(folder, augment_on="device"), **how, train=True, ledger=None) as stream:
        served = next(iter(stream))
    for seed, clip in zip(served.seeds.tolist(), served.pixels, strict=True):
        assert torch.equal(clip, crops[seed])
    assert any(not torch.equal(bare[seed], crops[seed]) for seed in crops)


def test_other_views_than_those_of_training_are_never_augmented(folder):
    how = {"global_batch": 8, "micro_batch": 8, "rank": 0, "world": 1, "train": False}
    served = []
    for data in (config(folder, augment=AugmentConfig()), config(folder, augment_on="cpu")):
        with open_clips(data, **how, ledger=None) as stream:
            served.append(next(iter(stream)).pixels)
    assert torch.equal(*served)


@pytest.mark.parametrize(
    ("asked", "gpu", "extra", "decided"),
    [
        ("auto", True, (), "device"),
        ("auto", False, (), "cpu"),
        ("auto", True, ("flow",), "cpu"),
        ("cpu", True, (), "cpu"),
        ("device", False, (), "device"),
    ],
)
def test_who_augments(asked, gpu, extra, decided):
    moves = AugmentConfig(randaugment_ops=2)
    data = DataConfig(("x",), augment=moves, augment_on=asked, extra=extra, pair=bool(extra))
    settled = data.settled(gpu=gpu)
    assert settled.augment_on == decided and settled.settled(gpu=not gpu) == settled
    assert settled.on_device == (moves if decided == "device" else None)


def test_where_nothing_follows_the_crop_no_device_is_asked():
    data = DataConfig(("x",), augment=AugmentConfig(flip=0.5))
    assert data.settled(gpu=True).augment_on == "cpu"
    assert replace(data, augment_on="device").on_device is None


def test_flow_on_the_device_is_refused_with_what_to_set():
    with pytest.raises(ValueError, match=r"flow.*set data\.augment_on auto or cpu"):
        DataConfig(("x",), pair=True, extra=("flow",), augment_on="device")


def test_kornia_is_loaded_where_it_is_used_alone():
    code = (
        "import sys, finetune.job, pretrain.job, shards.stream, shards.draws_device\n"
        "assert 'kornia' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)

"""What a batch carries besides frames: the pair of onset and apex, and `data.extra`."""

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shards.augment import AugmentConfig, ViewConfig, view_crops
from shards.frames import decode
from shards.ingest.annotations import action_units, read_annotations
from shards.ingest.run import ingest
from shards.ingest.settings import IngestSettings
from shards.labelling import units_present, vote_shares
from shards.manifest import Manifest
from shards.marks import marked, pair_of
from shards.plan.measure import measure
from shards.stream import DataConfig, open_clips, open_collection
from shards.verify import verify
from tests.shards.make import LABELS, encode, record, video, write_samples

EVERYTHING = ("subject", "votes", "units", "affect", "marks", "flow")
ALL = {"pair": True, "extra": EVERYTHING, "units": ("1", "4", "12")}
AS_STORED = AugmentConfig(crop="none")


def film(seed=0, *, frames=20, size=64, speed=(0.3, 0.1)):
    """A soft pattern that moves right and down by `speed` pixels a frame; uint8 [T, h, w, 3]."""
    noise = np.random.default_rng(seed).integers(0, 255, (size, size, 3)).astype(np.uint8)
    still = cv2.GaussianBlur(noise, (0, 0), 2, borderType=cv2.BORDER_REFLECT)
    still = cv2.normalize(still, None, 0, 255, cv2.NORM_MINMAX)  # type: ignore[call-overload]
    ways = [np.array([[1, 0, t * speed[0]], [0, 1, t * speed[1]]]) for t in range(frames)]
    moved = [
        cv2.warpAffine(still, way, (size, size), borderMode=cv2.BORDER_REFLECT) for way in ways
    ]
    return np.stack(moved)


RECORDS = [
    record(
        "a", subject_id="s2", onset=3, apex=9, offset=15, action_units=("4", "L12"), label="calm"
    ),
    record("b", subject_id="s1", onset=2, offset=13, votes={"glad": 3, "calm": 1}, label="glad"),
    record("c", apex=5, apex_source="middle", valence=-0.5, arousal=1.0, label="glad"),
    record("d", subject_id="s1", dataset="other", apex=19, action_units=("1", "12?"), label="calm"),
    record("e", subject_id="s9", label="calm"),  # its video is none
]
VIDEOS = {key: encode(film(i)) for i, key in enumerate("abcd")} | {"e": b"no video"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("carried") / "set"
    samples = [(facts, VIDEOS[facts.clip_id]) for facts in RECORDS]
    write_samples(path, [samples[:3], samples[3:]])
    return path


def config(folder, **fields):
    small = {"streams": 4, "frames": 4, "stride": 2, "size": 64, "loader_workers": 0}
    return DataConfig(shards=(str(folder),), max_failed_share=0.5, **small | fields)


def opened(data, *, train, rank=0, world=1, start_step=0):
    place = {"rank": rank, "world": world, "start_step": start_step}
    return open_clips(data, global_batch=4, micro_batch=2, train=train, ledger=None, **place)


def rows(data, *, train=False, steps=2, **place):
    """By key: pixels and extras of each of the clip's rows, every view in its first dimension."""
    found = {}
    with opened(data, train=train, **place) as stream:
        for _, batch in zip(range(2 * steps), stream, strict=False):
            for i, key in enumerate(batch.keys):
                values = {"pixels": batch.pixels, **batch.extra}
                at = {
                    n: v.reshape(len(batch), -1, *v.shape[1:])[i]
                    if len(v) != len(batch)
                    else v[i : i + 1]
                    for n, v in values.items()
                }
                at["weight"] = batch.weights[i]
                found.setdefault(key, []).append(at)
    return found


def frames_of(key, indices):
    """uint8 [C, T, h, w], straight from the decoder."""
    return torch.from_numpy(decode(VIDEOS[key], lambda _: np.array(indices))).permute(3, 0, 1, 2)


# The pair


@pytest.mark.parametrize("frames", [0, 4])
@pytest.mark.parametrize("train", [True, False])
def test_onset_and_apex_follow_the_frames_as_they_are_stored(folder, frames, train):
    found = rows(config(folder, pair=True, frames=frames, augment=AS_STORED), train=train)
    plain = rows(config(folder, augment=AS_STORED), train=train)
    expected = {"a": (3, 9), "b": (2, 7), "c": (0, 5), "d": (0, 19)}
    for key, pair in expected.items():
        [row] = found[key]
        assert row["pixels"].shape == (1, 3, frames + 2, 64, 64)
        assert torch.equal(row["pixels"][0, :, -2:], frames_of(key, pair))
        if frames:
            assert torch.equal(row["pixels"][:, :, :-2], plain[key][0]["pixels"])


@pytest.mark.parametrize("frames", [0, 4])
def test_every_view_of_an_evaluation_has_its_crop_of_the_pair(folder, frames):
    views = ViewConfig(temporal=2, spatial=3)
    [row] = rows(config(folder, pair=True, frames=frames, views=views, size=32))["a"]
    assert row["pixels"].shape == (6, 3, frames + 2, 32, 32)
    onset_apex = decode(VIDEOS["a"], lambda _: np.array([3, 9]))
    crops = torch.from_numpy(view_crops(onset_apex, spatial=3, size=32)).permute(0, 4, 1, 2, 3)
    assert torch.equal(row["pixels"][:3, :, -2:], crops)
    assert torch.equal(row["pixels"][3:, :, -2:], crops)


def test_the_pair_is_cut_and_mirrored_with_its_clip(folder):
    """Crops and flips are drawn before colours, so the frames of a clip are those it has without a
    pair; onset and apex are then the same part of the picture."""
    moving = AugmentConfig(crop="resized", flip=0.5)
    data = config(folder, size=32, augment=moving, stride=1, frames=1)
    for _ in range(2):
        alone, pair = (rows(replace(data, pair=on), train=True, steps=6) for on in (False, True))
        assert all(
            torch.equal(one["pixels"], two["pixels"][:, :, :-2])
            for key in "abcd"
            for one, two in zip(alone[key], pair[key], strict=True)
        )
    still = record("s", onset=0, apex=19, num_frames=20)
    write_samples(folder.parent / "still", [[(still, encode(np.stack([film()[0]] * 20)))]])
    data = replace(data, shards=(str(folder.parent / "still"),), pair=True)
    for row in rows(data, train=True, steps=8)["s"]:
        apart = row["pixels"].int().diff(dim=2).abs().float().mean()
        assert apart < 3, "a still film stays still, whatever is drawn"


@pytest.mark.parametrize(
    ("facts", "pair", "known"),
    [
        ({"onset": 3, "apex": 9, "offset": 15}, (3, 9), True),
        ({"onset": 3, "apex": 9, "apex_source": "spotted"}, (3, 9), True),
        ({"onset": 3, "apex": 9, "apex_source": "middle"}, (3, 9), False),
        ({"apex": 0}, (0, 0), True),
        ({}, (0, 9), False),
        ({"onset": 4}, (4, 11), False),
        ({"offset": 10}, (0, 5), False),
        ({"onset": 19, "offset": 19}, (19, 19), False),
        ({"num_frames": 1}, (0, 0), False),
    ],
)
def test_what_stands_in_for_an_unknown_mark(facts, pair, known):
    assert pair_of(record("a", **facts)) == pair
    assert marked(record("a", **facts)) == known


@given(st.data())
def test_a_sound_record_always_has_a_pair_inside_its_clip(draw):
    length = draw.draw(st.integers(1, 40))
    marks = sorted(draw.draw(st.lists(st.integers(0, length - 1), min_size=3, max_size=3)))
    kept = {
        name: mark
        for name, mark in zip(("onset", "apex", "offset"), marks, strict=True)
        if draw.draw(st.booleans())
    }
    facts = record("a", num_frames=length, **kept)
    assert not facts.problems()
    onset, apex = pair_of(facts)
    assert 0 <= onset <= apex < length


def test_a_mark_outside_the_video_is_that_clips_failure(tmp_path):
    samples = [(record("a", apex=20), video()), (record("b", apex=19), video())]
    write_samples(tmp_path / "set", [samples])
    data = config(tmp_path / "set", **ALL)
    with opened(data, train=False) as stream:
        weights = {k: float(w) for b in stream for k, w in zip(b.keys, b.weights, strict=True)}
    assert weights == {"a": 0.0, "b": 1.0, "": 0.0}
    [failure] = stream.unreadable.values()
    assert "20 frames" in failure.reason and "apex=20" in failure.reason


# Extras


def test_what_is_known_of_a_clip_is_carried(folder):
    found = {key: known[0] for key, known in rows(config(folder, **ALL)).items()}
    with opened(config(folder, **ALL), train=False) as stream:
        assert stream.subjects == (("", "s1"), ("", "s2"), ("", "s9"), ("other", "s1"))
        assert stream.collection.unmarked == 3
    assert {key: int(row["subject"]) for key, row in found.items()} == {
        **{"a": 1, "b": 0, "c": -1, "d": 3, "e": -1, "": -1}
    }
    votes = {key: row["votes"][0].tolist() for key, row in found.items()}
    assert votes.pop("b") == [0.25, 0.75]
    assert all(shares == [0, 0] for shares in votes.values())
    units = {key: row["units"][0] for key, row in found.items()}
    assert units["a"].tolist() == [0, 1, 1]
    assert units["d"].tolist()[:2] == [1, 0] and units["d"][2].isnan(), "12? is doubted"
    assert all(units[key].isnan().all() for key in ("b", "c", "e", ""))
    affect = {key: row["affect"][0] for key, row in found.items()}
    assert affect["c"].tolist() == [-0.5, 1.0]
    assert all(affect[key].isnan().all() for key in ("a", "b", "d", "e", ""))
    marks = {key: row["marks"][0].tolist() for key, row in found.items()}
    assert marks == {
        **{"a": [3, 9, 15], "b": [2, -1, 13], "c": [-1, 5, -1], "d": [-1, 19, -1]},
        **{"e": [-1, -1, -1], "": [-1, -1, -1]},
    }


@pytest.mark.parametrize("train", [True, False])
def test_frames_say_which_frame_each_one_is(folder, train):
    views = ViewConfig(temporal=2, spatial=3)
    data = config(folder, extra=("marks",), pair=True, augment=AS_STORED, views=views)
    for key, known in rows(data, train=train).items():
        for row in known:
            if not row["weight"]:
                assert (row["frames"] == -1).all()
                continue
            shown = row["pixels"][:, :, :4] if train else row["pixels"][1::3, :, :4]
            indices = row["frames"] if train else row["frames"][1::3]
            for view, at in zip(shown, indices, strict=True):
                direct = frames_of(key, at.numpy()).permute(1, 2, 3, 0).numpy()
                if not train:  # the middle one of three crops
                    direct = view_crops(direct, spatial=3, size=64)[1]
                assert np.array_equal(view.permute(1, 2, 3, 0).numpy(), direct)
            if not train:
                assert torch.equal(row["frames"][0], row["frames"][2]), "crops share their frames"


def test_flow_is_the_way_from_onset_to_apex_in_pixels_of_the_crop(folder):
    [row] = rows(config(folder, **ALL))["d"]  # from frame 0 to 19: 5.7 px right, 1.9 down
    u, v, strain = row["flow"][0, :, 16:48, 16:48]
    assert abs(u.mean() - 5.7) < 0.3 and abs(v.mean() - 1.9) < 0.3
    assert strain.min() >= 0 and strain.mean() < 0.1
    [half] = rows(config(folder, **ALL | {"size": 32}))["d"]
    assert abs(half["flow"][0, 0, 8:24, 8:24].mean() - 2.85) < 0.2


def test_a_mirrored_clip_has_its_flow_mirrored(folder):
    plain, mirrored = (
        rows(config(folder, **ALL, augment=AugmentConfig(crop="none", flip=flip)), train=True)["a"]
        for flip in (0.0, 1.0)
    )
    pixels = plain[0]["pixels"], mirrored[0]["pixels"]
    assert torch.equal(pixels[0].flip(-1), pixels[1])
    (u, v, s), (mu, mv, ms) = (row[0]["flow"][0, :, 8:56, 8:56] for row in (plain, mirrored))
    assert u.mean() > 1.5
    assert (mu.flip(-1) + u).abs().mean() < 0.05
    assert (mv.flip(-1) - v).abs().mean() < 0.05
    assert (ms.flip(-1) - s).abs().mean() < 0.05


@pytest.mark.parametrize("train", [True, False])
def test_places_without_a_clip_hold_what_stands_for_unknown(folder, train):
    views = ViewConfig(temporal=2)
    for key in ("", "e"):
        row = rows(config(folder, **ALL, views=views), train=train)[key][0]
        assert row["weight"] == 0
        assert not row["flow"].any() and not row["votes"].any() and not row["pixels"].any()
        assert row["subject"] == -1 and (row["marks"] == -1).all() and (row["frames"] == -1).all()
        assert row["units"].isnan().all() and row["affect"].isnan().all()


def test_shapes_and_types_hold_for_every_batch(folder):
    shapes = {
        "subject": ((), torch.int64),
        "votes": ((len(LABELS),), torch.float32),
        "units": ((3,), torch.float32),
        "affect": ((2,), torch.float32),
        "marks": ((3,), torch.int64),
        "frames": ((4,), torch.int64),
        "flow": ((3, 32, 32), torch.float32),
    }
    views = ViewConfig(temporal=2, spatial=2)
    for train, times in ((True, 3), (False, 1)):
        data = config(folder, **ALL | {"size": 32}, repeats=3, views=views)
        with opened(data, train=train) as stream:
            for _, batch in zip(range(3), stream, strict=False):
                assert len(batch) == 2 * times and batch.views == (1 if train else 4)
                for name, (shape, kind) in shapes.items():
                    count = len(batch) * (batch.views if name in ("frames", "flow") else 1)
                    assert batch.extra[name].shape == (count, *shape), name
                    assert batch.extra[name].dtype == kind
                assert batch.extra.keys() == shapes.keys()


def test_without_extras_there_are_none(folder):
    with opened(config(folder), train=True) as stream:
        assert next(iter(stream)).extra == {}


def test_repeated_views_have_their_own_flow_and_share_the_rest(folder):
    crops = AugmentConfig(crop="resized", flip=0.5)
    data = config(folder, **ALL, augment=crops)
    with opened(data, train=True) as once, opened(replace(data, repeats=3), train=True) as thrice:
        for _, plain, many in zip(range(4), once, thrice, strict=False):
            for name, values in plain.extra.items():
                for part in many.extra[name].split(2):
                    same = torch.allclose(part, values, rtol=0, atol=0, equal_nan=True)
                    assert same or name == "flow"
                    if part is many.extra[name].split(2)[0]:
                        assert same, "the first is what it would be alone"
            if plain.weights.all():
                first, second, _ = many.extra["flow"].split(2)
                assert not torch.equal(first, second)


@pytest.mark.parametrize("loader_workers", [0, 2])
def test_extras_are_the_same_on_any_workers_and_resumed(folder, loader_workers):
    crops = AugmentConfig(crop="resized", flip=0.5, colour_jitter=0.2)
    data = config(folder, **ALL, augment=crops)
    served = []
    for fields, place in [({}, {}), ({"loader_workers": loader_workers}, {"start_step": 3})]:
        with opened(replace(data, **fields), train=True, **place) as stream:
            skipped = 6 - 2 * place.get("start_step", 0)
            batches = [b for _, b in zip(range(skipped + 4), stream, strict=False)]
            served.append(batches[skipped:])
    for one, two in zip(*served, strict=True):
        assert one.keys == two.keys and torch.equal(one.pixels, two.pixels)
        for name, values in one.extra.items():
            assert torch.allclose(values, two.extra[name], rtol=0, atol=0, equal_nan=True)


def test_extras_move_with_their_batch(folder):
    with opened(config(folder, **ALL), train=True) as stream:
        batch = next(iter(stream))
    moved = batch.to("meta")
    assert {t.device.type for t in moved.extra.values()} == {"meta"}
    assert {n: t.shape for n, t in moved.extra.items()} == {
        n: t.shape for n, t in batch.extra.items()
    }


def test_extras_are_pinned_with_their_batch(folder, monkeypatch):
    with opened(config(folder, **ALL), train=True) as stream:
        batch = next(iter(stream))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.to("meta"))
    assert {t.device.type for t in batch.pin_memory().extra.values()} == {"meta"}


def test_the_rate_of_loading_is_measured_with_all_that_is_carried(folder):
    """The line that a trainer prints before it starts."""
    data = config(folder, **ALL, frames=0)
    for collection in (None, open_collection(data)):
        speed = measure(data, seconds=5, most=8, collection=collection)
        assert speed.clips > 0 and speed.per_core > 0
        assert all("no mp4" in trouble for trouble in speed.troubles)


@pytest.mark.parametrize(
    ("cell", "present"),
    [
        ("1+4", [1, 1, 0]),
        ("L1, R4", [1, 1, 0]),
        ("AU1 A4", [1, 1, 0]),
        ("14", [0, 0, 0]),
        ("12C", [0, 0, 1]),
        ("4?", [0, None, 0]),
        ("4? + R4", [0, 1, 0]),
        ("4 or 12", [0, None, None]),
        ("4/12 + 12", [0, None, 1]),
        ("", [None, None, None]),
    ],
)
def test_units_as_they_are_annotated(cell, present):
    found = units_present(action_units(cell), ("1", "4", "12")).tolist()
    assert [None if math.isnan(value) else value for value in found] == present


@pytest.mark.parametrize("cell", ["AU04+L1", "4 01", "AU4, AU001"])
@pytest.mark.parametrize("columns", [("1", "4", "12"), ("01", "04", "012")])
def test_leading_zeros_of_units_mean_nothing(cell, columns):
    assert units_present(action_units(cell), columns).tolist() == [1, 1, 0]


@given(st.dictionaries(st.sampled_from("abcd"), st.integers(-2, 50)))
def test_vote_shares_add_up_to_one_or_to_nothing(votes):
    shares = vote_shares(votes, ("a", "b", "c"))
    assert (shares >= 0).all()
    named = sum(max(0, votes.get(label, 0)) for label in "abc")
    assert float(shares.sum()) == pytest.approx(1.0 if named else 0.0)


# Valence and arousal


def annotated(tmp_path, rows):
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(video())
    (tmp_path / "table.csv").write_text("\n".join(rows))
    return folder, tmp_path / "table.csv"


def test_valence_and_arousal_come_from_the_annotations(tmp_path):
    folder, table = annotated(tmp_path, ["path,valence,arousal", "a.mp4,-0.25,1"])
    settings = IngestSettings(detector="none", size=64)
    out = ingest(folder, tmp_path / "out", annotations=table, settings=settings, jobs=1).out
    assert verify(out) == []
    [row] = Manifest.open(out).index(0)
    assert (row.record.valence, row.record.arousal) == (-0.25, 1.0)
    found = rows(config(out, extra=("affect",)))
    assert found["a_mp4"][0]["affect"].tolist() == [[-0.25, 1.0]]


@pytest.mark.parametrize("cell", ["1.5", "-7", "high", "nan", "inf"])
def test_affect_on_another_scale_is_refused_with_its_line(tmp_path, cell):
    folder, table = annotated(tmp_path, ["path,valence,arousal", f"a.mp4,,{cell}"])
    items, refused, _ = read_annotations(table, folder)
    assert not items and len(refused) == 1
    assert f"arousal is {cell!r}" in refused[0].reason and "line 2" in refused[0].reason


@pytest.mark.parametrize("value", [-1.01, 2, math.nan])
def test_a_record_has_no_affect_beyond_its_scale(value):
    assert any("valence" in problem for problem in record("a", valence=value).problems())
    assert record("a", valence=-1.0, arousal=1).problems() == []


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"frames": 0}, "data.frames is 0"),
        ({"frames": -1, "pair": True}, "data.frames is -1"),
        ({"extra": ("flow",)}, "flow.*needs data.pair"),
        (
            {"extra": ("flow",), "pair": True, "augment": AugmentConfig(erase=0.1)},
            "flow.*augment.erase 0",
        ),
        ({"extra": ("units",)}, "data.units"),
        ({"units": ("4",)}, "data.units"),
        ({"extra": ("units",), "units": ("AU4",)}, "'AU4'.*bare numbers"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        DataConfig(shards=("x",), **fields)

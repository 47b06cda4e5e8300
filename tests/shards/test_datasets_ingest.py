"""Data sets through the whole ingest, and pictures as a source: what the shards hold in the end."""

import io
import os

import av
import cv2
import numpy as np
import pytest

from shards.__main__ import main
from shards.ingest.detect import detector
from shards.ingest.extract import extract_face
from shards.ingest.faces import crop_box, whole_pixels
from shards.ingest.folder import PictureFolder
from shards.ingest.isolate import Sandbox, job
from shards.ingest.numbering import FrameFolder
from shards.ingest.settings import IngestSettings, Rejected
from shards.manifest import Manifest
from shards.verify import verify
from tests.shards.layouts import casme2, dfew, face, pattern, samm, save_pictures, save_video


def ingest(name, root, out, *more):
    plain = ("--size", "64", "--jobs", "1", "--max-rejected-share", "0.9")
    place = ("--dataset", name, "--root", str(root), "--out", str(out))
    status = main(["ingest", *place, *plain, *more])
    assert status == 0 and verify(out) == []
    manifest = Manifest.open(out)
    return [row for i in range(len(manifest.shards)) for row in manifest.index(i)]


def records(rows):
    return [row.record for row in rows]


def stored(folder, row):
    """uint8 [T, h, w, 3]: the frames of a clip in the first shard."""
    data = (folder / "shard-000000.tar").read_bytes()[row.offset : row.offset + row.size]
    with av.open(io.BytesIO(data)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def rejected(folder):
    return (folder / "rejected.csv").read_text()


# --- data sets --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def casme2_root(tmp_path_factory):
    """A face that moves to the side from the ninth picture on, three frames after the onset."""
    frames = face(36, size=(320, 240))
    moved = np.stack([np.roll(f, 50 if i >= 9 else 0, axis=1) for i, f in enumerate(frames)])
    rows = [
        (1, "EP02_01f", 46, 59, 66, "4+L10", "disgust"),
        (1, "EP03_02", 46, 59, 66, "12", "happiness"),
        (2, "EP01_11", 46, "/", 66, "1+2", "surprise"),
        (2, "EP09_01", 46, 59, 66, "1", "fear"),
    ]
    root = casme2(tmp_path_factory.mktemp("casme2"), rows, frames=moved)
    below = root / "CASME2_RAW_selected"
    (below / "sub01/EP03_02/img50.jpg").unlink()
    for picture in (below / "sub02/EP01_11/img51.jpg", below / "sub02/EP09_01/img59.jpg"):
        picture.write_bytes(picture.read_bytes()[:700])
    return root


@pytest.fixture(scope="module")
def casme2_shards(casme2_root, tmp_path_factory):
    out = tmp_path_factory.mktemp("shards") / "casme2"
    return out, ingest("casme2", casme2_root, out, "--margin", "0")


def test_casme2_clips_run_from_onset_to_offset_at_full_rate(casme2_shards):
    out, rows = casme2_shards
    first = rows[0].record
    assert rows[0].key == "CASME2_RAW_selected_sub01_EP02_01f"
    assert (first.num_frames, first.fps) == (21, 200)
    assert (first.onset, first.apex, first.offset) == (0, 13, 20)
    assert (first.label, first.subject_id, first.action_units) == ("disgust", "sub01", ("4", "L10"))
    assert (first.dataset, first.apex_source) == ("casme2", "annotated")
    assert "non-commercial" in first.licence and first.damaged is None
    assert len(stored(out, rows[0])) == 21


def test_the_crop_is_where_the_face_is_in_the_onset_frame(casme2_shards, casme2_root, tmp_path):
    folder = casme2_root / "CASME2_RAW_selected/sub01/EP02_01f"
    onset = values(folder, first=46, last=46)[0][0][2]
    (found,) = detector("haar")(onset)
    left, top, side = whole_pixels(crop_box([found], margin=0), height=240, width=320)
    track = casme2_shards[1][0].record.track
    assert track.box == (left, top, side, side)
    assert (track.detector, track.found) == ("haar", 1.0)
    rows = ingest("casme2", casme2_root, tmp_path / "o", "--crop", "track", "--margin", "0")
    assert rows[0].record.track.box[2] > side  # room for the whole way


def test_a_video_may_be_cropped_by_its_onset_frame_too(tmp_path):
    still, moved = face(36, size=(320, 240)), np.roll(face(36, size=(320, 240)), 50, axis=2)
    frames = np.concatenate([moved[:6], still[6:20], moved[20:]])
    save_video(tmp_path / "v/a.mp4", frames)
    (tmp_path / "v/annotations.csv").write_text("path,label,onset,offset\na.mp4,joy,6,30\n")
    plain = ("table", tmp_path / "v")
    (onset,) = ingest(*plain, tmp_path / "o", "--crop", "onset", "--margin", "0")
    (track,) = ingest(*plain, tmp_path / "t", "--margin", "0")
    assert onset.record.track.box[2] < track.record.track.box[2]
    assert (onset.record.num_frames, onset.record.onset, onset.record.offset) == (36, 6, 30)
    told = {"onset": 6 / onset.record.fps, "apex": 20 / onset.record.fps}
    settings = IngestSettings(crop="onset", margin=0.0)
    clip = extract_face(tmp_path / "v/a.mp4", settings=settings, moments=told)
    assert clip.box == onset.record.track.box, "a question is cropped by the same frame"
    assert clip.marks == {"onset": 6, "apex": 20}


def test_missing_and_broken_pictures_are_bridged_and_said(casme2_shards):
    missing, broken = records(casme2_shards[1])[1:]
    for record, words in ((missing, "1 missing and 0 broken"), (broken, "0 missing and 1 broken")):
        assert record.num_frames == 21 and words in record.damaged
        assert (record.onset, record.offset) == (0, 20)
    assert "img51.jpg" in broken.damaged and broken.apex_source == "middle"


def test_a_broken_picture_that_the_annotation_names_is_a_reason(casme2_shards):
    told = rejected(casme2_shards[0])
    assert "EP09_01" in told and "apex is frame 13 of the clip, whose picture is missing" in told


def test_the_same_pictures_give_the_same_bytes(casme2_shards, casme2_root, tmp_path):
    ingest("casme2", casme2_root, tmp_path / "again", "--margin", "0", "--jobs", "2")
    for path in sorted(casme2_shards[0].iterdir()):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_samm_is_grey_in_the_shards_too(tmp_path):
    row = (6, "006_1_2", 5562, 5565, 5570, "AU4", "Anger")
    rows = ingest("samm", samm(tmp_path / "s", [row], frames=face(12)), tmp_path / "o")
    assert (rows[0].record.num_frames, rows[0].record.label) == (9, "anger")
    pictures = stored(tmp_path / "o", rows[0]).astype(int)
    assert np.abs(pictures - pictures.mean(3, keepdims=True)).max() < 6


def test_dfew_frames_become_labelled_clips_of_five_folds(tmp_path):
    root = dfew(tmp_path / "d", {n: n for n in range(1, 6)}, frames=face(16))
    rows = ingest("dfew", root, tmp_path / "o")
    assert {r.split: r.label for r in records(rows)} == {
        **{"fold2": "happy", "fold3": "sad", "fold4": "neutral"},
        **{"fold5": "angry", "fold1": "surprise"},
    }
    first = rows[0].record
    assert (first.num_frames, first.fps, first.track.detector) == (16, 25, "none")
    assert Manifest.open(tmp_path / "o").clip["min_frames"] == 1


def test_crema_d_and_ravdess_videos_are_found_by_name(tmp_path, capsys):
    save_video(tmp_path / "c/VideoFlash/1001_DFA_ANG_XX.flv", codec="flv")
    save_video(tmp_path / "r/Actor_12/01-01-06-01-02-01-12.mp4")
    rows = ingest("crema-d", tmp_path / "c", tmp_path / "co", "--min-frames", "8")
    assert (rows[0].record.label, rows[0].record.subject_id) == ("anger", "1001")
    assert rows[0].record.licence == "Open Database License 1.0"
    assert "published 7438" in capsys.readouterr().out
    rows = ingest("ravdess", tmp_path / "r", tmp_path / "ro", "--min-frames", "8")
    assert (rows[0].record.label, rows[0].record.num_frames) == ("fearful", 20)


def test_a_folder_of_ones_own_is_cut_into_clips(tmp_path):
    save_pictures(tmp_path / "v/cam", range(100, 150), name="{:06d}.png", frames=pattern())
    rows = ingest(
        *("folder", tmp_path / "v", tmp_path / "o", "--fps", "10", "--detector", "none"),
        *("--clip-seconds", "2"),
    )
    assert [r.num_frames for r in records(rows)] == [20, 20]
    assert [r.track.start for r in records(rows)] == [0, 2] and records(rows)[0].dataset == ""


# --- pictures as a source ---------------------------------------------------------------------


def values(folder, fps=25.0, **how):
    with PictureFolder(folder, FrameFolder(fps, **how), max_side=640) as source:
        return [(p.at, p.time, p.rgb()) for p in source.pictures()], source.lost


@pytest.mark.parametrize("kind", ["jpg", "png", "bmp", "webp", "tiff"])
@pytest.mark.parametrize("grey", [False, True], ids=["colour", "grey"])
def test_pictures_of_every_kind_keep_their_values(tmp_path, kind, grey):
    save_pictures(tmp_path, range(3, 9), name=f"a_{{}}.{kind}", grey=grey)
    read, lost = values(tmp_path)
    assert lost is None and [(at, time) for at, time, _ in read] == [(i, i / 25) for i in range(6)]
    for i, (_, _, rgb) in enumerate(read):
        assert rgb.shape == (48, 64, 3) and abs(int(rgb.mean()) - 15 * i) <= 2


def test_a_name_does_not_make_a_picture(tmp_path):
    save_pictures(tmp_path, range(20))
    save_video(tmp_path / "v.mp4", pattern())
    os.rename(tmp_path / "v.mp4", tmp_path / "img4.jpg")
    (tmp_path / "img7.jpg").write_bytes(b"")
    (tmp_path / "img9.jpg").rename(tmp_path / "img9.png")  # a JPEG all the same
    read, lost = values(tmp_path)
    assert [at for at, _, _ in read] == [at for at in range(20) if at not in (4, 7)]
    assert lost == (
        "of 20 pictures 0 missing and 2 broken, such as img4.jpg: the one before is shown instead"
    )


def test_too_many_broken_pictures_are_a_reason(tmp_path):
    save_pictures(tmp_path, range(20))
    for number in (3, 8, 11):
        (tmp_path / f"img{number}.jpg").write_text("not a picture")
    with pytest.raises(Rejected, match="3 of 20 pictures are missing or broken"):
        values(tmp_path)


def test_pictures_of_other_sizes_are_fitted_into_the_first(tmp_path):
    save_pictures(tmp_path, [0, 1])
    save_pictures(tmp_path, [2], frames=pattern(1, (96, 128)) + 90)
    shapes = {rgb.shape for _, _, rgb in values(tmp_path)[0]}
    assert shapes == {(48, 64, 3)}


def test_pipes_and_devices_in_the_folder_are_not_opened(tmp_path):
    save_pictures(tmp_path, range(4))
    os.mkfifo(tmp_path / "img4.jpg")
    (tmp_path / "img5.jpg").symlink_to("/dev/zero")
    assert len(values(tmp_path)[0]) == 4


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox() as sandbox:
        yield sandbox


def clip_job(folder, out, **settings):
    out.mkdir()
    made = IngestSettings(**{"detector": "none", "size": 64, "min_frames": 1} | settings)
    return job(folder, out, made, kind="frames", frames={"fps": 25})


def test_a_picture_beyond_the_memory_limit_is_rejected(tmp_path, sandbox):
    (tmp_path / "v").mkdir()
    huge = cv2.imencode(".png", np.zeros((9000, 9000, 3), np.uint8))[1].tobytes()
    assert len(huge) < 1 << 20
    for number in range(3):
        (tmp_path / f"v/{number}.png").write_bytes(huge)
    with pytest.raises(Rejected, match="more than 0.1 GiB"):
        sandbox.run(clip_job(tmp_path / "v", tmp_path / "o", memory_limit_gib=0.1))


def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path, sandbox):
    frames = pattern(4, (480, 640))
    save_pictures(tmp_path / "few", range(4), frames=frames)
    save_pictures(tmp_path / "many", range(400), frames=frames)
    sandbox.run(clip_job(tmp_path / "few", tmp_path / "a"))
    few = sandbox.peak_bytes
    assert sandbox.run(clip_job(tmp_path / "many", tmp_path / "b"))["clips"][0]["num_frames"] == 400
    assert sandbox.peak_bytes - few < 24 << 20


def test_the_picture_before_a_missing_one_is_shown_twice(tmp_path, sandbox):
    save_pictures(tmp_path / "v", [n for n in range(12) if n != 7])
    made = sandbox.run(clip_job(tmp_path / "v", tmp_path / "o"))["clips"][0]
    shown = np.load(tmp_path / "o/frames.npy").mean((1, 2, 3)).round(-1)
    assert made["num_frames"] == 12 and shown[7] == shown[6] < shown[8]
    assert [round(v / 15) for v in shown] == [0, 1, 2, 3, 4, 5, 6, 6, 7, 8, 9, 10]


def test_a_folder_that_is_gone_is_a_reason_where_another_is_there(tmp_path, sandbox):
    save_pictures(tmp_path / "there", range(2))
    with pytest.raises(Rejected, match="cannot be listed"):
        sandbox.run(clip_job(tmp_path / "gone", tmp_path / "o"))

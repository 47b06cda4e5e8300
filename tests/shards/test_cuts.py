"""Clips and cuts: a clip shows one shot, and nothing but a cut ends it."""

import csv

import numpy as np
import pytest

from shards.ingest.cuts import shots
from shards.ingest.extract import extract_face
from shards.ingest.isolate import Sandbox, job
from shards.ingest.read import Video
from shards.ingest.run import ingest
from shards.ingest.settings import IngestSettings, Rejected
from shards.ingest.timing import Span, split_at
from shards.render import ClipSpec, Expression, Face, Scene, render_clip
from tests.shards.test_ingest import pictures, rows_of, save
from tests.shards.test_real_videos import DATA

SIZE = 160


def person(seed, frames=36):
    """uint8 [T, 160, 160, 3]: a rendered person before a background of their own."""
    scene = Scene.sample(seed, seed, seconds=frames / 25)
    rng = np.random.default_rng(seed)
    expression = Expression.sample("happiness", 1.0, frames=frames, fps=25, rng=rng)
    return render_clip(ClipSpec(Face.from_seed(seed), scene, expression, frames, size=(SIZE, SIZE)))


@pytest.fixture(scope="module")
def people():
    return person(1), person(2)


def seen(path):
    with Video(path, max_side=640) as video:
        return shots([picture.frame for picture in video.pictures()])


def cuts_of(tmp_path, film):
    numbers = seen(save(tmp_path / "v.mp4", film, crf=12))
    return (np.flatnonzero(np.diff(numbers)) + 1).tolist()


def test_a_cut_between_two_people_is_found_to_the_frame(tmp_path, people):
    one, two = people
    assert cuts_of(tmp_path, np.concatenate([one[:20], two[:30], one[20:36]])) == [20, 50]


def test_a_person_who_moves_is_no_cut(tmp_path, people):
    for film in people:
        assert cuts_of(tmp_path, film) == []


def test_light_that_changes_at_once_is_no_cut(tmp_path, people):
    film = people[0].copy()
    film[18:] = (film[18:] * 0.5 + 10).astype(np.uint8)
    assert cuts_of(tmp_path, film) == []


@pytest.mark.parametrize("lasts", [1, 2])
def test_a_flash_or_a_broken_picture_is_no_cut(tmp_path, people, lasts):
    film = people[0].copy()
    film[18 : 18 + lasts] = np.random.default_rng(0).integers(150, 255, film[:lasts].shape)
    assert cuts_of(tmp_path, film) == []


def test_a_swung_camera_is_no_cut(tmp_path):
    wall = pictures(1, size=(160, 900), seed=3)[0]
    wall = np.clip(wall + np.random.default_rng(1).integers(0, 60, wall.shape), 0, 255)
    film = np.stack([wall[:, 24 * i : 24 * i + 160] for i in range(30)]).astype(np.uint8)
    assert cuts_of(tmp_path, film) == []


def test_damage_is_no_cut():
    assert shots([None, None, None]).tolist() == [0, 0, 0]


def test_spans_are_split_where_the_shot_changes():
    numbers = np.array([0, 0, 1, 1, 1, 2])
    assert split_at(Span(1, 6), numbers) == [Span(1, 2), Span(2, 5), Span(5, 6)]
    assert split_at(Span(2, 5), numbers) == [Span(2, 5)]


@pytest.fixture(scope="module")
def joined(people, tmp_path_factory):
    """One person for 24 frames, then another for 36, then nobody for 20."""
    folder = tmp_path_factory.mktemp("cuts")
    empty = np.full((20, SIZE, SIZE, 3), 30, np.uint8)
    empty[:, :, :40] = 220
    save(folder / "v.mp4", np.concatenate([people[0][:24], people[1][:36], empty]), crf=12)
    return folder


def test_clips_end_at_cuts_and_each_follows_its_own_face(joined, tmp_path):
    made = ingest(joined, tmp_path / "o", settings=IngestSettings(size=64), jobs=1)
    first, second = (row.record for row in rows_of(made.out))
    assert (first.num_frames, second.num_frames) == (24, 36)
    assert (first.track.start, second.track.start) == (0, pytest.approx(24 / 25))
    assert first.damaged is None and made.parts_left_out == 1
    keep = IngestSettings(size=64, cuts="keep")
    ingest(joined, tmp_path / "k", settings=keep, jobs=1)
    assert [row.record.num_frames > 50 for row in rows_of(tmp_path / "k")] == [True]


def test_a_labelled_clip_is_its_longest_shot_and_the_rest_is_told(joined, tmp_path):
    (tmp_path / "l.csv").write_text("path,label\nv.mp4,joy\n")
    settings = IngestSettings(size=64)
    ingest(joined, tmp_path / "o", annotations=tmp_path / "l.csv", settings=settings, jobs=1)
    (row,) = rows_of(tmp_path / "o")
    assert row.record.num_frames == 36 and row.record.label == "joy"
    with (tmp_path / "o" / "rejected.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["path"] for r in rows] == ["v.mp4#t=0.00,0.92", "v.mp4#t=2.40,3.16"]
    assert all("another shot" in r["reason"] and "--cuts keep" in r["action"] for r in rows)


def test_a_question_is_about_one_shot_and_tells_of_the_others_unless_moments_are_told(joined):
    settings = IngestSettings(size=64)
    clip = extract_face(joined / "v.mp4", settings=settings, isolated=False)
    assert len(clip.frames) == 36 and clip.marks == {}
    assert np.array(clip.other_shots) == pytest.approx(np.array([[0, 0.92], [2.4, 3.16]]))
    asked = {"onset": 4 / 25, "apex": 30 / 25 - 0.01}
    whole = extract_face(joined / "v.mp4", settings=settings, moments=asked)
    assert (len(whole.frames), whole.other_shots) == (80, ())
    assert whole.marks == {"onset": 4, "apex": 30}
    for name, outside in (("onset", -0.1), ("apex", 3.2)):
        with pytest.raises(Rejected, match=f"{name} is at {outside} s, the video has frames"):
            extract_face(joined / "v.mp4", settings=settings, moments={name: outside})


def test_a_video_with_annotated_frames_is_not_split(joined, tmp_path):
    marks = {"onset": 4, "apex": 9, "offset": 30}
    task = job(joined / "v.mp4", tmp_path, IngestSettings(size=64), kind="clips", marks=marks)
    with Sandbox() as sandbox:
        (clip,) = sandbox.run(task)["clips"]
    assert clip["num_frames"] == 80 and clip["marks"] == marks


def test_the_longest_largest_face_is_followed_and_one_that_appears_late(people, tmp_path):
    """The second person comes in from the right after a second, larger, and stays."""
    small = np.full((100, SIZE, 2 * SIZE, 3), 120, np.uint8)
    small[:, 40:120, 40:120] = np.resize(people[0], (100, SIZE, SIZE, 3))[:, ::2, ::2]
    for i, left in enumerate(range(2 * SIZE - 20, SIZE, -20), start=20):
        small[i, :, left:] = people[1][0, :, : 2 * SIZE - left]
    small[27:, :, SIZE:] = np.resize(people[1], (73, SIZE, SIZE, 3))
    save(tmp_path / "v.mp4", small, crf=12)
    task = job(tmp_path / "v.mp4", tmp_path, IngestSettings(size=64), kind="clips", whole=False)
    with Sandbox() as sandbox:
        (clip,) = sandbox.run(task)["clips"]
    assert clip["box"][0] > SIZE - 30 and clip["start"] > 0.7 and clip["num_frames"] <= 75


@pytest.mark.skipif(not (DATA / "videos").is_dir(), reason=f"the real videos are not at {DATA}")
def test_real_videos_without_a_cut_are_not_cut():
    for path in sorted((DATA / "videos").iterdir()):
        assert seen(path).max() == 0, path.name

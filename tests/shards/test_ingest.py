"""Ingest on videos made here: timing, damage, tracks, encoding, records, all or nothing."""

import errno
import io
import os
import shutil
import signal
import tarfile
import threading
import time
from fractions import Fraction
from pathlib import Path
from typing import get_args

import av
import numpy as np
import pytest

from shards.index import IndexRow
from shards.ingest import clips
from shards.ingest.annotations import read_annotations
from shards.ingest.detect import DETECTORS, detector, turn_of
from shards.ingest.encode import ClipWriter
from shards.ingest.extract import extract_face
from shards.ingest.faces import Sighting, crop_box, tracks, whole_pixels
from shards.ingest.inputs import Annotation, InputError, Item, key_of
from shards.ingest.isolate import Sandbox, job
from shards.ingest.picture import Deinterlacer, chain, turned
from shards.ingest.pool import job_of
from shards.ingest.read import Video
from shards.ingest.request import listing
from shards.ingest.run import IngestError, ingest
from shards.ingest.settings import DetectorName, IngestSettings, Rejected
from shards.ingest.splits import hold_out, label_order
from shards.ingest.survey import Source, survey
from shards.ingest.timing import Span, continuous, cut_evenly, cut_whole, frame_rate, shown
from shards.ingest.timing import sound_spans as spans_of
from shards.ingest.write import DiskFull, room_for
from shards.manifest import Manifest
from shards.verify import verify

PLAIN = IngestSettings(detector="none", size=64)
FILM = Fraction(24000, 1001)


def pictures(frames=48, *, size=(64, 96), seed=0):
    """Smooth moving blobs, different in every frame: uint8 [T, h, w, 3]."""
    rng = np.random.default_rng(seed)
    t = np.arange(frames)[:, None, None, None]
    y, x = np.mgrid[: size[0], : size[1]]
    waves = rng.uniform(0.05, 0.15, (3, 3))
    phase = waves[0] * x[..., None] + waves[1] * y[..., None] + waves[2] * 3 * t
    return (127 + 90 * np.sin(phase)).astype(np.uint8)


def save(path, frames, *, rate=25, codec="libx264", times=None, gop=12, **options):
    """A video file of these frames; `times` are timestamps in ticks of 1/1000 s."""
    unit = Fraction(1, 1000) if times else 1 / Fraction(rate)
    index_first = {"movflags": "faststart"} if path.suffix == ".mp4" else {}
    with av.open(str(path), "w", options=index_first) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = options.pop("pix_fmt", "yuv420p")
        stream.codec_context.time_base = unit
        stream.codec_context.gop_size = gop
        if stream.pix_fmt == "gray":
            stream.codec_context.color_range = 2  # grey has the full range; x264 must be told
        stream.codec_context.thread_count = 1
        stream.options = {k.replace("_", "-"): str(v) for k, v in options.items()}
        for i, rgb in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts, frame.time_base = (times[i] if times else i), unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def decode(path):
    with Video(path, max_side=1920) as video:
        return [(p.run, p.rgb()) for p in video.pictures()]


def rows_of(folder):
    manifest = Manifest.open(folder)
    return [row for i in range(len(manifest.shards)) for row in manifest.index(i)]


def mp4_of(folder, row: IndexRow):
    data = b"".join((folder / s.name).read_bytes() for s in Manifest.open(folder).shards)
    return data[row.offset : row.offset + row.size]


# --- timing -----------------------------------------------------------------------------------


def test_millisecond_timestamps_keep_the_declared_rate():
    times = [round(i * 1000 / 30) / 1000 for i in range(90)]
    assert frame_rate(times, [Fraction(30)]) == 30


def test_dropped_frames_do_not_lower_the_rate():
    times = [i * 1001 / 24000 for i in range(96) if i % 3 or i < 48]
    assert frame_rate(times, [Fraction(15360, 1001), FILM]) == FILM


def test_without_timestamps_the_declared_rate_counts_else_25():
    assert frame_rate([None] * 5, [Fraction(30)]) == 30
    assert frame_rate([None] * 5, [None]) == 25


def test_an_absurd_declared_rate_is_not_believed():
    assert frame_rate([0, 0.02, 0.04, 0.06], [Fraction(90000)]) == 50


@pytest.mark.parametrize("rate", [FILM, Fraction(25), Fraction(30), Fraction(200)])
def test_an_even_pace_is_left_alone_whatever_the_rounding(rate):
    seconds = np.array([round(i / float(rate), 3) for i in range(300)])
    assert shown(seconds, rate).tolist() == list(range(300))


def test_a_missing_instant_repeats_the_frame_before_it():
    assert shown(np.array([0, 0.04, 0.16, 0.2]), Fraction(25)).tolist() == [0, 1, 1, 1, 2, 3]


def test_two_frames_on_one_instant_give_one():
    assert shown(np.array([0, 0.04, 0.045, 0.08]), Fraction(25)).tolist() == [0, 1, 3]


def test_breaks_in_the_clock_are_closed():
    seconds, breaks = continuous([5.0, 5.04, 1.0, 1.04, 60.0, None], Fraction(25))
    assert np.allclose(seconds, [0, 0.04, 0.08, 0.12, 0.16, 0.2])
    assert breaks == 2


def test_a_frozen_second_is_no_break():
    seconds, breaks = continuous([0.0, 0.04, 1.0], Fraction(25))
    assert breaks == 0 and seconds[-1] == 1.0


def test_long_videos_are_cut_evenly_and_a_short_rest_is_dropped():
    seconds = np.arange(105) / 25
    cuts = cut_evenly(seconds, Span(0, 105), Fraction(25), clip_seconds=2, min_frames=16)
    assert [(c.frames[0], len(c.frames)) for c in cuts] == [(0, 50), (50, 50)]


def test_marks_find_their_frame_in_the_cut():
    cut = cut_whole(np.array([0, 0.04, 0.16, 0.2, 0.24]), Span(1, 5), Fraction(25))
    assert [cut.position(i) for i in range(6)] == [None, 0, 3, 4, 5, None]


def test_sound_spans_split_at_damage_and_between_runs():
    runs = np.array([-1, 0, 0, -1, 1, 1, 2])
    assert spans_of(runs) == [Span(1, 3), Span(4, 6), Span(6, 7)]


# --- reading ----------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", range(4))
def test_display_matrices_of_right_angles_turn_as_numpy_does(turn):
    rgb = pictures(1)[0]
    # rot90 counter-clockwise moves (x, y) to (y, -x) with y down
    matrix = [(1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0)][turn]
    assert np.array_equal(turned(rgb, matrix), np.rot90(rgb, turn))


def test_a_mirrored_display_matrix_mirrors():
    rgb = pictures(1)[0]
    assert np.array_equal(turned(rgb, (-1, 0, 0, 1)), rgb[:, ::-1])


@pytest.mark.parametrize(
    ("space", "full", "expected"),
    [(1, False, (214, 101, 41)), (6, False, (204, 94, 44)), (1, True, (202, 103, 49))],
    ids=["bt709", "bt601", "bt709-full-range"],
)
def test_colours_follow_matrix_and_range(space, full, expected):
    frame = av.VideoFrame(64, 64, "yuv420p")
    for plane, value in zip(frame.planes, (120, 90, 180), strict=True):
        plane.update(bytes([value]) * plane.buffer_size)
    frame.colorspace, frame.color_range = space, 2 if full else 1
    frame.pts, frame.time_base = 0, Fraction(1, 25)
    graph = chain(
        frame, [("scale", "flags=bicubic+accurate_rnd+full_chroma_int"), ("format", "rgb24")]
    )
    graph.vpush(frame)
    assert np.abs(graph.vpull().to_ndarray()[32, 32].astype(int) - expected).max() <= 1


@pytest.mark.parametrize("kind", ["yuv420p", "yuv444p", "yuv420p10le", "gray"])
def test_every_pixel_format_gives_the_same_picture(tmp_path, kind):
    frames = np.repeat(pictures(6)[..., :1], 3, axis=3)
    read = decode(save(tmp_path / "v.mkv", frames, pix_fmt=kind, crf=4))
    error = [
        np.abs(rgb.astype(int) - want).mean() for (_, rgb), want in zip(read, frames, strict=True)
    ]
    assert max(error) < 3


def test_pixel_aspect_is_squared(tmp_path):
    path = save(tmp_path / "v.mkv", pictures(4), x264_params="sar=2/1")
    assert decode(path)[0][1].shape == (64, 192, 3)


def test_interlaced_frames_lose_their_combs(tmp_path):
    still = np.zeros((64, 64, 3), np.uint8)
    combed = still.copy()
    still[:, 10:20], combed[0::2, 10:20], combed[1::2, 40:50] = 255, 255, 255
    frames = np.stack([combed] * 6)
    path = save(tmp_path / "v.mp4", frames, x264_params="tff=1", crf=4)

    def combing(rgb):
        return np.abs(np.diff(rgb[4:-4, :, 1].astype(int), axis=0)).mean()

    read = decode(path)
    assert len(read) == 6
    assert combing(read[3][1]) < 0.4 * combing(combed)


def test_the_deinterlacer_leaves_progressive_frames_alone(tmp_path):
    frames = [(av.VideoFrame(16, 16, "yuv420p"), i) for i in range(3)]
    assert [(f is frames[m][0], m) for f, m in Deinterlacer().run(iter(frames))] == [
        (True, i) for i in range(3)
    ]


def joined(path, *films):
    """Films of different sizes as one stream, as live recordings switch."""
    with av.open(str(path), "w", format="mpegts") as container:
        stream, at = container.add_stream("libx264", rate=25), 0
        stream.height, stream.width, stream.pix_fmt = *films[0].shape[1:3], "yuv420p"
        for film in films:
            codec = av.CodecContext.create("libx264", "w")
            codec.height, codec.width, codec.pix_fmt = *film.shape[1:3], "yuv420p"
            codec.time_base, codec.framerate = Fraction(1, 25), 25
            codec.options = {"bf": "0", "crf": "12"}
            packets = []
            for rgb in film:
                frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
                frame.pts, at = at, at + 1
                packets += codec.encode(frame)
            for packet in [*packets, *codec.encode(None)]:
                packet.stream, packet.time_base = stream, Fraction(1, 25)
                container.mux(packet)
    return path


def test_both_passes_see_the_size_of_the_first_frame_wherever_the_clip_begins(tmp_path):
    small = pictures(40)
    large = np.repeat(np.repeat(small, 2, 1), 2, 2)
    path = joined(tmp_path / "v.ts", small[:20], large[20:])
    seen = survey(Source(path), PLAIN)
    cut = cut_whole(seen.seconds, Span(20, 40), seen.rate)
    plan = clips.Plan(cut, (0, 0, 64), 1.0, 1, 0.0, seen.rate, 0, None)
    found = np.stack([rgb for _, rgb in clips.pictures(Source(path), [plan], PLAIN)])
    assert (seen.height, seen.width) == small.shape[1:3] and found.shape[0] == 20
    assert np.abs(found.astype(int) - small[20:, :, :64]).mean() < 4


def test_damage_leaves_out_everything_up_to_the_next_key_frame(tmp_path):
    path = save(tmp_path / "v.mp4", pictures(60), gop=20, crf=4, x264_params="scenecut=0")
    clean = decode(path)
    with av.open(str(path)) as container:
        packet = [p for p in container.demux(video=0) if p.size][25]
    data = bytearray(path.read_bytes())
    data[packet.pos + 40 : packet.pos + packet.size] = bytes(packet.size - 40)
    path.write_bytes(data)
    read = decode(path)
    runs = [run for run, _ in read]
    assert runs[:18] == [0] * 18 and runs[40:] == [1] * 20 and None in runs[20:40]
    for (run, rgb), (_, want) in zip(read, clean, strict=True):
        assert run is None or np.array_equal(rgb, want)


def test_a_clip_from_a_damaged_file_says_so(tmp_path):
    path = save(tmp_path / "v.mp4", pictures(60))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    clip = extract_face(path, settings=PLAIN, isolated=False)
    assert clip.damaged and clip.damaged.startswith(f"kept frames 0-{len(clip.frames) - 1} of 60")


def test_playlists_do_not_open_other_files(tmp_path):
    video = save(tmp_path / "v.mp4", pictures(20))
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile '{video.name}'\n")
    (tmp_path / "hls.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\n{video.name}\n")
    for name in ("list.mp4", "hls.mp4"):
        with pytest.raises(Rejected, match="not a video"):
            Video(tmp_path / name, max_side=640)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(Rejected, match="neither a file"):
        Video(tmp_path / "pipe.mp4", max_side=640)


# --- faces ------------------------------------------------------------------------------------


def box(left, top, width, confidence=1.0):
    return np.array([left, top, width, width, confidence], float)


def sightings(*rows):
    return [Sighting(4 * i, np.array(row, float).reshape(-1, 5)) for i, row in enumerate(rows)]


def test_a_face_that_stays_beats_larger_ones_that_flicker():
    rows = [[box(10 + i, 20, 50)] for i in range(8)]
    rows[2].append(box(200, 10, 90))
    rows[5].append(box(90, 120, 100))
    main = tracks(sightings(*rows))[0]
    assert len(main.frames) == 8 and main.boxes[0][0] == 10


def test_of_two_people_the_larger_is_followed():
    found = tracks(sightings(*[[box(10, 20, 40), box(200, 20, 60)] for _ in range(6)]))
    assert [len(t.frames) for t in found] == [6, 6]
    assert found[0].boxes[0][2] == 60


def test_a_track_survives_a_hand_before_the_face():
    rows = [[box(10, 20, 50)]] * 3 + [[]] * 5 + [[box(12, 22, 52)]] * 3
    assert [len(t.frames) for t in tracks(sightings(*rows))] == [6]


def test_the_box_of_a_still_head_is_the_face_with_its_margin():
    left, top, side = crop_box([box(100, 60, 80)] * 5, margin=0.25)
    assert (left, top, side) == (80, 40, 120)


def test_the_box_of_a_moving_head_holds_its_way():
    boxes = [box(100 + 10 * i, 60, 80) for i in range(6)]
    left, _, side = crop_box(boxes, margin=0.25)
    assert side > 120 and left < 105 and left + side > 225


@pytest.mark.parametrize("where", [(-20, 5, 50), (90, 40, 60), (10, -30, 200), (0, 0, 1)])
def test_a_box_on_the_pixel_grid_lies_inside_the_picture(where):
    left, top, side = whole_pixels(where, height=80, width=120)
    assert left >= 0 and top >= 0 and left + side <= 120 and top + side <= 80 and side >= 1


def test_turn_of_needs_most_pictures_to_agree():
    class Marked:
        def __call__(self, rgb, *, sure=False, least=0.0):
            return np.ones((int(rgb[0, 0, 0] == 9), 5))

    lying = [np.zeros((4, 6, 3), np.uint8) for _ in range(5)]
    assert turn_of(lying, Marked()) == 0
    for rgb in lying:
        rgb[0, -1] = 9  # a quarter turn counter-clockwise brings it to the top left
    assert turn_of(lying, Marked()) == 1


class Corner:
    """A detector that sees a face where the top left is bright, and a doubtful one where it is
    grey."""

    def __call__(self, rgb, *, sure=False, least=0.0):
        light = float(rgb[:8, :8].mean())
        found = [0, 0, 64, 64, 1.0 if light > 200 else 0.8]
        return np.array([found] * (light > (200 if sure else 60)), float).reshape(-1, 5)


def looks(tmp_path, kinds):
    """A film whose every look shows a face that is upright, lying or doubtful."""
    film = np.zeros((len(kinds), 64, 96, 3), np.uint8)
    for picture, kind in zip(film, kinds, strict=True):
        picture[:16, slice(-16, None) if kind == "l" else slice(16)] = 130 if kind == "d" else 255
    return Source(save(tmp_path / "v.mkv", np.repeat(film, 4, 0), crf=12))


@pytest.mark.parametrize(
    ("kinds", "turn"),
    [
        ("l" * 12, 1),
        ("l" * 9 + "u" * 30, 0),  # a title card with a photograph on its side, then the person
        ("luldulud", 0),  # most are in doubt, and of these most lie: upright more is seen
        ("dd" + "l" * 30, 1),
    ],
)
def test_a_video_is_turned_where_it_shows_more_faces_so(tmp_path, monkeypatch, kinds, turn):
    monkeypatch.setitem(DETECTORS, "haar", lambda model: Corner())
    detector.cache_clear()
    seen = survey(looks(tmp_path, kinds), IngestSettings(cuts="keep"))
    detector.cache_clear()
    assert len(seen.sightings) == len(kinds) and seen.turn == turn


def test_the_detector_names_are_those_of_the_table():
    assert set(get_args(DetectorName)) == {*DETECTORS, "none"}


# --- encoding ---------------------------------------------------------------------------------


def test_stored_clips_are_exact_at_random_access(tmp_path):
    import decord

    frames = pictures(50, size=(64, 64))
    for path in (tmp_path / "a.mp4", tmp_path / "b.mp4"):
        with ClipWriter(path, rate=FILM, size=64, crf=18, gop=12) as writer:
            for rgb in frames:
                writer.add(rgb)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == FILM and stream.start_time == 0
        header = stream.codec_context.extradata
        read = list(container.decode(stream))
    assert {int(f.pict_type) for f in read} == {1, 2}  # I and P alone
    pictures_set = header[8 + int.from_bytes(header[6:8]) + 3 :]  # behind the sequence's own
    assert pictures_set[0] & 31 == 8 and not pictures_set[1] & 32, "no CABAC"
    assert [i for i, f in enumerate(read) if f.key_frame] == [0, 12, 24, 36, 48]
    reader = decord.VideoReader(str(tmp_path / "a.mp4"))
    for i in np.random.default_rng(0).permutation(50):
        assert np.array_equal(reader[int(i)].asnumpy(), read[i].to_ndarray(format="rgb24"))
    error = np.square(np.stack([f.to_ndarray(format="rgb24") for f in read]) - frames.astype(float))
    assert 10 * np.log10(255**2 / error.mean()) > 33


# --- processes --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox() as sandbox:
        yield sandbox


def frames_job(path, out, **settings):
    out.mkdir()
    return job(
        path, out, IngestSettings(**{"detector": "none", "size": 64} | settings), kind="frames"
    )


def test_a_video_that_takes_too_long_is_killed_and_the_next_is_served(tmp_path, sandbox):
    long = save(tmp_path / "long.mkv", pictures(3000), preset="ultrafast")
    with pytest.raises(Rejected, match=r"longer than 0.05 s.*--timeout"):
        sandbox.run(frames_job(long, tmp_path / "1", timeout=0.05, max_seconds=999))
    short = save(tmp_path / "short.mkv", pictures(20))
    assert sandbox.run(frames_job(short, tmp_path / "2"))["clips"][0]["num_frames"] == 20


def test_a_video_beyond_the_memory_limit_is_rejected(tmp_path, sandbox):
    huge = save(tmp_path / "v.mp4", np.zeros((2, 4096, 4096, 3), np.uint8), preset="ultrafast")
    limits = {"memory_limit_gib": 0.05, "min_frames": 1}
    with pytest.raises(Rejected, match=r"more than 0.05 GiB"):
        sandbox.run(frames_job(huge, tmp_path / "1", **limits))


def test_a_clip_that_does_not_fit_on_the_disk_is_no_fault_of_the_video(tmp_path, sandbox):
    short = save(tmp_path / "v.mkv", pictures(20))
    with pytest.raises(OSError, match=r"no room at .* bytes needed, .* free; make room"):
        sandbox.run(frames_job(short, tmp_path / "1", size=1_000_000))


def child_of(pid):
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the process in /proc")
def test_a_crash_is_a_reason_and_not_the_end(tmp_path, sandbox):
    long = save(tmp_path / "long.mkv", pictures(2000), preset="ultrafast")
    zygote = sandbox._started().pid

    def crash():
        for _ in range(500):
            try:
                return os.kill(child_of(zygote), signal.SIGSEGV)
            except (IndexError, OSError):
                time.sleep(0.005)

    killer = threading.Thread(target=crash)
    killer.start()
    with pytest.raises(Rejected, match="SIGSEGV"):
        sandbox.run(frames_job(long, tmp_path / "1", max_seconds=999))
    killer.join()
    short = save(tmp_path / "short.mkv", pictures(20))
    assert sandbox.run(frames_job(short, tmp_path / "2"))["clips"][0]["num_frames"] == 20


def test_closing_a_sandbox_ends_its_processes():
    sandbox = Sandbox()
    pid = sandbox._started().pid
    sandbox.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(RuntimeError, match="closed"):
        sandbox.run({"source": "v.mp4"})


def test_extract_face_takes_bytes_and_names_a_missing_file(tmp_path):
    data = save(tmp_path / "v.mp4", pictures(30)).read_bytes()
    clip = extract_face(data, settings=PLAIN)
    assert clip.frames.shape == (30, 64, 64, 3) and clip.frames.dtype == np.uint8
    assert clip.fps == 25 and clip.box == (16, 0, 64, 64) and clip.damaged is None
    with pytest.raises(FileNotFoundError, match="nowhere"):
        extract_face(tmp_path / "nowhere.mp4", settings=PLAIN)


# --- the whole folder -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    (folder / "b").mkdir()
    save(folder / "a.mp4", pictures(40))
    save(folder / "b" / "a.mkv", pictures(50, seed=1), rate=30)
    save(folder / "long.mp4", pictures(130, seed=2))
    save(folder / "short.mp4", pictures(5))
    (folder / "notes.txt").write_text("not a video")
    (folder / "text.mp4").write_text("not a video")
    return folder


@pytest.fixture(scope="module")
def shards(videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "shards"
    settings = IngestSettings(detector="none", size=64, clip_seconds=2)
    return ingest(videos, out, settings=settings, jobs=2, shard_samples=3, max_rejected_share=0.6)


def test_a_folder_becomes_shards_with_records(shards, videos):
    assert verify(shards.out) == []
    assert (shards.videos, shards.clips, shards.shards) == (5, 5, 2)
    rows = rows_of(shards.out)
    assert [r.key for r in rows] == [
        *("a_mp4", "b_a_mkv"),
        *("long_mp4-0000", "long_mp4-0001", "long_mp4-0002"),
    ]
    first, second, *_, last = (r.record for r in rows)
    assert (first.path, first.fps, first.num_frames) == ("a.mp4", 25, 40)
    assert (second.path, second.fps, second.num_frames) == ("b/a.mkv", 30, 50)
    assert (last.num_frames, last.track.start) == (30, 4.0)
    assert shards.notes == ("left alone, as no videos by their suffixes: 1 file",)


@pytest.mark.parametrize("lost", [25, 50])
def test_a_picture_that_is_shown_twice_ends_one_clip_and_begins_the_next(tmp_path, lost):
    """A phone's video in clips of one second, from which a frame is missing where two meet."""
    (tmp_path / "videos").mkdir()
    times = [40 * i for i in range(75) if i != lost]
    save(tmp_path / "videos" / "a.mkv", pictures(74), times=times)
    settings = IngestSettings(detector="none", size=64, clip_seconds=1)
    made = ingest(tmp_path / "videos", tmp_path / "out", settings=settings)
    rows = rows_of(made.out)
    assert [row.record.num_frames for row in rows] == [25, 25, 25]
    for row in rows:
        with av.open(io.BytesIO(mp4_of(made.out, row))) as container:
            assert sum(1 for _ in container.decode(video=0)) == 25


def test_what_cannot_be_used_is_listed_with_reason_and_action(shards):
    lines = (shards.out / "rejected.csv").read_text().splitlines()
    assert lines[0] == "path,reason,action"
    assert lines[1].startswith("short.mp4,") and "at least 16 are needed" in lines[1]
    assert lines[2].startswith("text.mp4,not a video")


def test_shards_hold_the_cropped_frames_of_the_source(shards, videos):
    row = rows_of(shards.out)[0]
    with av.open(io.BytesIO(mp4_of(shards.out, row))) as container:
        stored = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    source = np.stack([rgb for _, rgb in decode(videos / "a.mp4")])[:, :, 16:80]
    assert stored.shape == source.shape
    away = [np.abs(stored[20].mean(2) - frame.mean(2)).mean() for frame in source]
    assert np.argmin(away) == 20 and away[20] < 4


def test_the_same_videos_give_the_same_bytes_whatever_the_parallelism(shards, videos, tmp_path):
    settings = IngestSettings(detector="none", size=64, clip_seconds=2)
    out = tmp_path / "again"
    ingest(videos, out, settings=settings, jobs=1, shard_samples=3, max_rejected_share=0.6)
    for path in sorted(shards.out.iterdir()):
        assert path.read_bytes() == (out / path.name).read_bytes(), path.name


def test_webdataset_reads_the_shards(shards):
    wds = pytest.importorskip("webdataset")
    urls = [str(shards.out / s.name) for s in Manifest.open(shards.out).shards]
    samples = list(wds.WebDataset(urls, shardshuffle=False))
    assert [s["__key__"] for s in samples] == [r.key for r in rows_of(shards.out)]
    assert all(b"ftyp" in s["mp4"][:16] for s in samples)


def test_shards_end_at_the_limit_of_bytes_too(videos, tmp_path):
    settings = IngestSettings(detector="none", size=64, clip_seconds=2)
    made = ingest(
        videos, tmp_path / "o", settings=settings, shard_bytes=1, max_rejected_share=0.6, jobs=1
    )
    assert made.shards == made.clips == 5


def names(folder):
    return sorted(os.listdir(folder))


def test_too_many_rejected_leaves_the_reasons_alone(videos, tmp_path):
    with pytest.raises(IngestError, match="2 of 5 videos were rejected") as no:
        ingest(videos, tmp_path / "o", settings=PLAIN, max_rejected_share=0.1, jobs=1)
    assert names(tmp_path) == ["o.rejected.csv"] and "--max-rejected-share" in str(no.value)


def test_interruption_leaves_nothing(videos, tmp_path):
    def interrupt(done, total, rejected):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(videos, tmp_path / "o", settings=PLAIN, jobs=2, progress=interrupt)
    assert names(tmp_path) == []


def test_a_full_disk_is_told_before_and_while_writing(videos, tmp_path, monkeypatch):
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(OSError, match=r"no room at .*bytes needed, 1,000 free"):
        ingest(videos, tmp_path / "o", settings=PLAIN, jobs=1)
    assert names(tmp_path) == []
    monkeypatch.undo()
    with pytest.raises(DiskFull, match="no room"), room_for(tmp_path, 10):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_only_shards_of_ours_are_overwritten_and_only_on_request(videos, tmp_path):
    out = tmp_path / "o"
    out.mkdir()
    one = videos / "a.mp4"
    ingest(one, out, settings=PLAIN, jobs=1)
    with pytest.raises(InputError, match="--overwrite"):
        ingest(one, out, settings=PLAIN, jobs=1)
    ingest(videos / "b", out, settings=PLAIN, jobs=1, overwrite=True)
    assert [r.key for r in rows_of(out)] == ["a_mkv"] and names(tmp_path) == ["o"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("dear")
    with pytest.raises(InputError, match="no shard folder"):
        ingest(one, other, settings=PLAIN, jobs=1, overwrite=True)
    assert names(other) == ["thesis.tex"]


def test_a_link_as_out_is_written_where_it_leads(videos, tmp_path):
    link, disk = tmp_path / "o", tmp_path / "disk"
    (disk / "shards").mkdir(parents=True)
    link.symlink_to(disk / "shards")

    def beside_the_folder(done, total, rejected):
        assert names(tmp_path) == ["disk", "o"] and len(names(disk)) == 2

    for again in (False, True):
        ingest(
            *(videos / "a.mp4", link),
            **{"settings": PLAIN, "jobs": 1, "overwrite": again, "progress": beside_the_folder},
        )
        assert link.is_symlink() and verify(link) == [] and names(disk) == ["shards"]


def test_a_mount_point_as_out_is_refused_at_the_start(videos, tmp_path, monkeypatch):
    out = tmp_path / "o"
    out.mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == out)
    with pytest.raises(InputError, match="name a folder inside it, such as .*o/shards"):
        ingest(videos / "a.mp4", out, settings=PLAIN, jobs=1, progress=lambda *_: 1 / 0)
    assert names(tmp_path) == ["o"]
    assert ingest(videos / "a.mp4", out / "shards", settings=PLAIN, jobs=1).clips == 1


# --- annotations, keys, splits ----------------------------------------------------------------


def annotate(tmp_path, text):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    return path


def test_annotations_reach_the_records(videos, tmp_path):
    rows = (
        "path,label,subject_id,onset,apex,offset,action_units,split,age\n"
        "b/a.mkv,joy,s2,3,10,20,4+L10,test,33\n"
        "a.mp4,anger,s1,,,,,train,44\n"
        "long.mp4,joy,s1,1,2,3,,train,44\n"
        "text.mp4,joy,s3,,,,,test,55\n"
    )
    made = ingest(
        videos, tmp_path / "o", annotations=annotate(tmp_path, rows), settings=PLAIN, jobs=1
    )
    by_key = {r.key: r.record for r in rows_of(made.out)}
    r = by_key["b_a_mkv"]
    assert (r.label, r.subject_id, r.onset, r.apex, r.offset) == ("joy", "s2", 3, 10, 20)
    assert (r.action_units, r.split, r.apex_source) == (("4", "L10"), "test", "annotated")
    assert by_key["long_mp4"].num_frames == 130  # labelled: in one piece
    assert (made.labels, made.splits) == (("anger", "joy"), {"test": 1, "train": 2})
    assert "columns not used: age" in made.notes
    assert Manifest.open(made.out).rejected == {"test": 1}, "so that coverage can count it"


@pytest.mark.parametrize(
    ("column", "cell", "whole"),
    [
        ("valence", "0.0", True),
        ("arousal", "-0.5", True),
        ("votes", '"{""joy"": 3}"', True),
        ("action_units", "4+L10", True),
        ("objective_class", "II", True),
        ("subject_id", "s1", False),
        ("split", "test", False),
    ],
)
def test_what_an_annotation_says_of_a_video_keeps_it_whole(tmp_path, column, cell, whole):
    (tmp_path / "v.mp4").touch()
    file = annotate(tmp_path, f"path,{column}\nv.mp4,{cell}\n")
    [item], _, _ = read_annotations(file, tmp_path)
    assert job_of(item, tmp_path, PLAIN)["whole"] == whole


def test_marks_move_with_what_was_left_out(tmp_path):
    times = [i * 40 + (400 if i >= 10 else 0) for i in range(40)]
    folder = tmp_path / "v"
    folder.mkdir()
    save(folder / "v.mkv", pictures(40), times=times)
    file = annotate(tmp_path, "path,onset,apex\nv.mkv,9,10\n")
    record = rows_of(ingest(folder, tmp_path / "o", annotations=file, settings=PLAIN, jobs=1).out)[
        0
    ].record
    assert (record.num_frames, record.onset, record.apex) == (50, 9, 20)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("missing.mp4,1,2", "not a file"),
        ("../secret.mp4,1,2", "leads out"),
        ("/etc/passwd,1,2", "leads out"),
        ("a.mp4,five,2", "not a frame number"),
        ("a.mp4,7,2", "onset 7 lies after apex 2"),
        (",1,2", "no path"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(videos, tmp_path, row, reason):
    file = annotate(tmp_path, f"path,onset,apex\nlong.mp4,,\n{row}\n")
    items, refused, _ = read_annotations(file, videos)
    assert [item.key for item in items] == ["long_mp4"]
    assert reason in refused[0].reason and "line 3" in refused[0].reason


def test_one_video_in_several_rows_needs_different_onsets(videos, tmp_path):
    file = annotate(tmp_path, "path,onset\na.mp4,3\na.mp4,9\na.mp4,3\n")
    items, refused, _ = read_annotations(file, videos)
    assert [item.key for item in items] == ["a_mp4-f3", "a_mp4-f9"]
    assert "twice" in refused[0].reason


@pytest.mark.parametrize(
    ("column", "cells"),
    [
        ("label", "joy fear joy"),
        ("split", "train test train"),
        ("label", "joy joy "),
        ("valence", "0.5 -0.5 0.5"),
        ("subject_id", "s1 s2 s2"),
    ],
)
def test_a_video_whose_rows_contradict_each_other_is_left_out(videos, tmp_path, column, cells):
    """Whatever their onsets, as each of them would be the whole video."""
    rows = zip((3, 9, 20), cells.split(" "), strict=True)
    lines = [f"path,onset,{column}", *(f"a.mp4,{onset},{cell}" for onset, cell in rows)]
    file = annotate(tmp_path, "\n".join([*lines, "long.mp4,3,", "long.mp4,9,"]))
    items, refused, _ = read_annotations(file, videos)
    assert [item.key for item in items] == ["long_mp4-f3", "long_mp4-f9"]
    assert [row.path for row in refused] == ["a.mp4"] * 3
    assert all(f"has another {column} in" in row.reason for row in refused)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.mp4,joy\n", "no column 'path'"),
        ("path,lable\na.mp4,joy\n", "'lable'; it is called 'label'"),
        ("path,label\n", "no rows"),
    ],
)
def test_a_bad_annotations_file_is_refused_whole(videos, tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_annotations(annotate(tmp_path, text), videos)


@pytest.mark.parametrize(
    "name", ["a/b.c.mp4", "ü💥.mp4", "x" * 300 + ".mp4", "../../etc", ".mp4", "a b\nc"]
)
def test_keys_are_safe_member_names(name):
    key = key_of(name)
    assert key and len(key) <= 80 and all(c.isascii() and (c.isalnum() or c in "_-") for c in key)
    tarfile.TarInfo(key + "-0000.mp4").tobuf(format=tarfile.USTAR_FORMAT)


def people(counts):
    return [
        Item(f"{s}_{i}", Path("x"), f"{s}/{i}.mp4", Annotation(subject_id=s))
        for s, n in counts.items()
        for i in range(n)
    ]


def test_holdout_keeps_subjects_together():
    items = hold_out(people({f"s{i}": 5 for i in range(20)}), {"val": 0.1, "test": 0.2})
    of = {}
    for item in items:
        of.setdefault(item.annotation.subject_id, set()).add(item.annotation.split)
    assert all(len(splits) == 1 for splits in of.values())
    counts = [sum(i.annotation.split == s for i in items) for s in ("train", "val", "test")]
    assert counts == [70, 10, 20]


def appearing(*pairs):
    """A clip for each (subject, source)."""
    return [
        Item(f"{i}", Path("x"), f"{i}.mp4", Annotation(subject_id=subject, source_id=source))
        for i, (subject, source) in enumerate(pairs)
    ]


def splits_by(items, name):
    of = {}
    for item in items:
        of.setdefault(getattr(item.annotation, name), set()).add(item.annotation.split)
    return of


def test_holdout_keeps_together_what_shares_a_subject_or_a_source():
    films = [(f"{s}{i}", f"film{i}") for i in range(20) for s in "abc"]
    alone = [(f"a{i}", None) for i in range(20)] + [(None, f"film{i}") for i in range(20)]
    chain = [(f"a{i + 1}", f"film{i}") for i in range(0, 20, 4)]
    clips = appearing(*films, *alone, *chain)
    items = hold_out(clips, {"val": 0.1, "test": 0.2})
    for name in ("subject_id", "source_id"):
        of = splits_by([item for item in items if getattr(item.annotation, name)], name)
        assert {len(splits) for splits in of.values()} == {1}
    assert {item.annotation.split for item in items} == {"train", "val", "test"}
    other = hold_out(clips[::-1], {"val": 0.1, "test": 0.2})
    assert other[::-1] == items, "the order of the rows decides nothing"


@pytest.mark.parametrize(
    "pair",
    [lambda s, k: (s, None), lambda s, k: (None, s), lambda s, k: (s, f"{s}-{k}")],
    ids=["subjects", "sources", "sources within subjects"],
)
def test_names_alone_decide_what_is_held_out(pair):
    clips = appearing(*(pair(f"s{i}", k) for i in range(20) for k in range(5)))
    items = hold_out(clips, {"val": 0.1, "test": 0.2})
    held = {
        split: sorted({i // 5 for i, item in enumerate(items) if item.annotation.split == split})
        for split in ("val", "test")
    }
    # Written down: another version must not move the clips of a collection that grows.
    assert held == {"val": [7, 8], "test": [3, 5, 13, 15]}


def test_sources_in_several_splits_are_told(videos, tmp_path):
    rows = "path,source_id,split\na.mp4,film,train\nlong.mp4,film,test\nb/a.mkv,other,test\n"
    notes = listing(videos, annotate(tmp_path, rows), None, {}).notes
    assert notes == ["1 sources are in several splits, such as film"]


def test_holdout_needs_a_subject_for_every_split():
    with pytest.raises(InputError, match="3 splits of 2 subjects"):
        hold_out(people({"a": 9, "b": 9}), {"val": 0.1, "test": 0.1})


def test_labels_are_ordered_by_value_or_alphabet():
    assert label_order(["10", "9", "1"]) == ["1", "9", "10"]
    assert label_order(["joy", "10", "anger"]) == ["10", "anger", "joy"]


@pytest.mark.parametrize(
    "wrong", [{"size": 65}, {"timeout": 0}, {"margin": -1}, {"detector": "yolo"}, {"crf": 99}]
)
def test_settings_say_what_is_wrong(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        IngestSettings(**wrong)

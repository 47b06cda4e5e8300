"""Which frames a clip takes, and that the decoder returns those."""

import functools
import io
import os
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import decord
import numpy as np
import pytest

from shards.frames import DecodeError, decode, decode_each, draw_indices, view_indices
from shards.ingest.encode import ClipWriter
from tests.shards.make import encode, video

SELECTIONS = {
    "strided": np.arange(1, 62, 4),
    "dense": np.arange(17, 33),
    "far apart": np.array([2, 40]),
    "views": np.array([[60, 3, 3], [0, 8, 61]]),
    "last": np.array([63]),
    "all": np.arange(64),
}


@functools.cache
def stored(gop, size=64, frames=64, fast=True):
    """A clip as ingest stores it, of noise that moves and so needs every frame before it."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (size // 2, size // 2 + frames, 3), dtype=np.uint8)
    noise = noise.repeat(2, axis=0).repeat(2, axis=1)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        cut = {"rate": Fraction(25), "size": size, "crf": 18, "gop": gop, "fast": fast}
        with ClipWriter(path, **cut) as writer:
            for i in range(frames):
                writer.add(np.ascontiguousarray(noise[:, 2 * i : 2 * i + size]))
        return path.read_bytes()


def packets(data):
    """Where each frame's bytes start and end."""
    with av.open(io.BytesIO(data)) as container:
        return [(e.pos, e.pos + e.size) for e in container.streams.video[0].index_entries]


def damaged(data, frame):
    """The same file without the second half of one frame's bytes."""
    start, end = packets(data)[frame]
    middle = (start + end) // 2
    return data[:middle] + bytes(end - middle) + data[end:]


def draws(num_frames, *, frames=4, stride, n=300):
    rng = np.random.default_rng(0)
    cut = {"frames": frames, "stride": stride, "rng": rng}
    return np.stack([draw_indices(num_frames, **cut) for _ in range(n)])


def test_decoding_returns_the_frames_asked_for_in_any_order():
    wanted = np.array([[19, 3, 3], [0, 8, 11]])
    frames = decode(video(), lambda n: wanted)
    assert frames.shape == (2, 3, 64, 64, 3)
    assert frames.dtype == np.uint8
    red = frames[..., 40:, 40:, 0].mean(axis=(-1, -2))
    np.testing.assert_allclose(red, wanted * 8, atol=4)
    assert (frames[:, :, 4:12, 4:12] > 240).all(), "the mark is at the top left"


@pytest.mark.parametrize(
    ("gop", "size", "fast"),
    [(1, 64, True), (2, 90, True), (12, 64, True), (12, 90, False), (250, 64, True)],
)
def test_stored_clips_decode_to_the_pixels_that_decord_finds(gop, size, fast):
    data = stored(gop, size, fast=fast)
    pixels = decord.VideoReader(io.BytesIO(data), num_threads=1)[:].asnumpy()
    for wanted in SELECTIONS.values():
        np.testing.assert_array_equal(decode(data, lambda n, w=wanted: w), pixels[wanted])


@pytest.mark.parametrize("size", [64, 90, 98])
def test_frames_one_by_one_are_the_same_pixels_and_none_is_made_twice(size):
    data, wanted = stored(12, size), SELECTIONS["views"]
    each = decode_each(data, lambda n: wanted)
    together = decode(data, lambda n: wanted)
    assert together.shape == (2, 3, size, size, 3)
    np.testing.assert_array_equal(np.stack(each), together.reshape(6, size, size, 3))
    assert each[1] is each[2], "frame 3, wanted twice"


def test_frames_outlive_the_decoder_that_made_them():
    data = stored(12)
    held = decode_each(data, lambda n: np.arange(16))
    then = [frame.copy() for frame in held]
    for _ in range(5):  # what was freed would be written over
        decode(data, lambda n: np.arange(40, 64))
    np.testing.assert_array_equal(held, then)


def test_frames_that_nobody_needs_are_not_decoded():
    data = damaged(stored(12), 30)  # of the group 24 to 35

    def red(*wanted):
        return decode(data, lambda n: np.array(wanted))

    whole = decode(stored(12), lambda n: np.arange(64))
    np.testing.assert_array_equal(red(0, 23, 29, 36, 63), whole[[0, 23, 29, 36, 63]])
    for wanted in ([30], [31], [35], [29, 34], [2, 33, 60]):
        with pytest.raises(DecodeError, match="cannot be decoded"):
            red(*wanted)


@pytest.mark.parametrize("frame", [0, 12, 25, 47])
def test_damage_is_no_picture_even_many_frames_later(frame):
    data = damaged(stored(12), frame)
    with pytest.raises(DecodeError):
        decode(data, lambda n: np.array([frame // 12 * 12 + 11]))


def test_a_cut_file_is_refused_whatever_is_asked_of_it():
    data = stored(12)
    assert packets(data)[-1][1] == len(data), "the index is at the front"
    with pytest.raises(DecodeError, match="cut"):
        decode(data[:-1], lambda n: np.array([0]))


def test_frames_outside_the_clip_are_refused():
    for wanted in ([64], [-1, 3]):
        with pytest.raises(DecodeError, match="has 64 frames"):
            decode(stored(12), lambda n, w=wanted: np.array(w))


def test_reordered_frames_are_refused():
    pictures = np.zeros((20, 64, 64, 3), dtype=np.uint8)
    with pytest.raises(DecodeError, match="B-frames"):
        decode(encode(pictures, b_frames=2), lambda n: np.arange(n))


def test_frames_of_several_sizes_are_refused():
    sizes = [np.zeros((8, side, side, 3), dtype=np.uint8) for side in (64, 32)]
    stream, buffer = b"".join(encode(pictures, kind="h264") for pictures in sizes), io.BytesIO()
    with av.open(io.BytesIO(stream)) as source, av.open(buffer, "w", format="mp4") as target:
        copy = target.add_stream_from_template(source.streams.video[0])
        for i, packet in enumerate(p for p in source.demux(video=0) if p.size):
            packet.stream, packet.pts, packet.dts = copy, 100_000 * i, 100_000 * i
            target.mux(packet)
    assert decode(buffer.getvalue(), lambda n: np.arange(8)).shape == (8, 64, 64, 3)
    with pytest.raises(DecodeError, match="differ in size"):
        decode(buffer.getvalue(), lambda n: np.arange(16))


def test_sound_alone_is_refused():
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), "fltp", "mono")
        sound.sample_rate = 16000
        container.mux([*stream.encode(sound), *stream.encode()])
    with pytest.raises(DecodeError, match="holds no video"):
        decode(buffer.getvalue(), lambda n: np.arange(n))


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"not a video at all",
        os.urandom(4000),
        video()[: len(video()) // 2],
        video()[:40] + bytes(len(video()) - 40),
        b"\0\0\0\x20ftypisom" + bytes(500),
    ],
    ids=["empty", "text", "random", "cut", "zeroed", "head only"],
)
def test_bytes_that_are_no_video_raise_decode_error(bad):
    with pytest.raises(DecodeError):
        decode(bad, lambda n: np.arange(n))


def test_a_strided_clip_starts_anywhere_it_fits():
    clips = draws(20, stride=3)
    assert (np.diff(clips) == 3).all()
    assert set(clips[:, 0]) == set(range(11))


def test_a_stride_shrinks_until_the_clip_fits():
    assert draws(7, stride=4, n=1).tolist() == [[0, 2, 4, 6]]
    assert view_indices(7, frames=4, stride=4, views=2).tolist() == [[0, 2, 4, 6]] * 2


@pytest.mark.parametrize("stride", [4, None])
def test_a_video_shorter_than_the_clip_repeats_frames(stride):
    for clip in draws(2, stride=stride, n=20):
        assert sorted(clip) == clip.tolist()
        assert set(clip.tolist()) == {0, 1}
    assert (draws(1, stride=stride) == 0).all()


def test_segments_cover_the_video_and_jitter_inside():
    clips = draws(40, stride=None)
    for i in range(4):
        assert set(clips[:, i]) == set(range(10 * i, 10 * i + 10))


def test_one_view_is_the_middle_and_more_reach_both_ends():
    def starts(views):
        return view_indices(20, frames=4, stride=2, views=views)[:, 0].tolist()

    assert starts(1) == [6]
    assert starts(2) == [0, 13]
    assert starts(3) == [0, 6, 13]


def test_views_over_segments_take_different_frames_of_each():
    views = view_indices(32, frames=4, stride=None, views=2)
    assert views.tolist() == [[2, 10, 18, 26], [6, 14, 22, 30]]

"""Which frames a clip takes, and that the decoder returns those."""

import os

import numpy as np
import pytest

from shards.frames import DecodeError, decode, draw_indices, view_indices
from tests.shards.make import video


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

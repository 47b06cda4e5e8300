"""Frames of a clip: which ones, and decoding them.

Owns the temporal sampling and the decoder. Reads only what ingest wrote (H.264 in MP4, closed
groups, no B-frames): there the n-th packet is the n-th frame. Refuses to know shards, augmentation
and batches.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from av.video.codeccontext import VideoCodecContext
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream


class DecodeError(ValueError):
    """A video that cannot be decoded."""


def decode(video: bytes, choose: Callable[[int], NDArray]) -> NDArray[np.uint8]:
    """Frames of an mp4 held in memory, in one array.

    Args:
        video: the file's bytes.
        choose: from the number of frames to the indices wanted, of any shape S, repeats allowed.

    Returns uint8 [*S, h, w, C], RGB. Raises DecodeError where the bytes are no clip of ingest's,
    are cut anywhere, or where the decoder notices damage in what it has to decode.
    """
    shape: tuple[int, ...] = ()

    def noted(found: int) -> NDArray:
        nonlocal shape
        wanted = choose(found)
        shape = wanted.shape
        return wanted

    frames = np.stack(decode_each(video, noted))
    return frames.reshape(*shape, *frames.shape[1:])


def decode_each(video: bytes, choose: Callable[[int], NDArray]) -> list[NDArray[np.uint8]]:
    """The frames of `decode`, each uint8 [h, w, C] where the converter left it, for who copies them
    elsewhere anyway: in the order of the indices, flattened; one wanted twice is twice the same
    array."""
    with _opened(video) as stream:
        packets, keys = _packets(stream, len(video))
        wanted = choose(len(packets))
        indices, inverse = np.unique(wanted, return_inverse=True)
        if indices[0] < 0 or indices[-1] >= len(packets):
            raise DecodeError(f"has {len(packets)} frames, asked for were {wanted.tolist()}")
        pictures = _pictures(_decoder(stream), video, packets, keys, indices.tolist())
        frames = list(_rgb(pictures, stream.width, stream.height))
    return [frames[i] for i in inverse.ravel().tolist()]


def length_of(video: bytes) -> int:
    """How many frames an mp4 has by its index, of which none is decoded. Raises DecodeError."""
    with _opened(video) as stream:
        return len(_packets(stream, len(video))[0])


@contextmanager
def _opened(video: bytes) -> Iterator[VideoStream]:
    """Its video; what FFmpeg raises meanwhile becomes DecodeError."""
    import av  # only by who decodes
    from av.error import FFmpegError

    if video[4:8] != b"ftyp":
        raise DecodeError("is no mp4 file")
    # FFmpeg would decode frames to learn what a header may not say. That of ingest's says all.
    skip, probe = {"skip_frame": "all"}, {"probesize": "32"}
    file = io.BytesIO(video)
    try:
        with av.open(file, "r", format="mp4", options=skip, container_options=probe) as container:
            if not container.streams.video:
                raise DecodeError("cannot be decoded: holds no video")
            yield container.streams.video[0]
    except MemoryError:  # one of FFmpeg's errors, too, but no fault of the video
        raise
    except FFmpegError as error:
        raise DecodeError(f"cannot be decoded: {error.strerror}") from None


def _packets(stream: VideoStream, size: int) -> tuple[list[slice], list[int]]:
    """Of each frame: its bytes in the file, and the key frame that its group begins with."""
    if stream.codec_context.has_b_frames:
        raise DecodeError("cannot be decoded: has B-frames, so ingest did not write it")
    entries = list(stream.index_entries)
    if not entries or not entries[0].is_keyframe:
        raise DecodeError("cannot be decoded: does not begin with a key frame")
    packets = [slice(entry.pos, entry.pos + entry.size) for entry in entries]
    if max(packet.stop for packet in packets) > size:
        raise DecodeError(f"cannot be decoded: was cut after {size} bytes")
    keys = [i if entry.is_keyframe else 0 for i, entry in enumerate(entries)]
    return packets, np.maximum.accumulate(keys).tolist()


def _decoder(stream: VideoStream) -> VideoCodecContext:
    codec = stream.codec_context
    codec.thread_count = 1  # a second gains nothing at the size of a face; loader workers do
    codec.options = {"err_detect": "explode"}  # or it would paint over what is damaged
    return codec


def _pictures(
    codec: VideoCodecContext,
    video: bytes,
    packets: list[slice],
    keys: list[int],
    indices: list[int],
) -> Iterator[VideoFrame]:
    """The frames of ascending indices.

    Decoding goes on from where it stands or, where that skips something, from the last key frame
    before the next frame wanted.
    """
    from av import Packet

    reached, found = 0, []
    for index in indices:
        for i in range(max(reached, keys[index]), index + 1):
            data = video[packets[i]]
            packet = Packet(len(data))  # not of the data: a decoder may read behind its end
            packet.update(data)
            found = codec.decode(packet)
            if len(found) != 1 or found[0].is_corrupt:
                raise DecodeError(f"cannot be decoded: frame {i} is damaged")
        reached = index + 1
        yield found[0]


def _rgb(pictures: Iterator[VideoFrame], width: int, height: int) -> Iterator[NDArray]:
    """uint8 [h, w, 3] of each. They share one converter, as making it takes time."""
    from av.video.reformatter import VideoReformatter

    converter = VideoReformatter()
    for picture in pictures:
        if (picture.width, picture.height) != (width, height):
            raise DecodeError("cannot be decoded: its frames differ in size")
        yield converter.reformat(picture, format="rgb24", threads=1).to_ndarray()


def draw_indices(
    num_frames: int, *, frames: int, stride: int | None, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Indices [T] of a training clip.

    With a stride: every `stride`-th frame from a random start on; in a video shorter than that span
    the stride shrinks until the clip covers the whole video. Without: the video is cut into T equal
    segments and each gives one random frame.
    """
    if stride is None:
        return _in_segments(num_frames, frames, rng.random(frames))
    free = num_frames - _span(frames, stride)
    if free < 0:
        return _whole(num_frames, frames)
    return rng.integers(free + 1) + np.arange(frames) * stride


def view_indices(
    num_frames: int, *, frames: int, stride: int | None, views: int
) -> NDArray[np.int64]:
    """Indices [views, T] of the temporal views at evaluation, without chance.

    With a stride: starts spread evenly from the video's first to its last possible one, a single
    view in the middle. Without: view k of K takes every segment's frame at (k + 0.5) / K of it.
    """
    parts = (np.arange(views) + 0.5) / views
    if stride is None:
        return np.stack([_in_segments(num_frames, frames, part) for part in parts])
    free = num_frames - _span(frames, stride)
    if free < 0:
        return np.tile(_whole(num_frames, frames), (views, 1))
    starts = np.array([free // 2]) if views == 1 else np.linspace(0, free, views).round()
    return starts.astype(np.int64)[:, None] + np.arange(frames) * stride


def _span(frames: int, stride: int) -> int:
    """Frames of the video from a clip's first to its last."""
    return (frames - 1) * stride + 1


def _whole(num_frames: int, frames: int) -> NDArray[np.int64]:
    """From the first to the last frame; frames repeat where the video has fewer than wanted."""
    return np.linspace(0, num_frames - 1, frames).round().astype(np.int64)


def _in_segments(num_frames: int, frames: int, part: NDArray | float) -> NDArray[np.int64]:
    """One frame a segment, at `part` in [0, 1) of each."""
    at = (np.arange(frames) + part) * num_frames / frames
    return np.minimum(at.astype(np.int64), num_frames - 1)

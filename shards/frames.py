"""Frames of a clip: which ones, and decoding them.

Owns the temporal sampling and the decoder. Reads only what ingest wrote (H.264, closed groups, a
constant frame rate): on foreign files decord returns wrong frames without an error. Refuses to know
shards, augmentation and batches.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray


class DecodeError(ValueError):
    """A video that cannot be decoded."""


def decode(video: bytes, choose: Callable[[int], NDArray]) -> NDArray[np.uint8]:
    """Frames of an mp4 held in memory.

    Args:
        video: the file's bytes.
        choose: from the number of frames to the indices wanted, of any shape S, repeats allowed.

    Returns uint8 [*S, h, w, C], RGB. Raises DecodeError where the bytes are damaged or no video.
    """
    if video[4:8] != b"ftyp":  # decord would print the bytes of what it cannot open
        raise DecodeError("is no mp4 file")
    decord = _decord()
    try:
        # A second decoder thread gains nothing at the size of a face; loader workers do.
        reader = decord.VideoReader(io.BytesIO(video), ctx=decord.cpu(0), num_threads=1)
        wanted = choose(len(reader))
        indices, inverse = np.unique(wanted, return_inverse=True)
        frames = reader.get_batch(indices.tolist()).asnumpy()
    except (RuntimeError, decord.DECORDError) as error:
        raise DecodeError(f"cannot be decoded: {_first_line(error)}") from None
    return frames[inverse.reshape(wanted.shape)]


@functools.cache
def _decord():
    """Loaded by who decodes, and quiet: what goes wrong comes as an exception."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    return decord


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


def _first_line(error: Exception) -> str:
    """decord appends a native stack trace to its messages."""
    return str(error).strip().split("\n")[0][:200]

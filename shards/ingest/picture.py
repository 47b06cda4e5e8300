"""Decoder frames to RGB: deinterlaced, square pixels, upright, bounded size, right colours.

Owns FFmpeg's filters and the geometry between a decoder's frame and what a person would see.
Knows no files, no packets and no times.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import pairwise
from typing import TypeVar

import av
import numpy as np
from av.error import BlockingIOError as NotYet
from av.error import EOFError as EndOfStream
from av.filter import Graph
from av.video.stream import VideoStream

Mark = TypeVar("Mark")
SCALE_FLAGS = "bicubic+accurate_rnd+full_chroma_int"
UPRIGHT = (1, 0, 0, 1)


class Deinterlacer:
    """Passes progressive frames on; from the first interlaced one all go through yadif.

    yadif holds frames back, so whatever belongs to a frame travels beside it as `mark`.
    """

    def __init__(self) -> None:
        self._graph: Graph | None = None
        self._layout: tuple[int, int, str] | None = None

    def run(
        self, frames: Iterable[tuple[av.VideoFrame, Mark]]
    ) -> Iterator[tuple[av.VideoFrame, Mark]]:
        marks: deque[Mark] = deque()
        for frame, mark in frames:
            layout = (frame.width, frame.height, frame.format.name)
            if self._graph is not None and layout != self._layout:
                yield from self._rest(marks)
                self._graph = self._build(frame)
            elif self._graph is None and frame.interlaced_frame:
                self._graph = self._build(frame)
            if self._graph is None:
                yield frame, mark
                continue
            marks.append(mark)
            self._graph.vpush(frame)
            yield from self._ready(marks)
        if self._graph is not None:
            yield from self._rest(marks)

    def _build(self, frame: av.VideoFrame) -> Graph:
        self._layout = (frame.width, frame.height, frame.format.name)
        return chain(frame, [("yadif", "mode=send_frame:deint=interlaced")])

    def _ready(self, marks: deque[Mark]) -> Iterator[tuple[av.VideoFrame, Mark]]:
        assert self._graph is not None
        while True:
            try:
                frame = self._graph.vpull()
            except (NotYet, EndOfStream):
                return
            yield frame, marks.popleft()

    def _rest(self, marks: deque[Mark]) -> Iterator[tuple[av.VideoFrame, Mark]]:
        assert self._graph is not None
        self._graph.vpush(None)
        yield from self._ready(marks)


class Canvas:
    """The one picture size of a video: that of the first frame; others are fitted in.

    Without a stream (single pictures) pixels are square.
    """

    def __init__(self, stream: VideoStream | None, *, max_side: int) -> None:
        self._aspect = _pixel_aspect(stream) if stream else Fraction(1)
        self._max_side = max_side
        self._size: tuple[int, int] | None = None
        self._matrix = UPRIGHT
        self._graphs: dict[tuple[object, ...], Graph] = {}

    def rgb(self, frame: av.VideoFrame) -> np.ndarray:
        """uint8 [h, w, 3], upright."""
        wide, high = self._square(frame)
        if self._size is None:
            scale = min(1.0, self._max_side / max(wide, high))
            self._size = (max(1, round(wide * scale)), max(1, round(high * scale)))
            # Of the first frame alone: it is the file's, and a frame whose side data was looked at
            # is part of a cycle, so its pixels stay until the garbage collector comes by.
            self._matrix = orientation(frame)
        width, height = _fit((wide, high), self._size)
        return turned(_centred(self._scaled(frame, width, height), self._size), self._matrix)

    def _square(self, frame: av.VideoFrame) -> tuple[float, float]:
        """Width and height in square pixels; the picture is stretched, never squeezed."""
        if self._aspect >= 1:
            return frame.width * float(self._aspect), float(frame.height)
        return float(frame.width), frame.height / float(self._aspect)

    def _scaled(self, frame: av.VideoFrame, width: int, height: int) -> np.ndarray:
        key = (
            *(frame.width, frame.height, frame.format.name, width, height),
            *(int(frame.colorspace), int(frame.color_range)),
        )
        if key not in self._graphs:
            self._graphs.clear()  # sizes change rarely; one that does so often costs only time
            scale = f"w={width}:h={height}:flags={SCALE_FLAGS}"
            self._graphs[key] = chain(frame, [("scale", scale), ("format", "rgb24")])
        graph = self._graphs[key]
        graph.vpush(frame)
        return graph.vpull().to_ndarray()


def chain(frame: av.VideoFrame, filters: list[tuple[str, str]]) -> Graph:
    """A filter graph from frames such as `frame` through (name, arguments) pairs, one thread."""
    graph = Graph()
    graph.threads = 1
    source = graph.add_buffer(
        width=frame.width,
        height=frame.height,
        format=frame.format,
        time_base=frame.time_base or Fraction(1, 1000),
    )
    nodes = [source, *(graph.add(name, args) for name, args in filters), graph.add("buffersink")]
    for node, following in pairwise(nodes):
        node.link_to(following)
    graph.configure()
    return graph


def _pixel_aspect(stream: VideoStream) -> Fraction:
    """Width of a pixel over its height; nonsense (beyond 1:5) counts as square."""
    aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    return aspect if aspect and Fraction(1, 5) <= aspect <= 5 else Fraction(1)


def _fit(size: tuple[float, float], canvas: tuple[int, int]) -> tuple[int, int]:
    """The largest size of the same shape inside `canvas`; a pixel or two are stretched away."""
    scale = min(canvas[0] / size[0], canvas[1] / size[1])
    fitted = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    near = all(abs(a - b) <= max(2, b // 50) for a, b in zip(fitted, canvas, strict=True))
    return canvas if near else fitted


def _centred(rgb: np.ndarray, canvas: tuple[int, int]) -> np.ndarray:
    height, width = rgb.shape[:2]
    if (width, height) == canvas:
        return rgb
    out = np.zeros((canvas[1], canvas[0], 3), np.uint8)
    top, left = (canvas[1] - height) // 2, (canvas[0] - width) // 2
    out[top : top + height, left : left + width] = rgb
    return out


def orientation(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """The frame's display matrix reduced to right angles: (a, b, c, d), each -1, 0 or 1.

    A point (x, y) is shown at (a·x + c·y, b·x + d·y), y down (libavutil/display.h).
    """
    try:
        data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # a kind of side data that PyAV has no name for, such as EXIF
        return UPRIGHT
    if data is None:
        return UPRIGHT
    m = np.frombuffer(bytes(data), np.int32).astype(np.int64)
    a, b, c, d = int(m[0]), int(m[1]), int(m[3]), int(m[4])
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return (-1 if a < 0 else 1, 0, 0, -1 if d < 0 else 1)
    return (0, -1 if b < 0 else 1, -1 if c < 0 else 1, 0)


def turned(rgb: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """The picture as the display matrix wants it shown."""
    a, b, c, d = matrix
    if matrix == UPRIGHT:
        return rgb
    across, down = a, d
    if a == 0:
        rgb = rgb.transpose(1, 0, 2)  # x' = c·y, y' = b·x
        across, down = c, b
    return np.ascontiguousarray(rgb[::down, ::across])

"""The stored clip: H.264 in MP4, made so that every reader finds exactly the frame it asks for.

Closed GOPs, no B-frames (so no edit list, and each packet is one frame), a constant rate. The same
pictures give the same bytes.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np


class ClipWriter:
    """One mp4. Use as a context manager; feed `add` uint8 [size, size, 3] RGB.

    Args:
        fast: without CABAC and deblocking, so that it is read in half the time, for 5 to 10 % more
            bytes and 0.1 dB. False is for comparison.
    """

    def __init__(
        self, path: Path, *, rate: Fraction, size: int, crf: float, gop: int, fast: bool = True
    ) -> None:
        options = {"movflags": "+faststart", "fflags": "+bitexact"}  # bitexact: no version in it
        self._container = av.open(str(path), "w", format="mp4", options=options)
        stream = self._container.add_stream("libx264", rate=rate)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = 1 / rate
        stream.codec_context.thread_count = 1  # more threads change the bytes
        stream.codec_context.color_range = 1  # limited, as every reader assumes
        # With its macroblock tree x264 gives other bytes from run to run, even on one thread.
        keys = f"keyint={gop}:min-keyint={gop}:scenecut=0:open-gop=0:bframes=0:mbtree=0"
        # Three times as fast as "medium" here; at the same size it costs 0.7 dB of 42.
        stream.options = {"crf": str(crf), "preset": "veryfast", "x264-params": keys}
        if fast:
            stream.options |= {"tune": "fastdecode"}
        self._stream = stream
        self._frame_of = av.VideoFrame.from_ndarray
        self.frames = 0

    def add(self, rgb: np.ndarray) -> None:
        frame = self._frame_of(rgb, format="rgb24")
        frame.pts = self.frames
        frame.time_base = self._stream.codec_context.time_base
        for packet in self._stream.encode(frame):
            self._container.mux(packet)
        self.frames += 1

    def __enter__(self) -> ClipWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                for packet in self._stream.encode(None):
                    self._container.mux(packet)
        finally:
            self._container.close()

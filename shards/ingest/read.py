"""Foreign video files, decoded by PyAV from the start: pictures with their times, damage marked.

Owns containers, packets and decoders, and what can be broken in them. Knows nothing of faces,
shards or frame rates. Meant for a disposable process: it listens to FFmpeg's log, of which there is
one a process, because concealed errors are reported only there.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import av.logging
import numpy as np
from av.container import InputContainer
from av.error import EOFError as EndOfFile
from av.error import FFmpegError
from av.video.stream import VideoStream

from shards.ingest import storage
from shards.ingest.picture import Canvas, Deinterlacer
from shards.ingest.settings import Rejected

# A closed list: play lists (hls, concat, dash …) would open other files and addresses.
DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2;matroska,webm;mpeg;mpegts;mpegtsraw;mpegvideo;avi;asf;ogg;flv;gif;apng;"
    "h264;hevc;vvc;m4v;mjpeg;ivf;mxf;nut;rm;wtv;dv;av1;obu;vc1;yuv4mpegpipe;swf;nsv;gxf;"
    "3dostr;dirac;h261;h263;jpeg_pipe;png_pipe;bmp_pipe;webp_pipe;tiff_pipe;gif_pipe;"
    "mp3;wav;aac;flac;aiff;w64;amr;ac3;eac3"
).replace(";", ",")
NO_VIDEO = "remove the file, or replace it by the video that it should be"
ERROR = av.logging.ERROR
NO_MEMORY = ("get_buffer() failed", "Cannot allocate memory")
ATTACHED_PICTURE = 0x400
REORDER = 64
"""Packets a decoder may hold back; H.264 and HEVC allow 16 frames, twice that with fields."""


@dataclass(frozen=True)
class Picture:
    """One decoded frame."""

    number: int
    at: int
    """What annotations count: its number in a video, its instant in a folder of pictures."""
    time: float | None
    """Seconds on the file's clock."""
    run: int | None
    """Frames of the same run follow each other without damage; None: damaged, or may be."""
    frame: av.VideoFrame
    canvas: Canvas

    def rgb(self) -> np.ndarray:
        """uint8 [h, w, 3], upright, square pixels; the same h, w for every picture of a video."""
        return self.canvas.rgb(self.frame)


class Soundness:
    """Tells damaged frames from sound ones.

    After a decoding error every frame is doubted until a key frame comes out whose packet was sent
    after the error: what is predicted from a damaged picture is damaged, too.
    """

    def __init__(self) -> None:
        self.recent: deque[int | None] = deque(maxlen=REORDER)
        self.doubted = True
        self.held_back: frozenset[int | None] = frozenset()
        self.run = -1
        self.events = 0

    def sent(self, packet: av.Packet) -> None:
        self.recent.extend((packet.pts, packet.dts))
        if packet.is_corrupt:
            self.damaged()
        elif self.run < 0 and not self.events and packet.is_keyframe and packet.is_discard:
            # An edit list starts between key frames: this one is decoded and not shown.
            self.doubted = False
            self.run = 0

    def damaged(self) -> None:
        self.events += 1
        self.doubted = True
        self.held_back = frozenset(self.recent)

    def run_of(self, frame: av.VideoFrame) -> int | None:
        if frame.is_corrupt:
            self.damaged()
        elif self.doubted and frame.key_frame and frame.pts not in self.held_back:
            self.doubted = False
            self.run += 1
        return None if self.doubted else self.run


class Video:
    """An opened video file. Raises Rejected where there is no moving picture in it."""

    def __init__(self, path: str | Path, *, max_side: int) -> None:
        self.path = Path(path)
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe would block for ever
            raise Rejected("neither a file nor a link to one", NO_VIDEO)
        av.logging.set_level(ERROR)
        av.logging.set_skip_repeated(False)
        self._capture = av.logging.Capture()
        self._log = self._capture.__enter__()
        try:
            self._container = _open(self.path, self._log)
            self._stream = _moving_picture(self._container)
        except BaseException:
            self._capture.__exit__(None, None, None)
            raise
        self._codec = self._stream.codec_context
        self._codec.thread_count = 1
        self._canvas = Canvas(self._stream, max_side=max_side)
        self._soundness = Soundness()

    def __enter__(self) -> Video:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._container.close()
        self._capture.__exit__(None, None, None)

    @property
    def declared_rates(self) -> tuple[Fraction | None, ...]:
        """Frames a second as the file has it, the most trustworthy first."""
        s = self._stream
        return (s.guessed_rate, s.average_rate, s.base_rate)

    @property
    def declared_frames(self) -> int:
        """Frames as the file has it, 0 where it does not say."""
        return self._stream.frames

    @property
    def lost(self) -> str | None:
        """Of a video the runs tell what was lost."""
        return None

    @property
    def damage_events(self) -> int:
        """Decoding errors met so far."""
        return self._soundness.events

    def pictures(self) -> Iterator[Picture]:
        """All frames in the order of display, damaged ones included and marked."""
        frames = Deinterlacer().run(self._decoded())
        for number, (frame, (time, run)) in enumerate(frames):
            yield Picture(number, number, time, run, frame, self._canvas)

    def _decoded(self) -> Iterator[tuple[av.VideoFrame, tuple[float | None, int | None]]]:
        for packet in self._packets():
            for frame in self._frames_of(packet):
                run = self._soundness.run_of(frame)
                unit = self._stream.time_base or Fraction(1, 1000)
                frame.time_base = unit  # absent on what comes out of the emptied decoder
                seconds = None if frame.pts is None else float(frame.pts * unit)
                yield frame, (seconds, run)

    def _packets(self) -> Iterator[av.Packet | None]:
        """The stream's packets; then None, which empties the decoder."""
        try:
            for packet in self._container.demux(self._stream):
                if packet.size:
                    self._soundness.sent(packet)
                    yield packet
                # An empty packet with a time (Theora) shows the frame before it for longer.
        except MemoryError:
            raise
        except FFmpegError as error:
            if error.errno in storage.PASSING | storage.ONE_OR_ALL:
                storage.check_bytes(self.path)
            self._soundness.damaged()
        yield None

    def _frames_of(self, packet: av.Packet | None) -> list[av.VideoFrame]:
        self._log.clear()
        try:
            frames = self._codec.decode(packet)
        except MemoryError:
            raise
        except EndOfFile:
            frames = []
        except FFmpegError:
            self._soundness.damaged()
            frames = []
        errors = [
            text for level, name, text in self._log if name == self._codec.name and level <= ERROR
        ]
        if any(sign in text for text in errors for sign in NO_MEMORY):
            raise MemoryError  # as it came from the decoder, it would pass for damage
        if errors:
            self._soundness.damaged()
        return frames


def _open(path: Path, log: list[tuple[int, str, str]]) -> InputContainer:
    options = {"protocol_whitelist": "file", "format_whitelist": DEMUXERS}
    try:
        # The prefix keeps names such as "concat:a|b" or "pipe:0" from being taken for protocols.
        return av.open(f"file:{path.absolute()}", options=options)
    except MemoryError:
        raise
    except (FFmpegError, OSError) as error:
        if error.errno in storage.PASSING:
            storage.check_bytes(path)
        raise _why_not(path, error, log) from error


def _why_not(path: Path, error: Exception, log: list[tuple[int, str, str]]) -> Rejected:
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as unreadable:
        storage.check(unreadable)
        return storage.Unreadable(f"cannot be read ({unreadable.strerror})", storage.RIGHTS)
    if getattr(error, "errno", None) in storage.ONE_OR_ALL:  # it was away for a moment
        raise storage.StorageFault(errno.EIO, "was not there when it was opened") from error
    if not head:
        return Rejected("the file is empty", "copy it again from its source")
    if head.startswith(b"version https://git-lfs"):
        return Rejected(
            "a Git LFS pointer, not the video itself", "run `git lfs pull` in its folder"
        )
    messages = " ".join(text for _, _, text in log)
    if b"ftyp" in head and "moov atom not found" in messages:
        return Rejected(
            "cut before its index was written (no moov atom)",
            "copy it again, or rebuild the index with a tool such as untrunc",
        )
    return Rejected(
        f"not a video that can be opened ({getattr(error, 'strerror', error)})", NO_VIDEO
    )


def _moving_picture(container: InputContainer) -> VideoStream:
    if container.format.name.endswith("_pipe"):
        raise Rejected("a picture, not a video", NO_VIDEO)
    streams = [s for s in container.streams.video if not s.disposition & ATTACHED_PICTURE]
    if not streams:
        cover = " but a cover picture" if container.streams.video else ""
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
        raise Rejected(f"no moving picture in it{cover} (it holds {kinds})", NO_VIDEO)
    stream = max(streams, key=lambda s: s.codec_context.width * s.codec_context.height)
    if stream.codec_context is None or not stream.codec_context.codec.is_decoder:
        raise Rejected("its codec cannot be decoded", "convert it to H.264 with ffmpeg")
    return stream

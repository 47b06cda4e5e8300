"""A folder of numbered pictures, read as if it were a video.

Owns the decoding of single pictures, whatever their file names claim them to be. Like `read`, meant
for a disposable process: the pictures are untrusted, and FFmpeg's log is listened to.

A picture that is missing or cannot be decoded soundly is bridged: the one before is shown for one
more instant, so that no other frame moves in time, and `lost` says so. Too many, or a picture that
an annotation names, and the clip is rejected.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import cast

import av
import av.logging
from av import VideoCodecContext
from av.error import FFmpegError

from shards.ingest import storage
from shards.ingest.numbering import FrameFolder, check_missing, choose
from shards.ingest.picture import Canvas
from shards.ingest.read import ERROR, NO_MEMORY, Picture, Video

KINDS = {  # the first bytes of a file → the decoder for it
    b"\xff\xd8\xff": "mjpeg",
    b"\x89PNG\r\n": "png",
    b"BM": "bmp",
    b"RIFF": "webp",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
}
LARGEST_PICTURE = 256 << 20


class PictureFolder:
    """The pictures of a folder as a clip. Raises Rejected where they make none."""

    def __init__(self, path: str | Path, how: FrameFolder, *, max_side: int) -> None:
        self.path = Path(path)
        self._rate = Fraction(how.fps).limit_denominator(1001)
        self._chosen = choose(self.path, how)
        self._canvas = Canvas(None, max_side=max_side)
        self._broken: list[str] = []
        av.logging.set_level(ERROR)
        av.logging.set_skip_repeated(False)
        self._capture = av.logging.Capture()
        self._log = self._capture.__enter__()

    def __enter__(self) -> PictureFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._capture.__exit__(None, None, None)

    @property
    def declared_rates(self) -> tuple[Fraction | None, ...]:
        return (self._rate,)

    @property
    def declared_frames(self) -> int:
        return self._chosen.instants

    @property
    def damage_events(self) -> int:
        return len(self._broken)

    @property
    def lost(self) -> str | None:
        """What is missing or broken, in words; known once all pictures were seen."""
        missing = self._chosen.instants - len(self._chosen.pictures)
        if not missing and not self._broken:
            return None
        which = f", such as {self._broken[0]}" if self._broken else ""
        return (
            f"of {self._chosen.instants} pictures {missing} missing and {len(self._broken)} broken"
            f"{which}: the one before is shown instead"
        )

    def pictures(self) -> Iterator[Picture]:
        """The sound pictures by their numbers. Rejected, at the end, if too many were not sound."""
        self._broken.clear()
        number = 0
        for at, name in self._chosen.pictures:
            frame = self._decoded(name)
            if frame is None:
                self._broken.append(name)
                continue
            yield Picture(number, at, float(at / self._rate), 0, frame, self._canvas)
            number += 1
        if number:  # with none at all there is a better word for it
            check_missing(self._chosen.instants - number, self._chosen.instants)

    def _decoded(self, name: str) -> av.VideoFrame | None:
        path = self.path / name
        try:
            with path.open("rb") as file:
                data = file.read(LARGEST_PICTURE + 1)
        except OSError as error:
            storage.check(error)
            raise storage.Unreadable(
                f"{name} cannot be read ({error.strerror})", storage.RIGHTS
            ) from None
        kind = next((kind for start, kind in KINDS.items() if data.startswith(start)), None)
        if kind is None or len(data) > LARGEST_PICTURE:
            return None
        self._log.clear()
        # A new one for each: of one that was emptied, the next picture would not always come out.
        codec = cast(VideoCodecContext, av.CodecContext.create(kind, "r"))
        codec.thread_count = 1
        try:
            frames = [*codec.decode(av.Packet(data)), *codec.decode(None)]
        except MemoryError:
            raise
        except FFmpegError:
            frames = []
        errors = [text for level, _, text in self._log if level <= ERROR]
        if any(sign in text for text in errors for sign in NO_MEMORY):
            raise MemoryError  # as it came from the decoder, it would pass for damage
        if errors or not frames or frames[0].is_corrupt:
            return None
        if kind in ("mjpeg", "png"):
            frames[0].color_range = 2  # pictures use the full range; grey JPEG does not say so
        frames[0].time_base = 1 / self._rate
        return frames[0]


def open_source(path: Path, frames: FrameFolder | None, *, max_side: int) -> Video | PictureFolder:
    """The video file, or with `frames` the folder of pictures."""
    if frames is None:
        return Video(path, max_side=max_side)
    return PictureFolder(path, frames, max_side=max_side)

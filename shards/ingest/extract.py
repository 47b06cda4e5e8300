"""`extract_face`: one video, from a path or bytes, to the pictures of its main face.

What a deployed model calls: reading, detection and cropping as in ingest, without the encoding.
"""

from __future__ import annotations

import atexit
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards.ingest.isolate import FRAMES, Sandbox, job, result_of
from shards.ingest.models import with_model
from shards.ingest.settings import IngestSettings


@dataclass(frozen=True)
class FaceClip:
    """A video's main face."""

    frames: np.ndarray
    """uint8 [T, size, size, 3], RGB."""
    fps: float
    """Frames a second; constant."""
    box: tuple[int, int, int, int]
    """Left, top, width, height in the upright source picture."""
    detector: str
    found_share: float
    """Share of the frames looked at in which the detector saw the face."""
    people: int
    """Faces seen for at least half of the time."""
    start: float
    """Seconds into the video at which the frames start."""
    damaged: str | None
    """What was left out because it could not be decoded soundly, in words."""
    marks: dict[str, int]
    """Frames of `frames` that are shown at the moments that were told."""
    other_shots: tuple[tuple[float, float], ...]
    """Shots beside the clip: first and last frame in seconds into the video."""


_sandbox = Sandbox(patience=5.0)  # somebody waits for the answer
atexit.register(_sandbox.close)
_one_at_a_time = threading.Lock()


def extract_face(
    source: str | Path | bytes,
    *,
    settings: IngestSettings | None = None,
    moments: Mapping[str, float] | None = None,
    isolated: bool = True,
) -> FaceClip:
    """The face in a video file, or in the bytes of one, as one clip.

    `moments` (onset, apex) in seconds into the video do what annotated frames do in ingest: the
    video is not cut, and its onset decides the crop where the settings say so.

    Raises Rejected with reason and action where there is no usable face, FileNotFoundError where
    there is no such file, ModelError where the detector's model file is missing, OSError where a
    disk fails. Decoding runs in a
    disposable process with the settings' limits of time and memory (the first call starts it, about
    a second); `isolated=False` decodes here, for files that are trusted.
    """
    settings = with_model(settings or IngestSettings())
    with tempfile.TemporaryDirectory(prefix="face-") as folder:
        out = Path(folder)
        if isinstance(source, bytes):
            path = out / "video"
            path.write_bytes(source)
        else:
            path = Path(source)
        if not path.is_file():
            raise FileNotFoundError(f"no video file at {path}")
        asked = job(path, out, settings, kind="frames", moments=dict(moments or {}))
        result = _result(asked, isolated)
        frames = np.load(out / FRAMES)
    [facts] = result["clips"]
    return FaceClip(
        frames=frames,
        fps=facts["fps"],
        box=tuple(facts["box"]),
        detector=settings.detector,
        found_share=facts["found"],
        people=facts["people"],
        start=facts["start"],
        damaged=facts["damaged"],
        marks=facts["marks"],
        other_shots=tuple((part["start"], part["stop"]) for part in result["skipped"]),
    )


def _result(job: dict[str, Any], isolated: bool) -> dict[str, Any]:
    if isolated:
        with _one_at_a_time:
            return _sandbox.run(job)
    from shards.ingest.work import perform

    perform(job)
    return result_of(job)

"""What the disposable process does with one video: JSON job in, files and JSON result out.

Owns what each kind of job produces. Knows nothing of processes, limits (`zygote`) and shards.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from shards.ingest import clips
from shards.ingest.derived import KeyFrames
from shards.ingest.encode import ClipWriter
from shards.ingest.isolate import FRAMES, RESULT
from shards.ingest.numbering import FrameFolder
from shards.ingest.settings import IngestSettings, Rejected
from shards.ingest.storage import Unreadable
from shards.ingest.survey import Source, Survey, frames_at, survey
from shards.ingest.write import room_for

BYTES_A_SECOND = 1 << 20
"""Generous: an encoded crop of 224 pixels takes some 35 kB a second."""


def perform(job: dict[str, Any]) -> None:
    """Does the job; the result lies in `out`/result.json: {"clips", "skipped"} or {"rejected",
    "unreadable"}.

    Raises DiskFull; every other trouble with the video is a result.
    """
    out, settings = Path(job["out"]), IngestSettings(**job["settings"])
    try:
        result = _clips(job, out, settings)
    except Rejected as no:
        unreadable = isinstance(no, Unreadable)
        result = {"rejected": [no.reason, no.action], "unreadable": unreadable}
    except (MemoryError, cv2.error) as error:
        if isinstance(error, cv2.error) and "Insufficient memory" not in str(error):
            raise
        result = {"rejected": list(_too_large(settings)), "unreadable": False}
    with room_for(out, 1 << 20):
        (out / RESULT).write_text(json.dumps(result))


def _too_large(settings: IngestSettings) -> tuple[str, str]:
    return (
        f"needs more than {settings.memory_limit_gib:g} GiB of memory",
        "scale it down with ffmpeg, or raise --memory-limit-gib",
    )


def _clips(job: dict[str, Any], out: Path, settings: IngestSettings) -> dict[str, Any]:
    frames = job["frames"]
    source = Source(Path(job["source"]), FrameFolder(**frames) if frames else None)
    asked = job["marks"] or frames_at(source, settings, job["moments"])
    onset = job["whole"] and settings.crop == "onset"
    seen = survey(
        source,
        settings,
        onset=asked.get("onset") or 0 if onset else None,
        split=not (job["whole"] and (asked or settings.detector == "none")),
    )
    skipped: list[clips.Skipped] = []
    if job["whole"]:
        chosen, skipped = clips.plan_whole(seen, settings)
        plans, marks = [chosen], _marks(seen, chosen, asked)
    else:
        plans, skipped = clips.plan(seen, settings)
        marks = {}
    if job["kind"] == "frames":
        _save_frames(source, plans, settings, out)
    else:
        _encode(source, plans, settings, out, KeyFrames(marks, settings.derived))
    return {
        "clips": [_facts(plan) | {"marks": marks} for plan in plans],
        "skipped": [asdict(s) for s in skipped],
    }


def _facts(plan: clips.Plan) -> dict[str, Any]:
    left, top, side = plan.box
    return {
        "fps": plan.fps,
        "num_frames": len(plan.cut.frames),
        "box": [left, top, side, side],
        "found": plan.found,
        "people": plan.people,
        "start": plan.start,
        "damaged": plan.damaged,
    }


def _marks(
    seen: Survey, plan: clips.Plan, marks: Mapping[str, int | None]
) -> dict[str, int | None]:
    """Annotated frames as those of the clip; Rejected where one was lost."""
    found: dict[str, int | None] = {}
    for name, frame in marks.items():
        found[name] = None
        if frame is None:
            continue
        number = int(np.searchsorted(seen.at, frame))
        if number < len(seen.at) and seen.at[number] == frame:
            found[name] = plan.cut.position(number)
        elif seen.lost:
            raise Rejected(
                f"{name} is frame {frame} of the clip, whose picture is missing or broken",
                "copy the folder again from its source",
            )
        if found[name] is None:
            last = plan.cut.span.stop - 1
            raise Rejected(
                f"{name} is frame {frame}, the usable part is {plan.cut.span.start} to {last}",
                "correct the annotation (frames count from 0), or replace a damaged file",
            )
    return found


def _encode(
    source: Source, plans: list[clips.Plan], settings: IngestSettings, out: Path, keys: KeyFrames
) -> None:
    """Clip n as NNNN.mp4; beside the only one of an annotated video what derives from it."""
    current, writer = -1, None
    with ExitStack() as stack:
        for number, rgb in clips.pictures(source, plans, settings):
            if number != current:
                stack.close()
                plan, current = plans[number], number
                seconds = len(plan.cut.frames) / plan.fps
                stack.enter_context(room_for(out, int(seconds * BYTES_A_SECOND)))
                writer = stack.enter_context(
                    _writer(out / f"{number:04d}.mp4", plan.rate, settings)
                )
            assert writer is not None
            writer.add(rgb)
            keys.add(rgb)
    with room_for(out, 1 << 20):
        keys.write(out / "0000")


def _writer(path: Path, rate: Fraction, settings: IngestSettings) -> ClipWriter:
    return ClipWriter(path, rate=rate, size=settings.size, crf=settings.crf, gop=settings.gop)


def _save_frames(
    source: Source, plans: list[clips.Plan], settings: IngestSettings, out: Path
) -> None:
    shape = (len(plans[0].cut.frames), settings.size, settings.size, 3)
    with room_for(out, int(np.prod(shape))):
        frames = np.lib.format.open_memmap(out / FRAMES, mode="w+", dtype=np.uint8, shape=shape)
        for i, (_, rgb) in enumerate(clips.pictures(source, plans, settings)):
            frames[i] = rgb
        frames.flush()

"""A labelled folder of rendered clips: mp4 files, annotations.csv and render.json.

Owns encoding, and that a folder appears whole or not at all. Who shows what is decided in `plan`;
how a face is drawn is no concern of this module.
"""

import csv
import io
import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from shards.render.expression import LABELS, Expression
from shards.render.plan import PlannedClip, RenderError, assign_splits, plan_clips

SCHEMA = "rendered-faces/1"
COLUMNS: tuple[str, ...] = (
    "path", "label", "subject_id", "source_id", "onset", "apex", "offset", "action_units", "split",
    "strength",
)  # fmt: skip
_SPLITS = {"train": 0.7, "val": 0.15, "test": 0.15}
_MIN_FRAMES = 8


@dataclass(frozen=True)
class RenderSummary:
    """What `render_dataset` wrote."""

    folder: str
    clips: int
    frames: int
    labels: dict[str, int]
    splits: dict[str, int]


@dataclass(frozen=True)
class _Format:
    size: tuple[int, int]
    fps: float
    frames: int
    crf: int


def render_dataset(
    out: str | os.PathLike[str],
    *,
    subjects: int = 12,
    clips_per_subject: int = 7,
    seed: int = 0,
    size: tuple[int, int] = (320, 240),
    fps: float = 25.0,
    seconds: float = 1.5,
    strengths: Sequence[float] = (1.0,),
    splits: Mapping[str, float] | None = None,
    crf: int = 21,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> RenderSummary:
    """Render `subjects` · `clips_per_subject` clips into the folder `out`.

    Labels are balanced over the whole set and cycle within a subject; strengths cycle over subjects
    and labels; every subject is in exactly one split. Every seven clips of a subject form a session
    (one light, one backdrop), named by `source_id`, so that neither tells the label. The folder is
    written aside and renamed; the same arguments give the same bytes with any number of workers. An
    existing `out` is replaced only if it is empty or was written by this function.

    size: (width, height), even. splits: name -> share. workers: processes, None for one a core.
    progress: called with (clips done, clips) in this process.
    Raises RenderError for arguments that cannot work or an `out` that holds something else, OSError
    if the folder cannot be written.
    """
    layout = _Format(size, fps, round(seconds * fps), crf)
    _check(layout, subjects, clips_per_subject, strengths)
    shares = _SPLITS if splits is None else dict(splits)
    split_of = assign_splits(subjects, shares, seed)
    plan = plan_clips(subjects, clips_per_subject, seed, strengths, split_of)
    target = Path(out)
    _check_target(target)
    with _aside(target) as folder:
        rows = _render_all(folder, plan, layout, workers, progress)
        _write_annotations(folder / "annotations.csv", rows)
        facts = {
            "schema": SCHEMA,
            "seed": seed,
            "subjects": subjects,
            "clips_per_subject": clips_per_subject,
            "strengths": list(strengths),
            "splits": shares,
            "labels": list(LABELS),
            **asdict(layout),
        }
        (folder / "render.json").write_text(json.dumps(facts, indent=1) + "\n")
    return RenderSummary(
        folder=str(target),
        clips=len(rows),
        frames=len(rows) * layout.frames,
        labels=_count(rows, "label"),
        splits=_count(rows, "split"),
    )


def _count(rows: list[dict[str, str]], column: str) -> dict[str, int]:
    values = [row[column] for row in rows]
    return {value: values.count(value) for value in dict.fromkeys(values)}


def _check(layout: _Format, subjects: int, clips: int, strengths: Sequence[float]) -> None:
    width, height = layout.size
    if subjects < 1 or clips < 1:
        raise RenderError(f"subjects and clips must be at least 1, got {subjects} and {clips}")
    if min(width, height) < 64 or width % 2 or height % 2:
        raise RenderError(f"size must be even and at least 64 pixels a side, got {width}x{height}")
    if not 1 <= layout.fps <= 240:
        raise RenderError(f"fps must lie between 1 and 240, got {layout.fps}")
    if layout.frames < _MIN_FRAMES:
        raise RenderError(
            f"a clip needs at least {_MIN_FRAMES} frames, got {layout.frames}; "
            f"raise --seconds or --fps"
        )
    if not strengths or not all(0 < s <= 1 for s in strengths):
        raise RenderError(f"strengths must lie in (0, 1], got {list(strengths)}")


def _check_target(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise RenderError(f"{target} is a file; give a folder to --out")
    if target.is_dir() and any(target.iterdir()) and not _is_ours(target):
        raise RenderError(
            f"{target} is not empty and was not written by render; "
            f"choose another --out or empty it first"
        )


def _is_ours(target: Path) -> bool:
    try:
        return json.loads((target / "render.json").read_text())["schema"] == SCHEMA
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextmanager
def _aside(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its place on success and vanishes on failure."""
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        folder.chmod(0o755)
        yield folder
        if target.exists():
            retired = folder.with_name(folder.name + ".old")
            target.rename(retired)
            try:
                folder.rename(target)
            except OSError:
                retired.rename(target)
                raise
            shutil.rmtree(retired)
        else:
            folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _render_all(
    folder: Path,
    plan: list[PlannedClip],
    layout: _Format,
    workers: int | None,
    progress: Callable[[int, int], None] | None,
) -> list[dict[str, str]]:
    # A subject's clips stay together: its face is built once.
    jobs: dict[int, list[PlannedClip]] = {}
    for clip in plan:
        jobs.setdefault(clip.subject, []).append(clip)
    for clips in jobs.values():
        (folder / clips[0].subject_id).mkdir()
    count = min(workers or os.cpu_count() or 1, len(jobs))
    done: dict[int, list[dict[str, str]]] = {}
    finished = 0
    for subject, rows in _run(folder, jobs, layout, count):
        done[subject] = rows
        finished += len(rows)
        if progress is not None:
            progress(finished, len(plan))
    return [row for subject in sorted(done) for row in done[subject]]


def _run(
    folder: Path, jobs: dict[int, list[PlannedClip]], layout: _Format, workers: int
) -> Iterator[tuple[int, list[dict[str, str]]]]:
    if workers <= 1:
        for subject, clips in jobs.items():
            yield subject, _render_subject(str(folder), clips, layout)
        return
    # Spawned, not forked: OpenCV's and x264's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = {
            pool.submit(_render_subject, str(folder), clips, layout): subject
            for subject, clips in jobs.items()
        }
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _render_subject(folder: str, clips: list[PlannedClip], layout: _Format) -> list[dict[str, str]]:
    import cv2

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # one process a core; more threads only compete
    try:
        return [_render_one(Path(folder), clip, layout) for clip in clips]
    finally:
        cv2.setNumThreads(threads)


def _render_one(folder: Path, clip: PlannedClip, layout: _Format) -> dict[str, str]:
    from shards.render.clip import ClipSpec, render_clip
    from shards.render.face import Face
    from shards.render.scene import Scene

    rng = np.random.default_rng([0xE4, clip.clip_seed])
    expression = Expression.sample(
        clip.label, clip.strength, frames=layout.frames, fps=layout.fps, rng=rng
    )
    seconds = layout.frames / layout.fps
    scene = Scene.sample(clip.session_seed, clip.clip_seed, seconds=seconds)
    face = Face.from_seed(clip.face_seed)
    spec = ClipSpec(face, scene, expression, layout.frames, layout.fps, layout.size)
    (folder / clip.path).write_bytes(_encode(render_clip(spec), layout))
    return {
        "path": clip.path,
        "label": clip.label,
        "subject_id": clip.subject_id,
        "source_id": f"{clip.subject_id}-{clip.session_seed:08x}",
        "onset": str(expression.onset),
        "apex": str(expression.apex),
        "offset": str(expression.offset),
        "action_units": expression.action_units,
        "split": clip.split,
        "strength": f"{clip.strength:g}",
    }


def _encode(frames: np.ndarray, layout: _Format) -> bytes:
    """H.264 in MP4 from uint8 [T, h, w, 3]; bit-exact, so that a seed gives the same bytes."""
    from fractions import Fraction

    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        rate = Fraction(layout.fps).limit_denominator(1001)
        # x264's macroblock tree gives other bytes from run to run, even on one thread.
        exact = {"threads": "1", "x264-params": "mbtree=0"}
        options = {"preset": "veryfast", "crf": str(layout.crf), **exact}
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.width, stream.height = layout.size
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _write_annotations(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)

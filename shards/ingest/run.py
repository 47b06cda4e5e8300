"""A folder of videos to a folder of shards: all or nothing.

Owns the order of the run and what it ends with. The folder appears under its name only when it is
complete. Knows neither decoding nor detection.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from shards.ingest.annotations import read_annotations
from shards.ingest.inputs import Collected, InputError, Item, Refused, scan
from shards.ingest.pack import Packer, write_rejected
from shards.ingest.pool import outcomes
from shards.ingest.publish import publish, written_aside
from shards.ingest.settings import IngestSettings
from shards.ingest.splits import hold_out, label_order, split_subjects
from shards.ingest.write import ShardsWriter
from shards.manifest import Manifest, write_manifest

REJECTED = "rejected.csv"
Progress = Callable[[int, int, int], None]


class IngestError(ValueError):
    """Ingest ended without shards; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a run made."""

    out: Path
    videos: int
    clips: int
    frames: int
    seconds: float
    bytes: int
    shards: int
    labels: tuple[str, ...]
    splits: dict[str, int]
    rejected: tuple[Refused, ...]
    """Videos and rows that gave no clip."""
    parts_left_out: int
    """Segments without a face in videos that gave clips."""
    damaged: int
    """Clips from files of which a damaged part was left out."""
    notes: tuple[str, ...]


def ingest(
    videos: str | Path,
    out: str | Path,
    *,
    annotations: str | Path | None = None,
    collected: Collected | None = None,
    settings: IngestSettings | None = None,
    holdout: Mapping[str, float] | None = None,
    jobs: int | None = None,
    shard_samples: int = 512,
    shard_bytes: int = 256 << 20,
    max_rejected_share: float = 0.5,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Summary:
    """Writes the shard folder `out` from the videos of a folder (or from one video file).

    With `annotations` those that a table lists, with `collected` those that a data set's adapter
    found (`shards.datasets`): no other file of the folder is looked at.

    `progress(done, total, rejected)` is called before the first and after every video. Raises
    InputError for what is wrong with the request, IngestError if more than `max_rejected_share` of
    the videos was rejected or nothing was usable (why then lies in `<out>.rejected.csv`), OSError
    where the disk is full. Whatever is raised, KeyboardInterrupt included, nothing else is left.
    """
    settings = settings or IngestSettings()
    videos, out = Path(videos), Path(out)
    items, refused, notes = _items(videos, annotations, collected, holdout or {})
    with written_aside(out, overwrite=overwrite, expected=_expected(items)) as folder:
        writer = ShardsWriter(folder, samples=shard_samples, max_bytes=shard_bytes)
        packer = Packer(writer, settings)
        packer.refused += refused
        total = len(items) + len(refused)
        _process(items, folder / "work", packer, settings, jobs or _processors(), progress)
        writer.finish_shard()
        _check_share(out, packer, total, max_rejected_share)
        write_rejected(folder / REJECTED, packer.refused + packer.parts)
        manifest = write_manifest(
            folder,
            writer.shards,
            labels=label_order(packer.labels),
            splits=dict(sorted(packer.splits.items())),
            clip=_clip_facts(settings),
            created_by=_versions(),
        )
        publish(folder, out)
    return _summary(out, total, packer, manifest, notes)


def _process(
    items: Sequence[Item],
    work: Path,
    packer: Packer,
    settings: IngestSettings,
    jobs: int,
    progress: Progress | None,
) -> None:
    work.mkdir()
    with closing(outcomes(items, work, settings, jobs=jobs)) as results:
        if progress:
            progress(0, len(items), len(packer.refused))
        for done, (item, outcome, folder) in enumerate(results, start=1):
            packer.add(item, outcome, folder)
            if progress:
                progress(done, len(items), len(packer.refused))
    work.rmdir()


def _summary(
    out: Path, videos: int, packer: Packer, manifest: Manifest, notes: Sequence[str]
) -> Summary:
    return Summary(
        out=out,
        videos=videos,
        clips=packer.clips,
        frames=packer.frames,
        seconds=packer.seconds,
        bytes=sum(s.bytes for s in manifest.shards),
        shards=len(manifest.shards),
        labels=manifest.labels,
        splits=manifest.splits,
        rejected=tuple(packer.refused),
        parts_left_out=len(packer.parts),
        damaged=packer.damaged,
        notes=tuple(notes),
    )


def _items(
    videos: Path,
    annotations: str | Path | None,
    collected: Collected | None,
    holdout: Mapping[str, float],
) -> tuple[list[Item], list[Refused], list[str]]:
    """Videos in the order of their keys, refused rows, and notes for the user."""
    refused: list[Refused] = []
    notes: list[str] = []
    if collected is not None:
        items, refused, notes = collected.items, list(collected.refused), list(collected.notes)
    elif annotations is None:
        items, ignored = scan(videos)
        notes += [f"{ignored} files beside the videos were ignored"] * bool(ignored)
    else:
        items, refused, unused = read_annotations(Path(annotations), videos)
        notes += [f"columns not used: {', '.join(unused)}"] * bool(unused)
    if any(item.annotation and item.annotation.split for item in items):
        if holdout:
            raise InputError("the annotations have splits; leave out --holdout, or drop the column")
    elif holdout and items:
        items = hold_out(items, holdout)
    elif any(item.annotation and item.annotation.label for item in items):
        notes.append("no split: add a column split, or --holdout test=0.2")
    if both := split_subjects(items):
        notes.append(f"{len(both)} subjects are in several splits, such as {both[0]}")
    return items, refused, notes


def _expected(items: Sequence[Item]) -> int:
    """Bytes that will surely be needed: a crop takes a small part of its source."""
    return sum(item.path.stat().st_size for item in items if item.path.is_file()) // 32


def _check_share(out: Path, packer: Packer, videos: int, share: float) -> None:
    refused = {row.path for row in packer.refused}
    if packer.clips and len(refused) <= share * videos:
        return
    why = out.absolute().with_name(f"{out.name}.{REJECTED}")
    write_rejected(why, packer.refused + packer.parts)
    commonest = Counter(row.reason for row in packer.refused).most_common(1)
    example = f", most often: {commonest[0][0]}" if commonest else ""
    if not packer.clips:
        raise IngestError(f"none of {videos} videos is usable{example}; all reasons: {why}")
    raise IngestError(
        f"{len(refused)} of {videos} videos were rejected, more than the allowed share of "
        f"{share:g}{example}; all reasons: {why}; to keep the rest, raise --max-rejected-share"
    )


def _processors() -> int:
    """Processors this process may use, which in a container can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _clip_facts(settings: IngestSettings) -> dict[str, Any]:
    """All settings: a model trained on these clips crops what it is asked about alike."""
    return {"fps": "of the source, constant", "codec": "h264", **asdict(settings)}


def _versions() -> dict[str, str]:
    names = ("mira-video", "av", "opencv-python-headless", "numpy")
    return {name: version(name) for name in names}

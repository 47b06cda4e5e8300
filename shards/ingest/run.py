"""A folder of videos to a folder of shards: all or nothing, and gone on with after a stop.

Owns the order of the run and what it ends with. The folder appears under its name only when it is
complete. Knows neither decoding nor detection.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.ingest.inputs import Collected, Item, Refused
from shards.ingest.journal import Journal
from shards.ingest.models import with_model
from shards.ingest.pack import Packer, write_rejected
from shards.ingest.pool import Outcome, outcomes
from shards.ingest.publish import publish, written_aside
from shards.ingest.request import Listing, facts_of, listing, request_of, versions
from shards.ingest.settings import IngestSettings
from shards.ingest.splits import label_order
from shards.manifest import Manifest, write_manifest
from shards.wording import commonest

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
    restart: bool = False,
    ray: str | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Writes the shard folder `out` from the videos of a folder (or from one video file).

    With `annotations` those that a table lists, with `collected` those that a data set's adapter
    found (`shards.datasets`): no other file of the folder is looked at.

    A run that was stopped, however, is gone on with by the same call: its finished shards stay, and
    the folder becomes the one that an undisturbed run writes, byte for byte. `restart` throws them
    away instead. With `ray`, the address of a Ray cluster ("" for the one at hand), videos are
    worked on there, at most `jobs` groups at once; `out` must lie where all its machines see it.

    `progress(done, total, rejected)` is called before the first and after every video. Raises
    InputError for what is wrong with the request, IngestError if more than `max_rejected_share` of
    the videos was rejected or nothing was usable (why then lies in `<out>.rejected.csv`), OSError
    where the disk is full. Whatever is raised, KeyboardInterrupt included, `out` is untouched.
    """
    settings = with_model(settings or IngestSettings())
    check_loads(settings)
    videos, out = Path(videos), Path(os.path.realpath(out))  # a link cannot be replaced
    listed = listing(videos, annotations, collected, holdout or {})
    limits = {"samples": shard_samples, "size": shard_bytes}
    listed, request, expected = request_of(listed, settings, **limits)
    with written_aside(
        out, request, overwrite=overwrite, restart=restart, expected=expected
    ) as aside:
        before, at = len(aside.journal.finished), aside.journal.at[0]
        packer = Packer(aside.shards, settings, aside.journal, **limits)
        made = made_of(listed.items, aside.work, settings, start=at, jobs=jobs, ray=ray)
        _process(listed, at, packer, made, progress)
        _check_share(out, listed, aside.journal, max_rejected_share)
        packer.finish(len(listed.items))
        rejected = _refused(listed, aside.journal)
        write_rejected(aside.shards / REJECTED, [*rejected, *_parts(aside.journal)])
        manifest = write_manifest(
            aside.shards,
            packer.shards,
            labels=label_order(packer.counts.labels),
            clip=_clip_facts(settings),
            created_by=versions(),
            rejected=packer.counts.rejected,
        )
        publish(aside.shards, out)
    notes = [f"went on after {before} shards of a run that was stopped"] * bool(before)
    return _summary(out, listed, packer, manifest, rejected, [*listed.notes, *notes])


def _process(
    listed: Listing,
    start: int,
    packer: Packer,
    made: Generator[tuple[int, Outcome, Path]],
    progress: Progress | None,
) -> None:
    total, unusable = len(listed.items), len(listed.refused)
    with closing(made) as results:
        if progress:
            progress(start, total, unusable + packer.counts.refused)
        for number, outcome, folder in results:
            packer.add(number, listed.items[number], outcome, folder)
            if progress:
                progress(number + 1, total, unusable + packer.counts.refused)


def made_of(
    items: Sequence[Item],
    work: Path,
    settings: IngestSettings,
    *,
    start: int,
    jobs: int | None,
    ray: str | None,
) -> Generator[tuple[int, Outcome, Path]]:
    """What becomes of the videos from number `start` on, here or on a cluster (`pool.outcomes`)."""
    if ray is None:
        return outcomes(items, work, settings, jobs=jobs or _processors(), start=start)
    from shards.ingest.cluster import outcomes as on_cluster

    return on_cluster(items, work, settings, address=ray, jobs=jobs, start=start)


def _refused(listed: Listing, journal: Journal) -> list[Refused]:
    return [*listed.refused, *(row for kind, row in journal.rows() if kind == "video")]


def _parts(journal: Journal) -> list[Refused]:
    return [row for kind, row in journal.rows() if kind == "part"]


def _summary(
    out: Path,
    listed: Listing,
    packer: Packer,
    manifest: Manifest,
    rejected: Sequence[Refused],
    notes: Sequence[str],
) -> Summary:
    counts = packer.counts
    return Summary(
        out=out,
        videos=listed.videos,
        clips=counts.clips,
        frames=counts.frames,
        seconds=counts.seconds,
        bytes=sum(s.bytes for s in manifest.shards),
        shards=len(manifest.shards),
        labels=manifest.labels,
        splits=manifest.splits,
        rejected=tuple(rejected),
        parts_left_out=counts.parts,
        damaged=counts.damaged,
        notes=tuple(notes),
    )


def _check_share(out: Path, listed: Listing, journal: Journal, share: float) -> None:
    videos, refused = listed.videos, _refused(listed, journal)
    count = len({row.path for row in refused})
    if journal.counts.clips and count <= share * videos:
        return
    why = out.absolute().with_name(f"{out.name}.{REJECTED}")
    write_rejected(why, [*refused, *_parts(journal)])
    often = commonest((row.reason for row in refused), 1)
    example = f", most often: {often[0][0]}" if often else ""
    if not journal.counts.clips:
        raise IngestError(f"none of {videos} videos is usable{example}; all reasons: {why}")
    raise IngestError(
        f"{count} of {videos} videos were rejected, more than the allowed share of "
        f"{share:g}{example}; all reasons: {why}; to keep the rest, raise --max-rejected-share"
    )


def check_loads(settings: IngestSettings) -> None:
    """Raises ModelError here, once, for a model file that would fail with every video."""
    if settings.detector_model:
        from shards.ingest.detect import detector

        detector(settings.detector, settings.detector_model)


def _processors() -> int:
    """Processors this process may use, which in a container can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _clip_facts(settings: IngestSettings) -> dict[str, Any]:
    """All settings: a model trained on these clips crops what it is asked about alike."""
    return {"fps": "of the source, constant", "codec": "h264", **facts_of(settings)}

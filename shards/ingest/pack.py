"""Results of videos to samples in shards: keys, records, and what was refused.

Keeps counts, not records, so that its memory does not grow with what was stored or refused.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shards.index import Shard
from shards.ingest.inputs import Annotation, Item, Refused, shown
from shards.ingest.journal import Journal
from shards.ingest.pool import Outcome
from shards.ingest.settings import IngestSettings, Rejected
from shards.ingest.write import ShardsWriter, record_bytes
from shards.schema import FaceTrack, Record


class Packer:
    """Takes one video's outcome after the other, from where the journal says on."""

    def __init__(
        self, folder: Path, settings: IngestSettings, journal: Journal, *, samples: int, size: int
    ) -> None:
        """Shards of at most `samples` clips and `size` bytes into `folder`."""
        self._settings = settings
        self._journal = journal
        self._from = self._at = journal.at
        self._writer = ShardsWriter(
            folder,
            samples=samples,
            max_bytes=size,
            finished=journal.finished,
            on_finish=lambda shard: journal.commit(shard, self._at),
        )
        self.counts = journal.counts

    @property
    def shards(self) -> list[Shard]:
        """The finished ones."""
        return self._writer.shards

    def add(self, number: int, item: Item, outcome: Outcome, folder: Path) -> None:
        """The clips of video `number` into the shard, or its refusal into the list; empties
        `folder`."""
        self._at = (number, 0)
        if isinstance(outcome, Rejected):
            self._refuse(item, outcome.reason, outcome.action)
        else:
            for i, (key, clip, stem) in enumerate(clips_of(item, outcome, folder)):
                self._at = (number, i)
                if self._at >= self._from:
                    self._clip(item, key, clip, stem)
                    self._at = (number, i + 1)
                    if self._writer.full:
                        self._writer.finish_shard()
            for part in outcome["skipped"]:  # last: a shard that ends in between drops no row
                at = f"{item.relative}#t={part['start']:.2f},{part['stop']:.2f}"
                self._journal.refuse("part", Refused(at, part["reason"], part["action"]))
                self.counts.parts += 1
        shutil.rmtree(folder)

    def finish(self, videos: int) -> None:
        """Closes the last shard, after all videos."""
        self._at = (videos, 0)
        self._writer.finish_shard()

    def _refuse(self, item: Item, reason: str, action: str) -> None:
        self._journal.refuse("video", Refused(item.name, reason, action))
        self.counts.refused += 1
        self.counts.reject(split_of(item))

    def _clip(self, item: Item, key: str, clip: Mapping[str, Any], files: Path) -> None:
        """`files`: path of the clip's files without suffix."""
        record = record_of(item, key, clip, self._settings)
        if problems := problems_of(record):
            self._refuse(item, "; ".join(problems), "correct the annotation")
            return
        self._writer.add(key, files, record)
        c = self.counts
        if record.label:
            c.labels[record.label] = c.labels.get(record.label, 0) + 1
        c.clips += 1
        c.frames += record.num_frames
        c.seconds += record.num_frames / record.fps
        c.damaged += record.damaged is not None


def split_of(item: Item) -> str | None:
    """The split that an item's clips are of."""
    return item.annotation.split if item.annotation else None


def clips_of(
    item: Item, made: Mapping[str, Any], folder: Path
) -> Iterator[tuple[str, Mapping[str, Any], Path]]:
    """Of each clip of a video its key, its facts, and the path of its files without suffix."""
    for i, clip in enumerate(made["clips"]):
        several = f"-{i:04d}" if len(made["clips"]) > 1 else ""
        yield item.key + several, clip, folder / f"{i:04d}"


def record_of(item: Item, key: str, clip: Mapping[str, Any], settings: IngestSettings) -> Record:
    """The canonical record of a clip, from what was annotated and what was found."""
    a = item.annotation or Annotation()
    left, top, width, height = clip["box"]
    track = FaceTrack(
        detector=settings.detector,
        found=clip["found"],
        box=(float(left), float(top), float(width), float(height)),
        start=clip["start"],
        people=clip["people"],
    )
    marks = clip["marks"]
    return Record(
        clip_id=key,
        path=item.relative,
        fps=clip["fps"],
        num_frames=clip["num_frames"],
        dataset=a.dataset,
        version=a.version,
        subject_id=a.subject_id,
        source_id=a.source_id,
        onset=marks.get("onset"),
        apex=marks.get("apex"),
        offset=marks.get("offset"),
        apex_source=None if marks.get("apex") is None else a.apex_source or "annotated",
        action_units=a.action_units,
        label=a.label,
        objective_class=a.objective_class,
        votes=dict(a.votes) if a.votes else None,
        valence=a.valence,
        arousal=a.arousal,
        split=a.split,
        licence=a.licence,
        patch_id=a.patch_id,
        track=track,
        damaged=clip["damaged"] and shown(clip["damaged"]),
    )


def problems_of(record: Record) -> list[str]:
    """What contradicts itself in a record, or cannot be written, in words."""
    try:
        record_bytes(record)
    except UnicodeEncodeError:
        return ["its annotation holds what is no Unicode text (half of a surrogate pair)"]
    return record.problems()


def write_rejected(path: Path, rows: Sequence[Refused]) -> None:
    """A CSV of path, reason, action, in the order of paths."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "reason", "action"])
        writer.writerows(sorted((r.path, r.reason, r.action) for r in rows))

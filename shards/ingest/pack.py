"""Results of videos to samples in shards: keys, records, and what was refused.

Keeps counts, not records, so that its memory does not grow with what was stored.
"""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shards.ingest.inputs import Annotation, Item, Refused, hashed
from shards.ingest.pool import Outcome
from shards.ingest.settings import IngestSettings, Rejected
from shards.ingest.write import ShardsWriter
from shards.schema import FaceTrack, Record


class Packer:
    """Takes one video's outcome after the other."""

    def __init__(self, writer: ShardsWriter, settings: IngestSettings) -> None:
        self._writer = writer
        self._settings = settings
        self._keys: set[str] = set()
        self.refused: list[Refused] = []
        self.parts: list[Refused] = []
        self.labels: set[str] = set()
        self.splits: Counter[str] = Counter()
        self.clips = self.frames = self.damaged = 0
        self.seconds = 0.0

    def add(self, item: Item, outcome: Outcome, folder: Path) -> None:
        """The clips of one video into the shard, or its refusal into the list; empties `folder`."""
        if isinstance(outcome, Rejected):
            self.refused.append(Refused(item.name, outcome.reason, outcome.action))
        else:
            for part in outcome["skipped"]:
                at = f"{item.relative}#t={part['start']:.2f},{part['stop']:.2f}"
                self.parts.append(Refused(at, part["reason"], "nothing, if there is no face"))
            for number, clip in enumerate(outcome["clips"]):
                several = f"-{number:04d}" if len(outcome["clips"]) > 1 else ""
                self._clip(item, item.key + several, clip, folder / f"{number:04d}.mp4")
        shutil.rmtree(folder)

    def _clip(self, item: Item, key: str, clip: Mapping[str, Any], video: Path) -> None:
        if key in self._keys:
            key = hashed(key, item.relative)
        record = record_of(item, key, clip, self._settings)
        if problems := record.problems():
            refused = Refused(item.name, "; ".join(problems), "correct the annotation")
            self.refused.append(refused)
            return
        self._writer.add(key, video, record)
        self._keys.add(key)
        self.labels.update({record.label} if record.label else ())
        self.splits.update([record.split] if record.split else ())
        self.clips += 1
        self.frames += record.num_frames
        self.seconds += record.num_frames / record.fps
        self.damaged += record.damaged is not None


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
        split=a.split,
        licence=a.licence,
        patch_id=a.patch_id,
        track=track,
        damaged=clip["damaged"],
    )


def write_rejected(path: Path, rows: Sequence[Refused]) -> None:
    """A CSV of path, reason, action, in the order of paths."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "reason", "action"])
        writer.writerows(sorted((r.path, r.reason, r.action) for r in rows))

"""What a run is asked for: its videos, and what tells it from another run.

Owns how a request becomes items. Opens no video.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from shards.ingest.annotations import read_annotations
from shards.ingest.inputs import Collected, InputError, Item, Refused, scan
from shards.ingest.settings import IngestSettings
from shards.ingest.splits import hold_out, split_subjects
from shards.ingest.storage import LOCKED, found
from shards.wording import count

NOTHING = "nothing is there (a link that leads nowhere?)", "correct the link, or copy it again"
"""Reason and action."""


@dataclass(frozen=True)
class Listing:
    """The videos of a run."""

    items: Sequence[Item]
    """In the order of their keys."""
    refused: Sequence[Refused]
    """Rows of the annotations that cannot be used."""
    notes: Sequence[str]
    """For the user."""

    @property
    def videos(self) -> int:
        return len(self.items) + len(self.refused)


def listing(
    videos: Path,
    annotations: str | Path | None,
    collected: Collected | None,
    holdout: Mapping[str, float],
) -> Listing:
    """What is to be ingested. Raises InputError where the request does not fit together."""
    refused: list[Refused] = []
    notes: list[str] = []
    if collected is not None:
        items, refused, notes = collected.items, list(collected.refused), list(collected.notes)
    elif annotations is None:
        items, ignored = scan(videos)
        if ignored:
            notes.append(f"left alone, as no videos by their suffixes: {count(ignored, 'file')}")
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
    if alike := _alike(items):
        notes.append(f"labels that differ in upper and lower case alone are classes: {alike}")
    if both := split_subjects(items):
        notes.append(f"{len(both)} subjects are in several splits, such as {both[0]}")
    if both := split_subjects(items, "source_id"):
        notes.append(f"{len(both)} sources are in several splits, such as {both[0]}")
    return Listing(items, refused, notes)


def _alike(items: Sequence[Item]) -> str:
    """Labels that somebody may have meant to be one."""
    labels = sorted({item.annotation.label or "" for item in items if item.annotation})
    folded: dict[str, list[str]] = {}
    for label in labels:
        folded.setdefault(label.casefold(), []).append(label)
    return "; ".join(", ".join(same) for same in folded.values() if len(same) > 1)


def request_of(
    listed: Listing, settings: IngestSettings, *, samples: int, size: int
) -> tuple[Listing, dict[str, Any], int]:
    """The videos that are there, the others refused; what decides the bytes of their shards, as
    JSON; and bytes that will surely be needed.

    A video counts with its name, its size, when it was changed, and what is known of it. Raises
    OSError where the storage fails, PermissionError where a video may not be looked at and none is
    there.
    """
    digest, total = hashlib.sha256(), 0
    there, refused = [], list(listed.refused)
    for item, file in _looked_at(listed.items, refused):
        there.append(item)
        total += file.st_size if item.frames is None else 0
        state = (file.st_size, file.st_mtime_ns)
        facts = (item.key, item.relative, item.part, item.annotation, item.frames, state)
        digest.update(repr(facts).encode("utf-8", "surrogatepass"))
    for row in refused:
        digest.update(repr(row).encode("utf-8", "surrogatepass"))
    request = {
        "settings": facts_of(settings),
        "shards": {"--shard-samples": samples, "--shard-bytes": size},
        "versions": versions(),
        "inputs": {"videos": listed.videos, "sha256": digest.hexdigest()},
    }
    listed = replace(listed, items=there, refused=refused)
    return listed, request, total // 32  # a crop takes a small part of its source


def _looked_at(
    items: Sequence[Item], refused: list[Refused]
) -> Iterator[tuple[Item, os.stat_result]]:
    """The videos that are there; the others are added to `refused`."""
    there, denied = 0, None
    for item in items:
        try:
            file = found(item.path)
        except PermissionError as error:
            denied = error
            refused.append(Refused(item.name, *LOCKED))
            continue
        if file is None:
            refused.append(Refused(item.name, *NOTHING))
            continue
        there += 1
        yield item, file
    if denied and not there:
        raise denied


def facts_of(settings: IngestSettings) -> dict[str, Any]:
    """The settings as JSON; of a model file its hash alone, wherever it lies."""
    facts = {name: value for name, value in asdict(settings).items() if name != "detector_model"}
    return {name: value for name, value in facts.items() if value not in ("", ())}


def versions() -> dict[str, str]:
    """Of everything that decides the bytes of a shard."""
    names = ("mira-video", "av", "opencv-python-headless", "numpy")
    return {name: version(name) for name in names}

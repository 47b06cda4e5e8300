"""`python -m shards preview`: a shard folder as one HTML page to look at, that needs nothing else.

Owns which clips are shown and counted, and their pictures; the page's form is `preview_page.py`.
Refuses to judge: damage and low shares of found faces are shown first, the rest is for the eye.
"""

from __future__ import annotations

import argparse
import base64
import csv
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.cache import CacheError
from shards.frames import DecodeError, decode
from shards.index import IndexRow, ManifestError, write_aside
from shards.manifest import Manifest
from shards.place import Remote
from shards.preview_page import Page, Rejections, Shown, page
from shards.reader import Collection, ReadError
from shards.schema import Record

SIDE, QUALITY = 112, 82  # of a thumbnail
COUNTED, COUNTED_SHARDS = 50_000, 500
"""Clips and shards read for the counts; of larger folders, whole shards spread over it."""
LISTED = 500
"""Rows of rejected.csv on the page."""
TEXT = 1000
"""Characters kept of a field of it."""
POOR = 0.8
"""A face found in fewer of the frames makes a clip worth looking at."""


def main(argv: Sequence[str]) -> int:
    """Exit status: 0 written; 2 no shard folder, or the page cannot be written."""
    p = argparse.ArgumentParser(
        prog="python -m shards preview", description="A page of thumbnails, and what was rejected."
    )
    p.add_argument("dir", metavar="DIR", help="folder of shards, or its URL")
    p.add_argument("--out", type=Path, default=Path("preview.html"), help="page to write (.html)")
    p.add_argument("--clips", type=int, default=60, help="clips shown (60)")
    args = p.parse_args(argv)
    if args.out.suffix.lower() not in (".html", ".htm") or args.clips < 1:
        p.error("--out must end in .html" if args.clips >= 1 else "--clips must be 1 or more")
    try:
        text = preview(args.dir, clips=args.clips)
        write_aside(args.out, text.encode())
    except ValueError as error:
        print(f"preview: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        what = f"{args.out} cannot be written ({error.strerror}); choose another --out"
        print(f"preview: {what}", file=sys.stderr)
        return 2
    print(f"{args.out}: {len(text) / 1e6:.1f} MB, open it in a browser")
    return 0


def preview(folder: str | Path, *, clips: int) -> str:
    """The page. The same folder gives the same page.

    Raises ManifestError where `folder` is none of ours; what is damaged in it is shown as such.
    """
    manifest = Manifest.open(folder)
    collection = Collection([manifest])
    counts = _counted(manifest)
    odd = counts.odd[: max(1, clips // 5)]
    chosen = [place for place in _spread(manifest, clips) if place not in odd]
    return page(
        Page(
            folder=str(folder),
            samples=manifest.samples,
            shards=len(manifest.shards),
            bytes=sum(shard.bytes for shard in manifest.shards),
            clip=manifest.clip,
            splits=manifest.splits,
            labels=manifest.labels,
            by_label=counts.by_label,
            counted=counts.clips,
            unreadable=counts.unreadable,
            odd=[_shown(collection, *place) for place in odd],
            shown=[_shown(collection, *place) for place in chosen],
            rejections=rejections(manifest.folder / "rejected.csv"),
        )
    )


@dataclass(frozen=True)
class _Counts:
    clips: int
    by_label: Counter[tuple[str | None, str | None]]
    """(label, split)"""
    odd: list[tuple[int, int]]
    """Shard and place of clips that something is wrong with, the worst first."""
    unreadable: list[str]
    """Shards whose records cannot be read, and why."""


def _counted(manifest: Manifest) -> _Counts:
    each = max(1, manifest.samples // max(1, len(manifest.shards)))
    step = -(-len(manifest.shards) // min(COUNTED_SHARDS, max(1, COUNTED // each)))
    by_label: Counter[tuple[str | None, str | None]] = Counter()
    odd, unreadable = [], []
    for i in range(0, len(manifest.shards), max(1, step)):
        try:
            rows = manifest.index(i)
        except (ManifestError, CacheError) as error:
            unreadable.append(str(error))
            continue
        by_label.update((row.record.label, row.record.split) for row in rows)
        odd += [
            (_found(row.record), i, place)
            for place, row in enumerate(rows)
            if row.record.damaged or _found(row.record) < POOR
        ]
    places = [(i, place) for _, i, place in sorted(odd)]
    return _Counts(by_label.total(), by_label, places, unreadable)


def _found(record: Record) -> float:
    return record.track.found if record.track else 1.0


def _spread(manifest: Manifest, clips: int) -> list[tuple[int, int]]:
    """Shard and place of clips that lie evenly spread over the folder."""
    ends = np.cumsum([shard.samples for shard in manifest.shards], dtype=np.int64)
    if not manifest.samples:
        return []
    at = np.unique(np.linspace(0, manifest.samples - 1, min(clips, manifest.samples)).astype(int))
    shards = np.searchsorted(ends, at, side="right")
    starts = np.concatenate([[0], ends])[shards]
    return list(zip(shards.tolist(), (at - starts).tolist(), strict=True))


def _shown(collection: Collection, shard: int, place: int) -> Shown:
    """A clip with its thumbnails, or with the reason why there are none."""
    name = collection.manifests[0].shards[shard].name
    try:
        row = collection.row(shard, place)
    except (ManifestError, CacheError) as error:
        return Shown(name, f"sample {place}", None, [], str(error))
    try:
        return Shown(name, row.key, row.record, list(_thumbnails(collection, shard, row)), "")
    except (ReadError, DecodeError, ManifestError, CacheError) as error:
        return Shown(name, row.key, row.record, [], str(error))


def _thumbnails(collection: Collection, shard: int, row: IndexRow) -> Iterator[tuple[str, str]]:
    """What a frame is, and it as the address of a JPEG in text."""
    import cv2

    marks = _marks(row.record)
    video = collection.video(shard, row)
    frames = decode(video, lambda found: np.array([min(at, found - 1) for _, at in marks]))
    for (what, at), frame in zip(marks, frames, strict=True):
        small = cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        bgr = cv2.cvtColor(small, cv2.COLOR_RGB2BGR)
        _, jpeg = cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, QUALITY))
        text = base64.b64encode(jpeg.tobytes()).decode()
        yield f"{what} {at}".strip(), f"data:image/jpeg;base64,{text}"


def _marks(record: Record) -> list[tuple[str, int]]:
    """The three frames shown: first, apex and last where the apex is known."""
    last = max(0, record.num_frames - 1)
    if record.apex is None:
        return [("", 0), ("", last // 2), ("", last)]
    first = ("onset", record.onset) if record.onset is not None else ("", 0)
    end = ("offset", record.offset) if record.offset is not None else ("", last)
    return [first, ("apex", record.apex), end]


def rejections(path: Path | Remote) -> Rejections:
    """Rows of rejected.csv, the first of them to list and all of them counted by reason."""
    if not isinstance(path, Path):
        return Rejections([], Counter(), "rejected.csv is read in local folders alone")
    rows: list[tuple[str, str, str]] = []
    reasons: Counter[str] = Counter()
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            for row in csv.DictReader(file):
                values = [str(row.get(name) or "")[:TEXT] for name in ("path", "reason", "action")]
                reasons[values[1].partition(" (")[0]] += 1  # figures stand in parentheses
                if len(rows) < LISTED:
                    rows.append((values[0], values[1], values[2]))
    except FileNotFoundError:
        return Rejections([], reasons, "no rejected.csv in the folder")
    except (OSError, csv.Error) as error:
        return Rejections(rows, reasons, f"rejected.csv cannot be read to its end ({error})")
    return Rejections(rows, reasons, "")

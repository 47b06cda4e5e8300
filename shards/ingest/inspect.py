"""`python -m shards verify` and `stats`: what a shard folder holds, for people.

Exit status: 0 intact; 1 problems were found; 2 it is no shard folder.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from shards.cache import CacheError
from shards.index import ManifestError
from shards.manifest import Manifest
from shards.place import Remote, UnknownPlace, locate
from shards.schema import Record
from shards.verify import verify
from shards.wording import commonest, count


def main(command: str, argv: Sequence[str]) -> int:
    about = {
        "verify": "Reads every shard and compares it with the manifest and its index.",
        "stats": "Samples, labels, splits, durations, sizes, and why videos were rejected.",
    }
    p = argparse.ArgumentParser(prog=f"python -m shards {command}", description=about[command])
    p.add_argument("dir", metavar="DIR", help="folder of shards, or its URL")
    folder = locate(p.parse_args(argv).dir)
    try:
        return _verify(folder) if command == "verify" else _stats(folder)
    except (ManifestError, UnknownPlace, CacheError) as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 2


def _verify(folder: Path | Remote) -> int:
    problems = verify(folder)
    manifest = Manifest.open(folder)
    if not problems:
        found = f"{count(len(manifest.shards), 'shard')}, {count(manifest.samples, 'sample')}"
        print(f"{folder}: {found}, all intact")
        return 0
    for problem in problems:
        print(f"verify: {problem}", file=sys.stderr)
    print(f"{folder}: {count(len(problems), 'problem')}", file=sys.stderr)
    return 1


def _stats(folder: Path | Remote) -> int:
    from rich.console import Console

    manifest = Manifest.open(folder)
    records = [row.record for i in range(len(manifest.shards)) for row in manifest.index(i)]
    console = Console(highlight=False)
    for name, value in _facts(manifest, records):
        console.print(f"{name:<10} {value}")
    if manifest.labels:
        console.print(_labels(manifest, records))
    rejected = _rejected(folder) if isinstance(folder, Path) else []
    if rejected:
        console.print(f"rejected   {len(rejected)}")
        for reason, n in commonest(rejected, 8):
            console.print(f"  {n:>6} × {reason}", markup=False)
    return 0


def _facts(manifest: Manifest, records: Sequence[Record]) -> Iterable[tuple[str, str]]:
    size = sum(shard.bytes for shard in manifest.shards)
    shards = count(len(manifest.shards), "shard")
    yield "samples", f"{len(records)} in {shards}, {size / 1e6:.1f} MB"
    if not records:
        return
    yield (
        "a clip",
        f"{size / len(records) / 1e3:.0f} kB, {_spread(r.num_frames for r in records)} frames",
    )
    yield "seconds", f"{_spread(r.num_frames / r.fps for r in records)}"
    rates = Counter(round(r.fps, 2) for r in records).most_common(4)
    yield "fps", ", ".join(f"{rate:g} ({n})" for rate, n in rates)
    subjects = {r.subject_id for r in records if r.subject_id is not None}
    yield "subjects", str(len(subjects)) if subjects else "not known"
    found = [r.track.found for r in records if r.track]
    if found:
        yield "face found", f"in {_spread(100 * f for f in found)} % of the frames looked at"
    if damaged := sum(r.damaged is not None for r in records):
        yield "damaged", f"{damaged} clips are the sound part of a damaged file"
    c = manifest.clip
    yield "stored as", ", ".join(f"{name} {value}" for name, value in c.items())


def _spread(values: Iterable[float]) -> str:
    """Least – median – most."""
    ordered = sorted(values)
    low, middle, high = ordered[0], ordered[len(ordered) // 2], ordered[-1]
    return f"{low:.4g}" if low == high else f"{low:.4g} – {middle:.4g} – {high:.4g}"


def _labels(manifest: Manifest, records: Sequence[Record]) -> object:
    from rich.table import Table

    counts = Counter((r.label, r.split) for r in records)
    splits = [*manifest.splits, *([None] if any(r.split is None for r in records) else [])]
    table = Table("label", *(name or "no split" for name in splits), "all")
    names = [*manifest.labels, *([None] if any(r.label is None for r in records) else [])]
    for label in names:
        row = [counts[label, split] for split in splits]
        table.add_row(label or "no label", *(str(n) for n in row), str(sum(row)))
    return table


def _rejected(folder: Path) -> list[str]:
    path = folder / "rejected.csv"
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [row["reason"] for row in csv.DictReader(file)]

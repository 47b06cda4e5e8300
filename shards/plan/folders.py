"""What a plan says about the folders: content, files, labels, splits, lengths of the clips."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from shards.config import DataConfig
from shards.index import ManifestError
from shards.manifest import Manifest
from shards.opening import open_collection
from shards.plan.finding import Finding, refused
from shards.presence import lost_files
from shards.splitfile import read_split_file
from shards.wording import count, few, size

LOOKED_AT = 16
"""Shards whose records are read: enough for a share, whatever the size of the collection."""
SHORT_WORTH_TELLING = 0.05


def of_folders(manifests: Sequence[Manifest], data: DataConfig) -> Iterator[Finding]:
    """Content, files of each folder, labels, splits and lengths, in this order."""
    shards, clips = sum(len(m.shards) for m in manifests), sum(m.samples for m in manifests)
    total = sum(shard.bytes for m in manifests for shard in m.shards)
    numbers = {"shards": shards, "clips": clips, "bytes": total}
    each = f", {size(total / clips)} a clip" if clips else ""
    found = f"{count(clips, 'clip')} in {count(shards, 'shard')}, {size(total)}{each}"
    if clips:
        yield Finding("shards", "content", found, numbers=numbers)
    else:
        fix = "ingest videos into it; rejected.csv in the folder says why none was usable"
        yield Finding("shards", "content", found, "cannot", fix, numbers)
    for manifest in manifests:
        yield _files(manifest)
    yield _labels(manifests)
    yield _splits(manifests, data)
    yield from _lengths(manifests, data)


def _files(manifest: Manifest) -> Finding:
    """Names and sizes alone; contents are for `verify`."""
    try:
        lost = lost_files(manifest)
    except ManifestError as error:
        return refused("files", error)
    numbers = {"lost": len(lost)}
    if not lost:
        where = "all there, each of the size that was written"
        if not isinstance(manifest.folder, Path):
            where = "not looked at, as it is no local folder"
        return Finding("shards", "files", f"{manifest.folder}: {where}", numbers=numbers)
    whole = count(len(manifest.shards), "shard")
    names = few([manifest.shards[i].name for i in lost])
    first, _, fix = str(next(iter(lost.values()))).rpartition("; ")
    found = f"{manifest.folder}: {len(lost)} of {whole} missing or not whole: {names} ({first})"
    fix += f"; or train without them: data.allow_missing {len(lost)}"
    return Finding("shards", "files", found, "cannot", fix, numbers)


def _labels(manifests: Sequence[Manifest]) -> Finding:
    known = {m.labels for m in manifests if m.labels}
    if not known:
        fix = "enough for pretraining; to fine-tune ingest again with --annotations"
        return Finding("shards", "labels", "none", "warning", fix)
    if len(known) > 1:
        found = "; ".join(f"{m.folder}: {few(m.labels, 8)}" for m in manifests if m.labels)
        fix = "ingest them with the same label names, or train on one of them"
        return Finding("shards", "labels", f"they differ: {found}", "cannot", fix)
    names = next(iter(known))
    found = f"{len(names)}: {few(names, 8)}"
    if bare := [str(m.folder) for m in manifests if not m.labels]:
        found += f"; none in {few(bare)}"
    return Finding("shards", "labels", found, numbers={"labels": list(names)})


def _splits(manifests: Sequence[Manifest], data: DataConfig) -> Finding:
    counts = Counter[str]()
    if data.splits is None:
        for manifest in manifests:
            counts.update(manifest.splits)
    else:
        try:
            counts = read_split_file(data.splits, data.source).counts
        except ValueError as error:
            return refused("splits", error)
    found = ", ".join(f"{name} {clips:,}" for name, clips in counts.items()) or "none"
    if counts and (rest := sum(m.samples for m in manifests) - counts.total()) > 0:
        found += f", without a split {rest:,}"
    numbers = {"splits": dict(counts)}
    if data.split is not None and not counts[data.split]:
        fix = f"take --split {' or '.join(counts)}" if counts else "leave out --split"
        found = f"no clip of split {data.split!r}; there are: {found}"
        return Finding("shards", "splits", found, "cannot", fix, numbers)
    if not counts:
        fix = "to measure on unseen people, ingest again with --holdout test=0.2 val=0.1"
        return Finding("shards", "splits", found, "warning", fix, numbers)
    return Finding("shards", "splits", found, numbers=numbers)


def _lengths(manifests: Sequence[Manifest], data: DataConfig) -> Iterator[Finding]:
    """How many clips are shorter than what is taken of them; onset and apex alone are in any."""
    lengths = clip_lengths(manifests, data) if data.frames else []
    if not lengths:
        return
    stride = data.stride or 1
    span = (data.frames - 1) * stride + 1
    short = sum(n < span for n in lengths) / len(lengths)
    bare = sum(n < data.frames for n in lengths) / len(lengths)
    middle = lengths[len(lengths) // 2]
    share = f"{short:.0%} have" if short else "none has"
    found = (
        f"of {count(len(lengths), 'clip')} looked at {share} fewer than {span} frames "
        f"({data.frames} at stride {stride}); shortest {lengths[0]}, median {middle}"
    )
    numbers = {"short": short, "fewer_than_frames": bare, "median": middle, "span": span}
    if short <= SHORT_WORTH_TELLING and not bare:
        yield Finding("shards", "length", found, numbers=numbers)
        return
    fix = "shorter ones are taken whole, with a smaller stride"
    if bare:
        fix += f"; in {bare:.0%} frames repeat, as they have fewer than {data.frames}"
    yield Finding(
        "shards", "length", found, "warning", f"{fix}; {_stride_fix(lengths, data)}", numbers
    )


def _stride_fix(lengths: Sequence[int], data: DataConfig) -> str:
    """The largest stride at which nearly all clips are long enough."""
    usual = lengths[int(SHORT_WORTH_TELLING * len(lengths))]
    fits = (usual - 1) // max(1, data.frames - 1)
    return f"data.stride {fits} fits 95% of them" if fits else f"data.frames {usual} fits 95%"


def clips_of(manifests: Sequence[Manifest], data: DataConfig) -> list[int]:
    """Clips of each folder that belong: by the manifests, but with a split file by every index, as
    in a training. Then it raises ValueError like `open_collection`."""
    if data.splits is None:
        return [m.count(data.split) for m in manifests]
    counts = iter(open_collection(data).counts)
    return [sum(itertools.islice(counts, len(m.shards))) for m in manifests]


def clip_lengths(
    manifests: Sequence[Manifest], data: DataConfig, *, most: int = LOOKED_AT
) -> list[int]:
    """Frames of the stored clips in ascending order, from shards spread over the collection;
    those whose index cannot be read are left out. Of the split, but with a split file of all."""
    split = data.split if data.splits is None else None
    places = [(m, i) for m in manifests for i in range(len(m.shards))]
    step = max(1, len(places) // most)
    lengths: list[int] = []
    for manifest, i in places[step // 2 :: step][:most]:
        try:
            records = [row.record for row in manifest.index(i)]
        except ValueError:  # lost, or there is no room to fetch it: others tell
            continue
        lengths += [r.num_frames for r in records if split in (None, r.split)]
    return sorted(lengths)

"""What a plan says about speed: the decode rate here, cores, loader processes, and the disk."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

from shards.config import DataConfig
from shards.manifest import Manifest
from shards.plan.finding import Demand, Finding, refused
from shards.plan.measure import Speed, measure
from shards.wording import count, few, size

RESERVE = 1.25
"""Loader processes above the mean need: clips differ, and a step waits for the slowest."""
SHARED_STORAGE = 500e6
"""Bytes a second that a node can count on from storage it shares with others."""
BUSY = 0.3
"""Share of waiting above which the measurement is in doubt."""


def of_speed(
    manifests: Sequence[Manifest], data: DataConfig, demand: Demand, *, seconds: float
) -> Iterator[Finding]:
    """Measures for so many seconds; 0 measures nothing, as where shards are missing."""
    if seconds <= 0:
        yield Finding("speed", "decoding", "not measured", "warning", "mend the shards first")
    else:
        try:
            speed = measure(data, seconds=seconds)
        except ValueError as error:
            yield replace(refused("decoding", error), part="speed")
        else:
            yield from _decoding(speed)
            if speed.per_core:
                yield _cores(speed, demand)
    yield _disk(manifests, demand)


def _decoding(speed: Speed) -> Iterator[Finding]:
    if failed := len(speed.troubles):
        found = f"{failed} of {count(speed.tried, 'clip')} cannot be read: {few(speed.troubles, 1)}"
        verdict = "warning" if speed.per_core else "cannot"
        fix = "`python -m shards verify DIR` tells which; ingest them again"
        yield Finding("speed", "clips", found, verdict, fix, {"failed": failed})
    if not speed.per_core:
        return
    found = (
        f"{speed.per_core:.1f} clips/s a core ({1e3 / speed.per_core:.0f} ms a clip), measured on "
        f"{count(speed.clips, 'clip')} here"
    )
    numbers = {"clips_per_second_per_core": speed.per_core, "clips": speed.clips}
    if speed.waiting > BUSY:
        found += f"; {speed.waiting:.0%} of the time went to waiting for the disk or other programs"
        fix = "measure again on an idle machine; if it stays, copy the shards to a local disk"
        yield Finding("speed", "decoding", found, "warning", fix, numbers)
    else:
        yield Finding("speed", "decoding", found, numbers=numbers)


def _cores(speed: Speed, demand: Demand) -> Finding:
    each, here = demand.clips_per_second / demand.gpus, cores()
    per_gpu = each / speed.per_core
    loaders = loaders_needed(each, speed.per_core)
    node = min(demand.gpus, demand.gpus_per_node) * (loaders + 1)  # the trainer has one, too
    found = (
        f"{each:.1f} clips/s a GPU take {per_gpu:.2f} cores: set data.loader_workers {loaders}; "
        f"with the trainers {node} cores a node"
    )
    numbers = {"cores_per_gpu": per_gpu, "loader_workers": loaders, "cores_per_node": node}
    if node <= here:
        return Finding("speed", "cores", f"{found}, {here} are here", numbers=numbers)
    fix = "run this on a node"
    if spare := max(0, here - min(demand.gpus, demand.gpus_per_node)):
        most = spare * speed.per_core * demand.nodes
        fix += (
            f"; {count(demand.nodes, 'node')} like this machine reach about {most:.0f} clips/s: "
            "take more cores or fewer GPUs a node, or store smaller clips (ingest --size)"
        )
    return Finding("speed", "cores", f"{found}; {here} are here", "warning", fix, numbers)


def _disk(manifests: Sequence[Manifest], demand: Demand) -> Finding:
    clips = sum(m.samples for m in manifests)
    total = sum(shard.bytes for m in manifests for shard in m.shards)
    in_all = demand.clips_per_second * total / max(1, clips)
    node = in_all / demand.nodes
    found = f"{size(node)}/s a node, {size(in_all)}/s in all; {size(total)} to keep"
    numbers = {"bytes_per_second_per_node": node, "bytes_per_second": in_all, "bytes": total}
    if node <= SHARED_STORAGE:
        return Finding("speed", "disk", found, numbers=numbers)
    fix = "keep the shards on a local NVMe disk of each node"
    return Finding("speed", "disk", found, "warning", fix, numbers)


def loaders_needed(clips_per_second: float, per_core: float) -> int:
    """Loader processes of one trainer that takes so many clips a second."""
    return max(1, math.ceil(RESERVE * clips_per_second / per_core))


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

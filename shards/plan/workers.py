"""What a plan says about workers: world sizes, batch, steps of an epoch, shards against streams."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from shards.config import DataConfig
from shards.manifest import Manifest
from shards.plan.finding import Demand, Finding
from shards.wording import count, duration, few

PADDING_WORTH_TELLING = 0.1


def of_workers(
    manifests: Sequence[Manifest], sizes: Sequence[int], data: DataConfig, demand: Demand
) -> Iterator[Finding]:
    """World sizes, GPUs, global batch, epoch and streams, in this order; without `sizes`, the
    folders' clips as of `clips_of`, not the last two."""
    yield _world_sizes(data.streams)
    yield _gpus(data.streams, demand)
    yield _batch(data.streams, demand)
    if samples := sum(sizes):
        yield _epoch(samples, data, demand)
        yield _dealing(samples, sum(len(m.shards) for m in manifests), data.streams, demand)


def _world_sizes(streams: int) -> Finding:
    sizes = divisors(streams)
    found = f"{streams} streams can be shared by {_listed(sizes)} workers"
    return Finding("workers", "world sizes", found, numbers={"world_sizes": sizes})


def _gpus(streams: int, demand: Demand) -> Finding:
    gpus = demand.gpus
    if streams % gpus == 0:
        found = (
            f"{gpus} GPUs on {count(demand.nodes, 'node')}, {count(streams // gpus, 'stream')} each"
        )
        return Finding("workers", "GPUs", found)
    below = max(n for n in divisors(streams) if n <= gpus)
    fix = f"use {below} GPUs, or in a new run data.streams {-(-streams // gpus) * gpus}"
    return Finding(
        "workers", "GPUs", f"{gpus} GPUs cannot share {streams} streams evenly", "cannot", fix
    )


def _batch(streams: int, demand: Demand) -> Finding:
    """Whether the global batch suits the streams and the GPUs."""
    batch, gpus = demand.global_batch, demand.gpus
    if batch is None:
        found = f"not given (--global-batch); any multiple of the {streams} streams works"
        return Finding("workers", "global batch", found)
    both = [n for n in divisors(streams) if batch % n == 0]
    numbers = {"world_sizes": both}
    if batch % streams:
        near = [b for b in (batch // streams * streams, -(-batch // streams) * streams) if b]
        fix = f"use run.global_batch {' or '.join(map(str, near))}"
        found = (
            f"{batch} is not a multiple of the {streams} streams; of their world sizes it has "
            f"{_listed(both)}"
        )
        return Finding("workers", "global batch", found, "cannot", fix, numbers)
    found = f"{batch}: {batch // streams} a step from every stream; all these world sizes divide it"
    if batch % gpus == 0:
        each = batch // gpus
        found += f"; {each} a GPU, in micro-batches of {_listed(divisors(each))}"
    return Finding("workers", "global batch", found, numbers=numbers)


def _epoch(samples: int, data: DataConfig, demand: Demand) -> Finding:
    streams, mixed = data.streams, data.weights is not None
    batch = demand.global_batch or streams
    steps = -(-samples // batch) if mixed else steps_per_epoch(samples, streams, batch)
    empty = 0.0 if mixed else padding(samples, streams, batch)  # a mixture goes on without
    found = (
        f"{count(samples, 'clip')} make {count(steps, 'step')} of {batch}; a step is "
        f"{batch / samples:.2g} epochs; an epoch lasts "
        f"{duration(samples / demand.clips_per_second)} at {demand.clips_per_second:g} clips/s"
    )
    numbers = {"steps": steps, "epochs_a_step": batch / samples, "padding": empty}
    if empty <= PADDING_WORTH_TELLING:
        return Finding("workers", "epoch", found, numbers=numbers)
    found += f"; {empty:.0%} of its places are padding"
    fix = padding_fix(samples, streams, batch)
    return Finding("workers", "epoch", found, "warning", fix, numbers)


def _dealing(samples: int, shards: int, streams: int, demand: Demand) -> Finding:
    """A stream owns an equal part of the epoch's line of samples, whole shards or not: see
    `shards.order`. So fewer shards than streams cost nothing but a second reader of a file."""
    numbers = {"shards": shards, "streams": streams, "clips_a_stream": samples / streams}
    if samples < streams:
        found = f"{count(samples, 'clip')} for {streams} streams: {streams - samples} stay empty"
        fix = f"add clips, or in a new run use data.streams {samples} or fewer"
        return Finding("workers", "streams", found, "warning", fix, numbers)
    found = f"{count(samples // streams, 'clip')} a stream and epoch"
    if shards >= streams:
        found += f", from about {shards / streams:.3g} of {shards:,} shards"
        return Finding("workers", "streams", found, numbers=numbers)
    found += (
        f"; fewer shards than streams work: about {math.ceil(streams / shards)} streams read "
        f"different parts of each of {count(shards, 'shard')}, none waits, none is empty"
    )
    if shards < demand.nodes:
        found += "; several nodes read each shard"
    return Finding("workers", "streams", found, numbers=numbers)


def steps_per_epoch(samples: int, streams: int, batch: int) -> int:
    """As `shards.order` counts them; nearly so for a batch that the streams do not divide."""
    longest = -(-samples // streams)
    return -(-longest // max(1, batch // streams))


def padding(samples: int, streams: int, batch: int) -> float:
    """Share of an epoch's places that hold no sample."""
    places = steps_per_epoch(samples, streams, batch) * max(batch, streams)
    return max(0.0, 1 - samples / places)


def padding_fix(samples: int, streams: int, batch: int) -> str:
    """The largest batch up to this one that pads little."""
    for smaller in range(batch // streams * streams, 0, -streams):
        if padding(samples, streams, smaller) <= PADDING_WORTH_TELLING:
            return f"run.global_batch {smaller} pads {padding(samples, streams, smaller):.0%}"
    return f"add clips, or in a new run use fewer data.streams than {streams}"


def divisors(n: int) -> list[int]:
    """All of them, in ascending order."""
    return [d for d in range(1, n + 1) if n % d == 0]


def _listed(numbers: Sequence[int]) -> str:
    return few([str(n) for n in numbers], 12)

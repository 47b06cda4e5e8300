"""What a trainer says about its data: before it starts, and once if its devices wait for it.

Owns the two messages, each a line or two. Refuses to stop a run: what cannot work is refused by
`open_clips` already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from shards.config import DataConfig
from shards.plan.folders import SHORT_WORTH_TELLING, clip_lengths
from shards.plan.measure import Speed, measure
from shards.plan.rate import cores, loaders_needed
from shards.plan.workers import PADDING_WORTH_TELLING, padding_fix
from shards.reader import Collection
from shards.stream import ClipStream
from shards.wording import count, duration, few

WAIT_WORTH_TELLING = 0.2
READINGS = 3
"""Logged steps over which the wait is averaged; the first one holds the start and is left out."""
SECONDS, CLIPS, SHARDS = 1.0, 16, 4
"""Of the measurement: a start must not take long. A hint needs no more precision."""


def preflight(data: DataConfig, stream: ClipStream, *, global_batch: int, world: int) -> str:
    """A line with the rate that these loaders can reach at most, and a line with what is off.

    Measures about a second on one core of this machine, which stands for the workers'; shards
    elsewhere are not fetched for it.
    """
    speed = _measured(data, stream.collection)
    off = "; ".join(_off(data, speed, stream, global_batch))
    lines = []
    if speed is None:
        lines.append("data: the shards are elsewhere, so what they can feed is not measured")
    elif speed.per_core:
        limit = _limit(data, speed, world)
        lines.append(
            f"data: {speed.per_core:.1f} clips/s a core, {count(world, 'worker')} {_how(data)}: at "
            f"most {limit:.0f} clips/s, so a step of {global_batch} takes at least "
            f"{duration(global_batch / limit)}"
        )
    return "\n".join([*lines, *([f"warning: {off}"] if off else [])])


def _off(
    data: DataConfig, speed: Speed | None, stream: ClipStream, global_batch: int
) -> Iterator[str]:
    if speed and (failed := len(speed.troubles)):
        yield f"{failed} of {speed.tried} clips cannot be read ({few(speed.troubles, 1)})"
    if (here := cores()) < data.loader_workers:
        yield f"data.loader_workers is {data.loader_workers}, this machine has {here} cores"
    empty = 1 - stream.samples / (stream.steps_per_epoch * global_batch)
    if empty > PADDING_WORTH_TELLING and data.weights is None and data.balance is None:
        fix = padding_fix(stream.samples, data.streams, global_batch)
        yield f"{empty:.0%} of the places in an epoch of {stream.samples} clips are padding: {fix}"
    if data.frames == 0:
        return
    span = (data.frames - 1) * (data.stride or 1) + 1
    lengths = clip_lengths(stream.collection.manifests, data, most=SHARDS)
    short = sum(n < span for n in lengths) / max(1, len(lengths))
    if short > SHORT_WORTH_TELLING:
        what = "data.frames x data.stride" if data.stride else "data.frames"
        yield f"{short:.0%} of the clips are shorter than {what}, {span} frames"


def _measured(data: DataConfig, collection: Collection | None = None) -> Speed | None:
    if any("://" in folder for folder in data.shards):
        return None
    return measure(data, seconds=SECONDS, most=CLIPS, collection=collection)


def _limit(data: DataConfig, speed: Speed, world: int) -> float:
    """Clips a second that all loaders decode, if every worker has a machine like this one."""
    return speed.per_core * min(max(1, data.loader_workers), cores()) * world


def _how(data: DataConfig) -> str:
    if data.loader_workers == 0:
        return "without loader processes"
    return f"x {count(data.loader_workers, 'loader process', 'es')}"


class Tracked(Protocol):
    """What is used of a run's tracker."""

    def log(self, metrics: dict[str, float], step: int) -> None: ...
    def log_file(self, path: str, artifact_dir: str) -> None: ...
    def figure(self, name: str, image: Any, step: int) -> None: ...


class WaitWatch:
    """A run's tracker that says once, in one line, why the devices wait for data and what to set.

    Args:
        tracker: gets everything that is logged; `train/data_wait` is the share of waiting.
        world: training workers.
        say: prints the line.
    """

    def __init__(
        self,
        tracker: Tracked,
        data: DataConfig,
        *,
        world: int,
        say: Callable[[str], object] = lambda line: print(line, flush=True),
    ):
        self._tracker, self._data, self._world, self._say = tracker, data, world, say
        self._waits: list[float] = []
        self.log_file, self.figure = tracker.log_file, tracker.figure

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Pass figures on; after enough readings speak up, or never."""
        self._tracker.log(metrics, step)
        if "train/data_wait" not in metrics or len(self._waits) > READINGS:
            return
        self._waits.append(metrics["train/data_wait"])
        if len(self._waits) == READINGS + 1:
            wait = sum(self._waits[1:]) / READINGS
            if wait > WAIT_WORTH_TELLING:
                self._say(self._hint(wait, metrics.get("train/clips_per_second", 0.0)))

    def _hint(self, wait: float, rate: float) -> str:
        start = f"hint: {wait:.0%} of the time goes to waiting for data; "
        try:
            speed = _measured(self._data)
        except (OSError, ValueError) as error:  # a hint must not end a run
            return f"{start}{error}"
        if speed is None:
            now = self._data.loader_workers
            return f"{start}raise data.loader_workers (it is {now}), or copy the shards closer"
        if not speed.per_core:
            return f"{start}`python -m shards verify` the shards: clips cannot be read"
        return start + advice(self._data, speed, wait=wait, rate=rate, world=self._world)


def advice(data: DataConfig, speed: Speed, *, wait: float, rate: float, world: int) -> str:
    """Which setting to change, from the clips a second that a run reaches while it waits."""
    wanted = rate / max(0.05, 1 - wait) / world  # of one trainer that never waits
    loaders, here = loaders_needed(wanted, speed.per_core), cores()
    limit, now = _limit(data, speed, world), data.loader_workers
    each = f"{1e3 / speed.per_core:.0f} ms a clip on one core"
    if now and rate < 0.5 * limit:
        return (
            f"decoding ({each}) could give {limit:.0f} clips/s, {rate:.0f} arrive: the disk is "
            "slow or the cores are taken; copy the shards to a local disk"
        )
    if now >= here:
        return (
            f"data.loader_workers {now} already take this machine's {here} cores ({each}): use "
            "more cores or fewer workers a machine, or store smaller clips (ingest --size)"
        )
    return f"set data.loader_workers {max(now + 1, min(loaders, here))} (it is {now}; {each})"

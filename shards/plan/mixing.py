"""What a plan says about who is shown how often: weights of folders, balanced classes, repeats."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from shards.chance import apportion
from shards.config import DataConfig
from shards.manifest import Manifest
from shards.opening import classes_to_balance, open_collection
from shards.plan.finding import Demand, Finding, refused
from shards.wording import count, few

OFTEN = 10.0
"""Times an epoch that the same clip may be shown before it is worth a word."""


def decoded(demand: Demand, data: DataConfig) -> Demand:
    """The demand in clips that are read and decoded: each serves `data.repeats` views."""
    return replace(demand, clips_per_second=demand.clips_per_second / data.repeats)


def of_mixing(
    manifests: Sequence[Manifest], sizes: Sequence[int], data: DataConfig, demand: Demand
) -> Iterator[Finding]:
    """A line for each of repeats, weights and balance that is asked for; `sizes` as of
    `clips_of`, empty where nobody knows."""
    if data.repeats > 1:
        found = (
            f"every decoded clip gives {data.repeats} views: {demand.clips_per_second:g} views/s "
            f"need {decoded(demand, data).clips_per_second:g} clips/s"
        )
        yield Finding("workers", "repeats", found, numbers={"repeats": data.repeats})
    if data.weights is not None:
        batch = demand.global_batch or data.streams
        yield _mixture(manifests, sizes, data, data.weights, batch)
    if data.balance is not None:
        yield from _balance(data, data.balance)


def _mixture(
    manifests: Sequence[Manifest],
    sizes: Sequence[int],
    data: DataConfig,
    weights: Sequence[float],
    batch: int,
) -> Finding:
    if len(weights) != len(data.shards):
        found = f"{count(len(weights), 'weight')} for {count(len(data.shards), 'folder')}"
        return Finding("workers", "weights", found, "cannot", "give one a folder, in their order")
    if len(sizes) != len(weights):
        found = "not looked at, as a folder or the split file cannot be read"
        return Finding("workers", "weights", found, "cannot", "mend it first")
    places = apportion(batch, np.asarray(weights))
    steps = -(-sum(sizes) // batch)
    numbers = {"places": places.tolist(), "clips": list(sizes)}
    shown, worst = [], 0.0
    for manifest, size, each in zip(manifests, sizes, places.tolist(), strict=True):
        if not size or not each:
            what = "has no clip" if not size else f"gets none of the {batch} places of a step"
            fix = "leave the folder out" if not size else "raise its weight, or the global batch"
            return Finding(
                "workers", "weights", f"{manifest.folder} {what}", "cannot", fix, numbers
            )
        times = each * steps / size
        worst = max(worst, times)
        shown.append(f"{manifest.folder} {each} (its {size:,} clips {times:.2g} times an epoch)")
    found = f"of the {batch} places of a step: {few(shown, 8)}"
    if worst <= OFTEN:
        return Finding("workers", "weights", found, numbers=numbers)
    fix = f"clips come {worst:.0f} times an epoch: lower that weight, or add clips there"
    return Finding("workers", "weights", found, "warning", fix, numbers)


def _balance(data: DataConfig, exponent: float) -> Iterator[Finding]:
    """Reads every index, as a training with it does."""
    try:
        collection = open_collection(data)
        classes = classes_to_balance(collection)
    except ValueError as error:
        yield replace(refused("balance", error), part="workers")
        return
    if data.weights is None:
        yield _balanced(classes, collection.labels, exponent, "")
        return
    begin = 0
    for manifest in collection.manifests:  # each is balanced for itself
        end = begin + len(manifest.shards)
        yield _balanced(classes[begin:end], collection.labels, exponent, f"{manifest.folder}: ")
        begin = end


def _balanced(
    of_shards: Sequence[NDArray[np.int32]], labels: Sequence[str], exponent: float, where: str
) -> Finding:
    """`of_shards`: classes of the samples, -1 for none."""
    classes = np.concatenate([np.zeros(0, np.int32), *of_shards])
    present, sizes = np.unique(classes[classes >= 0], return_counts=True)
    if not len(present):
        fix = "ingest with --annotations, or leave out --balance"
        return Finding("workers", "balance", f"{where}no clip has a label", "cannot", fix)
    quotas = apportion(int(sizes.sum()), sizes.astype(float) ** (1 - exponent))
    rows = zip(present.tolist(), sizes.tolist(), (quotas / sizes).tolist(), strict=True)
    known = sorted(((labels[c], size, times) for c, size, times in rows), key=lambda row: -row[2])
    shown = [f"{label} {size:,} clips {times:.2g} times" for label, size, times in known]
    found = f"{where}an epoch shows {few(shown, 8)}"
    numbers = {"times": {label: times for label, _, times in known}}
    if bare := int((classes < 0).sum()):
        found += f"; {bare:,} without a label are left out"
    rarest, _, most = known[0]
    if most <= OFTEN:
        return Finding("workers", "balance", found, numbers=numbers)
    fix = f"clips of {rarest} come {most:.0f} times an epoch: lower --balance"
    return Finding("workers", "balance", found, "warning", fix, numbers)
